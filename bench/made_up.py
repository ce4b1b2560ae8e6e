"""An output of many sources that were never curated: what one real source gave, copied under other names.

It has all that a resume reads, and 100,000 sources take minutes to make. `bench.growth` measures on it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import shards, storage
from curation.schema import digest
from pipelines import ledger, planning, recipes, units
from pipelines.compact import compact
from pipelines.segments import RECORD_KEY, Piece, write_segment
from pipelines.sources import Listing
from pipelines.unit_files import UNITS_PER_SEGMENT, UnitFiles
from pipelines.units import PART_CLIPS, Unit, UnitName

_SOURCE_BYTES = 24680
_SEGMENT_BYTES = 128 << 20
_LINKS = 50_000  # links to one file; ext4 allows 65,000


class _MadeUp:
    """Results of units that were never done: the tables of one real source, copied with other names."""

    def __init__(self, out: Path, template: Path, video_id: str, packed: bool) -> None:
        self._out, self._packed = out, packed
        self.tables = {
            path.parent.relative_to(template).as_posix(): pq.ParquetFile(path).read()
            for path in sorted(template.rglob("*.parquet"))
            if video_id in path.name
        }
        self._added: dict[str, dict[str, dict[str, Any]]] = {}

    def add(self, folder: str, unit: str, **values: Any) -> None:
        """Add a unit to a folder. values: of the columns that the folder's table has, in each of its rows."""
        self._added.setdefault(folder, {})[unit] = values

    def commit(self) -> None:
        """Write what was added: a file a unit, or segments."""
        for folder, added in self._added.items():
            if self._packed:
                self._write_segments(folder, added)
                continue
            (self._out / folder).mkdir(parents=True, exist_ok=True)
            for unit, values in added.items():
                (self._out / folder / f"{unit}.parquet").write_bytes(shards.to_parquet(self._copies(folder, [values])))
        self._added.clear()

    def _copies(self, folder: str, values: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Return the folder's table once for each of these values."""
        table = self.tables[folder]
        count = len(table)
        if len(values) > 1:
            table = table.take(np.tile(np.arange(count), len(values))).combine_chunks()
        clips = self.tables[folder]["clip_id"].to_pylist() if "clip_id" in table.column_names else []
        columns = {name: [each[name] for each in values for _ in range(count)] for name in values[0]}
        if clips:
            columns["clip_id"] = [digest(each["video_id"], clip) for each in values for clip in clips]
        for name in columns.keys() & set(table.column_names):
            at = table.column_names.index(name)
            kind = table.schema.field(at)
            table = table.set_column(at, kind, pa.array(columns[name], kind.type))
        return table

    def _write_segments(self, folder: str, units: Mapping[str, Mapping[str, Any]]) -> None:
        files = UnitFiles(str(self._out))
        count, names = len(self.tables[folder]), sorted(units)
        record = (self.tables[folder].schema.metadata or {}).get(RECORD_KEY)
        written = list(files.manifest.segments.get(folder, ()))
        at_once = max(1, min(UNITS_PER_SEGMENT, _SEGMENT_BYTES // max(1, self.tables[folder].nbytes)))
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            table = self._copies(folder, [units[unit] for unit in some])
            piece = Piece(some, np.arange(len(some) + 1) * count, [record] * len(some), table)
            written.append(write_segment(str(self._out), folder, piece, files.manifest.number + 1))
        files.commit({**files.manifest.segments, folder: tuple(written)}, files.manifest.dropped)


def make_up(folder: Path, out: Path, template: Path, count: int, recipe_file: Path, packed: bool = False) -> None:
    """Write the sources (links to one small file) and the committed results of all their units, shards included.

    packed: as segments, which `gamecraft compact` would make of the files of units.
    """
    recipe = recipes.load(str(recipe_file))
    source = ledger.videos(str(template)).to_pylist()[0]
    results = _MadeUp(out, template, source["video_id"], packed)
    signals = results.tables["sidecar/signals"]
    hashes, keys = (len(signals[name][0]) for name in ("hashes", "keys"))
    rng = np.random.default_rng(0)

    _write_sources(folder, count)
    partitions = {}
    for entry in storage.list_files(str(folder)):
        video_id = sha256(entry.uri.encode()).hexdigest()[:16]
        unit = str(UnitName(video_id, units.source_digest(entry, recipe)))
        about = {"video_id": video_id, "unit_id": unit}
        partitions[unit] = about
        pictures = {  # none looks like another
            "hashes": rng.integers(0, 1 << 63, hashes).tolist(),
            "keys": rng.integers(0, 1 << 28, keys).tolist(),
        }
        results.add("videos", unit, **about, uri=entry.uri, token=entry.token)
        results.add("clips/partition", unit, **about, source_uri=entry.uri, source_token=entry.token)
        results.add("sidecar/thumbs", unit, **about)
        results.add("sidecar/signals", unit, **about, **pictures)
    limits, clips = recipe.digest("score"), len(results.tables["clips/score"])
    if clips > PART_CLIPS:
        raise ValueError(f"a made-up source has {clips} clips, and may have {PART_CLIPS}: those of one unit of `score`")
    for unit, about in partitions.items():
        (name,) = units.part_names(unit, clips, limits)
        results.add("clips/score", str(name), **{**about, "unit_id": str(name)})
    results.commit()
    for phase in ("annotate", "caption", "relate"):
        for later in _pending(phase, str(out), recipe):
            about = partitions[later.upstream[0].removeprefix("partition/")]
            results.add(f"clips/{phase}", later.name, **{**about, "unit_id": later.name})
            if phase == "annotate" and "sidecar/camera" in results.tables:
                results.add("sidecar/camera", later.name, **about)
        results.commit()
    planning.plan_shards(str(out), recipe, [])
    template_clips = results.tables["clips/partition"]["clip_id"].to_pylist()
    videos = [about["video_id"] for about in partitions.values()]
    _write_shards(out, template, recipe, {digest(video, clip): video for video in videos for clip in template_clips})
    if packed:
        compact(str(out))


def _pending(phase: str, out: str, recipe: recipes.Recipe) -> Iterator[Unit]:
    for group in planning.pending_units(phase, out, recipe, Listing([], recipe)):
        yield from group.units


def _write_sources(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:08d}.mp4"
        if number % _LINKS == 0:
            original = path
            path.write_bytes(bytes(_SOURCE_BYTES))
            os.utime(path, (1e9, 1e9))
        else:
            with suppress(FileExistsError):
                os.link(original, path)


def _write_shards(out: Path, template: Path, recipe: recipes.Recipe, video_of: Mapping[str, str]) -> None:
    """Write the planned shards, of the template's first sample in each place. video_of: the source of each clip."""
    sample = next(shards.read_samples(str(template), "000000"))
    table = pq.ParquetFile(next((template / "clips" / "shard").glob("*.parquet"))).read()
    row = table.to_pylist()[0]
    (out / "clips" / "shard").mkdir(parents=True, exist_ok=True)
    for shard in _pending("shard", str(out), recipe):
        index = shards.put_tar(str(out), shard.name, [replace(sample, clip_id=clip_id) for clip_id in shard.clips])
        about = {"unit_id": shard.name, "shard": shard.name}
        rows = [{**row, **about, "clip_id": clip, "video_id": video_of[clip]} for clip in shard.clips]
        path = out / "clips" / "shard" / f"{shard.name}.parquet"
        path.write_bytes(shards.to_parquet(pa.Table.from_pylist(rows, schema=table.schema)))
        shards.put_index(str(out), shard.name, index)
