"""A tiny decoder of Wan's latents: TAEHV (github.com/madebyollin/taehv, MIT), weights `taew2_1`, our own implementation.

It reads normalised latents, as the backbone makes them, without their mean and deviation. A latent becomes four frames. Each
memory block reads its input of the frame before next to that of the current frame. So a stream continues from those inputs
alone. Modules have the indices of the published network, so that its state dict loads by name.

The published weights were not at hand when this was written: it was tested with random ones of the same names and shapes.

B batch, T frames at the resolution of a layer, C channels, H W px, h w latent rows and columns.
"""

import pickle
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.errors import InputError

LATENT_CHANNELS = 16
# The first latent stands for one frame. Of the four that are decoded from it the first three are dropped.
WARM_UP_FRAMES = 3
_WIDTHS = (256, 128, 64, 64)
_TIME_STRIDES = (1, 2, 2)  # frames that each of the three stages makes of one

Memory = list[Tensor | None]


class TinyDecoder(nn.Module):
    """Three stages, each of three memory blocks, an upsampling by two, and a division of a frame into one or two."""

    def __init__(self, widths: Sequence[int] = _WIDTHS, channels: int = LATENT_CHANNELS) -> None:
        super().__init__()
        layers: list[nn.Module] = [SoftClamp(), _conv(channels, widths[0]), nn.ReLU()]
        for before, after, stride in zip(widths, widths[1:], _TIME_STRIDES, strict=False):
            layers += [MemoryBlock(before) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), DivideFrames(before, stride), _conv(before, after, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3))

    def new_memory(self) -> Memory:
        """Return the memory of a stream before its first latent."""
        return [None] * len(self.decoder)

    def forward(self, latents_BTChw: Tensor, memory: Memory) -> Tensor:
        """Return frames [B, 4T, 3, H, W] in [0, 1], and store in `memory` what the next latents of this stream need."""
        x = latents_BTChw
        for number, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock):
                last = memory[number]
                before = torch.cat([torch.zeros_like(x[:, :1]) if last is None else last, x[:, :-1]], 1)
                memory[number] = x[:, -1:]
                frames: Tensor = layer(x.flatten(0, 1), before.flatten(0, 1))
            else:
                frames = layer(x.flatten(0, 1))
            x = frames.unflatten(0, (len(latents_BTChw), -1))
        return x.clamp(0, 1)


class SoftClamp(nn.Module):
    """Limits latents to (-3, 3), smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the one before, with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return functional.relu(self.conv(torch.cat([x, before], 1)) + x)


class DivideFrames(nn.Module):
    """Makes `stride` frames of each frame, in order of time."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames: Tensor = self.conv(x)
        return frames.reshape(-1, *x.shape[1:])


def _conv(channels: int, width: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, 1, 1, bias=bias)


def load_tiny_decoder(path: str) -> TinyDecoder:
    """Load the decoder's weights of a published file, `taew2_1.pth` or .safetensors. InputError where it is no such file."""
    net = TinyDecoder()
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        own = net.state_dict()
        weights = {name: weights[name] for name in own}
        for name, value in own.items():
            # A file may have the division of a stage that is used without it: then the later frames' rows come last.
            weights[name] = weights[name][-len(value) :].float()
        net.load_state_dict(weights)
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: no weights of TAEHV for Wan 2.1 (taew2_1): {error}") from error
    return net.eval().requires_grad_(False)
