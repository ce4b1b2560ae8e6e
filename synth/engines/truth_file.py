"""The truth file of a recording: one schema for all engines, which `synth.doom.truth` and `synth.engines.labels` read.

A header, a line for each frame, and a footer with the events as spans of frames. Axes are X east, Y north, Z up in units of
which 32 are a metre. Angles are degrees: yaw counter-clockwise from east, pitch positive upwards. Frame i of the video is the
picture before the action on line i.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNITS_PER_M = 32.0
HAND_KINDS = frozenset({"place", "dig", "wield", "shot"})
"""Kinds of events that the player's hand does. The others happen in the world."""
OTHER = "other"
"""What is seen to happen, or may be, and is no event: frames in which it is the only thing count as neither."""

# How far away a thing may be, in metres per metre of its radius, to count as in view: then it is 4 % of a view of 90 degrees.
_FAR_PER_RADIUS = 25.0


@dataclass(frozen=True)
class Optics:
    """A pinhole camera with square pixels whose centre is that of the picture."""

    width: int  # px
    height: int  # px
    focal_px: float

    @property
    def half_fov_deg(self) -> tuple[float, float]:
        """Half the field of view, across and up."""
        across, up = (math.degrees(math.atan(side / 2 / self.focal_px)) for side in (self.width, self.height))
        return across, up


@dataclass(frozen=True)
class FrameTruth:
    """What the engine knew about one frame."""

    eye_m: tuple[float, float, float]  # east, north, up
    yaw_deg: float
    pitch_deg: float
    keys: tuple[str, ...] = ()  # that act in this frame, in the words of `synth.doom.truth`: W, A, S, D, JUMP, FIRE, USE
    mouse_deg: tuple[float, float] = (0.0, 0.0)  # turn by the mouse, to the right and down
    behaviour: str = ""  # what the player meant to do
    notes: dict[str, Any] = field(default_factory=dict)  # engine-specific columns of the line


@dataclass(frozen=True)
class EventSpan:
    """An event, from the first frame that shows it to the first that no longer does."""

    kind: str  # one of `curation.actions.learned.KINDS`, or `OTHER`
    start: int
    end: int
    at_m: tuple[float, float, float] | None = None  # where it happens; None: in the hand, or all over the picture
    radius_m: float = 0.5
    details: dict[str, Any] = field(default_factory=dict)


def write_truth(
    path: Path,
    header: dict[str, Any],
    optics: Optics,
    fps: float,
    frames: Sequence[FrameTruth],
    events: Sequence[EventSpan],
    cuts: Sequence[int],
    hand_is_drawn: bool,
) -> None:
    """Write the truth of a recording. header: what the engine and the scenario are. cuts: frames that continue no other."""
    spans = [
        _span(event, frames, optics, hand_is_drawn) for event in sorted(events, key=lambda event: (event.start, event.kind))
    ]
    first = {
        "header": True,
        "fps": fps,
        "width": optics.width,
        "height": optics.height,
        **header,
        "units": f"X east, Y north, Z up; {UNITS_PER_M:g} units = 1 m; deg counter-clockwise from +X; pitch deg, up positive",
        "camera": "pinhole, square pixels, no distortion, no roll; the eye of this very frame",
        "fx": round(optics.focal_px, 4),
        "fy": round(optics.focal_px, 4),
        "cx": optics.width / 2,
        "cy": optics.height / 2,
        "hfov_deg": round(2 * optics.half_fov_deg[0], 4),
        "argv": [] if hand_is_drawn else ["--no-weapon"],
    }
    busy = _flags(len(frames), (span for span in spans if _is_own(span) and span["in_view"]))
    started: dict[int, list[dict[str, Any]]] = {}
    for span in spans:
        started.setdefault(span["start"], []).append({"e": span["kind"], **{k: v for k, v in span.items() if k != "kind"}})
    for cut in cuts:
        started.setdefault(cut, []).append({"e": "teleport"})
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(first) + "\n")
        for number, frame in enumerate(frames):
            moving = [
                {"sector": span["kind"], "motion": span["kind"], "dist": round(span["distance_m"] or 0.0, 2), "visible": True}
                for span in spans
                if span["kind"] not in (*HAND_KINDS, OTHER) and span["in_view"] and span["start"] <= number < span["end"]
            ]
            file.write(json.dumps(_line(number, fps, frame, bool(busy[number]), started.get(number, []), moving)) + "\n")
        counts = Counter(span["kind"] for span in spans if span["in_view"] and span["kind"] != OTHER)
        footer = {"footer": True, "frames": len(frames), "true_cuts": [], "jumps": list(cuts), "event_counts": dict(counts)}
        file.write(json.dumps({**footer, "spans": spans}) + "\n")


