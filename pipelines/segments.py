"""Segments: the rows of many units in one Parquet file, in order of the units' names, and a file of those names beside it.

What a segment holds is never changed. A reader takes the part that it wants by ranged requests.
"""

import io
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import storage
from curation.output_folder import OutputFolder
from curation.ranged_file import RangedFile
from curation.schema import digest
from curation.shards import to_parquet

RECORD_KEY = b"gamecraft.record"
"""The key of a unit's record in the metadata of its file."""

_ROW_GROUP_BYTES, _MAX_ROW_GROUP = 4 << 20, 4096
_TAIL_BYTES = 256 << 10  # the end of a segment, which holds Parquet's footer
# Bytes of row groups that a reader keeps: units that follow each other are in the same, and in few segments.
_KEPT_BYTES = 48 << 20
# A name lies within at most so many segments. A segment that covers more than an eighth of all names is wide.
_MAX_DEPTH, _NARROW = 16, 8
_UNITS = pa.schema([("unit", pa.string()), ("rows", pa.int32()), ("record", pa.binary())])


class Segment(NamedTuple):
    """A packed segment, as the manifest has it."""

    name: str
    first: str  # the first and the last of its units
    last: str
    units: int
    rows: int
    size: int  # bytes of its rows


@dataclass(frozen=True)
class Piece:
    """Rows of some units, in order of the units' names. Rows `starts[i]` to `starts[i + 1]` of the table belong to unit i."""

    units: Sequence[str]
    starts: np.ndarray  # int64 [U + 1]
    records: list[bytes | None]
    table: pa.Table

    def between(self, low: str, high: str | None) -> "Piece":
        """Return the units from `low` to before `high` (None: to the end)."""
        first = bisect_left(self.units, low)
        last = len(self.units) if high is None else bisect_left(self.units, high)
        return self._slice(first, max(first, last))

    def _slice(self, first: int, last: int) -> "Piece":
        begin, end = int(self.starts[first]), int(self.starts[last])
        starts = self.starts[first : last + 1] - begin
        return Piece(self.units[first:last], starts, self.records[first:last], self.table.slice(begin, end - begin))

    def spans(self) -> Iterator[tuple[str, int, int]]:
        """Yield each unit with its first row and the one after its last."""
        bounds = self.starts.tolist()
        yield from zip(self.units, bounds, bounds[1:], strict=False)

    def split(self, size: int) -> Iterator["Piece"]:
        for first in range(0, len(self.units), size):
            yield self._slice(first, min(first + size, len(self.units)))

    def without(self, units: Iterable[str]) -> "Piece":
        """Return the piece without these units."""
        left_out = set(units)
        keep = np.array([unit not in left_out for unit in self.units], bool)
        if keep.all():
            return self
        counts = np.diff(self.starts)
        table = self.table.filter(pa.array(np.repeat(keep, counts)))
        starts = np.concatenate([[0], np.cumsum(counts[keep])]).astype(np.int64)
        chosen = np.flatnonzero(keep)
        return Piece([self.units[i] for i in chosen], starts, [self.records[i] for i in chosen], table)

    def unit(self, name: str) -> pa.Table | None:
        """Return a unit's rows with its record in the metadata, as its file had them. None where the unit is not in here."""
        at = bisect_left(self.units, name)
        if at == len(self.units) or self.units[at] != name:
            return None
        begin, end = int(self.starts[at]), int(self.starts[at + 1])
        return _with_record(self.table.slice(begin, end - begin), self.records[at])


def _with_record(table: pa.Table, record: bytes | None) -> pa.Table:
    return table if record is None else table.replace_schema_metadata({RECORD_KEY: record})


def pieces_of(tables: Mapping[str, pa.Table]) -> list[Piece]:
    """Join the tables of units into one piece for each schema that occurs."""
    groups: dict[pa.Schema, list[str]] = {}
    for unit in sorted(tables):
        groups.setdefault(tables[unit].schema.remove_metadata(), []).append(unit)
    pieces = []
    for schema, units in groups.items():
        counts = [len(tables[unit]) for unit in units]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        records = [(tables[unit].schema.metadata or {}).get(RECORD_KEY) for unit in units]
        joined = pa.concat_tables([tables[unit].replace_schema_metadata(None) for unit in units] or [schema.empty_table()])
        pieces.append(Piece(units, starts, records, joined.combine_chunks()))
    return pieces


