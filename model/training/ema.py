"""The moving average of the weights, which is played and evaluated. It is sharded as the weights are and never gathered."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class EmaWeights:
    """An exponential moving average of a module's trainable weights, by name."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and under 1, not {decay:g}")
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float | None = None) -> None:
        """Move the average towards the module's current weights. decay: instead of the average's own; 0 copies the weights."""
        reshard(module)
        parameters = {name: p.detach() for name, p in module.named_parameters() if name in self.weights}
        weights = [_local(self.weights[name]) for name in parameters]
        torch._foreach_lerp_(weights, [_local(p) for p in parameters.values()], 1 - (self.decay if decay is None else decay))

    @contextmanager
    @torch.no_grad()
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Give the module the averaged weights inside the context, and its own weights afterwards."""
        reshard(module)
        own = {name: p.detach().clone() for name, p in module.named_parameters() if name in self.weights}
        copy_weights(module, self.weights)
        try:
            yield
        finally:
            copy_weights(module, own)


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Drop gathered weights: after a forward pass alone the root still holds them, and they would be the old ones."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.no_grad()
def copy_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters of the same names; other parameters keep their values."""
    reshard(module)
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.data.copy_(weights[name])
