"""Poses logged by a game engine: a `camera.npz` of the whole recording next to the video, `<video's name>.camera.npz`."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from curation import storage
from curation.cameras.camera import Camera, CameraFacts, from_npz
from curation.cameras.rotation import angle_deg
from curation.media.decode import Span

# A log may miss the time stamp of a frame by less than half a frame at 240 a second.
_SAME_FRAME_S = 2e-3


def log_uri(source_uri: str) -> str:
    """Return where a video's engine log is expected: the video's uri with the ending `.camera.npz`."""
    folder, slash, name = source_uri.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}.camera.npz"


@lru_cache(maxsize=4)
def read_log(source_uri: str) -> Camera | None:
    """Return the engine's log of a recording; None if it has none. Raises ValueError for a file that is no camera.npz."""
    try:
        return from_npz(storage.read(log_uri(source_uri)))
    except FileNotFoundError:
        return None


def has_log(source_uri: str) -> bool:
    """Whether there is a log, even one that cannot be read."""
    try:
        return read_log(source_uri) is not None
    except ValueError:
        return True


def annotate(source_uri: str, size: tuple[int, int], span: Span, times_s: np.ndarray) -> tuple[CameraFacts, Camera | None]:
    """Return a clip's camera from its recording's log.

    size: of the source in px. times_s: of the clip's frames, from the start of the source.
    """
    try:
        recording = read_log(source_uri)
    except ValueError as error:
        return CameraFacts(f"failed:{error}", backend="engine"), None
    assert recording is not None, source_uri
    logged = np.searchsorted(recording.times_s, times_s + _SAME_FRAME_S, side="right") - 1
    if not len(times_s) or logged.min() < 0 or (times_s - recording.times_s[logged]).max() > _SAME_FRAME_S:
        return CameraFacts("failed:the engine's log lacks frames of the clip", backend="engine"), None
    camera = recording.at_times(recording.times_s[logged]).crop_and_scale((0, 0, *recording.size), size)
    return _facts(camera), replace(camera, times_s=times_s - span.start_s, scale_source="engine").whole_span("general")


def _facts(camera: Camera) -> CameraFacts:
    turns_deg = angle_deg(np.linalg.inv(camera.pose[:-1, :3, :3]) @ camera.pose[1:, :3, :3])
    return CameraFacts(
        "ok",
        backend="engine",
        focal_px=float(camera.intrinsics[0, 0]),
        focal_source="engine",
        turn_deg=float(turns_deg.sum()),
        max_turn_deg=float(turns_deg.max(initial=0.0)),
        valid_share=1.0,
    )
