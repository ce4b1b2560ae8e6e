"""Count the named events of drift in recordings, where there is none, and in the same recordings after made-up ones.

python -m bench.drift_events RECORDING.mp4... Each recording has its engine's truth in RECORDING.jsonl. A made-up collapse
continues as the first two seconds did, after a hard cut or a blend of four frames. A made-up lock-in repeats one frame, or a
second and a half. Every tenth second of a recording also counts as a first frame, so that more real footage is judged than
there is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.machine import describe
from model.evaluation.control import drift
from model.evaluation.tables import Column, Row, Table, to_markdown
from model.evaluation.videos import fitted_size, read_video
from synth.doom.cameras import poses
from synth.doom.truth import read_truth

_WIDTH, _MAX_S, _FPS, _START_EVERY_S = 64, 90.0, 17.5, 10.0
_SHOWN_S, _BLEND, _LOCKED_S, _LOOP_S = 2.0, 4, 5.0, 1.5
_PLACES = 12  # made-up events of each kind in a recording, at most
_KINDS = ("cut", "blend", "freeze", "loop")


class Recording(NamedTuple):
    """Pictures uint8 [F, H, W, 3], poses [F, 4, 4], frames a second."""

    pictures: np.ndarray
    pose: np.ndarray
    fps: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each recording, and the whole."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift_events", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="+")
    options = parser.parse_args(arguments)
    print(describe())
    rows = []
    for path in options.recordings:
        rows.append((Path(path).stem, measure(read(path))))
        print(rows[-1][0], rows[-1][1], flush=True)
    print(to_markdown(table(rows)))


def read(path: str) -> Recording:
    """Read at most a minute and a half of a recording, about 17.5 frames a second, as every n-th frame."""
    truth = read_truth(Path(path).with_suffix(".jsonl"))
    every = max(1, round(truth.fps / _FPS))
    video = read_video(path, truth.fps, fitted_size(path, _WIDTH))
    frames = np.arange(0, min(len(video.rgb), len(truth), round(_MAX_S * truth.fps)), every)
    return Recording(video.rgb[frames], poses(truth.position, truth.yaw_deg, truth.pitch_deg)[frames], truth.fps / every)


class Counts(NamedTuple):
    """Events in real footage of some seconds, and made-up events: how many of each kind are found, and made."""

    seconds: float
    collapses: int
    lock_ins: int
    found: dict[str, int]
    made: dict[str, int]


def measure(take: Recording) -> Counts:
    """Count the events of a recording from each of its starts, and those that are found of the made-up ones."""
    frames, seconds, collapses, lock_ins = len(take.pictures), 0.0, 0, 0
    for start in range(0, frames - round(_LOCKED_S * take.fps), round(_START_EVERY_S * take.fps)):
        part = Recording(take.pictures[start:], take.pose[start:], take.fps)
        events = _events(part)
        seconds += len(part.pictures) / take.fps
        collapses += drift.count(events, "sink_collapse")
        lock_ins += drift.count(events, "lock_in")
    found, made = dict.fromkeys(_KINDS, 0), dict.fromkeys(_KINDS, 0)
    for kind, at in made_up_places(take):
        made[kind] += 1
        wanted = "sink_collapse" if kind in ("cut", "blend") else "lock_in"
        end = at + round((_SHOWN_S if kind in ("cut", "blend") else _LOCKED_S) * take.fps)
        events = _events(Recording(damaged(take, kind, at)[:end], take.pose[:end], take.fps))
        found[kind] += any(e.kind == wanted and e.end_s >= (at - _BLEND) / take.fps for e in events)
    return Counts(seconds, collapses, lock_ins, found, made)


def _events(take: Recording) -> list[drift.DriftEvent]:
    return drift.events(drift.drift_curve(take.pictures, take.fps), take.fps, take.pose)


def made_up_places(take: Recording) -> list[tuple[str, int]]:
    """Return where events are made up: collapses where the first frame is not in view, lock-ins where the camera moves."""
    curve, length = drift.drift_curve(take.pictures, take.fps), round(_LOCKED_S * take.fps)
    _, known = drift.revisits(take.pose, round(take.fps))
    moves = drift.moving(take.pose) & ~known
    starts = np.random.default_rng(0).permutation(np.arange(length, len(take.pictures) - length))
    far = [int(f) for f in starts if curve.similarity[f - 6 : f + 1].max() < 0.25][:_PLACES]
    steered = [int(f) for f in starts if moves[f : f + length].mean() > 0.9][: _PLACES // 3]
    return [(kind, f) for kind in ("cut", "blend") for f in far] + [(kind, f) for kind in ("freeze", "loop") for f in steered]


def damaged(take: Recording, kind: str, at: int) -> np.ndarray:
    """Return the pictures of a recording with a made-up event at a frame."""
    video = take.pictures.copy()
    order = np.arange(len(video) - at)
    if kind == "freeze":
        video[at:] = video[at]
    elif kind == "loop":
        length = round(_LOOP_S * take.fps)
        video[at:] = take.pictures[at - length + order % length]
    else:
        shown = round(_SHOWN_S * take.fps)
        video[at : at + shown] = take.pictures[:shown]
        for k in range(_BLEND if kind == "blend" else 0):
            share = (k + 1) / (_BLEND + 1)
            place = at - _BLEND + k
            video[place] = ((1 - share) * take.pictures[place] + share * take.pictures[0]).astype(np.uint8)
    return video


def table(rows: Sequence[tuple[str, Counts]]) -> Table:
    """Return the events in real footage, and the share of made-up ones that is found."""
    whole = Counts(
        sum(c.seconds for _, c in rows),
        sum(c.collapses for _, c in rows),
        sum(c.lock_ins for _, c in rows),
        {kind: sum(c.found[kind] for _, c in rows) for kind in _KINDS},
        {kind: sum(c.made[kind] for _, c in rows) for kind in _KINDS},
    )
    cells = [
        Row(name, [c.seconds, c.collapses, c.lock_ins, *(f"{c.found[kind]} of {c.made[kind]}" for kind in _KINDS)])
        for name, c in [*rows, ("all", whole)]
    ]
    columns = [Column("Real footage, s", digits=0), Column("Collapses in it"), Column("Lock-ins in it")]
    return Table("Named events of drift", [*columns, *(Column(f"Found: {kind}") for kind in _KINDS)], cells)


if __name__ == "__main__":
    main()
