"""Linear layers in fp8: weights and activations as float8_e4m3fn, with a scale for each row; products are summed in float32.

On a GPU torchao does it where it is installed, else `torch._scaled_mm`. On a processor the same rounding is done and the
product is computed in float32, so that errors can be measured without a GPU.

torchao skips layers that it cannot convert without a word. Here converted layers are counted, and a layer left out is an error.

M tokens, K and N inputs and outputs of a layer.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.dit import Expert

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
# Sides that the matrix units take.
_DIVISOR = 16
BACKENDS = ("auto", "torchao", "own")


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fp8 numbers of each row and its scale, float32 [M, 1]: x is about their product.

    The largest number of a row becomes the largest of fp8. Numbers beyond that would become NaN, not the largest.
    """
    x = x_MK.float()
    scale_M1 = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=1e-12)
    return (x / scale_M1).clamp(-LARGEST, LARGEST).to(DTYPE), scale_M1


def scaled_product(a_MK: Tensor, scale_M1: Tensor, b_NK: Tensor, scale_N1: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b.T of scaled fp8 matrices, [M, N]."""
    if a_MK.is_cuda:
        # A product whose sums are float32 all along is half as fast; this is what others run, too.
        product: Tensor = torch._scaled_mm(
            a_MK, b_NK.t(), scale_a=scale_M1, scale_b=scale_N1.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product.to(dtype)
    return ((a_MK.float() @ b_NK.float().t()) * scale_M1 * scale_N1.t()).to(dtype)


class Fp8Linear(nn.Module):
    """A linear layer in fp8, made of one in another dtype. Activations are scaled anew in each call."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_NK, scale_N1 = quantize_rows(linear.weight.detach())
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", weight_NK)
        self.register_buffer("scale", scale_N1)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows_MK, scale_M1 = quantize_rows(x.flatten(0, -2))
        made = scaled_product(rows_MK, scale_M1, self.weight, self.scale, x.dtype).unflatten(0, x.shape[:-1])
        return made if self.bias is None else made + self.bias


def convert(expert: Expert, backend: str = "auto") -> tuple[int, str]:
    """Convert the linear layers of all blocks in place; return how many there are, and which backend converted them.

    What embeds noise levels, text and patches, and the head, keep their dtype: they are a hundredth of the work, and errors
    there reach every layer. backend: torchao, own, or auto: torchao on a GPU where it is installed. ValueError, with the names
    of the layers, where some cannot be converted, or were not. RuntimeError where the backend cannot run here.
    """
    linears = dict(_linears(expert))
    unfit = [name for name, each in linears.items() if each.in_features % _DIVISOR or each.out_features % _DIVISOR]
    if unfit:
        raise ValueError(f"fp8 needs layers whose sides divide by {_DIVISOR}; {len(unfit)} do not, the first {unfit[0]}")
    device = next(expert.parameters()).device
    chosen = choose_backend(backend, device)
    if chosen == "torchao":
        _convert_by_torchao(expert, linears)
        left = [name for name in linears if not _is_torchao(expert.get_submodule(name))]
    else:
        for name, linear in linears.items():
            parent, _, child = name.rpartition(".")
            setattr(expert.get_submodule(parent), child, Fp8Linear(linear))
        left = [name for name in linears if not isinstance(expert.get_submodule(name), Fp8Linear)]
    if left:
        raise ValueError(f"{chosen} left {len(left)} of {len(linears)} layers as they were, the first {left[0]}")
    return len(linears), chosen


def choose_backend(backend: str, device: torch.device) -> str:
    """Return what converts layers on a device. RuntimeError where it cannot run there."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise RuntimeError("fp8 products need a GPU of compute capability 8.9 (Ada, Hopper) or newer")
    installed = find_spec("torchao") is not None
    if backend == "auto":
        return "torchao" if installed and device.type == "cuda" else "own"
    if backend == "torchao" and not installed:
        raise RuntimeError("torchao is not installed: pip install torchao, or use fp8_backend=own")
    if backend == "torchao" and device.type != "cuda":
        raise RuntimeError("torchao's fp8 products need a GPU; use fp8_backend=own")
    return backend


def _linears(expert: Expert) -> Iterator[tuple[str, nn.Linear]]:
    for number, block in enumerate(expert.blocks):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                yield f"blocks.{number}.{name}", module


def _convert_by_torchao(expert: Expert, linears: dict[str, nn.Linear]) -> None:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    # set_inductor_config would change flags of torch.compile for the whole process.
    config: Any = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    quantize_(expert, config, filter_fn=lambda _, name: name in linears)


def _is_torchao(module: nn.Module) -> bool:
    return type(module.weight).__module__.startswith("torchao")
