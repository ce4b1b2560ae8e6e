"""The report's section on cameras: how many clips have which status, and some trajectories from above and from the side."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curation.cameras.camera import PART, Camera, from_npz
from curation.cameras.words import WordSettings, held_keys
from curation.schema import Row
from pipelines import ledger, units
from pipelines.report.svg import number

MAX_DRAWN = 24
# Reasons that a status lists, the most common ones.
_MAX_REASONS = 6
# A drawing is a square of this many units; the path has a margin.
SIDE = 200
_MARGIN = 24
# A short line shows the view direction, this often and this long.
_LOOK_EVERY_S, _LOOK_LENGTH = 0.5, 13
# Duration of one character of a controls' timeline; the axes of `Camera.controls`, with the characters for both directions.
_TICK_S = 0.1
_CONTROLS = (("forward", "W", "S"), ("right", "D", "A"), ("turn", ">", "<"), ("look", "^", "v"))
_MEANING = {
    "ok": "moves; position and direction are known in every frame",
    "ok_rotation": "rotates in place",
    "ok_static": "does not move",
    "ok_part": "position and direction are known in its spans, which are drawn below",
    "suspect": "estimated, but a check failed",
    "low_texture": "too little texture to track",
    "failed": "no trajectory",
    "skipped": "not estimated",
}


def statuses(clips: pa.Table, kept: np.ndarray) -> list[dict[str, Any]]:
    """Count kept clips by camera status, most reliable first, with the most common reasons."""
    table = clips.select(["camera_status", "camera_why"]).filter(pa.array(kept))
    counts, why = Counter[str](), dict[str, Counter[str]]()
    for status, checks in zip(table["camera_status"].to_pylist(), table["camera_why"].to_pylist(), strict=True):
        if status is not None:
            kind, _, reason = status.partition(":")
            counts[kind] += 1
            why.setdefault(kind, Counter()).update([reason] if reason else _failed_checks(checks))
    total = counts.total()
    order = [*_MEANING, *sorted(set(counts) - set(_MEANING))]
    return [
        {
            "status": kind,
            "meaning": _MEANING.get(kind, ""),
            "count": counts[kind],
            "percent": round(100 * counts[kind] / total, 1),
            "why": [f"{reason} ({count})" for reason, count in why[kind].most_common(_MAX_REASONS)],
        }
        for kind in order
        if counts[kind]
    ]


def valid_share(clips: pa.Table, kept: np.ndarray) -> float | None:
    """Return the share of the kept clips' time with a valid camera, in percent; None where no camera was asked for.

    Of a clip without `camera_valid_share` (schema version 2) the status decides.
    """
    table = clips.select(["camera_status", "camera_valid_share", "start_s", "end_s"]).filter(pa.array(kept))
    rows = [row for row in table.to_pylist() if row["camera_status"] is not None]
    total_s = sum(row["end_s"] - row["start_s"] for row in rows)
    valid_s = sum((row["end_s"] - row["start_s"]) * _valid_share(row) for row in rows)
    return round(100 * valid_s / total_s, 1) if total_s else None


def _valid_share(row: Row) -> float:
    if not row["camera_status"].startswith("ok"):
        return 0.0
    share = row["camera_valid_share"]
    return 1.0 if share is None else float(share)


def _failed_checks(why: str | None) -> list[str]:
    """Return the names of the checks in a `camera_why`: "points 9, velocity_spike 3.9" has points and velocity_spike."""
    return [re.sub(r" [-+.\de]+$", "", check) for check in why.split(", ")] if why else []


def trajectories(out: str, rows: list[Row]) -> list[dict[str, Any]]:
    """Return drawings of the stored cameras of these clips."""
    stored = ledger.cameras(out, units.list_of_videos(out, "annotate", {row["video_id"] for row in rows}))
    return [_drawing(row, from_npz(stored[row["clip_id"]])) for row in rows if row["clip_id"] in stored]


def _drawing(row: Row, camera: Camera) -> dict[str, Any]:
    right, down, ahead = camera.pose[:, :3, 3].T
    look_right, look_down, look_ahead = camera.pose[:, :3, 2].T
    extent = max(np.ptp(right), np.ptp(down), np.ptp(ahead), 1e-9)
    shown = _every(camera.times_s, _LOOK_EVERY_S)
    whole = [(0, len(camera.pose))]
    parts = [(span.start, span.end) for span in camera.spans] if row["camera_status"] == PART else whole
    return {
        "row": row,
        "top": _view(np.stack([right, -ahead], 1), np.stack([look_right, -look_ahead], 1), extent, shown, parts),
        "side": _view(np.stack([ahead, down], 1), np.stack([look_ahead, look_down], 1), extent, shown, parts),
        "fov": number(2 * np.degrees(np.arctan(camera.viewport[2] / 2 / camera.intrinsics[0, 0]))),
    }


def _every(times_s: np.ndarray, step_s: float) -> np.ndarray:
    """Return the index of the first frame in every interval of this length."""
    return np.unique(np.floor((times_s - times_s[0]) / step_s), return_index=True)[1]


def _view(
    position: np.ndarray, look: np.ndarray, extent: float, shown: np.ndarray, parts: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return two axes of a path as SVG path data, from positions [N, 2] and view directions [N, 2].

    `extent` is the length that fills the drawing, `shown` the frames whose view direction is drawn. parts: the frames [a, b) in
    which the path is known; only these are drawn.
    """
    shown = shown[np.any([(shown >= a) & (shown < b) for a, b in parts], axis=0)]
    middle = (position.min(axis=0) + position.max(axis=0)) / 2
    xy = SIDE / 2 + (position - middle) * (SIDE - 2 * _MARGIN) / extent
    tips = xy[shown] + look[shown] * _LOOK_LENGTH
    return {
        "path": "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy[a:b]) for a, b in parts),
        "looks": "".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for (a, b), (c, d) in zip(xy[shown], tips, strict=True)),
        "start": [round(float(value), 1) for value in xy[0]],
        "end": [round(float(value), 1) for value in xy[-1]],
    }


def timeline(camera: Camera) -> list[str]:
    """Return lines of text: the controls that the trajectory shows, one character per tick, and the range of each axis.

    A tick of which no frame is in a span has no known controls, and is a question mark.
    """
    ticks, signs, controls = _every(camera.times_s, _TICK_S), held_keys(camera, WordSettings()), camera.controls
    scaled = camera.scale_source != "none"
    known = camera.valid if camera.spans else np.ones(len(camera.times_s), bool)
    is_known = [bool(part.any()) for part in np.split(known, ticks[1:])]
    lines = [f"controls from the camera's motion, {_TICK_S:g} s per character"]
    for axis, (name, positive, negative) in enumerate(_CONTROLS):
        parts = np.split(signs[:, axis], ticks[1:])
        keys = [{1: positive, -1: negative}.get(round(float(np.mean(part))), ".") for part in parts]
        drawn = "".join(key if sure else "?" for key, sure in zip(keys, is_known, strict=True))
        unit = "deg/s" if axis >= 2 else "unit/s" if scaled else "per second, unit unknown"
        lines.append(f"{name:8} {drawn}  {controls[known, axis].min():.2f} to {controls[known, axis].max():.2f} {unit}")
    return lines
