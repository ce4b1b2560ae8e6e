"""Say what a run would cost and keep before it is paid for: curate a sample into a temporary folder, and scale up.

The sources of the sample are drawn by a hash of their uris, so that the same input gives the same sample. Everything is scaled
by bytes: what the sample cost for each byte of its sources times the bytes of all sources. The intervals come from drawing the
sample's sources again with replacement. OUT is not read, and nothing of the sample is kept.
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from curation import shards, source_files
from curation.schema import Row, digest
from curation.storage import Entry
from pipelines import ledger, run
from pipelines.recipes import CLIP_PHASES, Recipe
from pipelines.units import UnitName

_DRAWS, _LOW, _HIGH = 2000, 0.05, 0.95
_MEASURES = ("cpu_s", "source_s", "kept_s", "clips", "kept", "stored_bytes", "objects")


@dataclass(frozen=True)
class Interval:
    """An estimate, and what nine of ten such samples would give. None: the sample is one source."""

    value: float
    low: float | None
    high: float | None


@dataclass
class Estimate:
    """What all sources would cost and give.

    sources, bytes: of the input. sampled: sources of the sample; lost: those of them that failed. totals: scaled to the input,
    by name: cpu_s, source_s, kept_s (lengths in s), clips, kept, stored_bytes, objects (files that are written). cpu_s: of the
    sample, by phase. rows: the sample's clips. notes: what the sample cannot say.
    """

    sources: int
    bytes: int
    sampled: int
    lost: int
    totals: dict[str, Interval]
    cpu_s: dict[str, float]
    rows: list[Row]
    reasons: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def wall_s(self, cores: int) -> Interval:
        """Return the time on this many cores that are always busy."""
        cpu = self.totals["cpu_s"]
        return Interval(cpu.value / cores, *(None if bound is None else bound / cores for bound in (cpu.low, cpu.high)))


def estimate(inputs: Sequence[str], recipe: Recipe, sample: int = 20, workers: int = 1) -> Estimate:
    """Curate at most `sample` sources of the input, and scale up what that cost. workers, InputError: as for a run."""
    entries = source_files.find_sources(inputs)
    chosen = sorted(sorted(entries, key=lambda entry: digest("sample", entry.uri))[:sample])
    with tempfile.TemporaryDirectory(prefix="gamecraft-dry-run-") as folder:
        summary = run.curate([entry.uri for entry in chosen], folder + "/out", recipe, workers=workers)
        rows = ledger.clips(summary.out).to_pylist()
        measured = _measure(summary.out, chosen, rows)
        cpu_s: dict[str, float] = defaultdict(float)
        for record in ledger.records(summary.out):
            cpu_s[record.phase] += sum(record.cpu_s.values())
    whole = sum(entry.size for entry in entries)
    sizes = np.array([entry.size for entry in chosen], float)
    dropped = [row["reject"] or row["error"] for row in rows]
    return Estimate(
        sources=len(entries),
        bytes=whole,
        sampled=len(chosen),
        lost=summary.unreadable,
        totals={name: _scale(np.array(measured[name]), sizes, whole) for name in _MEASURES},
        cpu_s={phase: cpu_s[phase] for phase in CLIP_PHASES if cpu_s[phase]},
        rows=rows,
        reasons=Counter(reason.partition(":")[0] for reason in dropped if reason),
        notes=_notes(recipe, chosen, entries, summary),
    )


def _measure(out: str, chosen: Sequence[Entry], rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return each measure of each source of the sample. What is shared, as the encoding of shards, goes by kept seconds."""
    video_of = {row["uri"]: row for row in ledger.videos(out).to_pylist()}
    by_video: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        counts, seconds = by_video[row["video_id"]], row["end_s"] - row["start_s"]
        counts["clips"] += 1
        if not (row["reject"] or row["error"]):
            counts["kept"] += 1
            counts["kept_s"] += seconds
    kept_s = sum(counts["kept_s"] for counts in by_video.values())
    shared_cpu_s = 0.0
    for record in ledger.records(out):
        cpu_s = sum(record.cpu_s.values())
        if record.phase == "shard":
            shared_cpu_s += cpu_s
        else:
            by_video[UnitName.parse(record.unit).video_id]["cpu_s"] += cpu_s
    stored_bytes = sum(sum(shards.read_index(out, name)["size"].to_pylist()) for name in shards.list_committed(out))
    files = [path for path in Path(out).rglob("*") if path.is_file() and path.parent != Path(out)]
    measured: dict[str, list[float]] = {name: [] for name in _MEASURES}
    for entry in chosen:
        video: dict[str, Any] = video_of.get(entry.uri, {})
        counts = by_video[video["video_id"] if video.get("status") == "ok" else ""]
        share = counts["kept_s"] / kept_s if kept_s else 0.0
        values = {
            **counts,
            "cpu_s": counts["cpu_s"] + share * shared_cpu_s,
            "source_s": video.get("duration_s") or 0.0,
            "stored_bytes": share * stored_bytes,
            "objects": sum(video.get("video_id", "-") in path.name for path in files),
        }
        for name in _MEASURES:
            measured[name].append(float(values.get(name, 0.0)))
    return measured


def _scale(values: np.ndarray, sizes: np.ndarray, whole: float) -> Interval:
    """Scale a sum over the sample to all bytes, with an interval from samples that are drawn again."""
    value = float(values.sum() / max(sizes.sum(), 1) * whole)
    if len(values) < 2:
        return Interval(value, None, None)
    draws = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))
    ratios = values[draws].sum(1) / np.maximum(sizes[draws].sum(1), 1)
    low, high = np.quantile(ratios * whole, (_LOW, _HIGH))
    return Interval(value, float(low), float(high))


def _notes(recipe: Recipe, chosen: Sequence[Entry], entries: Sequence[Entry], summary: run.Summary) -> list[str]:
    notes = []
    if len(chosen) == len(entries):
        notes.append("the sample is the whole input")
    if recipe.caption.vlm.enabled:
        notes.append(f"the model {recipe.caption.vlm.model} was asked about the sample; its own time is not in the CPU time")
    if summary.failures:
        notes.append(f"{summary.work.failed} units of the sample could not be finished: {summary.failures[0].failure}")
    return notes
