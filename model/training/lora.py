"""Low-rank changes of a frozen model (LoRA, arXiv 2106.09685): a critic that trains a hundredth of its weights.

The changed model computes as the frozen one until it is trained. With its changes switched off it is the frozen one, so that
real and fake score share their weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.world import World

# The linear layers of a block that are changed.
_CHANGED = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
# Beginning of the names of the parameters that are added; all others keep their names.
PARTS = ("lora_",)


class LoraLinear(nn.Linear):
    """A frozen linear layer with a trained change of low rank, which is zero at first."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias, self.switched_on = base.weight, base.bias, True
        self.lora_down = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        plain = super().forward(x)
        return plain + functional.linear(functional.linear(x, self.lora_down), self.lora_up) if self.switched_on else plain


def add_lora(module: nn.Module, rank: int) -> nn.Module:
    """Freeze a module, and give the linear layers of its blocks trained changes of this rank, in place."""
    module.requires_grad_(False)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and ".blocks." in f".{name}" and name.endswith(_CHANGED):
            owner, _, own_name = name.rpartition(".")
            setattr(module.get_submodule(owner), own_name, LoraLinear(layer, rank))
    return module


@contextmanager
def switched_off(world: World) -> Iterator[None]:
    """Switch the changes of a world off inside the context. Only for passes without gradients: recomputation sees them on."""
    layers = [layer for layer in world.modules() if isinstance(layer, LoraLinear)]
    for layer in layers:
        layer.switched_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.switched_on = True