def join(pieces: Sequence[Piece]) -> list[Piece]:
    """Join pieces of equal schema into one, in order of the units' names. A unit is in one of them only."""
    groups: dict[pa.Schema, list[Piece]] = {}
    for piece in pieces:
        if piece.units:
            groups.setdefault(piece.table.schema.remove_metadata(), []).append(piece)
    return [group[0] if len(group) == 1 else _join_equal(group) for group in groups.values()]


def _join_equal(pieces: Sequence[Piece]) -> Piece:
    units = [unit for piece in pieces for unit in piece.units]
    order = np.argsort(np.array(units))
    counts = np.concatenate([np.diff(piece.starts) for piece in pieces])
    begins = np.cumsum(counts) - counts
    rows = [np.arange(begins[i], begins[i] + counts[i]) for i in order]
    table = pa.concat_tables([piece.table.replace_schema_metadata(None) for piece in pieces])
    table = table.take(pa.array(np.concatenate(rows) if rows else np.empty(0, np.int64))).combine_chunks()
    records = [record for piece in pieces for record in piece.records]
    starts = np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64)
    return Piece([units[i] for i in order], starts, [records[i] for i in order], table)


RowGroups = OrderedDict[tuple[str, str, int], pa.Table]
"""Row groups by folder, segment and number."""


class Names(Sequence[str]):
    """Names in an Arrow array, which takes a third of the memory of a list."""

    def __init__(self, names: pa.Array) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        names: str | list[str] = self._names[at].to_pylist() if isinstance(at, slice) else self._names[at].as_py()
        return names


