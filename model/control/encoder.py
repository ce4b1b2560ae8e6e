"""Rays to tokens: pixel-unshuffle, then a convolution over the stacked frames of a latent.

Frames are stacked, not averaged: the average of a flick to the left and back would be no motion. There is no normalisation
layer: it would make the response to a step fade with the distance walked. The last layer is zero at first, so that at step 0 of
training the model equals its base, bit for bit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import CELL_PX, FRAMES_PER_LATENT

_MAP_CHANNELS = 12
# At half of top speed a ray's moment changes by a quarter on average; at a turn of a radian a second its direction changes by
# one. Unscaled, walking would be learned more slowly than turning.
_MOMENT_SCALE = 4.0


class CameraEncoder(nn.Module):
    """Control maps [B, F, 12, H, W] -> tokens [B, T x H/16 x W/16, D], which are added to the video's tokens.

    rate: latents a second. The step channels are multiplied by it, so that 1 is a radian a second or a quarter of top speed at
    any frame rate. Unscaled, they would be a tenth as large as the ray channels, and learned as slowly.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 192,
        patch: int = 2,
        frames_per_latent: int = FRAMES_PER_LATENT,
        rate: float = 4.0,
    ) -> None:
        super().__init__()
        self._patch, self._rate, self.frames_per_latent = patch, rate, frames_per_latent
        self.frame = nn.Conv2d(_MAP_CHANNELS * CELL_PX**2, hidden, 1)
        self.latent = nn.Conv2d(frames_per_latent * hidden, hidden, 1)
        self.out = nn.Conv2d(hidden, width, patch, patch)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def no_camera_token(self) -> Tensor:
        """Return the token [1, 1, D] for no camera: the output for maps of zeros, which is the same in every place.

        It is trained by samples that have no camera.
        """
        side = CELL_PX * self._patch
        token: Tensor = self(self.out.weight.new_zeros(1, 1, _MAP_CHANNELS, side, side))
        return token

    def forward(self, maps_BFCHW: Tensor, first_alone: bool = True) -> Tensor:
        """Encode maps. ValueError for pictures that are not a whole number of tokens.

        first_alone: the first frame is a latent by itself (the start of a stream). Its map is repeated for all frames of the
        latent.
        """
        batch, frames, _, height, width = maps_BFCHW.shape
        if height % (CELL_PX * self._patch) or width % (CELL_PX * self._patch):
            raise ValueError(f"{width}x{height} px do not divide into tokens of {CELL_PX * self._patch} px: resize the video")
        rays, moments, directions = maps_BFCHW.flatten(0, 1).split((_MAP_CHANNELS // 2, 3, 3), 1)
        steps = moments * (_MOMENT_SCALE * self._rate), directions * self._rate
        cells = functional.pixel_unshuffle(torch.cat([rays, *steps], 1), CELL_PX)
        small = functional.silu(self.frame(cells)).unflatten(0, (batch, frames))
        if first_alone:
            small = torch.cat([small[:, :1].expand(-1, self.frames_per_latent, -1, -1, -1), small[:, 1:]], 1)
        grouped = small.unflatten(1, (-1, self.frames_per_latent)).flatten(2, 3)
        tokens = self.out(functional.silu(self.latent(grouped.flatten(0, 1))))
        return tokens.unflatten(0, (batch, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)
