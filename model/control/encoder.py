"""Rays to tokens: pixel-unshuffle, the four frames of a latent side by side (averaged, a flick left and right would cancel).

No normalisation layer: it would make the response to a step die with the distance walked. The last layer is zero at the start,
so that step 0 of training is the base model, bit for bit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import CELL, FRAMES_A_LATENT

_MAPS = 12
# Half of top speed moves a ray's moment by a quarter on average, a turn of a radian a second its direction by one: as large as
# they come, walking is learned the more slowly of the two.
_MOMENTS = 4.0


class CameraEncoder(nn.Module):
    """Control maps [B, F, 12, H, W] -> tokens [B, T x H/16 x W/16, D], to be added to the video's.

    per: frames a latent. rate: latents a second; the steps are multiplied by it, so that 1 is a radian a second, or a quarter
    of top speed, whatever the frame rate. As they come they would be a tenth of the rays beside them, and learned as slowly.
    """

    def __init__(self, width: int, hidden: int = 192, patch: int = 2, per: int = FRAMES_A_LATENT, rate: float = 4.0) -> None:
        super().__init__()
        self._patch, self._rate, self.per = patch, rate, per
        self.frame = nn.Conv2d(_MAPS * CELL**2, hidden, 1)
        self.latent = nn.Conv2d(per * hidden, hidden, 1)
        self.out = nn.Conv2d(hidden, width, patch, patch)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def nothing(self) -> Tensor:
        """The token [1, 1, D] of no camera: what maps of zeros give in every place. Training learns it from samples that have
        none.
        """
        side = CELL * self._patch
        token: Tensor = self(self.out.weight.new_zeros(1, 1, _MAPS, side, side))
        return token

    def forward(self, maps_BFCHW: Tensor, first_alone: bool = True) -> Tensor:
        """first_alone: the first frame is a latent of its own (a stream's start); its map stands in for all frames.

        ValueError for pictures that are no whole number of tokens.
        """
        batch, frames, _, height, width = maps_BFCHW.shape
        if height % (CELL * self._patch) or width % (CELL * self._patch):
            raise ValueError(f"{width}x{height} px do not divide into tokens of {CELL * self._patch} px: resize the video")
        rays, moments, directions = maps_BFCHW.flatten(0, 1).split((_MAPS // 2, 3, 3), 1)
        steps = moments * (_MOMENTS * self._rate), directions * self._rate
        cells = functional.pixel_unshuffle(torch.cat([rays, *steps], 1), CELL)
        small = functional.silu(self.frame(cells)).unflatten(0, (batch, frames))
        if first_alone:
            small = torch.cat([small[:, :1].expand(-1, self.per, -1, -1, -1), small[:, 1:]], 1)
        grouped = small.unflatten(1, (-1, self.per)).flatten(2, 3)
        tokens = self.out(functional.silu(self.latent(grouped.flatten(0, 1))))
        return tokens.unflatten(0, (batch, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)