class SegmentFile:
    """A packed segment, read in parts: its units and its footer once, its rows by row groups."""

    def __init__(self, out: str, folder: str, segment: Segment, kept: RowGroups | None = None) -> None:
        """kept: row groups that are kept for the next unit, of all segments of this reader."""
        self._out, self._folder, self.segment = out, folder, segment
        self._kept: RowGroups = OrderedDict() if kept is None else kept
        self._last: tuple[int, Sequence[str] | None, pa.Table] | None = None  # the last row group of `between`, by its columns

    @property
    def _uri(self) -> str:
        return OutputFolder(self._out).segment(self._folder, self.segment.name)

    def _read_units(self, *columns: str) -> pa.Table:
        data = storage.read(OutputFolder(self._out).segment_units(self._folder, self.segment.name))
        return pq.ParquetFile(pa.BufferReader(data)).read(list(columns), use_threads=False)

    @cached_property
    def _units_table(self) -> pa.Table:
        return self._read_units("unit", "rows")

    @cached_property
    def units(self) -> Sequence[str]:
        return Names(self._units_table["unit"].combine_chunks())

    @cached_property
    def starts(self) -> np.ndarray:
        counts = self._units_table["rows"].to_numpy()
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def records(self, first: int, last: int) -> list[bytes | None]:
        """Read the records of units. They are not kept: few readers want them, and they take more memory than the names."""
        records: list[bytes | None] = self._read_units("record")["record"][first:last].to_pylist()
        return records

    @cached_property
    def _footer(self) -> pq.FileMetaData:
        start = max(0, self.segment.size - _TAIL_BYTES)
        tail = storage.read(self._uri, start)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            start, tail = self.segment.size - length, storage.read(self._uri, self.segment.size - length)
        return pq.read_metadata(_Window(start, tail, self.segment.size))

    @cached_property
    def _group_starts(self) -> np.ndarray:
        counts = [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def find(self, unit: str) -> int | None:
        """Return the number of a unit in the segment, or None."""
        if not self.segment.first <= unit <= self.segment.last:
            return None
        at = bisect_left(self.units, unit)
        return at if at < len(self.units) and self.units[at] == unit else None

    def unit(self, at: int) -> pa.Table:
        """Return the rows of a unit."""
        return self._rows(int(self.starts[at]), int(self.starts[at + 1]))

    def _rows(self, begin: int, end: int) -> pa.Table:
        """Return rows, from row groups that are kept for the next unit."""
        first, last = self._groups(begin, end)
        parts = []
        for number in range(first, last):
            key = self._folder, self.segment.name, number
            if key not in self._kept:
                self._kept[key] = self._read_groups(number, number + 1, None)
            self._kept.move_to_end(key)
            parts.append(self._kept[key])
        while sum(table.nbytes for table in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        if not parts:
            return self._footer.schema.to_arrow_schema().remove_metadata().empty_table()
        return pa.concat_tables(parts).slice(begin - int(self._group_starts[first]), end - begin)

    def _groups(self, begin: int, end: int) -> tuple[int, int]:
        """Return the first row group with rows of [begin, end), and the one after the last."""
        if begin == end:
            return 0, 0
        first = int(np.searchsorted(self._group_starts, begin, "right")) - 1
        return first, int(np.searchsorted(self._group_starts, end, "left"))

    def _next_row_groups(self, first: int, last: int, columns: tuple[str, ...] | None, keep: bool) -> pa.Table:
        """Read row groups from `first` to before `last`. The first one is not read again where the call before ended with it.

        keep: hold the last one for the next call.
        Whoever reads a segment range by range meets each row group once or, where ranges are short, many times in a row.
        """
        before = self._last[2] if self._last and self._last[:2] == (first, columns) else None
        if before is not None and last == first + 1:
            self._last = self._last if keep else None
            return before
        read = self._read_groups(first if before is None else first + 1, last, columns)
        table = read if before is None else pa.concat_tables([before, read])
        begin = int(self._group_starts[last - 1] - self._group_starts[first])
        self._last = (last - 1, columns, table.slice(begin)) if keep else None
        return table

    def _read_groups(self, first: int, last: int, columns: Sequence[str] | None) -> pa.Table:
        """Read row groups, which lie one after the other in the file, by one request."""
        spans = [_byte_span(self._footer.row_group(number)) for number in range(first, last)]
        begin, end = spans[0][0], spans[-1][1]
        window = _Window(begin, storage.read(self._uri, begin, end - begin), self.segment.size)
        file = pq.ParquetFile(window, metadata=self._footer)
        wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        return file.read_row_groups(list(range(first, last)), columns=wanted, use_threads=False).replace_schema_metadata(None)

    def _bounds(self, low: str, high: str | None) -> tuple[int, int]:
        """Return the number of the first unit from `low`, and that of the first one from `high`."""
        if self.segment.last < low or (high is not None and high <= self.segment.first):
            return 0, 0
        first = bisect_left(self.units, low)
        return first, max(first, len(self.units) if high is None else bisect_left(self.units, high))

    def units_between(self, low: str, high: str | None) -> list[str]:
        """Return the units from `low` to before `high`."""
        first, last = self._bounds(low, high)
        return list(self.units[first:last]) if first < last else []

    def units_with_prefix(self, prefixes: pa.Array, length: int) -> list[str]:
        """Return the units whose first so many characters are one of these."""
        names = self._units_table["unit"]
        chosen: list[str] = names.filter(pc.is_in(pc.utf8_slice_codeunits(names, 0, length), prefixes)).to_pylist()
        return chosen

    def between(
        self, low: str, high: str | None, columns: Sequence[str] | None, records: bool | Sequence[bytes | None] = True
    ) -> Piece:
        """Return the units from `low` to before `high`, with these columns of their rows.

        records: those of all units of the segment, if they are at hand; else whether to read them.
        """
        first, last = self._bounds(low, high)
        begin, end = int(self.starts[first]), int(self.starts[last])
        groups = self._groups(begin, end)
        if groups[0] == groups[1]:
            schema = self._footer.schema.to_arrow_schema().remove_metadata()
            kept = [item for item in schema if columns is None or item.name in columns]
            rows = pa.schema(kept).empty_table()
        else:
            more = end < int(self.starts[-1])  # whoever reads to the end leaves nothing behind
            table = self._next_row_groups(*groups, None if columns is None else tuple(columns), more)
            rows = table.slice(begin - int(self._group_starts[groups[0]]), end - begin)
        about: list[bytes | None] = [None] * (last - first)
        if not isinstance(records, bool):
            about = list(records[first:last])
        elif records and first < last:
            about = self.records(first, last)
        return Piece(self.units[first:last], self.starts[first : last + 1] - begin, about, rows)


def _byte_span(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return the first byte of a row group, and the one after its last."""
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    return min(starts), max(start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))


class _Window(RangedFile):
    """A part of a file, at its place in the file: a read outside of it is a mistake of ours."""

    def __init__(self, start: int, data: bytes, size: int) -> None:
        super().__init__(size)
        self._start, self._data = start, data

    def readinto(self, buffer: Any) -> int:
        begin = self._at - self._start
        assert 0 <= begin <= len(self._data), f"{self._at} is outside of {self._start} + {len(self._data)}"
        data = self._data[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def live(files: Iterable[SegmentFile], dropped: frozenset[str]) -> list[Piece]:
    """Return the units of segments that were not deleted, one piece for each segment that has any."""
    pieces = [file.between("", None, None).without(dropped) for file in files]
    return [piece for piece in pieces if piece.units]


def overlapping(files: Sequence[SegmentFile]) -> list[SegmentFile]:
    """Return the segments to merge so that a unit is looked for in few: none while no name lies within more than `_MAX_DEPTH`.

    Each time units are packed, their segments cover all names together, since names begin with hashes. So the widest segments
    are merged first, and all of them where the narrow ones overlap too much as well: that is how log-structured stores bound
    both what a reader opens and how often a row is written again.
    """
    if _depth(files) <= _MAX_DEPTH:
        return []
    places = {file: (_place(file.segment.first), _place(file.segment.last)) for file in files}
    whole = max(last for _, last in places.values()) - min(first for first, _ in places.values())
    wide = [file for file, (first, last) in places.items() if (last - first) * _NARROW > whole]
    narrow = [file for file in files if file not in wide]
    return wide if len(wide) > 1 and _depth(narrow) <= _MAX_DEPTH // 2 else list(files)


def _place(name: str) -> int:
    """Return a number that orders names as they are ordered: for hashes one that is spread evenly."""
    try:
        return int(name[:8], 16)
    except ValueError:
        return int.from_bytes(name[:8].encode().ljust(8), "big")


def _depth(files: Iterable[SegmentFile]) -> int:
    """Return within how many segments a name lies at most."""
    ends = sorted(end for file in files for end in ((file.segment.first, 0), (file.segment.last, 1)))
    return max(accumulate((-1 if is_last else 1 for _, is_last in ends), initial=0))


def write_segment(out: str, folder: str, piece: Piece, number: int) -> Segment:
    """Write a piece: its rows, then its units. The name is of this manifest, so that no older one means another content."""
    name = f"{number:06d}-{digest(str(piece.table.schema.remove_metadata()), *piece.units)}"
    row_bytes = max(1, piece.table.nbytes // max(1, len(piece.table)))
    group = max(16, min(_MAX_ROW_GROUP, _ROW_GROUP_BYTES // row_bytes))
    sink = io.BytesIO()
    pq.write_table(piece.table.replace_schema_metadata(None), sink, compression="zstd", row_group_size=group)
    data = sink.getvalue()
    counts = np.diff(piece.starts).astype(np.int32)
    units = pa.Table.from_arrays([pa.array(piece.units), pa.array(counts), pa.array(piece.records, pa.binary())], schema=_UNITS)
    storage.put(OutputFolder(out).segment(folder, name), data)
    storage.put(OutputFolder(out).segment_units(folder, name), to_parquet(units))
    return Segment(name, piece.units[0], piece.units[-1], len(piece.units), len(piece.table), len(data))
