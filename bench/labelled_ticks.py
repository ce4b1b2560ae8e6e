"""Recordings as the detector of interactions reads them, with their labels: ten ticks a second."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.actions import learned
from curation.actions.learned import REGIMES
from curation.partition.chunks import ScanSettings
from curation.partition.optical_flow import FlowSettings
from curation.partition.scan import scan
from synth.engines.labels import read_labels


@dataclass(frozen=True)
class LabelledTicks:
    """A recording as T ticks."""

    engine: str
    times_s: np.ndarray  # [T]
    planes: np.ndarray  # [T, 6, 12, 16]
    event: np.ndarray  # [T], whether an interaction happens
    kinds: np.ndarray  # [T, 10], of each of `learned.KINDS`
    knows_kind: np.ndarray  # [10], False where the ground truth does not tell of a kind
    regime: np.ndarray  # [T], index in `learned.REGIMES`
    known: np.ndarray  # [T], False where the ground truth does not tell whether an interaction is visible


def split_of(path: Path) -> str:
    """Return train, valid or test, as the name of a recording says: the word begins it or follows a hyphen."""
    named = re.search(r"(?:^|-)(train|valid|test)", path.name)
    return named[1] if named else "train"


def labelled_ticks(path: Path) -> LabelledTicks:
    """Measure a recording, or read its stored measurement."""
    stored = path.with_suffix(".ticks.npz")
    if not stored.exists():
        signals = scan(str(path), ScanSettings(FlowSettings(backend="dis")))
        labels = read_labels(path.with_suffix(".jsonl"))
        frames = np.minimum(signals.pair_frame, len(labels.event) - 1)
        regime = np.array([REGIMES.index(name) for name in labels.regimes])[np.maximum(frames - 1, 0)]
        np.savez_compressed(
            stored,
            engine=labels.engine,
            times_s=signals.pair_times_s,
            planes=learned.inputs(signals.cells, signals.change_cells, signals.fps).astype(np.float16),
            event=since_last(labels.event, frames),
            kinds=since_last(labels.kinds, frames),
            knows_kind=labels.knows_kind,
            regime=regime,
            known=labels.known[frames],
        )
    with np.load(stored) as data:
        return LabelledTicks(str(data["engine"]), *(data[name] for name in list(LabelledTicks.__annotations__)[1:]))


def since_last(flags: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return for each tick whether a flag [n, ...] is set in a frame after the tick before, up to its own frame."""
    starts = np.minimum(np.concatenate([[0], frames[:-1] + 1]), frames)
    return np.array([flags[start : frame + 1].any(0) for start, frame in zip(starts, frames, strict=True)])
