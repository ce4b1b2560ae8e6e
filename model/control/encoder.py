"""Rays to tokens: pixel-unshuffle, the four frames of a latent side by side (averaged, a flick left and right would cancel).

No normalisation layer: it would make the response to a step die with the distance walked. The last layer is zero at the start,
so that step 0 of training is the base model, bit for bit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import FRAMES_A_LATENT

# The video autoencoder's stride.
_UNSHUFFLE = 8
_MAPS = 12


class CameraEncoder(nn.Module):
    """Control maps [B, F, 12, H, W] -> tokens [B, T x H/16 x W/16, D], to be added to the video's."""

    def __init__(self, width: int, hidden: int = 192, patch: int = 2) -> None:
        super().__init__()
        self._patch = patch
        self.frame = nn.Conv2d(_MAPS * _UNSHUFFLE**2, hidden, 1)
        self.latent = nn.Conv2d(FRAMES_A_LATENT * hidden, hidden, 1)
        self.out = nn.Conv2d(hidden, width, patch, patch)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, maps_BFCHW: Tensor, first_alone: bool = True) -> Tensor:
        """first_alone: the first frame is a latent of its own (a stream's start); its map stands in for all four frames.

        ValueError for pictures that are no whole number of tokens.
        """
        batch, frames, _, height, width = maps_BFCHW.shape
        if height % (_UNSHUFFLE * self._patch) or width % (_UNSHUFFLE * self._patch):
            raise ValueError(
                f"{width}x{height} px do not divide into tokens of {_UNSHUFFLE * self._patch} px: resize the video"
            )
        small = functional.silu(self.frame(functional.pixel_unshuffle(maps_BFCHW.flatten(0, 1), _UNSHUFFLE))).unflatten(
            0, (batch, frames)
        )
        if first_alone:
            small = torch.cat([small[:, :1].expand(-1, FRAMES_A_LATENT, -1, -1, -1), small[:, 1:]], 1)
        grouped = small.unflatten(1, (-1, FRAMES_A_LATENT)).flatten(2, 3)
        tokens = self.out(functional.silu(self.latent(grouped.flatten(0, 1))))
        return tokens.unflatten(0, (batch, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)
