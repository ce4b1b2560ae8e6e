"""The report's section on cameras: how many clips have which status, and some trajectories from above and from the side."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from curation.cameras.camera import Camera, from_npz
from curation.cameras.words import WordSettings, held_keys
from curation.schema import Row
from pipelines import ledger, units
from pipelines.report.svg import number

MAX_DRAWN = 24
# A drawing is a square of this many units, with a margin around the path.
SIDE = 200
_MARGIN = 24
# A whisker shows the viewing direction: how often, and how long it is drawn.
_WHISKER_EVERY_S, _WHISKER_LENGTH = 0.5, 13
# Duration of one character of a controls' timeline; the axes of `Camera.controls` with the character for each direction.
_TICK_S = 0.1
_CONTROLS = (("forward", "W", "S"), ("right", "D", "A"), ("turn", ">", "<"), ("look", "^", "v"))
_MEANING = {
    "ok": "moves; position and direction are known in every frame",
    "ok_rotation": "turns on the spot",
    "ok_static": "stands still",
    "suspect": "there is a trajectory, but a check failed; the clip's row says which",
    "low_texture": "too few corners to track",
    "failed": "no trajectory",
    "skipped": "not estimated",
}


def statuses(clips: pa.Table, kept: np.ndarray) -> list[dict[str, Any]]:
    """Count kept clips by camera status, most reliable first, with the most frequent reasons."""
    table = clips.select(["camera_status", "camera_why"]).filter(pa.array(kept))
    counts, reasons = Counter[str](), dict[str, Counter[str]]()
    for status, why in zip(table["camera_status"].to_pylist(), table["camera_why"].to_pylist(), strict=True):
        if status is not None:
            kind, _, failure = status.partition(":")
            counts[kind] += 1
            reasons.setdefault(kind, Counter()).update([failure or why] if failure or why else [])
    total = counts.total()
    order = [*_MEANING, *sorted(set(counts) - set(_MEANING))]
    return [
        {
            "status": kind,
            "meaning": _MEANING.get(kind, ""),
            "count": counts[kind],
            "percent": round(100 * counts[kind] / total, 1),
            "why": [f"{count} {reason}" for reason, count in reasons[kind].most_common(4)],
        }
        for kind in order
        if counts[kind]
    ]


def trajectories(out: str, rows: list[Row]) -> list[dict[str, Any]]:
    """Draw the cameras of these clips, for those that have a stored one."""
    stored = ledger.cameras(out, units.of_videos(out, "annotate", {row["video_id"] for row in rows}))
    return [_draw(row, from_npz(stored[row["clip_id"]])) for row in rows if row["clip_id"] in stored]


def _draw(row: Row, camera: Camera) -> dict[str, Any]:
    right, down, forward = camera.pose[:, :3, 3].T
    view_right, view_down, view_forward = camera.pose[:, :3, 2].T
    extent = max(np.ptp(right), np.ptp(down), np.ptp(forward), 1e-9)
    whiskers = _every(camera.times_s, _WHISKER_EVERY_S)
    return {
        "row": row,
        "top": _svg_view(np.stack([right, -forward], 1), np.stack([view_right, -view_forward], 1), extent, whiskers),
        "side": _svg_view(np.stack([forward, down], 1), np.stack([view_forward, view_down], 1), extent, whiskers),
        "fov": number(2 * np.degrees(np.arctan(camera.viewport[2] / 2 / camera.intrinsics[0, 0]))),
    }


def _every(times_s: np.ndarray, step_s: float) -> np.ndarray:
    """Return the first frame of each stretch of `step_s` seconds."""
    return np.unique(np.floor((times_s - times_s[0]) / step_s), return_index=True)[1]


def _svg_view(position: np.ndarray, direction: np.ndarray, extent: float, whiskers: np.ndarray) -> dict[str, Any]:
    """Return two axes of a path as SVG path data: positions [N, 2], viewing directions [N, 2]; `extent` fills the drawing."""
    middle = (position.min(axis=0) + position.max(axis=0)) / 2
    xy = SIDE / 2 + (position - middle) * (SIDE - 2 * _MARGIN) / extent
    tips = xy[whiskers] + direction[whiskers] * _WHISKER_LENGTH
    return {
        "path": "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy),
        "whiskers": "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for (a, b), (c, d) in zip(xy[whiskers], tips, strict=True)),
        "start": [round(float(value), 1) for value in xy[0]],
        "end": [round(float(value), 1) for value in xy[-1]],
    }


def timeline(camera: Camera) -> list[str]:
    """Return lines of text: the controls that the trajectory shows, a character per tenth of a second, and their range."""
    ticks, signs, values = _every(camera.times_s, _TICK_S), held_keys(camera, WordSettings()), camera.controls
    is_scaled = camera.scale_source != "none"
    lines = [f"controls, {_TICK_S:g} s a character, from the camera's motion"]
    for axis, (name, more, less) in enumerate(_CONTROLS):
        parts = np.split(signs[:, axis], ticks[1:])
        drawn = "".join({1: more, -1: less}.get(round(float(np.mean(part))), ".") for part in parts)
        unit = "deg/s" if axis >= 2 else "unit/s" if is_scaled else "of unknown unit a second"
        lines.append(f"{name:8} {drawn}  {values[:, axis].min():.2f} to {values[:, axis].max():.2f} {unit}")
    return lines
