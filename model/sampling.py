"""Video out of noise: Euler steps along the learned velocity (rectified flow).

B batch, C channels, T latents, h w latent rows and columns.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from model.noise import NoiseSpec
from model.world import World


class Conditioning(NamedTuple):
    """What a video is generated from.

    image: first-frame condition [B, 4 + C, T, h, w], mask and latents (`vae.Codec.encode_first_frame`). text: [B, S, E]. maps:
    control maps of the camera (None: no camera). vlm_context: hidden states of a vision-language model [B, U, V] (None: no
    instruction).
    """

    image: Tensor
    text: Tensor
    maps: Tensor | None
    vlm_context: Tensor | None = None


def sampler_sigmas(noise: NoiseSpec, steps: int) -> list[float]:
    """Return the noise levels of a sampler, from 1 to 0, evenly spaced before the shift."""
    if steps < 1:
        raise ValueError(f"a sampler needs at least one step, not {steps}")
    return [*noise.to_sigma(1 - torch.arange(steps, dtype=torch.float64) / steps).tolist(), 0.0]


@torch.no_grad()
def sample(
    world: World,
    conditioning: Conditioning,
    sigmas: Sequence[float],
    generator: torch.Generator,
    unconditional: Conditioning | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Generate latents [B, C, T, h, w].

    unconditional: the same image without text or camera, away from which a `guidance` > 1 leads.
    """
    image = conditioning.image
    shape = len(image), world.high.expert.config.out_channels, *image.shape[2:]
    x = torch.randn(shape, generator=generator).to(image.device)
    for sigma, next_sigma in pairwise(sigmas):
        velocity = _velocity(world, x, sigma, conditioning)
        if unconditional is not None and guidance != 1:
            baseline = _velocity(world, x, sigma, unconditional)
            velocity = baseline + guidance * (velocity - baseline)
        x = x + (next_sigma - sigma) * velocity
    return x


def _velocity(world: World, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
    sigma_BT = x.new_full((len(x), x.shape[2]), sigma)
    image, text, maps, vlm_context = conditioning
    return world(torch.cat([x, image], 1), sigma_BT, text, maps_BFCHW=maps, vlm_context_BUV=vlm_context).float()
