"""Poses that a game engine logged: a `camera.npz` of the whole recording beside the video, `<video's name>.camera.npz`."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from curation import storage
from curation.cameras.camera import Camera, CameraFacts, from_npz
from curation.cameras.rotation import angle_deg
from curation.media.decode import Span

# A log may miss the stamp of a frame by less than half a frame at 240 a second.
_SAME_FRAME_S = 2e-3


def log_uri(source_uri: str) -> str:
    """Where a video's engine log is looked for: its uri with `.camera.npz` for its ending."""
    folder, slash, name = source_uri.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}.camera.npz"


@lru_cache(maxsize=4)
def log(source_uri: str) -> Camera | None:
    """The engine's log of a recording, None where it has none. ValueError for a file that is no camera.npz."""
    try:
        return from_npz(storage.read(log_uri(source_uri)))
    except FileNotFoundError:
        return None


def is_logged(source_uri: str) -> bool:
    """Whether there is a log, even one that cannot be read."""
    try:
        return log(source_uri) is not None
    except ValueError:
        return True


def annotate(source_uri: str, size: tuple[int, int], span: Span, times_s: np.ndarray) -> tuple[CameraFacts, Camera | None]:
    """A clip's camera out of its recording's log: px of a source of `size`, frames at `times_s` from the source's start."""
    try:
        whole = log(source_uri)
    except ValueError as error:
        return CameraFacts(f"failed:{error}", backend="engine"), None
    assert whole is not None, source_uri
    logged = np.searchsorted(whole.times_s, times_s + _SAME_FRAME_S, side="right") - 1
    if not len(times_s) or logged.min() < 0 or (times_s - whole.times_s[logged]).max() > _SAME_FRAME_S:
        return CameraFacts("failed:the engine's log lacks frames of the clip", backend="engine"), None
    camera = whole.at(whole.times_s[logged]).stored((0, 0, *whole.size), size)
    return _facts(camera), replace(camera, times_s=times_s - span.start_s, scale_source="engine")


def _facts(camera: Camera) -> CameraFacts:
    turns = angle_deg(np.linalg.inv(camera.pose[:-1, :3, :3]) @ camera.pose[1:, :3, :3])
    return CameraFacts(
        "ok",
        backend="engine",
        focal_px=float(camera.intrinsics[0, 0]),
        focal_source="engine",
        turn_deg=float(turns.sum()),
        max_turn_deg=float(turns.max(initial=0.0)),
    )