def _is_own(span: dict[str, Any]) -> bool:
    return span["kind"] in HAND_KINDS and not span.get("by_other")


def _line(
    number: int, fps: float, frame: FrameTruth, busy: bool, events: list[dict[str, Any]], moving: list[dict[str, Any]]
) -> dict[str, Any]:
    east, north, up = (round(value * UNITS_PER_M, 3) for value in frame.eye_m)
    state = {
        "CAMERA_POSITION_X": east,
        "CAMERA_POSITION_Y": north,
        "CAMERA_POSITION_Z": up,
        "CAMERA_ANGLE": round(frame.yaw_deg % 360, 4),
        "CAMERA_PITCH": round(frame.pitch_deg, 4),
        "ATTACK_READY": float(not busy),
    }
    return {
        "frame": number,
        "t": round(number / fps, 4),
        "mode": frame.behaviour,
        "keys": list(frame.keys),
        "mouse_dx": round(frame.mouse_deg[0], 3),
        "mouse_dy": round(frame.mouse_deg[1], 3),
        "state": state,
        **frame.notes,
        "events": events,
        "moving": moving,
    }


def _span(event: EventSpan, frames: Sequence[FrameTruth], optics: Optics, hand_is_drawn: bool) -> dict[str, Any]:
    """Return an event as the footer has it: whether it is in view, how far away, and its share of the picture's width."""
    start, end = max(0, event.start), min(len(frames), event.end)
    distance_m, extent, in_view = None, None, True
    if event.at_m is not None:
        seen = [view_of(event, frames[number], optics) for number in range(start, max(end, start + 1)) if number < len(frames)]
        distance_m, extent = min((one[0] for one in seen), default=None), max((one[1] for one in seen), default=None)
        in_view = any(one[2] for one in seen)
    elif event.kind == "wield":
        in_view = hand_is_drawn
    return {
        "kind": event.kind,
        "start": start,
        "end": end,
        "in_view": in_view,
        "distance_m": None if distance_m is None else round(distance_m, 3),
        "extent": None if extent is None else round(extent, 4),
        **event.details,
    }


def view_of(event: EventSpan, frame: FrameTruth, optics: Optics) -> tuple[float, float, bool]:
    """Return how far an event is from the eye, its share of the picture's width, and whether it is in view."""
    assert event.at_m is not None
    away = np.subtract(event.at_m, frame.eye_m)
    distance = float(np.linalg.norm(away))
    yaw, pitch = math.radians(frame.yaw_deg), math.radians(frame.pitch_deg)
    ahead, right, up = _axes(yaw, pitch) @ away
    extent = 2 * event.radius_m * optics.focal_px / max(ahead, event.radius_m, 0.1) / optics.width
    if distance < event.radius_m:
        return distance, extent, True
    if ahead <= 0.05 or distance > event.radius_m * _FAR_PER_RADIUS:
        return distance, extent, False
    reach = event.radius_m * optics.focal_px / ahead
    column, row = abs(right) / ahead * optics.focal_px, abs(up) / ahead * optics.focal_px
    return distance, extent, column - reach < optics.width / 2 and row - reach < optics.height / 2


def _axes(yaw: float, pitch: float) -> NDArray[np.float64]:
    """Return the view's forward, right and upward directions as rows."""
    forward = [math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)]
    right = [math.sin(yaw), -math.cos(yaw), 0.0]
    return np.array([forward, right, np.cross(right, forward)])


def _flags(count: int, spans: Any) -> NDArray[np.bool_]:
    flags = np.zeros(count, bool)
    for span in spans:
        flags[span["start"] : span["end"]] = True
    return flags
