"""A small codec for small worlds: every frame by itself to 8x8 px cells and back, trained on the shards in minutes.

N pictures, C latent channels, H W px, h w cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone.vae import Codec


class FrameCodec(Codec):
    """Convolutions with overlap on both sides, since seams between cells are what one sees first in a small world."""

    per = 1

    def __init__(self, channels: int = 32, width: int = 32) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU()),
            *(nn.Conv2d(2 * width, 3 * width, 4, 2, 1), Residual(3 * width), nn.Conv2d(3 * width, channels, 1)),
        )
        # Only the statistics of latents, no weights: unit variance in training and after it.
        self.unit = nn.BatchNorm2d(channels, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            *(nn.Conv2d(channels, 3 * width, 3, 1, 1), Residual(3 * width), Residual(3 * width)),
            *(Wider(3 * width, 2 * width), Residual(2 * width), Wider(2 * width, width), Residual(width)),
            *(nn.SiLU(), nn.Conv2d(width, 12, 3, 1, 1), nn.PixelShuffle(2)),
        )

    def latents(self, pictures_N3HW: Tensor) -> Tensor:
        """Latents [N, C, h, w], with gradients."""
        found: Tensor = self.unit(self.encoder(pictures_N3HW))
        return found

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        found = self.latents(video_B3FHW.transpose(1, 2).flatten(0, 1))
        return found.unflatten(0, (len(video_B3FHW), -1)).transpose(1, 2)

    def condition(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """As the video codec's; frames know nothing of each other here, so that one grey one is enough."""
        two = super().condition(first_B3HW, 2)
        return torch.cat([two[:, :, :1], two[:, :, 1:].expand(-1, -1, frames - 1, -1, -1)], 2)

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(latents_BCThw.float().transpose(1, 2).flatten(0, 1))
        return pictures.clamp(-1, 1).unflatten(0, (len(latents_BCThw), -1)).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class Wider(nn.Module):
    """Twice the rows and columns."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width_in, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
