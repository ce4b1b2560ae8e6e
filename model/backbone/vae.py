"""Video to latents and back, and the first frame as the backbone reads it. Wan's autoencoder is diffusers' `AutoencoderKLWan`.

B batch, C latent channels, F frames, T latents, H W px, h w latent rows and columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.stream_decoders import StreamDecoder, TinyStreamDecoder, WanStreamDecoder, new_inputs
from model.backbone.tiny_decoder import TinyDecoder, load_tiny_decoder
from model.config import CELL_PX, FRAMES_PER_LATENT

# Channels of the first-frame mask: one for each frame of Wan's latents. Every codec uses as many.
MASK_CHANNELS = FRAMES_PER_LATENT
# Grey frames are encoded until so many latents in a row differ by no more than this from the one before.
_SETTLED_LATENTS, _SETTLED = 3, 1e-5


def to_signed(pictures: Tensor) -> Tensor:
    """Convert uint8 pictures to [-1, 1], as codecs read them."""
    return pictures.float() / 127.5 - 1


def to_uint8(pictures: Tensor) -> Tensor:
    """Convert pictures in [-1, 1] to uint8, the inverse of `to_signed`."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


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

    @abstractmethod
    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder of the latents of one session, piece by piece."""

    def first_frame_stream(self, first_B3HW: Tensor) -> "FirstFrameStream":
        """Return the first-frame condition of an endless video, piece by piece."""
        return FirstFrameStream(self._grey_tail(first_B3HW))

    @abstractmethod
    def _grey_tail(self, first_B3HW: Tensor) -> Iterator[Tensor]:
        """Yield the latents [B, C, 1, h, w] of the image and of endless grey after it."""

    def encode_first_frame(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """Return the first-frame condition [B, 4 + C, T, h, w], which is concatenated to the noise.

        It is a mask of four channels (1 where the frame is given), and the latents of the image followed by grey frames, as
        Wan2.2 was trained. Grey is 0, the middle of the range.
        """
        grey = torch.zeros(*first_B3HW.shape[:2], frames - 1, *first_B3HW.shape[2:], device=first_B3HW.device)
        return _with_mask(self.encode(torch.cat([first_B3HW[:, :, None], grey], 2)), from_latent=0)


class FirstFrameStream:
    """The first-frame condition of an endless video, as `Codec.encode_first_frame` gives it for a long one.

    The image is seen for as long as the encoder remembers it. After that all latents of grey frames are the same one, and
    nothing more is encoded.
    """

    def __init__(self, tail: Iterator[Tensor]) -> None:
        self._tail, self._latents, self._unchanged = tail, list[Tensor](), 0

    def condition(self, latents: int, from_latent: int) -> Tensor:
        """Return the condition [B, 4 + C, T, h, w] of T = `latents` latents from number `from_latent` on."""
        while len(self._latents) < from_latent + latents and self._unchanged < _SETTLED_LATENTS:
            self._append(next(self._tail))
        last = len(self._latents) - 1
        chosen = [self._latents[min(number, last)] for number in range(from_latent, from_latent + latents)]
        return _with_mask(torch.cat(chosen, 2), from_latent)

    def _append(self, latent: Tensor) -> None:
        equal = bool(self._latents) and torch.allclose(self._latents[-1], latent, rtol=0, atol=_SETTLED)
        self._unchanged = self._unchanged + 1 if equal else 0
        self._latents.append(latent)


def _with_mask(latents: Tensor, from_latent: int) -> Tensor:
    """Return latents with their mask of four channels before them."""
    mask = latents.new_zeros(len(latents), MASK_CHANNELS, *latents.shape[2:])
    if from_latent == 0:
        mask[:, :, 0] = 1
    return torch.cat([mask, latents], 1)


class VideoCodec(Codec):
    """Wan's autoencoder with its latent statistics, frozen. A tiny decoder may replace its decoder."""

    frames_per_latent = FRAMES_PER_LATENT

    def __init__(self, vae: Any, tiny_decoder: TinyDecoder | None = None) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.tiny_decoder = tiny_decoder
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        """Return the mean of the posterior, not a draw from it."""
        latents = self.vae.encode(video_B3FHW.to(self.vae.dtype)).latent_dist.mode()
        return (latents.float() - self.mean) / self.deviation

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        if self.tiny_decoder is not None:
            return self.stream_decoder().decode(latents_BCThw)
        video: Tensor = self.vae.decode(self.to_decoder(latents_BCThw).to(self.vae.dtype), return_dict=False)[0]
        return video.float().clamp(-1, 1)

    def stream_decoder(self) -> StreamDecoder:
        if self.tiny_decoder is not None:
            return TinyStreamDecoder(self.tiny_decoder)
        return WanStreamDecoder(self.vae, self.to_decoder)

    def to_decoder(self, latents_BCThw: Tensor) -> Tensor:
        """Return normalised latents as the autoencoder's decoder reads them."""
        return latents_BCThw.float() * self.deviation + self.mean

    @torch.no_grad()
    def _grey_tail(self, first_B3HW: Tensor) -> Iterator[Tensor]:
        inputs = new_inputs(self.vae.encoder)
        frames = first_B3HW[:, :, None].to(self.vae.dtype)
        while True:
            encoded = self.vae.encoder(frames, feat_cache=inputs, feat_idx=[0])
            mode = self.vae.quant_conv(encoded).chunk(2, 1)[0]  # the mean of the posterior; the second half is its variance
            yield (mode.float() - self.mean) / self.deviation
            frames = torch.zeros_like(frames[:, :, :1]).expand(-1, -1, self.frames_per_latent, -1, -1)


def load(
    folder: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, tiny_decoder: str = ""
) -> VideoCodec:
    """Load the autoencoder of a diffusers folder (`vae/` of Wan2.2-I2V-A14B).

    tiny_decoder: file of the weights `taew2_1` of TAEHV, which then decode in `dtype`; empty: Wan's own decoder.
    """
    from diffusers import AutoencoderKLWan

    tiny = load_tiny_decoder(tiny_decoder).to(dtype=dtype) if tiny_decoder else None
    return VideoCodec(AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype), tiny).to(device)
