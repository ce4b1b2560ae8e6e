"""The embedded estimator, on a CPU: tracks, the kind of motion, structure from motion, checks. First version: tracks only."""

from collections.abc import Sequence
from typing import Any

from curation import video
from curation.cameras import tracks
from curation.cameras.camera import Camera, Facts
from curation.cameras.settings import CameraSettings


def annotate(clips: Sequence[Any], how: CameraSettings) -> list[tuple[Facts, Camera | None]]:
    """See `annotate.annotate`; this version finds no trajectory yet and says so."""
    return [(_facts(clip, how), None) for clip in clips]


def _facts(clip: Any, how: CameraSettings) -> Facts:
    try:
        found = tracks.follow(clip.uri, clip.span, tracks.watched(clip.uri, clip.viewport, clip.static, how.max_width))
    except video.UnreadableVideo as error:
        return Facts(f"failed:{error}", backend="klt_glomap")
    a_frame = len(found.xy) / max(1, len(found.times_s))
    return Facts("failed:no estimator in this version", backend="klt_glomap", tracks=a_frame)
