"""Video out of noise: Euler steps along the velocity that stage 1 learned (rectified flow).

B batch, C channels, T latents, h w latent rows and columns.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from model.noise import NoiseSpec
from model.world import World


class Given(NamedTuple):
    """What a video is made from: image [B, 4 + C, T, h, w], mask and latents (`vae.Codec.condition`); text [B, S, E]; maps, the
    camera's (None: no camera); added [B, U, V], a vision-language model's hidden states (None: none are read).
    """

    image: Tensor
    text: Tensor
    maps: Tensor | None
    added: Tensor | None = None


def levels(noise: NoiseSpec, steps: int) -> list[float]:
    """Noise levels of a sampler, evenly in unshifted time, from 1 to 0."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
    return [*noise.shifted(1 - torch.arange(steps, dtype=torch.float64) / steps).tolist(), 0.0]


@torch.no_grad()
def sample(
    world: World,
    given: Given,
    sigmas: Sequence[float],
    generator: torch.Generator,
    nothing: Given | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Latents [B, C, T, h, w]. nothing: the same image without text or camera, from which `guidance` > 1 leads away."""
    shape = len(given.image), world.high.expert.config.out_channels, *given.image.shape[2:]
    x = torch.randn(shape, generator=generator).to(given.image.device)
    for sigma, after in pairwise(sigmas):
        velocity = _velocity(world, x, sigma, given)
        if nothing is not None and guidance != 1:
            away = _velocity(world, x, sigma, nothing)
            velocity = away + guidance * (velocity - away)
        x = x + (after - sigma) * velocity
    return x


def _velocity(world: World, x: Tensor, sigma: float, given: Given) -> Tensor:
    level = x.new_full((len(x), x.shape[2]), sigma)
    return world(torch.cat([x, given.image], 1), level, given.text, maps_BFCHW=given.maps, added_BUV=given.added).float()
