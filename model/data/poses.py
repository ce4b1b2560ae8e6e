"""Cameras of the frames of a window, chained over the clips that it spans, in the data set's unit."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera, CameraSpan

# Time stamps of stored frames are rounded to 1 / 90000 s.
_TOLERANCE_S = 5e-4


class CameraPath(NamedTuple):
    """The camera of each frame of a window."""

    pose: np.ndarray  # f4 [F, 4, 4], camera-to-world relative to the first frame, in the data set's unit
    intrinsics: np.ndarray  # f4 [F, 4], px of the stored pictures
    known: bool  # whether there is a camera; without one, poses are identities and intrinsics zeros


def no_camera(frames: int) -> CameraPath:
    """Return the path of a window without a camera."""
    return CameraPath(np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)), np.zeros((frames, 4), np.float32), False)


def has_scale(camera: Camera) -> bool:
    """Return whether the translation is known in the data set's unit. A camera that does not translate needs no scale."""
    moves = bool(np.ptp(camera.pose[:, :3, 3], axis=0).any())
    return not moves or (camera.scale_source != "none" and 0 < camera.scale_to_unit < np.inf)


def span_around(camera: Camera, stamps_s: np.ndarray) -> CameraSpan | None:
    """Return the span of a camera in which all of these times, from the start of the clip, are; None where there is none."""
    frames = np.clip(np.searchsorted(camera.times_s, stamps_s + _TOLERANCE_S, side="right") - 1, 0, None)
    inside = (span for span in camera.spans if span.start <= frames.min() and frames.max() < span.end)
    return next(inside, None)


def chain_cameras(cameras: Sequence[Camera], stamps_s: Sequence[np.ndarray]) -> CameraPath:
    """Return the path over touching clips. stamps_s: times of the frames, one array per clip, from the start of that clip.

    Neither camera saw the motion between the last frame of one clip and the first frame of the next. It is assumed to be the
    motion of the frame before.

    If the scale of one clip is unknown, the window has no camera: poses without translation would show a walking camera as
    standing still.
    """
    if not all(map(has_scale, cameras)):
        return no_camera(sum(map(len, stamps_s)))
    clip_start, poses, intrinsics = np.eye(4), [], []
    for camera, stamps in zip(cameras, stamps_s, strict=True):
        scaled = camera.pose.copy()
        scaled[:, :3, 3] *= camera.scale_to_unit
        frames = np.clip(np.searchsorted(camera.times_s, stamps + _TOLERANCE_S, side="right") - 1, 0, None)
        poses.append(clip_start @ scaled[frames])
        intrinsics.append(camera.intrinsics[frames])
        clip_start = clip_start @ scaled[-1] @ _last_step(scaled)
    pose = np.concatenate(poses)
    relative = np.linalg.inv(pose[0]) @ pose
    return CameraPath(relative.astype(np.float32), np.concatenate(intrinsics).astype(np.float32), True)


def _last_step(pose: np.ndarray) -> np.ndarray:
    step: np.ndarray = np.linalg.inv(pose[-2]) @ pose[-1] if len(pose) > 1 else np.eye(4)
    return step
