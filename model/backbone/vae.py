"""Video to latents and back, and the first frame as the backbone reads it. Wan's autoencoder is diffusers' `AutoencoderKLWan`.

B batch, C latent channels, F frames, T latents, H W px, h w latent rows and columns.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from model.config import CELL_PX, FRAMES_PER_LATENT

# Channels of the first-frame mask: one for each frame of Wan's latents. Every codec uses as many.
MASK_CHANNELS = FRAMES_PER_LATENT


def to_signed(pictures: Tensor) -> Tensor:
    """Convert uint8 pictures to [-1, 1], as codecs read them."""
    return pictures.float() / 127.5 - 1


class Codec(nn.Module, ABC):
    """Encodes video to latents of unit variance, `cell_px` px a row and column. The first frame is a latent by itself."""

    frames_per_latent: int
    cell_px: int = CELL_PX

    @abstractmethod
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        """Return the latents [B, C, T, h, w] of a video in [-1, 1]."""

    @abstractmethod
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        """Return the video [B, 3, F, H, W] in [-1, 1]."""

    def encode_first_frame(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """Return the first-frame condition [B, 4 + C, T, h, w], which is concatenated to the noise.

        It is a mask of four channels (1 where the frame is given), and the latents of the image followed by grey frames, as
        Wan2.2 was trained. Grey is 0, the middle of the range.
        """
        grey = torch.zeros(*first_B3HW.shape[:2], frames - 1, *first_B3HW.shape[2:], device=first_B3HW.device)
        latents = self.encode(torch.cat([first_B3HW[:, :, None], grey], 2))
        mask = latents.new_zeros(len(latents), MASK_CHANNELS, *latents.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], 1)


class VideoCodec(Codec):
    """Wan's autoencoder with its latent statistics, frozen."""

    frames_per_latent = FRAMES_PER_LATENT

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        """Return the mean of the posterior, not a draw from it."""
        latents = self.vae.encode(video_B3FHW.to(self.vae.dtype)).latent_dist.mode()
        return (latents.float() - self.mean) / self.deviation

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        scaled = latents_BCThw.float() * self.deviation + self.mean
        video: Tensor = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]
        return video.float().clamp(-1, 1)


def load(folder: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> VideoCodec:
    """Load the autoencoder of a diffusers folder (`vae/` of Wan2.2-I2V-A14B)."""
    from diffusers import AutoencoderKLWan

    return VideoCodec(AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype)).to(device)
