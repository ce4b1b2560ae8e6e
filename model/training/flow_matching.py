"""Stage 1 of the paper's training (section 4.3): flow matching under action, and stage 2, which freezes the camera encoder.

x_sigma = (1 - sigma) x0 + sigma eps, and the model learns the velocity eps - x0 (rectified flow, as Wan2.2 was trained).
B batch, C latent channels, T latents, h w their rows and columns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.backbone.vae import Codec, signed
from model.config import CELL
from model.control.pluecker import control_maps
from model.sampling import Given
from model.world import World

# A text encoder, or what stands in its place: texts -> [B, S, E].
Words = Callable[[list[str]], Tensor]
# `backbone.added.Thoughts`: frames uint8 [B, 3, H, W], instructions -> [B, U, V].
Thoughts = Callable[[Tensor, list[str]], Tensor]


class Latents(NamedTuple):
    """A batch as the model sees it: x0 [B, C, T, h, w], and what it is to be made from."""

    x0: Tensor
    given: Given


def encoded(
    batch: dict[str, Any], codec: Codec, words: Words, device: torch.device, thoughts: Thoughts | None = None
) -> Latents:
    """A loader's batch through the frozen encoders. A sample without a camera has maps of zeros: no camera at rest has them;
    one without an instruction has hidden states of zeros, which are read as none.
    """
    x0, image = coded(batch, codec, device)
    height, width = CELL * x0.shape[-2], CELL * x0.shape[-1]
    pose, origin, inner = (batch[name].to(device, non_blocking=True) for name in ("pose", "origin", "intrinsics"))
    known = batch["camera_known"].to(device)
    safe = torch.where(known[:, None, None], inner, inner.new_tensor([width, width, width / 2, height / 2]))
    maps = control_maps(pose, safe, height, width, origin, per=codec.per) * known[:, None, None, None, None]
    return Latents(x0, Given(image, words(batch["text"]), maps, _added(batch, thoughts, device)))


def coded(batch: dict[str, Any], codec: Codec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents and image: those of the batch where they were encoded before, else of its video."""
    if "latents" in batch:
        latents, image = (batch[name].to(device, non_blocking=True).float() for name in ("latents", "image"))
        return latents, image
    video = signed(batch["video"].to(device, non_blocking=True))
    return codec.encode(video), codec.condition(video[:, :, 0], video.shape[2])


def _added(batch: dict[str, Any], thoughts: Thoughts | None, device: torch.device) -> Tensor | None:
    if thoughts is None:
        return None
    told = torch.tensor([bool(words) for words in batch["instruction"]], device=device)
    return thoughts(batch["video"][:, :, 0], batch["instruction"]).to(device) * told[:, None, None]


def loss(world: World, seen: Latents, sigma_B: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, [B], one noise level a sample; all of them one expert's."""
    sigma_BT = sigma_B[:, None].expand(-1, seen.x0.shape[2])
    level = sigma_B.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * seen.x0 + level * noise
    given = seen.given
    image = torch.cat([noisy, given.image], 1)
    velocity = world(image, sigma_BT, given.text, maps_BFCHW=given.maps, added_BUV=given.added)
    return (velocity.float() - (noise - seen.x0)).square().mean((1, 2, 3, 4))
