"""What a causal model is conditioned on: its cameras, and with `CausalSpec.warp` pictures turned as the controls say.

B batch, F frames, T latents, C latent channels, K condition channels, H W px, h w latent rows and columns.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.backbone.vae import Codec
from model.causal.spec import CausalSpec
from model.config import CELL_PX
from model.control.pluecker import control_maps
from model.warp import assemble, ray_change, turn

# A key frame this far away in angle, or in units, is one worse.
_ANGLE_DEG, _DISTANCE = 30.0, 0.25
# Frames seen from positions closer than this, in units, differ by a rotation only: 8 cm where walking is 4 m/s.
_SAME_PLACE = 0.02


class TurnedSource(NamedTuple):
    """Known frames to turn, one for each latent that is generated."""

    pictures_BT3HW: Tensor  # in [-1, 1]
    pose_BT44: Tensor


class Spoil(NamedTuple):
    """How a source's latents are spoilt in training, since a rollout's are not exact. None of it: all zeros.

    noise is added at a level that is an input of the model; the last channels shrink by `shrink`, as samplers lose them.
    """

    noise_BCThw: Tensor
    level_B: Tensor
    shrink_B: Tensor


def require_frame_latents(codec: Codec, spec: CausalSpec) -> None:
    """Raise ValueError where frames are to be turned but a latent is not one frame."""
    if spec.warp and codec.frames_per_latent != 1:
        raise ValueError(f"warp needs a codec with one frame a latent, not {codec.frames_per_latent}")


def turned_condition(
    codec: Codec,
    sources: Sequence[tuple[TurnedSource, Spoil | None, float]],
    target_BT44: Tensor,
    intrinsics_BT4: Tensor,
    seen_from_here: TurnedSource | None = None,
) -> Tensor:
    """Return the condition channels [B, K, T, h, w] of sources: each with how it is spoilt, or the noise level to declare.

    seen_from_here: frames that replace the first source where they were seen from the target's position, and so need no depth.
    """
    batch, latents = target_BT44.shape[:2]
    target, intrinsics = target_BT44.flatten(0, 1), intrinsics_BT4.flatten(0, 1)
    parts = []
    for number, ((pictures, pose), spoil, declared) in enumerate(sources):
        flat = pictures.flatten(0, 1), pose.flatten(0, 1), target, intrinsics
        turned, known = turn(*flat)
        if number == 0 and seen_from_here is not None:
            place = seen_from_here.pose_BT44.flatten(0, 1)
            here = (place[:, :3, 3] - target[:, :3, 3]).norm(dim=-1) < _SAME_PLACE
            remembered, seen = turn(seen_from_here.pictures_BT3HW.flatten(0, 1), place, target, intrinsics)
            seen = seen & here[:, None, None]
            turned, known = torch.where(seen[:, None], remembered, turned), known | seen
        z = codec.encode(turned[:, :, None])[:, :, 0].unflatten(0, (batch, latents)).transpose(1, 2)
        level = z.new_full((batch,), declared)
        if spoil is not None:
            ramp = torch.linspace(0, 1, z.shape[1], device=z.device)[None, :, None, None, None]
            level = spoil.level_B
            z = z * (1 - spoil.shrink_B.view(-1, 1, 1, 1, 1) * ramp) + level.view(-1, 1, 1, 1, 1) * spoil.noise_BCThw
        rows, columns = z.shape[-2:]
        rays = ray_change(flat[1], flat[2], flat[3], rows, columns, codec.cell_px)
        levels = level.repeat_interleave(latents)
        channels = assemble(z.transpose(1, 2).flatten(0, 1), known, levels, rays, codec.cell_px)
        parts.append(channels.unflatten(0, (batch, latents)).transpose(1, 2))
    return torch.cat(parts, 1)


def camera_maps(
    spec: CausalSpec,
    codec: Codec,
    pose_BF44: Tensor,
    intrinsics_BF4: Tensor,
    size: tuple[int, int],
    origin_B44: Tensor,
    before_B44: Tensor | None,
) -> Tensor:
    """Return the control maps [B, F, 12, 8h, 8w] of a block, or of a whole sequence from its start.

    size: latent rows and columns. origin: camera of the stream's first frame. before: camera of the last frame before the
    block, None for a sequence from the start.
    """
    per = codec.frames_per_latent
    origin = origin_B44
    if spec.pose_origin == "block":
        if before_B44 is None:
            frames = torch.arange(pose_BF44.shape[1])
            block_px = spec.block * per
            last = torch.where(frames > 0, (frames - 1).div(block_px, rounding_mode="floor") * block_px, 0)
            origin = pose_BF44[:, last.to(pose_BF44.device)]
        else:
            origin = before_B44
    rows, columns = size
    intrinsics = intrinsics_BF4 * (CELL_PX / codec.cell_px)
    return control_maps(pose_BF44, intrinsics, CELL_PX * rows, CELL_PX * columns, origin, before_B44, per)


def pose_distance(pose_44: Tensor, others_N44: Tensor) -> Tensor:
    """Return how far apart cameras are, [..., N]: angle in 30 degrees and distance in quarters of a unit, added.

    pose: [..., 4, 4]. others: [..., N, 4, 4].
    """
    relative = torch.linalg.inv(pose_44.double())[..., None, :, :] @ others_N44.double()
    cosine = (relative[..., :3, :3].diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    return angle / _ANGLE_DEG + relative[..., :3, 3].norm(dim=-1) / _DISTANCE


class Memory(Protocol):
    """Known frames of a stream, from which one is turned for each new frame as a second source."""

    def add(self, frame: int, picture_3HW: Tensor, pose_44: Tensor, /) -> None: ...

    def choose(self, frame: int, pose_44: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return picture and pose for a new frame."""
        ...

    def forget(self) -> None:
        """Drop all frames but the last: a new prompt changes the place."""
        ...


