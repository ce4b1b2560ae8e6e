"""A clip's camera: per-frame pose and intrinsics, and the npz that a shard stores. It needs only NumPy.

Axes are OpenCV's: x right, y down, z forward. Poses are camera-to-world and `pose[0]` is the identity. Intrinsics are in px of
the picture of `size`, corner-origin: the centre of the top left pixel is (0.5, 0.5), a centred cx is W / 2.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from curation.cameras.controls import controls

VERSION = 2
_READABLE = (1, 2)  # version 1 has no spans
PART = "ok_part"  # the status of a clip that is right in its spans only


class CameraFacts(NamedTuple):
    """The status of a clip's camera and every number behind it. The ledger's `camera_*` columns hold them.

    focal_px is in px of the source, other px are px of a picture 640 wide. A number that was not measured is None.
    status: ok | ok_rotation | ok_static | ok_part | suspect | low_texture | failed:<reason> | skipped:<reason>.
    why: the checks that the clip as a whole missed. model: static | rotation | general. valid_share: share of the frames that
    are in a span and valid; the other numbers are those of the whole clip, or of the longest span of a clip with ok_part.
    focal_source: clip | pooled | hint | engine | model (ViPE's) | none (a guess: it cannot be observed).
    """

    status: str
    why: str | None = None
    backend: str = "none"
    model: str | None = None
    focal_px: float | None = None
    focal_source: str = "none"
    focal_error: float | None = None
    focal_share: float | None = None
    turn_deg: float | None = None
    max_turn_deg: float | None = None
    step_ratio: float | None = None
    velocity_spike: float | None = None
    tracks: float | None = None
    tracks_min: int | None = None
    track_length: float | None = None
    static_share: float | None = None
    rotation_residual_px: float | None = None
    registered: float | None = None
    points: int | None = None
    inliers_min: int | None = None
    inlier_share: float | None = None
    residual_px: float | None = None
    residual_p95_px: float | None = None
    map_disagreement: float | None = None
    map_disagreement_deg: float | None = None
    scale_links: int | None = None
    outlier_coverage: float | None = None
    vertical_run_s: float | None = None
    parallax: float | None = None
    valid_share: float | None = None

    @property
    def ok(self) -> bool:
        return self.status.startswith("ok")


class CameraSpan(NamedTuple):
    """Frames [start, end) of a clip whose poses passed every check on their own.

    model: static | rotation | general. Spans of a clip with the same scale_group share one scale and one world; others do not.
    scale_to_unit, scale_source: as of a `Camera`.
    """

    start: int
    end: int
    model: str
    scale_group: int = 0
    scale_to_unit: float = 1.0
    scale_source: str = "none"

    @property
    def has_scale(self) -> bool:
        """Whether the translation is known in the data set's unit. A camera that does not translate needs no scale."""
        return self.model != "general" or self.scale_source != "none"


@dataclass(frozen=True)
class Camera:
    """The camera of a clip, with one row per frame.

    pose f8 [N, 4, 4], intrinsics f8 [N, 4] (fx, fy, cx, cy), times_s f8 [N] from the start of the clip. size: (W, H) px of the
    picture that the intrinsics refer to. viewport: (x, y, w, h) px of the 3-D view in it. valid bool [N]: whether the frame is
    in a span and passed the checks of single frames; without spans, whether its pose was measured and not filled in. A frame of
    a span that is not valid is measured too, by two maps that agree. residual_px f4 [N]: median reprojection error,
    NaN where it was not measured. keyframes i4 [K]. scale_to_unit: factor from the translation to the data set's unit.
    scale_source: engine | metric | speed | linked | none; with none the scale of the translation is unknown. spans: the runs of
    frames that passed every check, in order, each with a scale of its own; a clip that passes as a whole is one span. Only
    motion inside a span is known.
    """

    pose: np.ndarray
    intrinsics: np.ndarray
    times_s: np.ndarray
    size: tuple[int, int]
    viewport: tuple[int, int, int, int]
    valid: np.ndarray
    residual_px: np.ndarray
    keyframes: np.ndarray
    scale_to_unit: float = 1.0
    scale_source: str = "none"
    spans: tuple[CameraSpan, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.times_s)
        for name, shape in (
            ("pose", (count, 4, 4)),
            ("intrinsics", (count, 4)),
            ("valid", (count,)),
            ("residual_px", (count,)),
        ):
            actual = getattr(self, name).shape
            assert actual == shape, f"{name} is {actual}, not {shape}"

    @property
    def controls(self) -> np.ndarray:
        """The controls f8 [N, 4] that would move the camera like this, in the data set's unit: see `controls.controls`."""
        return controls(self.pose, self.times_s, self.scale_to_unit)

    def crop_and_scale(self, picture: tuple[int, int, int, int], size: tuple[int, int]) -> "Camera":
        """Return the camera of the same frames after a crop to `picture` (x, y, w, h px of this size) and scaling to `size`."""
        x, y, w, h = picture
        scale = np.array([size[0] / w, size[1] / h] * 2)
        intrinsics = (self.intrinsics - np.array([0.0, 0.0, x, y])) * scale
        vx, vy, vw, vh = self.viewport
        left, top = max(vx, x), max(vy, y)
        right, bottom = min(vx + vw, x + w), min(vy + vh, y + h)
        sides = np.round(np.array([left - x, top - y, right - left, bottom - top]) * scale).astype(int)
        return replace(self, intrinsics=intrinsics, size=size, viewport=tuple(sides.tolist()))

    def at_times(self, times_s: np.ndarray) -> "Camera":
        """Return the camera of the frames shown at these times: each the last at or before its time (to half a millisecond)."""
        which = np.clip(np.searchsorted(self.times_s, np.asarray(times_s) + 5e-4, side="right") - 1, 0, None)
        return replace(self.at_frames(which), times_s=np.asarray(times_s, float))

    def at_frames(self, which: np.ndarray) -> "Camera":
        """Return the camera of these frames, int [M], which rise. The first of them is the new origin."""
        return replace(
            self,
            pose=np.linalg.inv(self.pose[which[0]]) @ self.pose[which],
            intrinsics=self.intrinsics[which],
            times_s=self.times_s[which],
            valid=self.valid[which],
            residual_px=self.residual_px[which],
            keyframes=np.flatnonzero(np.isin(which, self.keyframes)),
            spans=tuple(_spans_at(self.spans, which)),
        )

    def cut(self, span: CameraSpan) -> "Camera":
        """Return the camera of a span's frames, with the span's scale.

        Poses and times stay relative to the clip's first frame.
        """
        frames = slice(span.start, span.end)
        inside = (self.keyframes >= span.start) & (self.keyframes < span.end)
        return replace(
            self,
            pose=self.pose[frames],
            intrinsics=self.intrinsics[frames],
            times_s=self.times_s[frames],
            valid=self.valid[frames],
            residual_px=self.residual_px[frames],
            keyframes=self.keyframes[inside] - span.start,
            scale_to_unit=span.scale_to_unit,
            scale_source=span.scale_source,
            spans=(span._replace(start=0, end=span.end - span.start),),
        )

    def whole_span(self, model: str) -> "Camera":
        """Return this camera with all frames in one span of its scale."""
        span = CameraSpan(0, len(self.times_s), model, 0, self.scale_to_unit, self.scale_source)
        return replace(self, spans=(span,), valid=np.ones(len(self.times_s), bool))


def _spans_at(spans: tuple[CameraSpan, ...], which: np.ndarray) -> Iterator[CameraSpan]:
    """Yield the spans in terms of other frames, which show the frames `which` (in order) of the clip."""
    for span in spans:
        start, end = np.searchsorted(which, [span.start, span.end]).tolist()
        if end > start:
            yield span._replace(start=start, end=end)


# Stored types: single precision where the estimate's noise is a thousand times its rounding.
_STORED = {
    "pose": np.float32,
    "intrinsics": np.float32,
    "times_s": np.float64,
    "size": np.int32,
    "viewport": np.int32,
    "valid": np.uint8,
    "residual_px": np.float32,
    "keyframes": np.int32,
    "scale_to_unit": np.float64,
    "scale_source": np.str_,
}

_SPAN_STORED = {
    "start": np.int32,
    "end": np.int32,
    "model": np.str_,
    "scale_group": np.int32,
    "scale_to_unit": np.float64,
    "scale_source": np.str_,
}

_DERIVED = {"controls": np.float32}  # computed from the fields above for readers without this package; it is never read back


def to_npz(camera: Camera) -> bytes:
    """Return a shard's `camera.npz`: the fields above by name, `controls` and `version`. Equal cameras give equal bytes.

    Spans are arrays with one value a span: `span_start`, `span_end` and so on.
    """
    buffer = io.BytesIO()
    types = (_STORED | _DERIVED).items()
    arrays: dict[str, Any] = {name: np.asarray(getattr(camera, name), dtype) for name, dtype in types}
    for name, dtype in _SPAN_STORED.items():
        arrays[f"span_{name}"] = np.array([getattr(span, name) for span in camera.spans], dtype)
    np.savez(buffer, version=np.int32(VERSION), **arrays)
    return buffer.getvalue()


def from_npz(data: bytes) -> Camera:
    """Return the camera in a `camera.npz`. Raises ValueError for another version or other bytes."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:  # a lone array has no `files`
        raise ValueError(f"not a camera.npz: {error}") from error
    if missing := {"version", *_STORED} - set(arrays):
        raise ValueError(f"not a camera.npz: it lacks {sorted(missing)}")
    if arrays["version"] not in _READABLE:
        raise ValueError(
            f"camera.npz of version {arrays['version']}; this release reads {VERSION} and older: install the one that wrote it"
        )
    return Camera(
        pose=arrays["pose"].astype(float),
        intrinsics=arrays["intrinsics"].astype(float),
        times_s=arrays["times_s"],
        size=tuple(arrays["size"].tolist()),
        viewport=tuple(arrays["viewport"].tolist()),
        valid=arrays["valid"].astype(bool),
        residual_px=arrays["residual_px"],
        keyframes=arrays["keyframes"],
        scale_to_unit=float(arrays["scale_to_unit"]),
        scale_source=str(arrays["scale_source"]),
        spans=_spans_from(arrays) if arrays["version"] > 1 else (),
    )


def _spans_from(arrays: dict[str, np.ndarray]) -> tuple[CameraSpan, ...]:
    if missing := {f"span_{name}" for name in _SPAN_STORED} - set(arrays):
        raise ValueError(f"not a camera.npz: it lacks {sorted(missing)}")
    columns = [arrays[f"span_{name}"].tolist() for name in CameraSpan._fields]
    return tuple(CameraSpan(*values) for values in zip(*columns, strict=True))
