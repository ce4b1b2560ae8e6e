"""A small codec for small worlds: every frame by itself, 8x8 px cells by their principal components and back, the seams between
them mended by convolutions. Trained on the shards in a minute or two.

N pictures, C latent channels, P numbers of a cell (192), H W px, h w cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone.vae import Codec
from model.config import CELL

_NUMBERS = 3 * CELL**2


class FrameCodec(Codec):
    """Latents are principal components divided by the root of their deviation: unit variance in the mean, and what one sees
    most still counts most. Divided by the deviation itself, most of a model's work would go into the last of them.
    """

    per = 1
    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, channels: int = 32, width: int = 48) -> None:
        super().__init__()
        basis, _ = torch.linalg.qr(torch.randn(_NUMBERS, channels))
        self.register_buffer("mean", torch.zeros(_NUMBERS))
        self.register_buffer("basis", basis.contiguous())
        self.register_buffer("scale", torch.ones(channels))
        self.mend = nn.Sequential(
            nn.Conv2d(12, width, 3, 1, 1), Residual(width), Residual(width), nn.SiLU(), nn.Conv2d(width, 12, 3, 1, 1)
        )
        nn.init.zeros_(self.mend[-1].weight)
        nn.init.zeros_(self.mend[-1].bias)

    @torch.no_grad()
    def fit(self, pictures_N3HW: Tensor) -> None:
        """Take the components of these pictures."""
        cells = functional.pixel_unshuffle(pictures_N3HW, CELL).movedim(1, -1).flatten(0, -2).double()
        self.mean.copy_(cells.mean(0))
        values, vectors = torch.linalg.eigh((cells - cells.mean(0)).T.cov(correction=0))
        values, vectors = values.flip(0)[: len(self.scale)].clamp(min=1e-8), vectors.flip(1)[:, : len(self.scale)]
        root = values**0.25
        self.scale.copy_(root * (values / root.square()).mean().sqrt())
        self.basis.copy_(vectors)

    def plain(self, latents_NChw: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] with their seams."""
        cells = torch.einsum("nchw,pc->nphw", latents_NChw * self.scale[:, None, None], self.basis)
        return functional.pixel_shuffle(cells + self.mean[:, None, None], CELL)

    def mended(self, plain_N3HW: Tensor) -> Tensor:
        """Pictures without seams, with gradients."""
        change: Tensor = functional.pixel_shuffle(self.mend(functional.pixel_unshuffle(plain_N3HW, 2)), 2)
        return plain_N3HW + change

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        pictures = video_B3FHW.transpose(1, 2).flatten(0, 1)
        cells = functional.pixel_unshuffle(pictures, CELL) - self.mean[:, None, None]
        latents = torch.einsum("nphw,pc->nchw", cells, self.basis) / self.scale[:, None, None]
        return latents.unflatten(0, (len(video_B3FHW), -1)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        pictures = self.mended(self.plain(latents_BCThw.float().transpose(1, 2).flatten(0, 1)))
        return pictures.clamp(-1, 1).unflatten(0, (len(latents_BCThw), -1)).transpose(1, 2)

    def condition(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """As the video codec's; frames know nothing of each other here, so that one grey one is enough."""
        two = super().condition(first_B3HW, 2)
        return torch.cat([two[:, :, :1], two[:, :, 1:].expand(-1, -1, frames - 1, -1, -1)], 2)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))
