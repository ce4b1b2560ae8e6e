"""An output folder as a report reads it: the ledger's tables, thumbnails of some clips, a fair choice among many."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import shards
from curation.output_folder import OutputFolder
from curation.schema import CLIP, Row
from pipelines import ledger
from pipelines.ledger import Record
from pipelines.recipes import CLIP_PHASES, PHASES
from pipelines.report import svg


@dataclass(frozen=True)
class Output:
    """An output folder, read once. `phases` holds each phase's own rows; `clips` joins them."""

    out: str
    dataset: dict[str, Any]
    videos: list[Row]
    clips: pa.Table
    phases: dict[str, pa.Table]
    records: list[Record]

    @cached_property
    def seconds(self) -> np.ndarray:
        lengths: np.ndarray = column(self.clips, "end_s") - column(self.clips, "start_s")
        return lengths

    @cached_property
    def failed(self) -> np.ndarray:
        return np.asarray(pc.is_valid(self.clips["error"]), bool)

    @cached_property
    def rejected(self) -> np.ndarray:
        mask: np.ndarray = np.asarray(pc.is_valid(self.clips["reject"]), bool) & ~self.failed
        return mask

    @cached_property
    def kept(self) -> np.ndarray:
        mask: np.ndarray = ~(self.failed | self.rejected)
        return mask

    @cached_property
    def uris(self) -> list[str]:
        return [uri or "" for uri in self.clips["source_uri"].to_pylist()]

    @cached_property
    def sources(self) -> dict[str, Row]:
        """The readable sources by video_id; a duplicate shares its id with the one that was read."""
        return {row["video_id"]: row for row in self.videos if row["status"] == "ok"}

    @property
    def source_s(self) -> float:
        """Length of the readable sources together, without the time in which they have no frame."""
        return float(sum((row["duration_s"] or 0) - (row["hole_s"] or 0) for row in self.sources.values()))

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        rows: list[Row] = self.clips.take(pa.array(indices, pa.int64())).to_pylist()
        return rows

    def limit(self, *path: str) -> float | None:
        """A number of the recipe; None where it is switched off or there is no recipe."""
        value: Any = self.dataset.get("recipe", {})
        for key in path:
            value = (value or {}).get(key)
        return None if value is None else float(value)


def read_output(out: str) -> Output:
    """Read an output's ledger."""
    phases = {phase: ledger.read_all(OutputFolder(out).clips(phase), CLIP) for phase in PHASES}
    return Output(
        out=out,
        dataset=shards.read_dataset(out) or {},
        videos=ledger.videos(out).to_pylist(),
        clips=ledger.clips(out),
        phases={phase: table for phase, (table, _) in phases.items() if phase in CLIP_PHASES},
        records=[record for _, records in phases.values() for record in records],
    )


def column(table: pa.Table, name: str) -> np.ndarray:
    """A number column as floats, null as NaN."""
    return np.asarray(table[name].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False), float)


def thumbs(output: Output, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Thumbnails as data URIs by clip_id, of these clips only."""
    wanted = pa.array([row["clip_id"] for row in rows], pa.string())
    found = {}
    for table in ledger.sidecars(output.out, "thumbs", (row["unit_id"] for row in rows)):
        for row in table.filter(pc.is_in(table["clip_id"], wanted)).to_pylist():
            found[row["clip_id"]] = [f"data:image/jpeg;base64,{base64.b64encode(j).decode()}" for j in row["jpegs"]]
    return found


def spread(output: Output, indices: Iterable[int], most: int) -> list[int]:
    """At most so many of these clips, evenly over their videos (by uri) and within each."""
    groups = defaultdict(list)
    for i in indices:
        groups[output.uris[i]].append(int(i))
    ordered = [groups[uri] for uri in sorted(groups)]
    chosen = svg.spread([len(group) for group in ordered], most)
    return [group[k] for group, some in zip(ordered, chosen, strict=True) for k in some]
