"""Reads the truth file of a recording, and derives from it the motion that later evaluations compare with.

Frame i of the video is the picture before action i: what action i did shows from frame i + 1 on. Rates at frame i are
therefore those of the step from frame i to frame i + 1. A step across a discontinuity (a cut, a teleport) and the one
after the last frame do not exist; they take the rate of the step before, or zero.

Axes are the engine's: x east, y north, z up, in map units (about 32 to a metre); yaw is counter-clockwise from east.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.doom.events import IN_VIEW_DISTANCE

# Rates below which the player counts as not turning and not moving. Walking is 290 units/s and a key turn 60 deg/s or
# more; a walk along a straight corridor is steered with less than 30 deg/s, and a stop glides out below 40 units/s.
TURN_DEG_S = 30.0
MOVE_UNITS_S = 40.0

_MOTIONS = ("door_opening", "door_closing", "floor_up", "floor_down")

REGIMES = ("still", "forward", "back", "turn_left", "turn_right", "strafe_left", "strafe_right")
JUMPS = frozenset({"level_change", "respawn_cut", "teleport"})

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """Something that happened at a frame; `details` are the engine's numbers for it."""

    frame: int
    name: str
    details: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Truth:
    """What the engine knew about each of n frames.

    `cuts` are the frames whose picture does not follow from the one before. `position` [n, 3] is the eye in map units,
    `yaw_deg` [n] the view direction, `mouse_dx_deg` [n] the mouse turn of the action, positive to the right.
    `moving_in_view` [n]: a door, lift or floor moves on screen; `weapon_busy` [n]: the weapon fires, sinks or rises.
    """

    header: dict[str, Any]
    fps: float
    cuts: tuple[int, ...]
    time_s: Floats
    position: Floats
    yaw_deg: Floats
    keys: list[frozenset[str]]
    mouse_dx_deg: Floats
    behaviours: list[str]
    events: tuple[Event, ...]
    moving_in_view: NDArray[np.bool_]
    weapon_busy: NDArray[np.bool_]

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.time_s)


def read_truth(jsonl: str | Path) -> Truth:
    """The truth of a recording. Raises ValueError when the file has no header or no footer (an interrupted one)."""
    with open(jsonl, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if not lines or not lines[0].get("header"):
        raise ValueError(f"{jsonl} is not a truth file: its first line is no header")
    if not lines[-1].get("footer"):
        raise ValueError(f"{jsonl} ends without a footer: the recording was cut short, record it again")
    frames = [line for line in lines if "frame" in line]  # notes on restarts stand between them
    if len(frames) != lines[-1]["frames"]:
        raise ValueError(f"{jsonl} has {len(frames)} frames, its footer says {lines[-1]['frames']}")
    return _truth(lines[0], frames, lines[-1]["true_cuts"])


def yaw_rate_deg_s(truth: Truth) -> Floats:
    """How fast the view turns, [n] degrees per second, positive to the left."""
    turned = 180.0 - (180.0 - np.diff(truth.yaw_deg)) % 360.0
    return _per_frame(truth, turned * truth.fps)


def forward_speed(truth: Truth) -> Floats:
    """Speed along the view direction at the start of each step, [n] map units per second."""
    return _body_velocity(truth)[:, 0]


def strafe_speed(truth: Truth) -> Floats:
    """Speed to the right of the view direction at the start of each step, [n] map units per second."""
    return _body_velocity(truth)[:, 1]


def regimes(truth: Truth) -> list[str]:
    """One label of `REGIMES` for each frame.

    The first rule that holds: the yaw rate exceeds 30 deg/s -> turn_left or turn_right, whatever the feet do;
    the ground speed is at most 40 units/s -> still; the larger of forward and strafe speed names the rest, forward or
    back on a tie. Nothing is smoothed: a label is about one step of 1 / fps seconds.
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
    """Whether something happens on screen that the player did: [n].

    A door, lift or floor within 400 units moves in view; the weapon is fired, lowered or raised (fist and saw as well).
    """
    drawn = "--no-weapon" not in truth.header.get("argv", ())
    return truth.moving_in_view | truth.weapon_busy if drawn else truth.moving_in_view


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Index ranges [start, end) in which flags [n] are set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def discontinuities(truth: Truth) -> list[int]:
    """The frames whose pose does not follow from the one before: true cuts and teleports."""
    return sorted(set(truth.cuts) | {event.frame for event in truth.events if event.name in JUMPS} - {0})


def _body_velocity(truth: Truth) -> Floats:
    """Forward and rightward speed, [n, 2] map units per second."""
    step = np.diff(truth.position[:, :2], axis=0) * truth.fps
    yaw = np.radians(truth.yaw_deg[:-1])
    ahead = step[:, 0] * np.cos(yaw) + step[:, 1] * np.sin(yaw)
    right = step[:, 0] * np.sin(yaw) - step[:, 1] * np.cos(yaw)
    return _per_frame(truth, np.stack([ahead, right], axis=1))


def _per_frame(truth: Truth, steps: Floats) -> Floats:
    """Rates of n - 1 steps as rates of n frames; a missing step repeats the one before it in its segment."""
    rates = np.concatenate([steps, np.zeros_like(steps[:1]) if len(steps) else np.zeros((1, *steps.shape[1:]))])
    starts = {0, *discontinuities(truth)}
    for after in [*sorted(starts - {0}), len(rates)]:
        last = after - 1
        rates[last] = 0.0 if last in starts else rates[last - 1]
    return rates


def _truth(header: dict[str, Any], frames: list[dict[str, Any]], cuts: Iterable[int]) -> Truth:
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
        keys=[frozenset(frame["keys"]) for frame in frames],
        mouse_dx_deg=np.array([frame["mouse_dx"] for frame in frames], dtype=np.float64),
        behaviours=[frame["mode"] for frame in frames],
        events=tuple(events),
        moving_in_view=_moving_in_view(frames, events),
        weapon_busy=np.array([state["ATTACK_READY"] == 0 for state in states], dtype=bool),
    )


def _moving_in_view(frames: list[dict[str, Any]], events: list[Event]) -> NDArray[np.bool_]:
    """By the frame's own list where the recording has one, else from each start that says "in view" to its end."""
    found = np.zeros(len(frames), bool)
    if frames and "moving" in frames[0]:
        near = [[m for m in f["moving"] if m["visible"] and m["dist"] < IN_VIEW_DISTANCE] for f in frames]
        return np.array([bool(moving) for moving in near], bool)
    for event in events:
        motion, _, what = event.name.rpartition("_")
        if motion in _MOTIONS and what == "start" and event.details["in_view"]:
            sector = event.details["sector"]
            ends = (e.frame for e in events if e.frame > event.frame and e.details.get("sector") == sector)
            found[event.frame : next(ends, len(frames))] = True
    return found


def _event(frame: int, event: str | dict[str, Any]) -> Event:
    if isinstance(event, str):
        return Event(frame, event, {})
    return Event(frame, event["e"], {name: value for name, value in event.items() if name != "e"})
