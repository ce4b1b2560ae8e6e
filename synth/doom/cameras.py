"""Write the engine's own camera as a `camera.npz`. Curation uses it as the poses of the recording next to it."""

from pathlib import Path

import numpy as np

from curation.cameras.camera import Camera, to_npz
from curation.cameras.engine import log_uri
from synth.doom.truth import Truth

# The renderer draws a 4:3 picture of 90 degrees, pixels 1.2 times as high as wide (measured: 1.18 to 1.22).
PIXEL_ASPECT = 1.2
# The status bar takes 32 of 200 rows, and the view is centred in the rest.
_BAR_SHARE = 32 / 200
# Percentile of the eye's speed over moving frames: one in twenty is faster. It is the speed of running.
_TOP_QUANTILE = 95


def poses(position: np.ndarray, yaw_deg: np.ndarray, pitch_deg: np.ndarray | float = 0.0) -> np.ndarray:
    """Return camera-to-world poses [N, 4, 4] of views without roll, OpenCV axes, in map units.

    From eye positions [N, 3] (x east, y north, z up), yaws [N] counter-clockwise and pitches [N] upwards, in degrees.
    """
    yaw, pitch = np.radians(yaw_deg), np.radians(np.broadcast_to(pitch_deg, np.shape(yaw_deg)))
    ahead = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], axis=1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=1)
    pose = np.tile(np.eye(4), (len(position), 1, 1))
    pose[:, :3, :3] = np.stack([right, np.cross(ahead, right), ahead], axis=2)
    pose[:, :3, 3] = position
    return pose


def engine_camera(truth: Truth) -> Camera:
    """Return the camera of every frame of a recording, in map units. Poses jump at its cuts."""
    width, height = truth.header["width"], truth.header["height"]
    bar = 0 if "--no-hud" in truth.header.get("argv", ()) else _BAR_SHARE
    rows, focal = height * (1 - bar), height * 4 / 3 / 2
    pose, frames = poses(truth.position, truth.yaw_deg), len(truth)
    return Camera(
        pose=np.linalg.inv(pose[0]) @ pose,
        intrinsics=np.tile([focal, PIXEL_ASPECT * focal, width / 2, rows / 2], (frames, 1)),
        times_s=truth.time_s,
        size=(width, height),
        viewport=(0, 0, width, round(rows)),
        valid=np.ones(frames, bool),
        residual_px=np.zeros(frames, np.float32),
        keyframes=np.arange(0),
        scale_to_unit=1 / _top_speed(truth),
        scale_source="engine",
    )


def _top_speed(truth: Truth) -> float:
    speed = np.linalg.norm(np.diff(truth.position, axis=0), axis=1) * truth.fps
    jumps = [frame - 1 for frame in (*truth.cuts, *(e.frame for e in truth.events if e.name == "teleport")) if frame]
    steady = np.delete(speed, jumps)
    moving = steady[steady > 1]
    return float(np.percentile(moving, _TOP_QUANTILE)) if len(moving) else 1.0


def write_camera_log(video: str | Path, truth: Truth) -> Path:
    """Write the camera file next to its video, where `curation.cameras.engine` looks for it."""
    path = Path(log_uri(str(video)))
    path.write_bytes(to_npz(engine_camera(truth)))
    return path
