"""A small codec for small worlds, trained on the shards: principal components of cells, and a convolutional decoder.

It encodes every frame separately. The linear part is exact: cells of `cell_px` px become principal components, and `project`
makes any picture one that has given latents. The decoder adds what the linear part cannot: no seams between cells, and texture.

N pictures, C latent channels, P numbers of a cell (3 x cell_px^2), H W px, h w cells.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone.stream_decoders import FrameStreamDecoder, StreamDecoder
from model.backbone.vae import Codec
from model.config import CELL_PX


class FrameCodec(Codec):
    """Latents are principal components divided by the square root of their standard deviation.

    Their variance is 1 on average, and the components that are seen most still count most. If they were divided by the
    deviation itself, a model would spend most of its work on the last components.
    """

    frames_per_latent = 1
    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, channels: int = 32, width: int = 32, cell_px: int = CELL_PX) -> None:
        """channels: of a latent. width: of the decoder, see `Decoder`. cell_px: side of a cell, a power of two from 4."""
        super().__init__()
        self.cell_px = cell_px
        numbers = 3 * cell_px**2
        basis, _ = torch.linalg.qr(torch.randn(numbers, channels))
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("basis", basis.contiguous())
        self.register_buffer("scale", torch.ones(channels))
        self.decoder = Decoder(channels, width, cell_px)

    @torch.no_grad()
    def fit(self, pictures_N3HW: Tensor) -> None:
        """Set the principal components to those of these pictures."""
        cells = functional.pixel_unshuffle(pictures_N3HW, self.cell_px).movedim(1, -1).flatten(0, -2)
        mean, covariance = _mean_and_covariance(cells)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[: len(self.scale)].clamp(min=1e-8), vectors.flip(1)[:, : len(self.scale)]
        root = values**0.25
        self.mean.copy_(mean)
        self.scale.copy_(root * (values / root.square()).mean().sqrt())
        self.basis.copy_(vectors)

    def encode_pictures(self, pictures_N3HW: Tensor) -> Tensor:
        """Return the latents [N, C, h, w] of pictures, with gradients."""
        cells = functional.pixel_unshuffle(pictures_N3HW, self.cell_px) - self.mean[:, None, None]
        return functional.conv2d(cells, self.basis.T[:, :, None, None]) / self.scale[:, None, None]

    def decode_linear(self, latents_NChw: Tensor) -> Tensor:
        """Return pictures [N, 3, H, W] from the principal components alone, cell by cell, unclamped.

        Of all pictures with these latents they are nearest to the mean.
        """
        cells = functional.conv2d(latents_NChw * self.scale[:, None, None], self.basis[:, :, None, None])
        return functional.pixel_shuffle(cells + self.mean[:, None, None], self.cell_px)

    def decode_pictures(self, latents_NChw: Tensor) -> Tensor:
        """Return pictures [N, 3, H, W], unclamped and with gradients: the linear decoding plus what the decoder adds."""
        linear = self.decode_linear(latents_NChw)
        change: Tensor = self.decoder(latents_NChw, linear)
        return linear + change

    def project(self, pictures_N3HW: Tensor, latents_NChw: Tensor) -> Tensor:
        """Change pictures least so that `encode` returns these latents.

        A world that warps its own pictures into the next frame's condition must project them first. What the decoder sharpens
        would otherwise change the latents, and be sharpened again in the next frame. The result is unclamped, since a clamp
        would change the latents.
        """
        error = latents_NChw - self.encode_pictures(pictures_N3HW)
        cells = functional.conv2d(error * self.scale[:, None, None], self.basis[:, :, None, None])
        return pictures_N3HW + functional.pixel_shuffle(cells, self.cell_px)

    @torch.no_grad()
    def encode(self, video_B3FHW: Tensor) -> Tensor:
        latents = self.encode_pictures(video_B3FHW.transpose(1, 2).flatten(0, 1))
        return latents.unflatten(0, (len(video_B3FHW), -1)).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        """Return the video for display. It is clamped, and its latents are only close to those given: see `project`."""
        pictures = self.decode_pictures(latents_BCThw.float().transpose(1, 2).flatten(0, 1))
        return pictures.clamp(-1, 1).unflatten(0, (len(latents_BCThw), -1)).transpose(1, 2)

    def stream_decoder(self) -> StreamDecoder:
        return FrameStreamDecoder(self.decode)

    def _grey_tail(self, first_B3HW: Tensor) -> Iterator[Tensor]:
        yield self.encode(first_B3HW[:, :, None])
        grey = self.encode(torch.zeros_like(first_B3HW[:, :, None]))
        while True:
            yield grey

    def encode_first_frame(self, first_B3HW: Tensor, frames: int) -> Tensor:
        """Do as the video codec does. Frames are encoded separately here, so one grey frame is enough."""
        two = super().encode_first_frame(first_B3HW, 2)
        return torch.cat([two[:, :, :1], two[:, :, 1:].expand(-1, -1, frames - 1, -1, -1)], 2)


class Decoder(nn.Module):
    """Convolutions from latents to the change of the linear decoding, zero until trained.

    One level for each doubling of the grid, from cells to half the pictures' size. There each place has `width` channels and
    one level below two times as many, then three times, and so on. The last doubling is a pixel shuffle.
    """

    def __init__(self, channels: int, width: int, cell_px: int) -> None:
        super().__init__()
        levels = cell_px.bit_length() - 1
        if cell_px != 1 << levels or levels < 2:
            raise ValueError(f"cell_px must be a power of two from 4, not {cell_px}")
        widths = [width * level for level in range(levels, 0, -1)]
        self.first = nn.Conv2d(channels, widths[0], 3, 1, 1)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Residual(each) for _ in range(2 if each == 2 * width else 1))) for each in widths
        )
        self.grow = nn.ModuleList(nn.Conv2d(low, 4 * high, 1) for low, high in pairwise(widths))
        self.linear = nn.Conv2d(12, width, 3, 1, 1)
        self.last = nn.Conv2d(width, 12, 3, 1, 1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, latents_NChw: Tensor, linear_N3HW: Tensor) -> Tensor:
        x = self.levels[0](self.first(latents_NChw))
        for number, (grow, level) in enumerate(zip(self.grow, self.levels[1:], strict=True)):
            x = functional.pixel_shuffle(grow(x), 2)
            if number == len(self.grow) - 1:
                x = x + self.linear(functional.pixel_unshuffle(linear_N3HW, 2))
            x = level(x)
        change: Tensor = functional.pixel_shuffle(self.last(functional.silu(x)), 2)
        return change


class Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))


def _mean_and_covariance(cells_MP: Tensor, block: int = 1 << 14) -> tuple[Tensor, Tensor]:
    """Return mean [P] and covariance [P, P] in float64, in blocks: thousands of pictures do not fit in float64 at once."""
    mean = sum((part.double().sum(0) for part in cells_MP.split(block)), torch.zeros_like(cells_MP[0], dtype=torch.double))
    mean = mean / len(cells_MP)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.double, device=cells_MP.device)
    for part in cells_MP.split(block):
        centred = part.double() - mean
        covariance += centred.T @ centred
    return mean, covariance / len(cells_MP)
