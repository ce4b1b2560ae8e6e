"""A small codec for small worlds, trained on the shards in a minute or two.

It encodes every frame separately: cells of 8x8 px become principal components. Convolutions remove the seams between decoded
cells.

N pictures, C latent channels, P numbers of a cell (192), H W px, h w cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone.vae import Codec
from model.config import CELL_PX

_CELL_NUMBERS = 3 * CELL_PX**2


class FrameCodec(Codec):
    """Latents are principal components divided by the square root of their standard deviation.

    Their variance is 1 on average, and the components that are seen most still count most. If they were divided by the
    deviation itself, a model would spend most of its work on the last components.
    """

    frames_per_latent = 1
    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, channels: int = 32, width: int = 48) -> None:
        super().__init__()
        basis, _ = torch.linalg.qr(torch.randn(_CELL_NUMBERS, channels))
        self.register_buffer("mean", torch.zeros(_CELL_NUMBERS))
        self.register_buffer("basis", basis.contiguous())
        self.register_buffer("scale", torch.ones(channels))
        self.mend = nn.Sequential(
            nn.Conv2d(12, width, 3, 1, 1), Residual(width), Residual(width), nn.SiLU(), nn.Conv2d(width, 12, 3, 1, 1)
        )
        nn.init.zeros_(self.mend[-1].weight)
        nn.init.zeros_(self.mend[-1].bias)

    @torch.no_grad()
    def fit(self, pictures_N3HW: Tensor) -> None:
        """Set the principal components to those of these pictures."""
        cells = functional.pixel_unshuffle(pictures_N3HW, CELL_PX).movedim(1, -1).flatten(0, -2).double()
        self.mean.copy_(cells.mean(0))
        values, vectors = torch.linalg.eigh((cells - cells.mean(0)).T.cov(correction=0))
        values, vectors = values.flip(0)[: len(self.scale)].clamp(min=1e-8), vectors.flip(1)[:, : len(self.scale)]
        root = values**0.25
        self.scale.copy_(root * (values / root.square()).mean().sqrt())
        self.basis.copy_(vectors)

    def decode_with_seams(self, latents_NChw: Tensor) -> Tensor:
        """Decode pictures [N, 3, H, W] cell by cell."""
        cells = torch.einsum("nchw,pc->nphw", latents_NChw * self.scale[:, None, None], self.basis)
        return functional.pixel_shuffle(cells + self.mean[:, None, None], CELL_PX)

    def remove_seams(self, pictures_N3HW: Tensor) -> Tensor:
        """Return the pictures without seams, with gradients."""
        change: Tensor = functional.pixel_shuffle(self.mend(functional.pixel_unshuffle(pictures_N3HW, 2)), 2)
        return pictures_N3HW + change

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        pictures = video_B3FHW.transpose(1, 2).flatten(0, 1)
        cells = functional.pixel_unshuffle(pictures, CELL_PX) - self.mean[:, None, None]
        latents = torch.einsum("nphw,pc->nchw", cells, self.basis) / self.scale[:, None, None]
        return latents.unflatten(0, (len(video_B3FHW), -1)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        pictures = self.remove_seams(self.decode_with_seams(latents_BCThw.float().transpose(1, 2).flatten(0, 1)))
        return pictures.clamp(-1, 1).unflatten(0, (len(latents_BCThw), -1)).transpose(1, 2)

    def encode_first_frame(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """Do as the video codec does. Frames are encoded separately here, so one grey frame is enough."""
        two = super().encode_first_frame(first_B3HW, 2)
        return torch.cat([two[:, :, :1], two[:, :, 1:].expand(-1, -1, frames - 1, -1, -1)], 2)


class Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))
