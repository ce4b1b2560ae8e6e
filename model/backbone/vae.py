"""Video to latents and back by Wan's own autoencoder (diffusers' `AutoencoderKLWan`), and the image as the backbone is told it.

B batch, F frames (1 + 4k), T latents (1 + k), H W px, h w latent rows and columns.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.config import FRAMES_A_LATENT


class VideoCodec(nn.Module):
    """The autoencoder with its statistics: latents of unit variance. Never trained."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        """Latents [B, 16, T, h, w] of a video in [-1, 1]; the mean of the posterior, not a draw."""
        latents = self.vae.encode(video_B3FHW.to(self.vae.dtype)).latent_dist.mode()
        return (latents.float() - self.mean) / self.deviation

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        """Video [B, 3, F, H, W] in [-1, 1]."""
        scaled = latents_BCThw.float() * self.deviation + self.mean
        video: Tensor = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]
        return video.float().clamp(-1, 1)

    def condition(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """The 20 channels that stand beside the noise, [B, 20, T, h, w]: a mask of four (1 where the frame is given), and the
        latents of the image followed by grey frames, as Wan2.2 was trained on. Its grey is 0, the middle of the range.
        """
        grey = torch.zeros(*first_B3HW.shape[:2], frames - 1, *first_B3HW.shape[2:], device=first_B3HW.device)
        latents = self.encode(torch.cat([first_B3HW[:, :, None], grey], 2))
        mask = torch.zeros_like(latents[:, :FRAMES_A_LATENT])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], 1)


def load(folder: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> VideoCodec:
    """The autoencoder in a diffusers folder (`vae/` of Wan2.2-I2V-A14B)."""
    from diffusers import AutoencoderKLWan

    return VideoCodec(AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype)).to(device)
