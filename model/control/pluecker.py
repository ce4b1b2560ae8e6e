"""Rays of a moving camera as the encoder reads them: Pluecker coordinates, seen from two origins (paper section 4.1).

B batch, F frames, T latents (1 + (F - 1) / 4), 6 coordinates: moment o x d, then direction d of unit length.
"""

import torch
from torch import Tensor

from model.config import FRAMES_A_LATENT


def pluecker(pose_BF44: Tensor, intrinsics_BF4: Tensor, height: int, width: int) -> Tensor:
    """Float32 [B, F, 6, H, W]: rays through the pixels' centres of camera-to-world poses; intrinsics in px of H x W.

    Intrinsics are corner-origin (cx = W / 2 when centred), so the centre of the first pixel is at 0.5.
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


def from_origin(pose_BF44: Tensor, origin_B44: Tensor | None = None) -> Tensor:
    """Poses relative to a camera, that of the first frame by default."""
    origin = pose_BF44[:, 0] if origin_B44 is None else origin_B44
    return torch.linalg.inv(origin.double())[:, None] @ pose_BF44.double()


def from_latent_before(pose_BF44: Tensor, before_B44: Tensor | None = None) -> Tensor:
    """Poses relative to the last frame of the latent before: a camera at rest is the identity, however far it has come.

    Frame 0 is the first latent, alone, and its own origin; frames 4k - 3 to 4k are latent k. A block that continues a stream
    has no such first frame: it gives the pose of the last frame `before` it, and its frames are whole latents.
    """
    pose, single = pose_BF44.double(), before_B44 is None
    frames = pose.shape[1] - single
    if frames % FRAMES_A_LATENT:
        raise ValueError(f"{pose.shape[1]} frames are no whole number of latents (1 + 4k, or 4k behind others)")
    last = pose[:, :1] if before_B44 is None else before_B44.double()[:, None]
    groups = pose[:, int(single) :].unflatten(1, (-1, FRAMES_A_LATENT))
    origins = torch.cat([last, groups[:, :-1, -1]], 1)[:, : groups.shape[1]]
    steps = (torch.linalg.inv(origins)[:, :, None] @ groups).flatten(1, 2)
    first = torch.eye(4, dtype=pose.dtype, device=pose.device).expand(len(pose), int(single), 4, 4)
    return torch.cat([first, steps], 1)


def control_maps(
    pose_BF44: Tensor,
    intrinsics_BF4: Tensor,
    height: int,
    width: int,
    origin_B44: Tensor | None = None,
    before_B44: Tensor | None = None,
) -> Tensor:
    """What the encoder reads, float32 [B, F, 12, H, W]: rays from the stream's origin, and from the latent before without the
    rays of a camera at rest. The second half is zero where nothing moves; measured, it is what makes a model obey.
    """
    still = torch.eye(4, device=pose_BF44.device).expand_as(pose_BF44)
    rest = pluecker(still, intrinsics_BF4, height, width)
    steps = pluecker(from_latent_before(pose_BF44, before_B44), intrinsics_BF4, height, width) - rest
    return torch.cat([pluecker(from_origin(pose_BF44, origin_B44), intrinsics_BF4, height, width), steps], 2)
