"""The report's section on cameras: how many clips have which status, and some trajectories from above and from the side."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from curation.cameras.camera import Camera, from_npz
from curation.cameras.words import WordSettings, held
from curation.schema import Row
from pipelines import ledger, units
from pipelines.report.svg import number

MAX_DRAWN = 24
# A drawing is a square of this many units, its path inside a margin.
SIDE = 200
_MARGIN = 24
# A whisker shows where the camera looks, this often and this long.
_LOOK_EVERY_S, _LOOK_LENGTH = 0.5, 13
# A character of a controls' timeline is this long; the axes of `Camera.controls`, with what stands for either direction.
_TICK_S = 0.1
_CONTROLS = (("forward", "W", "S"), ("right", "D", "A"), ("turn", ">", "<"), ("look", "^", "v"))
_MEANING = {
    "ok": "moves; position and direction known in every frame",
    "ok_rotation": "turns on the spot",
    "ok_static": "stands still",
    "suspect": "found, but a check failed; the row says which",
    "low_texture": "too little to follow",
    "failed": "no trajectory",
    "skipped": "not looked for",
}


def statuses(clips: pa.Table, kept: np.ndarray) -> list[dict[str, Any]]:
    """Kept clips by camera status, most believable first, with reasons where there are some."""
    table = clips.select(["camera_status", "camera_why"]).filter(pa.array(kept))
    found, why = Counter[str](), dict[str, Counter[str]]()
    for status, reason in zip(table["camera_status"].to_pylist(), table["camera_why"].to_pylist(), strict=True):
        if status is not None:
            kind, _, told = status.partition(":")
            found[kind] += 1
            why.setdefault(kind, Counter()).update([told or reason] if told or reason else [])
    total = found.total()
    order = [*_MEANING, *sorted(set(found) - set(_MEANING))]
    return [
        {
            "status": kind,
            "meaning": _MEANING.get(kind, ""),
            "count": found[kind],
            "percent": round(100 * found[kind] / total, 1),
            "why": [f"{count} {reason}" for reason, count in why[kind].most_common(4)],
        }
        for kind in order
        if found[kind]
    ]


def trajectories(out: str, rows: list[Row]) -> list[dict[str, Any]]:
    """Drawings of these clips' cameras, of those that have one stored."""
    stored = ledger.cameras(out, units.list_of_videos(out, "annotate", {row["video_id"] for row in rows}))
    return [_drawn(row, from_npz(stored[row["clip_id"]])) for row in rows if row["clip_id"] in stored]


def _drawn(row: Row, camera: Camera) -> dict[str, Any]:
    right, down, ahead = camera.pose[:, :3, 3].T
    look_right, look_down, look_ahead = camera.pose[:, :3, 2].T
    reach = max(np.ptp(right), np.ptp(down), np.ptp(ahead), 1e-9)
    whiskers = _every(camera.times_s, _LOOK_EVERY_S)
    return {
        "row": row,
        "top": _view(np.stack([right, -ahead], 1), np.stack([look_right, -look_ahead], 1), reach, whiskers),
        "side": _view(np.stack([ahead, down], 1), np.stack([look_ahead, look_down], 1), reach, whiskers),
        "fov": number(2 * np.degrees(np.arctan(camera.viewport[2] / 2 / camera.intrinsics[0, 0]))),
    }


def _every(times_s: np.ndarray, step_s: float) -> np.ndarray:
    """The first frame in each stretch of so many seconds."""
    return np.unique(np.floor((times_s - times_s[0]) / step_s), return_index=True)[1]


def _view(place: np.ndarray, look: np.ndarray, reach: float, whiskers: np.ndarray) -> dict[str, Any]:
    """Two axes of a path as SVG path data: places [N, 2], directions [N, 2]; `reach` fills the drawing."""
    middle = (place.min(axis=0) + place.max(axis=0)) / 2
    xy = SIDE / 2 + (place - middle) * (SIDE - 2 * _MARGIN) / reach
    tips = xy[whiskers] + look[whiskers] * _LOOK_LENGTH
    return {
        "path": "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy),
        "looks": "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for (a, b), (c, d) in zip(xy[whiskers], tips, strict=True)),
        "start": [round(float(value), 1) for value in xy[0]],
        "end": [round(float(value), 1) for value in xy[-1]],
    }


def timeline(camera: Camera) -> list[str]:
    """Lines of text: the controls that the trajectory shows, a character a tenth of a second, and how far each axis goes."""
    ticks, signs, found = _every(camera.times_s, _TICK_S), held(camera, WordSettings()), camera.controls
    scaled = camera.scale_source != "none"
    lines = [f"controls, {_TICK_S:g} s a character, from the camera's motion"]
    for axis, (name, more, less) in enumerate(_CONTROLS):
        parts = np.split(signs[:, axis], ticks[1:])
        drawn = "".join({1: more, -1: less}.get(round(float(np.mean(part))), ".") for part in parts)
        unit = "deg/s" if axis >= 2 else "unit/s" if scaled else "of unknown unit a second"
        lines.append(f"{name:8} {drawn}  {found[:, axis].min():.2f} to {found[:, axis].max():.2f} {unit}")
    return lines
