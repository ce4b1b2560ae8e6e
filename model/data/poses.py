"""Cameras of the frames of a window, chained over the clips that it spans, in the data set's unit."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera


class Path(NamedTuple):
    """pose f4 [F, 4, 4] camera-to-world relative to the first frame, in the data set's unit; intrinsics f4 [F, 4] px of the
    stored pictures. known: whether there is a camera at all (else identities and zeros).
    """

    pose: np.ndarray
    intrinsics: np.ndarray
    known: bool


def unknown(frames: int) -> Path:
    """No camera."""
    return Path(np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)), np.zeros((frames, 4), np.float32), False)


def has_scale(camera: Camera) -> bool:
    """Whether its translation can be had in the data set's unit. A camera that does not move from its place needs no scale."""
    moves = bool(np.ptp(camera.pose[:, :3, 3], axis=0).any())
    return not moves or (camera.scale_source != "none" and 0 < camera.scale_to_unit < np.inf)


def chained(cameras: Sequence[Camera], stamps_s: Sequence[np.ndarray]) -> Path:
    """The frames at `stamps_s` (one array a clip, from that clip's start) of touching clips.

    What happened between the last frame of one clip and the first of the next was seen by neither camera; it is taken to be
    what happened in the frame before.

    Where the scale of one clip is not known there is no camera at all. Its poses without translation would say that a camera
    which walks stands still.
    """
    if not all(map(has_scale, cameras)):
        return unknown(sum(map(len, stamps_s)))
    start, poses, inner = np.eye(4), [], []
    for camera, stamps in zip(cameras, stamps_s, strict=True):
        scaled = camera.pose.copy()
        scaled[:, :3, 3] *= camera.scale_to_unit
        which = np.clip(np.searchsorted(camera.times_s, stamps + 5e-4, side="right") - 1, 0, None)
        poses.append(start @ scaled[which])
        inner.append(camera.intrinsics[which])
        start = start @ scaled[-1] @ _last_step(scaled)
    pose = np.concatenate(poses)
    relative = np.linalg.inv(pose[0]) @ pose
    return Path(relative.astype(np.float32), np.concatenate(inner).astype(np.float32), True)


def _last_step(pose: np.ndarray) -> np.ndarray:
    step: np.ndarray = np.linalg.inv(pose[-2]) @ pose[-1] if len(pose) > 1 else np.eye(4)
    return step
