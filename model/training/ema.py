"""The moving average of weights that is played and evaluated: sharded as they are, never gathered."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Average:
    """An exponential moving average of a module's trainable weights, by name."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and under 1, not {decay:g}")
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 - self.decay)

    @contextmanager
    @torch.no_grad()
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module has these weights inside, its own again afterwards."""
        own = {name: p.detach().clone() for name, p in module.named_parameters() if name in self.weights}
        put(module, self.weights)
        try:
            yield
        finally:
            put(module, own)


@torch.no_grad()
def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters of those names; others keep their values."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # a root that was only run forward still holds gathered weights, the old ones
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.data.copy_(weights[name])
