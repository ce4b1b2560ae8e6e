"""The moving average of weights that is played and evaluated: sharded as they are, never gathered."""

import torch
from torch import Tensor, nn


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
