"""Read the truth file of a recording, and derive the motion that evaluations compare with.

Frame i of the video is the picture before action i, so the effect of action i is visible from frame i + 1 on. The rate at
frame i is that of the step from frame i to frame i + 1. There is no step across a discontinuity (a cut, a teleport) or after
the last frame: there the rate of the step before is used, or zero.

Axes are the engine's: x east, y north, z up, in map units (about 32 to a metre). Yaw is counter-clockwise from east.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.angles import wrapped_deg
from synth.doom.events import IN_VIEW_DISTANCE

# Rates below which the player counts as not turning and not moving. Walking is 290 units/s and a key turn 60 deg/s or
# more; a walk along a straight corridor is steered with less than 30 deg/s, and a stop glides out below 40 units/s.
TURN_DEG_S = 30.0
MOVE_UNITS_S = 40.0

_MOTIONS = ("door_opening", "door_closing", "floor_up", "floor_down")

REGIMES = ("still", "forward", "back", "turn_left", "turn_right", "strafe_left", "strafe_right")
JUMP_EVENTS = frozenset({"level_change", "respawn_cut", "teleport"})

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GameEvent:
    """Something that happened at a frame."""

    frame: int
    name: str
    details: dict[str, Any]  # the engine's numbers for it


@dataclass(frozen=True, eq=False)
class Truth:
    """What the engine knew about each of n frames."""

    header: dict[str, Any]
    fps: float
    cuts: tuple[int, ...]  # frames whose picture does not continue the one before
    time_s: Floats  # [n]
    position: Floats  # [n, 3], the eye, in map units
    yaw_deg: Floats  # [n], view direction
    pitch_deg: Floats  # [n], upwards; 0 where the engine does not log it
    keys: list[frozenset[str]]
    mouse_dx_deg: Floats  # [n], turn by the mouse, positive to the right
    behaviours: list[str]
    events: tuple[GameEvent, ...]
    moving_in_view: NDArray[np.bool_]  # [n]: a door, lift or floor moves on screen
    weapon_busy: NDArray[np.bool_]  # [n]: the weapon fires, sinks or rises

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.time_s)


def read_truth(jsonl: str | Path) -> Truth:
    """Read the truth of a recording. Raises ValueError if the header or the footer is missing (an interrupted recording)."""
    with open(jsonl, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if not lines or not lines[0].get("header"):
        raise ValueError(f"{jsonl} is not a truth file: its first line is not a header")
    if not lines[-1].get("footer"):
        raise ValueError(f"{jsonl} ends without a footer: the recording was cut short, record it again")
    frames = [line for line in lines if "frame" in line]  # the other lines are notes on restarts
    if len(frames) != lines[-1]["frames"]:
        raise ValueError(f"{jsonl} has {len(frames)} frames, its footer says {lines[-1]['frames']}")
    return _build_truth(lines[0], frames, lines[-1]["true_cuts"])


def yaw_rate_deg_s(truth: Truth) -> Floats:
    """Return the turn rate of the view, [n] degrees per second, positive to the left."""
    turned = wrapped_deg(np.diff(truth.yaw_deg))
    return _per_frame(truth, turned * truth.fps)


def forward_speed(truth: Truth) -> Floats:
    """Return the speed along the view direction at the start of each step, [n] map units per second."""
    return _body_velocity(truth)[:, 0]


def strafe_speed(truth: Truth) -> Floats:
    """Return the speed to the right of the view direction at the start of each step, [n] map units per second."""
    return _body_velocity(truth)[:, 1]


def regimes(truth: Truth) -> list[str]:
    """Return one label of `REGIMES` per frame.

    The first rule that holds decides. A yaw rate over 30 deg/s: turn_left or turn_right, whether the player walks or not. A
    ground speed of at most 40 units/s: still. Otherwise the larger of forward and strafe speed; forward or back on a tie.
    Labels are not smoothed: each is about one step of 1 / fps seconds.
    """
    turn, velocity = yaw_rate_deg_s(truth), _body_velocity(truth)
    ahead, right = velocity[:, 0], velocity[:, 1]
    rules = [
        (turn > TURN_DEG_S, "turn_left"),
        (turn < -TURN_DEG_S, "turn_right"),
        (np.hypot(ahead, right) <= MOVE_UNITS_S, "still"),
        (ahead >= np.abs(right), "forward"),
        (-ahead >= np.abs(right), "back"),
        (right < 0, "strafe_left"),
    ]
    labels = np.select([holds for holds, _ in rules], [label for _, label in rules], "strafe_right")
    return [str(label) for label in labels]


def interactions(truth: Truth) -> NDArray[np.bool_]:
    """Return the frames [n] in which an interaction is visible.

    A door, lift or floor within 400 units moves in view, or the weapon is fired, lowered or raised (also fist and saw).
    """
    drawn = "--no-weapon" not in truth.header.get("argv", ())
    return truth.moving_in_view | truth.weapon_busy if drawn else truth.moving_in_view


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the index ranges [start, end) in which flags [n] are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def discontinuities(truth: Truth) -> list[int]:
    """Return the frames whose pose does not continue the one before: true cuts and teleports."""
    return sorted(set(truth.cuts) | {event.frame for event in truth.events if event.name in JUMP_EVENTS} - {0})


def _body_velocity(truth: Truth) -> Floats:
    """Return forward and rightward speed, [n, 2] map units per second."""
    step = np.diff(truth.position[:, :2], axis=0) * truth.fps
    yaw = np.radians(truth.yaw_deg[:-1])
    ahead = step[:, 0] * np.cos(yaw) + step[:, 1] * np.sin(yaw)
    right = step[:, 0] * np.sin(yaw) - step[:, 1] * np.cos(yaw)
    return _per_frame(truth, np.stack([ahead, right], axis=1))


def _per_frame(truth: Truth, steps: Floats) -> Floats:
    """Turn rates of n - 1 steps into rates of n frames. A missing step repeats the one before it in its segment."""
    rates = np.concatenate([steps, np.zeros_like(steps[:1]) if len(steps) else np.zeros((1, *steps.shape[1:]))])
    starts = {0, *discontinuities(truth)}
    for after in [*sorted(starts - {0}), len(rates)]:
        last = after - 1
        rates[last] = 0.0 if last in starts else rates[last - 1]
    return rates


def _build_truth(header: dict[str, Any], frames: list[dict[str, Any]], cuts: Iterable[int]) -> Truth:
    states = [frame["state"] for frame in frames]
    events = [_event(frame["frame"], event) for frame in frames for event in frame["events"]]
    eyes = [[state[f"CAMERA_POSITION_{axis}"] for axis in "XYZ"] for state in states]
    return Truth(
        header=header,
        fps=float(header["fps"]),
        cuts=tuple(cuts),
        time_s=np.arange(len(frames)) / float(header["fps"]),
        position=np.array(eyes, dtype=np.float64).reshape(-1, 3),
        yaw_deg=np.array([state["CAMERA_ANGLE"] for state in states], dtype=np.float64),
        pitch_deg=np.array([state.get("CAMERA_PITCH", 0.0) for state in states], dtype=np.float64),
        keys=[frozenset(frame["keys"]) for frame in frames],
        mouse_dx_deg=np.array([frame["mouse_dx"] for frame in frames], dtype=np.float64),
        behaviours=[frame["mode"] for frame in frames],
        events=tuple(events),
        moving_in_view=_moving_in_view(frames, events),
        weapon_busy=np.array([state["ATTACK_READY"] == 0 for state in states], dtype=bool),
    )


def _moving_in_view(frames: list[dict[str, Any]], events: list[GameEvent]) -> NDArray[np.bool_]:
    """Return the frames [n] in which a door, lift or floor moves in view.

    Newer recordings list it for each frame. In older ones it lasts from a start event that says "in view" to its end event.
    """
    in_view = np.zeros(len(frames), bool)
    if frames and "moving" in frames[0]:
        near = [[m for m in f["moving"] if m["visible"] and m["dist"] < IN_VIEW_DISTANCE] for f in frames]
        return np.array([bool(moving) for moving in near], bool)
    for event in events:
        motion, _, what = event.name.rpartition("_")
        if motion in _MOTIONS and what == "start" and event.details["in_view"]:
            sector = event.details["sector"]
            ends = (e.frame for e in events if e.frame > event.frame and e.details.get("sector") == sector)
            in_view[event.frame : next(ends, len(frames))] = True
    return in_view


def _event(frame: int, event: str | dict[str, Any]) -> GameEvent:
    if isinstance(event, str):
        return GameEvent(frame, event, {})
    return GameEvent(frame, event["e"], {name: value for name, value in event.items() if name != "e"})
