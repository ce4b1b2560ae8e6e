"""The camera of each kept clip (paper section 3.4, camera annotation), and its motion in words."""

from typing import Any

import cv2
import numpy as np

from curation.cameras import engine
from curation.cameras.annotate import annotate, missing_requirement
from curation.cameras.camera import Camera, CameraFacts, to_npz
from curation.cameras.clip import ClipView
from curation.cameras.settings import CameraSettings
from curation.cameras.words import MotionSummary, WordSettings, describe_motion
from curation.errors import Unavailable
from curation.media import decode
from curation.media.decode import Span
from curation.media.viewport import Rect
from curation.schema import Row

# A column is named `camera_` and the field of `CameraFacts`, except this one: `camera_source` is the backend.
_RENAMED = {"backend": "source"}
FACT_COLUMNS = tuple(f"camera_{_RENAMED.get(name, name)}" for name in CameraFacts._fields)
MOTION_COLUMNS = tuple(f"camera_{name}" for name in MotionSummary._fields)
SCALE_COLUMNS = ("camera_scale_to_unit", "camera_scale_source")
SPAN_COLUMN = "camera_spans"


def annotate_cameras(rows: list[Row], settings: CameraSettings, words: WordSettings) -> list[Row]:
    """Annotate the clips of one source, in its order. The focal length is pooled over them.

    The backend auto believes an engine's log next to the source; without one, cameras are estimated. Raises Unavailable where
    the recipe names a backend that this machine lacks. That is no fault of the clips, so the unit is tried again.
    """
    is_logged = settings.backend == "auto" and engine.has_log(rows[0]["source_uri"])
    cameras = _from_engine_log(rows) if is_logged else _estimate(rows, settings)
    return [_with_camera(row, facts, camera, words) for row, (facts, camera) in zip(rows, cameras, strict=True)]


def _from_engine_log(rows: list[Row]) -> list[tuple[CameraFacts, Camera | None]]:
    return [engine.annotate(row["source_uri"], (row["width"], row["height"]), _span(row), _times_s(row)) for row in rows]


def _times_s(row: Row) -> np.ndarray:
    return np.array([time_s for time_s, _ in decode.decode(row["source_uri"], _span(row), "camera")])


def _estimate(rows: list[Row], settings: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    if missing := missing_requirement(settings):
        raise Unavailable(f"camera backend {settings.backend}: {missing}")
    return annotate([_clip_view(row) for row in rows], settings)


def _clip_view(row: Row) -> ClipView:
    static = _mask(row["static_png"]) if row.get("static_png") else None
    view, picture = Rect(**row["viewport"]), Rect(**row["picture"])
    return ClipView(row["source_uri"], _span(row), view, picture, static, row["scene_index"])


def _mask(png: bytes) -> np.ndarray:
    grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert grey is not None, f"{len(png)} bytes that are no PNG"
    return np.asarray(grey) > 0


def _span(row: Row) -> Span:
    return Span(row["start_s"], row["end_s"])


def _with_camera(row: Row, facts: CameraFacts, camera: Camera | None, words: WordSettings) -> Row:
    columns = {f"camera_{_RENAMED.get(name, name)}": value for name, value in facts._asdict().items()}
    if camera is None:
        return {**row, **columns, **dict.fromkeys((*SCALE_COLUMNS, *MOTION_COLUMNS, SPAN_COLUMN, "camera_npz"))}
    no_motion: dict[str, Any] = dict.fromkeys(MotionSummary._fields)
    motion = describe_motion(camera, words)._asdict() if facts.ok else no_motion
    scale = {"camera_scale_to_unit": camera.scale_to_unit, "camera_scale_source": camera.scale_source}
    columns |= {**scale, **{f"camera_{k}": v for k, v in motion.items()}, SPAN_COLUMN: _spans(camera)}
    return {**row, **columns, "camera_npz": to_npz(camera)}


def _spans(camera: Camera) -> list[dict[str, Any]]:
    """Return the spans as the ledger has them: in seconds from the start of the clip. Each ends at its last frame's time."""
    return [
        {
            "start_s": float(camera.times_s[span.start]),
            "end_s": float(camera.times_s[span.end - 1]),
            **{name: getattr(span, name) for name in ("model", "scale_group", "scale_to_unit", "scale_source")},
        }
        for span in camera.spans
    ]
