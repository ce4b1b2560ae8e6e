"""Flow matching under action, stage 1 of the paper's training (section 4.3). Stage 2 is the same with frozen camera encoders.

x_sigma = (1 - sigma) x0 + sigma eps, and the model learns the velocity eps - x0 (rectified flow, as Wan2.2 was trained).
B batch, C latent channels, T latents, h w their rows and columns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.backbone.vae import Codec, to_signed
from model.config import CELL_PX
from model.control.pluecker import control_maps
from model.sampling import Conditioning
from model.world import World

# `backbone.text.TextEncoder` or a substitute: texts -> [B, S, E].
EncodeText = Callable[[list[str]], Tensor]
# `backbone.vlm_context.VlmEncoder` or a substitute: frames uint8 [B, 3, H, W], instructions -> [B, U, V].
EncodeInstruction = Callable[[Tensor, list[str]], Tensor]


class LatentBatch(NamedTuple):
    """A batch as the model reads it: clean latents x0 [B, C, T, h, w], and what they are generated from."""

    x0: Tensor
    conditioning: Conditioning


def encode_batch(
    batch: dict[str, Any],
    codec: Codec,
    text_encoder: EncodeText,
    device: torch.device,
    vlm_encoder: EncodeInstruction | None = None,
) -> LatentBatch:
    """Encode a batch of the loader with the frozen encoders.

    A sample without a camera gets control maps of zeros, which no camera has, not even one at rest. A sample without an
    instruction gets hidden states of zeros, which experts treat as no instruction.
    """
    x0, image = encode_video(batch, codec, device)
    return LatentBatch(x0, encode_conditioning(batch, image, codec, text_encoder, device, vlm_encoder))


def encode_conditioning(
    batch: dict[str, Any],
    image: Tensor,
    codec: Codec,
    text_encoder: EncodeText,
    device: torch.device,
    vlm_encoder: EncodeInstruction | None = None,
) -> Conditioning:
    """Return what a batch is generated from, given its first-frame condition; see `encode_batch`."""
    rows, columns = image.shape[-2:]
    height, width = CELL_PX * rows, CELL_PX * columns  # of the maps, which may be smaller than the pictures
    pose, origin = (batch[name].to(device, non_blocking=True) for name in ("pose", "origin"))
    known = batch["camera_known"].to(device)
    valid = valid_intrinsics(batch, (codec.cell_px * rows, codec.cell_px * columns), device) * (CELL_PX / codec.cell_px)
    per = codec.frames_per_latent
    maps = control_maps(pose, valid, height, width, origin, frames_per_latent=per) * known[:, None, None, None, None]
    vlm_context = encode_instructions(batch, vlm_encoder, device)
    return Conditioning(image, text_encoder(batch["text"]), maps, vlm_context)


def valid_intrinsics(batch: dict[str, Any], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the intrinsics [B, F, 4] of a batch, with some that work for samples without a camera, which have zeros.

    size: height and width of the video, px.
    """
    height, width = size
    known, intrinsics = batch["camera_known"].to(device), batch["intrinsics"].to(device, non_blocking=True)
    return torch.where(known[:, None, None], intrinsics, intrinsics.new_tensor([width, width, width / 2, height / 2]))


def encode_video(batch: dict[str, Any], codec: Codec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return latents and first-frame condition: those stored in the batch if it has them, otherwise computed from its video."""
    if "latents" in batch:
        latents, image = (batch[name].to(device, non_blocking=True).float() for name in ("latents", "image"))
        return latents, image
    video = to_signed(batch["video"].to(device, non_blocking=True))
    return codec.encode(video), codec.encode_first_frame(video[:, :, 0], video.shape[2])


def encode_instructions(batch: dict[str, Any], vlm_encoder: EncodeInstruction | None, device: torch.device) -> Tensor | None:
    """Return hidden states of the batch's frames and instructions; zeros for a sample without one, None without an encoder."""
    if vlm_encoder is None:
        return None
    has_instruction = torch.tensor([bool(text) for text in batch["instruction"]], device=device)
    return vlm_encoder(batch["video"][:, :, 0], batch["instruction"]).to(device) * has_instruction[:, None, None]


def loss(world: World, batch: LatentBatch, sigma_B: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared error of the velocity, [B]. One noise level a sample, all in the range of one expert."""
    sigma_BT = sigma_B[:, None].expand(-1, batch.x0.shape[2])
    sigma = sigma_B.view(-1, 1, 1, 1, 1)
    noisy = (1 - sigma) * batch.x0 + sigma * noise
    image, text, maps, vlm_context = batch.conditioning
    velocity = world(torch.cat([noisy, image], 1), sigma_BT, text, maps_BFCHW=maps, vlm_context_BUV=vlm_context)
    return (velocity.float() - (noise - batch.x0)).square().mean((1, 2, 3, 4))