class RecentMemory:
    """The frame `delay` frames back, or the nearest that was added; the first one where there are fewer."""

    def __init__(self, delay: int = 17) -> None:
        self._delay = delay
        self._frames: list[tuple[int, Tensor, Tensor]] = []

    def add(self, frame: int, picture_3HW: Tensor, pose_44: Tensor) -> None:
        self._frames = [*(kept for kept in self._frames if kept[0] > frame - self._delay), (frame, picture_3HW, pose_44)]

    def choose(self, _frame: int, _pose_44: Tensor) -> tuple[Tensor, Tensor]:
        return self._frames[0][1:]

    def forget(self) -> None:
        self._frames = self._frames[-1:]


class KeyFrameMemory:
    """Frames kept by pose: what one turns away from is there when one turns back.

    A frame is kept where no kept frame is near. So a place is remembered as it was seen first, before errors add up. Frames
    younger than `delay` are not chosen, since they know no more than the frame before. At most `capacity` frames are kept; then
    the one that was not chosen for longest is dropped, never the first.

    After `forget` the frame before is chosen for `settle` frames, 0.6 s of the demo's time: a remembered picture would undo
    what is beginning. Then frames are kept again.
    """

    def __init__(self, capacity: int = 128, spacing: float = 0.5, delay: int = 17, settle: int = 10) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2, the first frame and a later one, not {capacity}")
        self._capacity, self._spacing, self._delay, self._settle = capacity, spacing, delay, settle
        self._settled_at = 0  # until this frame the frame before is chosen
        self._frames: list[int] = []
        self._used: list[int] = []
        self._pictures: list[Tensor] = []
        self._poses = torch.empty(0, 4, 4, dtype=torch.float64)
        self._last: tuple[int, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: int, picture_3HW: Tensor, pose_44: Tensor) -> None:
        pose = pose_44.double().cpu()
        self._last = frame, picture_3HW, pose
        if frame < self._settled_at:
            return
        if self._frames and float(pose_distance(pose, self._poses).min()) < self._spacing:
            return
        if len(self._frames) >= self._capacity:
            oldest = 1 + min(range(len(self._used) - 1), key=lambda i: self._used[i + 1])
            del self._frames[oldest], self._used[oldest], self._pictures[oldest]
            self._poses = torch.cat([self._poses[:oldest], self._poses[oldest + 1 :]])
        self._frames.append(frame)
        self._used.append(frame)
        self._pictures.append(picture_3HW)
        self._poses = torch.cat([self._poses, pose[None]])

    def choose(self, frame: int, pose_44: Tensor) -> tuple[Tensor, Tensor]:
        if not self._frames:
            assert self._last is not None, "a memory is asked before its first frame"
            return self._last[1], self._last[2].to(pose_44)
        distance = pose_distance(pose_44.cpu(), self._poses)
        young = torch.tensor([frame - kept < self._delay and kept > 0 for kept in self._frames])
        best = int(distance.masked_fill(young, torch.inf).argmin())
        self._used[best] = frame
        return self._pictures[best], self._poses[best].to(pose_44)

    def forget(self) -> None:
        self._frames, self._used, self._pictures, self._poses = [], [], [], self._poses[:0]
        if self._last is not None:
            self._settled_at = self._last[0] + 1 + self._settle
