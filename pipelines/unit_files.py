"""The files of units: one small file a unit when it is committed, and many units in one segment once they are packed.

    clips/score/<unit>.parquet                  the commit of a unit, by the worker that did it
    segments/clips/score/<name>.parquet         the rows of many units, in order of the units' names
    segments/clips/score/<name>.units.parquet   those units: how many rows each has, and its record
    manifests/000001.json                       the segments that count, and the units in them that were deleted since

A folder (`FOLDERS`: clips/score, videos, sidecar/thumbs, ...) holds the units of both. Workers only write files of units. Only
the run that holds the lock packs or deletes: it writes segments, then the next manifest, which is the commit, and then deletes
what the segments replace. So a reader without the lock may list a file that is gone when it is read: the newest manifest says
where its rows are now.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curation import storage
from curation.output_folder import OutputFolder
from curation.shards import from_parquet
from pipelines.ids import to_array
from pipelines.segments import (
    RECORD_KEY,
    Piece,
    RowGroups,
    Segment,
    SegmentFile,
    join,
    live,
    overlapping,
    pieces_of,
    write_segment,
)

# The folders that are packed: rows of clips, rows of sources, and side files that are small for each unit.
FOLDERS = (
    *(f"clips/{phase}" for phase in ("scan", "partition", "score", "annotate", "caption", "relate", "shard")),
    *("clips/duplicates", "videos", "sidecar/thumbs", "sidecar/signals", "sidecar/camera"),
)

# Units that one task packs.
UNITS_PER_SEGMENT = 4096
# Once a folder has more small segments than this, they are merged into segments of about this size.
_MAX_SMALL_SEGMENTS, _SMALL_BYTES, _SEGMENT_BYTES = 16, 16 << 20, 64 << 20
_FILES_AT_ONCE = 512
# Bytes of rows from which a task that packs writes a segment, and files of its first read, which tells their mean size.
_PACKED_AT_ONCE, _FIRST_FILES = 128 << 20, 16
# Bytes of rows from which small segments that are merged are written.
_MERGED_AT_ONCE = 512 << 20
# How much a segment is smaller than its rows in memory, about.
_COMPRESSED = 8
# A folder with more files of units than this is packed without holding all of its rows in memory.
_MAX_TAIL = 2 * UNITS_PER_SEGMENT
# So many packed units are looked up one by one, and more of them by reading the whole folder.
_FEW_UNITS = 256
# How often a reader looks again for a unit whose file was packed just now.
_TRIES = 3


@dataclass(frozen=True)
class Manifest:
    """Which segments of each folder count, and which of their units were deleted since. Number 0: nothing is packed."""

    number: int = 0
    segments: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)
    dropped: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        segments = {folder: [list(segment) for segment in segments] for folder, segments in self.segments.items() if segments}
        dropped = {folder: sorted(units) for folder, units in self.dropped.items() if units}
        return json.dumps({"segments": segments, "dropped": dropped}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, number: int, data: bytes) -> "Manifest":
        about = json.loads(data)
        segments = {folder: tuple(Segment(*item) for item in items) for folder, items in about["segments"].items()}
        return cls(number, segments, {folder: frozenset(units) for folder, units in about["dropped"].items()})


def newest_manifest(out: str) -> Manifest:
    """Read the newest manifest of an output. Costs one listing, and one read where something is packed."""
    for _ in range(_TRIES):
        numbers = _manifest_numbers(out)
        if not numbers:
            return Manifest()
        try:
            return _read_manifest(out, numbers[-1])
        except FileNotFoundError:  # a newer one has replaced it
            continue
    raise FileNotFoundError(f"{OutputFolder(out).manifests}: manifests are being replaced too fast to be read")


def _manifest_numbers(out: str) -> list[int]:
    return sorted(int(name.partition(".")[0]) for name in storage.names(OutputFolder(out).manifests))


def _read_manifest(out: str, number: int) -> Manifest:
    return Manifest.from_json(number, storage.read(OutputFolder(out).manifest(number)))


RunTasks = Callable[[Callable[..., Any], list[tuple[Any, ...]]], Iterable[Any]]
"""Calls a function with each of these arguments, anywhere, and returns the results in order."""


def _run_here(function: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> Iterator[Any]:
    return (function(*task) for task in tasks)


class UnitFiles:
    """The units of an output, by one manifest.

    With `keeps` it lists a folder once, until `refresh`, and reads a unit's file once for `scan`. `read` always reads anew.
    """

    def __init__(self, out: str, manifest: Manifest | None = None, keeps: bool = True) -> None:
        self.out, self._keeps = out, keeps
        self.manifest = newest_manifest(out) if manifest is None else manifest
        self.memo: dict[Any, Any] = {}
        """What callers derived from the committed units. It is cleared whenever units may have changed."""
        self.kept: dict[Any, Any] = {}
        """What callers keep as long as this is used."""
        self.run_tasks: RunTasks = _run_here
        """How work that needs no unit is done: here, or on the cluster of the run."""
        self._listed: dict[str, dict[str, None]] = {}  # the files of units, in order of their names
        self._replaced: dict[str, list[str]] = {}  # files whose unit is packed: a run was killed before it deleted them
        self._tails: dict[str, list[Piece]] = {}  # the rows in files of units
        self._segments: dict[tuple[str, str], SegmentFile] = {}
        self._row_groups: RowGroups = OrderedDict()

    def refresh(self) -> None:
        """List folders anew when they are asked for: workers may have committed units."""
        self._listed.clear()
        self.memo.clear()

    def names(self, folder: str, low: str = "", high: str | None = None) -> list[str]:
        """List the committed units of a folder from `low` to before `high` (None: to the end), sorted."""
        listed = self._files_of_units(folder)
        files = [unit for unit in listed if low <= unit and (high is None or unit < high)] if low or high else list(listed)
        packed = [unit for file in self._files(folder) for unit in file.units_between(low, high)]
        dropped = self.manifest.dropped.get(folder, frozenset())
        return sorted({*files, *(unit for unit in packed if unit not in dropped)}) if packed else files

    def parts_of_names(self, folder: str, part: int) -> Iterator[np.ndarray]:
        """Yield one of the parts, between dashes, of the names of a folder's committed units: bytes, in no order.

        Part 0 is the video_id of most units. Arrays take a tenth of the memory of a list of names.
        """
        dropped = self.manifest.dropped.get(folder, frozenset())
        yield to_array([name.split("-")[part] for name in self._files_of_units(folder)])
        for file in self._files(folder):
            yield to_array([name.split("-")[part] for name in file.units[:] if name not in dropped])

    def names_of_videos(self, folder: str, video_ids: Collection[str]) -> list[str]:
        """List the committed units of a folder whose names begin with these video_ids, sorted."""
        dropped, wanted = self.manifest.dropped.get(folder, frozenset()), pa.array(sorted(video_ids), pa.string())
        found = {name for name in self._files_of_units(folder) if name.partition("-")[0] in video_ids}
        for length in {len(video_id) for video_id in video_ids}:
            for file in self._files(folder):
                found.update(name for name in file.units_with_prefix(wanted, length) if name.partition("-")[0] in video_ids)
        return sorted(found - dropped)

    def has(self, folder: str, unit: str) -> bool:
        """Whether a unit is committed."""
        return unit in self._files_of_units(folder) or self._is_packed(folder, unit)

    def count_files(self, folder: str) -> int:
        """Return how many units of a folder are not packed."""
        return len(self._files_of_units(folder))

    def _files_of_units(self, folder: str) -> dict[str, None]:
        """Return the names of a folder's files of units, without those whose unit is packed too."""
        if folder not in self._listed or not self._keeps:
            names = [name.removesuffix(".parquet") for name in storage.names(storage.join(self.out, folder))]
            self._replaced[folder] = [name for name in names if self._is_packed(folder, name)]
            replaced = set(self._replaced[folder])
            self._listed[folder] = {name: None for name in names if name not in replaced}
        return self._listed[folder]

    def _files(self, folder: str) -> list[SegmentFile]:
        files = []
        for segment in self.manifest.segments.get(folder, ()):
            key = folder, segment.name
            if key not in self._segments:
                self._segments[key] = SegmentFile(self.out, folder, segment, self._row_groups)
            files.append(self._segments[key])
        return files

    def _is_packed(self, folder: str, unit: str) -> bool:
        return self._find(folder, unit) is not None

    def read(self, folder: str, unit: str) -> pa.Table:
        """Read a unit's rows. FileNotFoundError where the unit is not committed."""
        if (table := self._read_packed(folder, unit)) is not None:
            return table
        try:
            return _read_file(self.out, folder, unit)
        except FileNotFoundError:
            if self._has_newer() and (table := self._read_packed(folder, unit)) is not None:
                return table
            raise

    def read_record(self, folder: str, unit: str) -> bytes | None:
        """Read a unit's record. None where it has none, FileNotFoundError where the unit is not committed."""
        if (packed := self._find(folder, unit)) is not None:
            file, at = packed
            return file.records(at, at + 1)[0]
        return (self.read(folder, unit).schema.metadata or {}).get(RECORD_KEY)

    def _has_newer(self) -> bool:
        """Whether there is a newer manifest. It is used from now on."""
        newest = newest_manifest(self.out)
        if newest.number == self.manifest.number:
            return False
        self._use(newest)
        return True

    def _find(self, folder: str, unit: str) -> tuple[SegmentFile, int] | None:
        """Return the segment that holds a unit, and the unit's number in it."""
        if unit in self.manifest.dropped.get(folder, ()):
            return None
        found = ((file, file.find(unit)) for file in self._files(folder))
        return next(((file, at) for file, at in found if at is not None), None)

    def _read_packed(self, folder: str, unit: str) -> pa.Table | None:
        packed = self._find(folder, unit)
        return packed and packed[0].unit(packed[1])

    def _read_files(self, folder: str, units: Sequence[str]) -> dict[str, pa.Table]:
        """Read the units of a folder that are there: from files, and those whose file is gone from segments."""

        def read(unit: str) -> pa.Table | None:
            try:
                return _read_file(self.out, folder, unit)
            except FileNotFoundError:
                return None

        tables = dict(zip(units, storage.at_once(read, units), strict=True)) if units else {}
        gone = [unit for unit, table in tables.items() if table is None]
        if gone and self._has_newer():
            tables |= {unit: self._read_packed(folder, unit) for unit in gone}
        return {unit: table for unit, table in tables.items() if table is not None}

    def read_present(self, folder: str, units: Iterable[str]) -> list[pa.Table]:
        """Read the rows of those of these units that are committed, in order of their names."""
        wanted = sorted(set(units))
        tables = {unit: table for unit in wanted if (table := self._read_packed(folder, unit)) is not None}
        tables |= self._read_files(folder, [unit for unit in wanted if unit not in tables])
        return [tables[unit] for unit in wanted if unit in tables]

    def rows_of(self, folder: str, units: Iterable[str], columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        """Yield each of these committed units with these columns of its rows. It reads nothing that `scan` read."""
        wanted = set(units)
        if not wanted:
            return
        if len(wanted) <= _FEW_UNITS:
            for unit in sorted(wanted):
                if (table := self._read_packed(folder, unit)) is not None:
                    yield unit, table.select(columns)
                    wanted.discard(unit)
            pieces: Iterable[Piece] = self._tail(folder) if wanted else ()
        else:
            pieces = self.scan(folder, columns)
        for piece in pieces:
            for unit, begin, end in piece.spans():
                if unit in wanted:
                    yield unit, piece.table.slice(begin, end - begin).select(columns)

    def scan(
        self, folder: str, columns: Sequence[str] | None = None, low: str = "", high: str | None = None, records: bool = False
    ) -> Iterator[Piece]:
        """Yield the units from `low` to before `high` (None: to the end) in pieces, each of one schema.

        columns: those of the rows that are wanted; None: all. A piece lacks those that its units do not have. records: whether
        pieces have the records of their units, which costs a request for each segment.
        """
        dropped = self.manifest.dropped.get(folder, frozenset())
        for file in self._files(folder):
            if file.segment.last >= low and (high is None or file.segment.first < high):
                yield file.between(low, high, columns, records).without(dropped)
        for tail in self._tail(folder):
            if (piece := tail.between(low, high)).units:
                names = piece.table.column_names
                wanted = names if columns is None else [name for name in columns if name in names]
                yield Piece(piece.units, piece.starts, piece.records, piece.table.select(wanted))

    def _tail(self, folder: str) -> list[Piece]:
        """Return the rows of the units that are not packed. Only files that were not read before are read."""
        listed, pieces = self._files_of_units(folder), self._tails.get(folder, []) if self._keeps else []
        known = {unit for piece in pieces for unit in piece.units}
        new = [unit for unit in listed if unit not in known]
        if not new and len(known) == len(listed):
            return pieces
        pieces = [piece.without(known - listed.keys()) for piece in pieces]
        for first in range(0, len(new), _FILES_AT_ONCE):
            pieces += pieces_of(self._read_files(folder, new[first : first + _FILES_AT_ONCE]))
        self._tails[folder] = join(pieces)
        return self._tails[folder]

    def put(self, folder: str, unit: str, data: bytes) -> None:
        """Write the file of a unit whole. A unit that is packed must have been deleted before."""
        storage.put(storage.join(self.out, folder, f"{unit}.parquet"), data)
        self._forget(folder, [unit])
        if folder in self._listed:
            self._listed[folder][unit] = None

    def _forget(self, folder: str, units: Iterable[str]) -> None:
        """Forget what was read of these units."""
        gone, pieces = set(units), self._tails.get(folder, [])
        if any(unit in gone for piece in pieces for unit in piece.units):
            self._tails[folder] = [piece.without(gone) for piece in pieces]
        self.memo.clear()

    def delete(self, units: Mapping[str, Iterable[str]]) -> None:
        """Delete units of folders, in the order of the folders. Only the run that holds the lock may call this.

        What is packed is deleted first, all at once, by a manifest.
        """
        wanted = {folder: list(names) for folder, names in units.items()}
        packed = {folder: {name for name in names if self._is_packed(folder, name)} for folder, names in wanted.items()}
        if any(packed.values()):
            dropped = dict(self.manifest.dropped)
            for folder, gone in packed.items():
                dropped[folder] = dropped.get(folder, frozenset()) | gone
            self.commit(self.manifest.segments, dropped)
        for folder, names in wanted.items():
            storage.delete_all(storage.join(self.out, folder, f"{name}.parquet") for name in names)
            self._forget(folder, names)
            for name in names:
                self._listed.get(folder, {}).pop(name, None)

    def commit(self, segments: Mapping[str, tuple[Segment, ...]], dropped: Mapping[str, frozenset[str]]) -> None:
        """Write the next manifest and use it. FileExistsError where another run wrote one with its number."""
        following = Manifest(self.manifest.number + 1, segments, dropped)
        uri = OutputFolder(self.out).manifest(following.number)
        if not storage.put(uri, following.to_json(), if_absent=True) and storage.read(uri) != following.to_json():
            raise FileExistsError(f"{uri}: another run has written it")
        self._use(following)

    def _use(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.refresh()
        names = {(folder, segment.name) for folder, segments in manifest.segments.items() for segment in segments}
        self._segments = {key: file for key, file in self._segments.items() if key in names}

    def pack(self, folder: str) -> int:
        """Pack all files of units of a folder. Return how many there were. Only the run that holds the lock may call this."""
        units = list(self._files_of_units(folder))
        if units:
            self._pack_folder(folder, units)
        return len(units)

    def replaced(self, folder: str) -> list[str]:
        """Return the units of a folder that have a file and are packed too: a run was killed before it deleted the files."""
        self._files_of_units(folder)
        return self._replaced.get(folder, [])

    def remove_replaced(self, folder: str) -> None:
        """Delete the files of units that are packed too."""
        storage.delete_all(storage.join(self.out, folder, f"{unit}.parquet") for unit in self.replaced(folder))
        self._replaced.pop(folder, None)

    def check_segment(self, folder: str, segment: Segment) -> str:
        """Read a segment in full. Return how it differs from what the manifest says, or an empty string."""
        try:
            piece = SegmentFile(self.out, folder, segment).between("", None, None)
        except (pa.ArrowException, OSError, ValueError) as error:
            return f"cannot be read: {error}"
        units, ordered = list(piece.units), sorted(set(piece.units))
        about = (len(units), len(piece.table), units[:1], units[-1:])
        if about != (segment.units, segment.rows, [segment.first], [segment.last]) or units != ordered:
            return f"holds {len(units)} units and {len(piece.table)} rows, the manifest says {segment.units} and {segment.rows}"
        return ""

    def _pack_folder(self, folder: str, units: list[str]) -> None:
        number, dropped = self.manifest.number + 1, self.manifest.dropped.get(folder, frozenset())
        if self.run_tasks is _run_here and folder not in _LARGE_FOLDERS and len(units) <= _MAX_TAIL:
            parts = [part for piece in self._tail(folder) for part in piece.split(UNITS_PER_SEGMENT)]
            written = [write_segment(self.out, folder, part, number) for part in parts]
        else:
            groups = [units[first : first + UNITS_PER_SEGMENT] for first in range(0, len(units), UNITS_PER_SEGMENT)]
            tasks = [(self.out, folder, group, number) for group in groups]
            written = [segment for segments in self.run_tasks(pack_units, tasks) for segment in segments]
        again = dropped.intersection(units)  # deleted once and done again: their old rows must go
        outdated = [file for file in self._files(folder) if any(file.find(unit) is not None for unit in again)]
        others = [file for file in self._files(folder) if file not in outdated]
        rewritten = [write_segment(self.out, folder, piece, number) for piece in live(outdated, dropped)]
        self._replace(folder, [file.segment for file in others] + rewritten + written, again)
        self._tails.pop(folder, None)
        storage.delete_all(storage.join(self.out, folder, f"{unit}.parquet") for unit in units)
        self._listed.pop(folder, None)
        small = [file for file in self._files(folder) if file.segment.size < _SMALL_BYTES]
        if len(small) > _MAX_SMALL_SEGMENTS:
            self._merge(folder, small)
        if folder not in _LARGE_FOLDERS:
            self._merge(folder, overlapping(self._files(folder)))

    def _merge(self, folder: str, files: Sequence[SegmentFile]) -> None:
        """Replace segments by others that hold a range of names each, without the deleted units. A range is read at a time."""
        dropped = self.manifest.dropped.get(folder, frozenset())
        names = sorted(unit for file in files for unit in file.units[:] if unit not in dropped)
        if not names:
            return
        records = {file: file.records(0, len(file.units)) for file in files}
        mean = max(1, sum(file.segment.size for file in files) // len(names))
        step = max(1, min(UNITS_PER_SEGMENT, _MERGED_AT_ONCE // (_COMPRESSED * mean)))
        merged: list[Segment] = []
        pieces: list[Piece] = []
        for first in range(0, len(names), step):
            low, high = names[first], names[first + step] if first + step < len(names) else None
            pieces += [file.between(low, high, None, records[file]).without(dropped) for file in files]
            if high is None or sum(piece.table.nbytes for piece in pieces) >= _MERGED_AT_ONCE:
                parts = max(1, sum(len(piece.units) for piece in pieces) * mean // _SEGMENT_BYTES)
                merged += [
                    write_segment(self.out, folder, part, self.manifest.number + 1)
                    for piece in join(pieces)
                    for part in piece.split(-(-len(piece.units) // parts))
                ]
                pieces = []
        self._replace(folder, [file.segment for file in self._files(folder) if file not in files] + merged)

    def _replace(self, folder: str, segments: Sequence[Segment], again: frozenset[str] = frozenset()) -> None:
        """Commit other segments for a folder. Deleted units that are in none of them, or were done `again`, are forgotten."""
        dropped = self.manifest.dropped.get(folder, frozenset()) - again
        if dropped:
            files = [SegmentFile(self.out, folder, segment) for segment in segments]
            dropped = frozenset(unit for unit in dropped if any(file.find(unit) is not None for file in files))
        self.commit({**self.manifest.segments, folder: tuple(segments)}, {**self.manifest.dropped, folder: dropped})

    def remove_unused(self) -> None:
        """Delete segments that no manifest lists (merged since, or of a run that was killed), and older manifests."""
        folder = OutputFolder(self.out)
        used = {
            uri(name, segment.name)
            for name, segments in self.manifest.segments.items()
            for segment in segments
            for uri in (folder.segment, folder.segment_units)
        }
        stored = [entry.uri for entry in storage.list_files(folder.segments)]
        storage.delete_all(uri for uri in stored if uri not in used)
        older = [number for number in _manifest_numbers(self.out) if number < self.manifest.number]
        storage.delete_all(folder.manifest(number) for number in older)


def _read_file(out: str, folder: str, unit: str) -> pa.Table:
    return from_parquet(storage.read(storage.join(out, folder, f"{unit}.parquet")))


# Side files, which the driver need not read: they are packed without being kept in memory.
_LARGE_FOLDERS = frozenset({"sidecar/thumbs", "sidecar/signals", "sidecar/camera"})


def pack_units(out: str, folder: str, units: Sequence[str], number: int) -> list[Segment]:
    """Read the files of units and write them as segments for manifest `number`: one for each schema and some 128 MB of rows.

    A unit of a long source has megabytes of thumbnails, and a column of Arrow holds 2 GB at most. So as many files are read at
    once as make 128 MB, by the mean size of those before.
    """
    written: list[Segment] = []
    pieces: list[Piece] = []
    first = held = read = 0  # units read; bytes of rows in `pieces`, and of all rows so far
    while first < len(units):
        mean = read / first if first else _PACKED_AT_ONCE / _FIRST_FILES
        some = units[first : first + max(1, min(_FILES_AT_ONCE, int((_PACKED_AT_ONCE - held) / max(1, mean))))]
        tables = storage.at_once(lambda unit: _read_file(out, folder, unit), some)
        size = sum(table.nbytes for table in tables)
        pieces += pieces_of(dict(zip(some, tables, strict=True)))
        first, held, read = first + len(some), held + size, read + size
        if held >= _PACKED_AT_ONCE or first == len(units):
            written += [write_segment(out, folder, piece, number) for piece in join(pieces)]
            pieces, held = [], 0
    return written


_pinned: dict[str, UnitFiles] = {}


def of(out: str) -> UnitFiles:
    """Return the units of an output: those that this process uses (`pinned`, `use`), or else as they are now."""
    return _pinned.get(out) or UnitFiles(out)


@contextmanager
def pinned(out: str) -> Iterator[UnitFiles]:
    """Use one `UnitFiles` for an output in this context: what it listed and read is kept."""
    _pinned[out] = UnitFiles(out)
    try:
        yield _pinned[out]
    finally:
        del _pinned[out]


@contextmanager
def shared(out: str) -> Iterator[UnitFiles]:
    """Use the `UnitFiles` of this process, or one for the time of this context."""
    if out in _pinned:
        yield _pinned[out]
    else:
        with pinned(out) as files:
            yield files


def use(out: str, number: int) -> None:
    """Use the manifest with this number for an output from now on, in a worker. 0: nothing is packed."""
    held = _pinned.get(out)
    if held is None or held.manifest.number != number:
        _pinned[out] = UnitFiles(out, _read_manifest(out, number) if number else Manifest(), keeps=False)
