"""Rays of a moving camera as the encoder reads them: Pluecker coordinates relative to two origins (paper section 4.1).

B batch, F frames, T latents (1 + (F - 1) / 4), 6 coordinates: moment o x d, then direction d of unit length.
"""

import torch
from torch import Tensor

from model.config import FRAMES_PER_LATENT


def pluecker(pose_BF44: Tensor, intrinsics_BF4: Tensor, height: int, width: int) -> Tensor:
    """Return rays through the centres of all pixels, float32 [B, F, 6, H, W], of camera-to-world poses.

    Intrinsics are in px of H x W. Their origin is the corner (cx = W / 2 when centred), so the first pixel's centre is at 0.5.
    """
    fx, fy, cx, cy = intrinsics_BF4.double().unbind(-1)
    column = torch.arange(width, dtype=torch.float64, device=pose_BF44.device) + 0.5
    row = torch.arange(height, dtype=torch.float64, device=pose_BF44.device) + 0.5
    right = ((column - cx[..., None]) / fx[..., None])[..., None, :].expand(-1, -1, height, -1)
    down = ((row - cy[..., None]) / fy[..., None])[..., :, None].expand(-1, -1, -1, width)
    ray = torch.stack([right, down, torch.ones_like(right)], -1)
    ray = ray / ray.norm(dim=-1, keepdim=True)
    d = torch.einsum("bfij,bfhwj->bfhwi", pose_BF44[..., :3, :3].double(), ray)
    o = pose_BF44[..., :3, 3].double()[:, :, None, None].expand_as(d)
    return torch.cat([torch.linalg.cross(o, d), d], -1).permute(0, 1, 4, 2, 3).float()


def relative_to_origin(pose_BF44: Tensor, origin: Tensor | None = None) -> Tensor:
    """Return poses relative to an origin, by default the camera of the first frame. origin: [B, 4, 4], or one a frame."""
    origin = pose_BF44[:, 0] if origin is None else origin
    origin_BF44 = origin if origin.ndim == pose_BF44.ndim else origin[:, None]
    return torch.linalg.inv(origin_BF44.double()) @ pose_BF44.double()


def relative_to_previous_latent(
    pose_BF44: Tensor, before_B44: Tensor | None = None, frames_per_latent: int = FRAMES_PER_LATENT
) -> Tensor:
    """Return poses relative to the last frame of the previous latent: the identity for a camera at rest, wherever it is.

    Frame 0 is the first latent by itself, and its own origin. With 4 frames per latent, frames 4k - 3 to 4k are latent k. A
    block that continues a stream has no such first frame: `before` is the pose of the last frame before it, and its frames are
    whole latents. ValueError for another number of frames.
    """
    pose, single = pose_BF44.double(), before_B44 is None
    frames = pose.shape[1] - single
    if frames % frames_per_latent:
        raise ValueError(
            f"{pose.shape[1]} frames are not a whole number of latents (1 + {frames_per_latent}k at the start of a stream, "
            f"{frames_per_latent}k later)"
        )
    last = pose[:, :1] if before_B44 is None else before_B44.double()[:, None]
    groups = pose[:, int(single) :].unflatten(1, (-1, frames_per_latent))
    origins = torch.cat([last, groups[:, :-1, -1]], 1)[:, : groups.shape[1]]
    steps = (torch.linalg.inv(origins)[:, :, None] @ groups).flatten(1, 2)
    first = torch.eye(4, dtype=pose.dtype, device=pose.device).expand(len(pose), int(single), 4, 4)
    return torch.cat([first, steps], 1)


def control_maps(
    pose_BF44: Tensor,
    intrinsics_BF4: Tensor,
    height: int,
    width: int,
    origin: Tensor | None = None,
    before_B44: Tensor | None = None,
    frames_per_latent: int = FRAMES_PER_LATENT,
) -> Tensor:
    """Return what the encoder reads, float32 [B, F, 12, H, W]. origin: see `relative_to_origin`.

    The first half are rays from the stream's origin. The second half are rays from the previous latent, minus the rays of a
    camera at rest, so it is zero where nothing moves. Measurements show that a model follows its controls because of the second
    half.
    """
    identity = torch.eye(4, device=pose_BF44.device).expand_as(pose_BF44)
    rest = pluecker(identity, intrinsics_BF4, height, width)
    relative = relative_to_previous_latent(pose_BF44, before_B44, frames_per_latent)
    steps = pluecker(relative, intrinsics_BF4, height, width) - rest
    return torch.cat([pluecker(relative_to_origin(pose_BF44, origin), intrinsics_BF4, height, width), steps], 2)
