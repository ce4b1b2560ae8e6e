"""Stage 1 of the paper's training (section 4.3): flow matching under action, and stage 2, which freezes the camera encoder.

x_sigma = (1 - sigma) x0 + sigma eps, and the model learns the velocity eps - x0 (rectified flow, as Wan2.2 was trained).
B batch, T latents.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.backbone.text import TextEncoder
from model.backbone.vae import VideoCodec
from model.control.pluecker import control_maps
from model.world import World


class Latents(NamedTuple):
    """A batch as the model sees it: x0 [B, 16, T, h, w]; given [B, 20, T, h, w], mask and image; text [B, S, E]; maps, the
    camera's (None: no camera).
    """

    x0: Tensor
    given: Tensor
    text: Tensor
    maps: Tensor | None


def encoded(batch: dict[str, Any], codec: VideoCodec, words: TextEncoder, device: torch.device) -> Latents:
    """A loader's batch through the frozen encoders. A sample without a camera has maps of zeros: no camera at rest has them."""
    video = batch["video"].to(device, non_blocking=True).float() / 127.5 - 1
    height, width = video.shape[-2:]
    pose, inner = (batch[name].to(device, non_blocking=True) for name in ("pose", "intrinsics"))
    known = batch["camera_known"].to(device)
    safe = torch.where(known[:, None, None], inner, inner.new_tensor([width, width, width / 2, height / 2]))
    maps = control_maps(pose, safe, height, width) * known[:, None, None, None, None]
    return Latents(codec.encode(video), codec.condition(video[:, :, 0], video.shape[2]), words(batch["text"]), maps)


def loss(world: World, seen: Latents, sigma_B: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity, [B], one noise level a sample; all of them one expert's."""
    sigma_BT = sigma_B[:, None].expand(-1, seen.x0.shape[2])
    level = sigma_B.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * seen.x0 + level * noise
    velocity = world(torch.cat([noisy, seen.given], 1), sigma_BT, seen.text, maps_BFCHW=seen.maps)
    return (velocity.float() - (noise - seen.x0)).square().mean((1, 2, 3, 4))
