"""Recordings as the detector of interactions reads them, with their labels: ten ticks a second."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.actions import learned
from curation.actions.learned import REGIMES
from curation.media.time_gaps import frame_step
from curation.partition.chunks import measure_flow
from curation.partition.optical_flow import FlowSettings
from synth.engines.labels import read_labels

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LabelledTicks:
    """A recording as T ticks."""

    engine: str
    times_s: np.ndarray  # [T]
    planes: np.ndarray  # [T, 11, 12, 16], as `learned.with_context` returns
    event: np.ndarray  # [T], whether an interaction happens
    kinds: np.ndarray  # [T, 10], of each of `learned.KINDS`
    knows_kind: np.ndarray  # [10], False where the ground truth does not tell of a kind
    regime: np.ndarray  # [T], index in `learned.REGIMES`
    known: np.ndarray  # [T], False where the ground truth does not tell whether an interaction is visible


def split_of(path: Path) -> str:
    """Return train, valid or test, as the name of a recording says: the word begins it or follows a hyphen."""
    named = re.search(rf"(?:^|-)({'|'.join(SPLITS)})", path.name)
    return named[1] if named else "train"


def recordings_in(folders: Iterable[Path], splits: Sequence[str]) -> list[Path]:
    """Return the videos of some folders that have ground truth and are of one of the splits, sorted."""
    videos = sorted(path for folder in folders for path in folder.glob("*.mp4"))
    return [path for path in videos if split_of(path) in splits and path.with_suffix(".jsonl").exists()]


def labelled_ticks(path: Path) -> LabelledTicks:
    """Measure a recording, or read its stored measurement, and read its labels."""
    measured = _measured(path)
    labels = read_labels(path.with_suffix(".jsonl"))
    frames = np.minimum(measured["pair_frame"], len(labels.event) - 1)
    regime = np.array([REGIMES.index(name) for name in labels.regimes])[np.maximum(frames - 1, 0)]
    fps = 1 / frame_step(measured["times_s"], None)
    return LabelledTicks(
        labels.engine,
        measured["times_s"][measured["pair_frame"]],
        learned.with_context(learned.inputs(measured["cells"], measured["change_cells"], fps)).astype(np.float16),
        since_last(labels.event, frames),
        since_last(labels.kinds, frames),
        labels.knows_kind,
        regime,
        labels.known[frames],
    )


def _measured(path: Path) -> dict[str, np.ndarray]:
    """Return the flow of a recording. It is measured once and stored beside it."""
    stored = path.with_suffix(".flow.npz")
    if not stored.exists():
        part = stored.with_name(f".part-{os.getpid()}-{stored.name}")
        np.savez_compressed(part, allow_pickle=False, **measure_flow(str(path), FlowSettings(backend="dis")))
        part.replace(stored)
    with np.load(stored) as data:
        return dict(data)


def since_last(flags: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return for each tick whether a flag [n, ...] is set in a frame after the tick before, up to its own frame."""
    starts = np.minimum(np.concatenate([[0], frames[:-1] + 1]), frames)
    return np.array([flags[start : frame + 1].any(0) for start, frame in zip(starts, frames, strict=True)])
