"""An output folder as the report reads it: the ledger's tables, thumbnails of some clips, an even sample of many clips.

Of an output with more than `MAX_CLIPS` clips it reads a sample: all clips of some sources.
"""

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import shards
from curation.schema import Row
from pipelines import ledger, unit_files
from pipelines.ledger import Part, Record
from pipelines.recipes import CLIP_PHASES
from pipelines.report import svg

MAX_CLIPS = 10_000


@dataclass(frozen=True)
class Output:
    """An output folder, read once."""

    out: str
    dataset: dict[str, Any]  # dataset.json
    videos: list[Row]
    clips: pa.Table  # one row per clip, joined over all phases
    phases: dict[str, pa.Table]  # the rows of each phase
    records: list[Record]
    is_sample: bool  # whether the output has more sources than these

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
        """The readable sources by video_id. A duplicate has the id of the source that was read."""
        return {row["video_id"]: row for row in self.videos if row["status"] == "ok"}

    @property
    def source_s(self) -> float:
        """Total length of the readable sources, without the time in which they have no frame."""
        return float(sum((row["duration_s"] or 0) - (row["gap_s"] or 0) for row in self.sources.values()))

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        rows: list[Row] = self.clips.take(pa.array(indices, pa.int64())).to_pylist()
        return rows

    def limit(self, *path: str) -> float | None:
        """Return a number of the recipe; None if it is switched off or there is no recipe."""
        value: Any = self.dataset.get("recipe", {})
        for key in path:
            value = (value or {}).get(key)
        return None if value is None else float(value)


def read_output(out: str, on_part: Callable[[Part], None] | None = None, columns: Sequence[str] = ()) -> Output:
    """Read the ledger of an output, or a sample of it.

    on_part: gets every part of the output, also beyond the sample, with at least these columns of the clips.
    """
    with unit_files.shared(out):
        parts: list[Part] = []
        clips, ended = 0, True
        for part in ledger.scan(out, records=True):
            parts.append(part)
            clips += len(part.clips)
            if on_part:
                on_part(part)
            if clips > MAX_CLIPS:
                ended = False
                break
        rest = () if ended else ledger.scan(out, columns, skip=len(parts))
        is_sample = False
        for part in rest:
            is_sample = True
            if on_part is None:
                break
            on_part(part)
        return Output(
            out=out,
            dataset=shards.read_dataset(out) or {},
            videos=pa.concat_tables([part.videos for part in parts]).sort_by("uri").to_pylist(),
            clips=pa.concat_tables([part.clips for part in parts]),
            phases={phase: ledger.verdicts(part.phases[phase] for part in parts) for phase in CLIP_PHASES},
            records=[Record.from_json(record) for part in parts for record in part.records],
            is_sample=is_sample,
        )


def column(table: pa.Table, name: str) -> np.ndarray:
    """Return a number column as floats, with NaN for null."""
    return np.asarray(table[name].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False), float)


def thumbs(output: Output, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the thumbnails of these clips as data URIs, by clip_id."""
    clip_ids = pa.array([row["clip_id"] for row in rows], pa.string())
    uris = {}
    for table in ledger.sidecars(output.out, "thumbs", (row["unit_id"] for row in rows)):
        for row in table.filter(pc.is_in(table["clip_id"], clip_ids)).to_pylist():
            uris[row["clip_id"]] = [f"data:image/jpeg;base64,{base64.b64encode(j).decode()}" for j in row["jpegs"]]
    return uris


def sample_clips(output: Output, indices: Iterable[int], max_clips: int) -> list[int]:
    """Choose at most `max_clips` of these clips, evenly over their videos (by uri) and within each video."""
    groups = defaultdict(list)
    for i in indices:
        groups[output.uris[i]].append(int(i))
    ordered = [groups[uri] for uri in sorted(groups)]
    chosen = svg.sample_evenly([len(group) for group in ordered], max_clips)
    return [group[k] for group, some in zip(ordered, chosen, strict=True) for k in some]
