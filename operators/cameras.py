"""Where the camera of each kept clip was (paper section 3.4, camera annotation), and what it did in words."""

from typing import Any

import cv2
import numpy as np

from curation.cameras import engine
from curation.cameras.annotate import annotate, missing
from curation.cameras.camera import Camera, CameraFacts, to_npz
from curation.cameras.clip import ClipView
from curation.cameras.settings import CameraSettings
from curation.cameras.words import Motion, WordSettings, describe
from curation.media import decode
from curation.media.decode import Span
from curation.media.viewport import Rect
from curation.schema import Row

# A column's name is the fact's behind `camera_`, save this one: the word `source` is the field's own for it.
_RENAMED = {"backend": "source"}
FACT_COLUMNS = tuple(f"camera_{_RENAMED.get(name, name)}" for name in CameraFacts._fields)
MOTION_COLUMNS = tuple(f"camera_{name}" for name in Motion._fields)
SCALE_COLUMNS = ("camera_scale_to_unit", "camera_scale_source")


def annotate_cameras(rows: list[Row], how: CameraSettings, words: WordSettings) -> list[Row]:
    """Cameras of clips of one source, in its order; the focal length is pooled over them.

    An engine's log beside the source is believed; everything else is estimated. A backend that the recipe names and this
    machine lacks is an OSError: no clip's fault, so the unit is tried again.
    """
    found = _logged(rows) if how.backend == "auto" and engine.is_logged(rows[0]["source_uri"]) else _estimated(rows, how)
    return [_with_camera(row, facts, camera, words) for row, (facts, camera) in zip(rows, found, strict=True)]


def _logged(rows: list[Row]) -> list[tuple[CameraFacts, Camera | None]]:
    return [engine.annotate(row["source_uri"], (row["width"], row["height"]), _span(row), _times_s(row)) for row in rows]


def _times_s(row: Row) -> np.ndarray:
    return np.array([time_s for time_s, _ in decode.decode(row["source_uri"], _span(row), "camera")])


def _estimated(rows: list[Row], how: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    if lacking := missing(how):
        raise OSError(f"camera backend {how.backend}: {lacking}")
    return annotate([_view(row) for row in rows], how)


def _view(row: Row) -> ClipView:
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
    known = {f"camera_{_RENAMED.get(name, name)}": value for name, value in facts._asdict().items()}
    if camera is None:
        return {**row, **known, **dict.fromkeys((*SCALE_COLUMNS, *MOTION_COLUMNS, "camera_npz"))}
    said: dict[str, Any] = describe(camera, words)._asdict() if facts.ok else dict.fromkeys(Motion._fields)
    scale = {"camera_scale_to_unit": camera.scale_to_unit, "camera_scale_source": camera.scale_source}
    return {**row, **known, **scale, **{f"camera_{k}": v for k, v in said.items()}, "camera_npz": to_npz(camera)}
