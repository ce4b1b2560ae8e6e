"""The ledger: every clip and source ever seen, kept or rejected, joined over the phases that wrote about it.

A phase writes the rows of a unit with the unit's record (`pipelines.unit_files` says where they are). `scan` joins the ledger
part by part, so that its memory does not grow with the number of clips.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.schema import CLIP, SIDECAR_COLUMNS, VIDEO, Row, columns, conform
from curation.shards import to_parquet
from operators.op import Op
from pipelines import unit_files
from pipelines.recipes import CLIP_PHASES, PHASES
from pipelines.segments import RECORD_KEY, Piece
from pipelines.units import SUPERSEDED

THUMBS = pa.schema([("clip_id", pa.string()), ("times_s", pa.list_(pa.float64())), ("jpegs", pa.list_(pa.binary()))])
SIGNALS = pa.schema(
    [
        ("video_id", pa.string()),
        ("times_s", pa.list_(pa.float64())),
        ("motion_camera", pa.list_(pa.float32())),
        ("motion_object", pa.list_(pa.float32())),
        ("luma_times_s", pa.list_(pa.float64())),
        ("luma", pa.list_(pa.float32())),
        ("static_png", pa.binary()),
        # The fingerprint (`curation.partition.fingerprint`). Side files of earlier releases lack it.
        ("fingerprint_version", pa.int32()),
        ("hash_times_s", pa.list_(pa.float32())),
        ("hashes", pa.list_(pa.uint64())),
        ("key_frame", pa.list_(pa.int32())),
        ("keys", pa.list_(pa.uint32())),
    ]
)
CAMERAS = pa.schema([("clip_id", pa.string()), ("npz", pa.binary())])
# Fields that earlier releases do not know; they are empty when a record is stored, and left out then.
_NEWER_FIELDS = ("reasons", "deaths")
DUPLICATES = "duplicates"
"""The folder under `clips` with the clips that repeat another one. Its rows are part of the verdicts of `score`."""
_VIDEOS, _PARTITION = "videos", "clips/partition"
# Units of `score` or `partition` that `scan` joins at once, with at most 64 clips each: 16k clips take 35 MB.
_UNITS_PER_PART = 256
# Side files that are read at once: thumbnails of an hour of video take some 15 MB.
_SIDECARS_AT_ONCE = 16


@dataclass
class Record:
    """What one unit did and cost.

    failure: why the unit could not be committed; None where it was. note: a remark for whoever watches the run. wall_s, cpu_s:
    seconds, the latter by operator. decodes, vlm, s3: as `WorkerState` counts them. reasons: dropped rows by verdict and kind
    of reason, such as "rejected too dark". deaths: workers that died over the unit, by cause. s3, reasons and deaths are not
    stored.
    """

    phase: str
    unit: str
    rows: int = 0
    rejected: int = 0
    errors: int = 0
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    decodes: dict[str, int] = field(default_factory=dict)
    vlm: dict[str, int] = field(default_factory=dict)
    s3: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    note: str | None = None

    @property
    def is_failure(self) -> bool:
        """Whether the unit is still to do. A failed chunk does not count: its source is measured in one pass instead."""
        return bool(self.failure) and self.phase != "scan"

    def to_json(self) -> str:
        fields = {name: value for name, value in asdict(self).items() if value or name not in _NEWER_FIELDS}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Record":
        return cls(**json.loads(text))


@dataclass
class Work:
    """Sums over units that were done: how many, how many are still to do, CPU seconds by operator, and as `Record` has it."""

    units: int = 0
    failed: int = 0
    captioned: int = 0  # clips
    cpu_s: Counter[str] = field(default_factory=Counter)
    decodes: Counter[str] = field(default_factory=Counter)
    vlm: Counter[str] = field(default_factory=Counter)
    s3: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Work":
        work = cls()
        for record in records:
            work.add(record)
        return work

    def add(self, record: Record) -> None:
        self.units += 1
        self.failed += record.is_failure
        self.captioned += record.rows if record.phase == "caption" else 0
        self.cpu_s.update(record.cpu_s)
        self.decodes.update(record.decodes)
        self.vlm.update(record.vlm)
        self.s3.update(record.s3)


def phase_columns(chain: Iterable[Op]) -> pa.Schema:
    """Return the columns of a phase's files: keys, verdicts, and what its operators write."""
    written = {name for op in chain for name in op.writes} - SIDECAR_COLUMNS
    return columns(CLIP, written | {"clip_id", "video_id", "unit_id", "reject", "error"})


def write_clips(out: str, phase: str, unit: str, rows: Sequence[Row], schema: pa.Schema, record: Record) -> None:
    """Store a unit's rows and its record. This is the unit's commit in every phase except `shard`."""
    rows = [{name: row.get(name) for name in schema.names} | {"unit_id": unit} for row in rows]
    table = conform(rows, schema)
    table = table.replace_schema_metadata({RECORD_KEY: record.to_json().encode()})
    unit_files.of(out).put(f"clips/{phase}", unit, to_parquet(table))


def write_video(out: str, unit: str, row: Row) -> None:
    unit_files.of(out).put(_VIDEOS, unit, to_parquet(conform([{**row, "unit_id": unit}], VIDEO)))


def read_video(out: str, unit: str) -> Row | None:
    """Return the row of a unit's source, or None where it has none."""
    try:
        rows = unit_files.of(out).read(_VIDEOS, unit).to_pylist()
    except FileNotFoundError:
        return None
    return dict(rows[0]) if rows else None


def take_back(out: str, units: Sequence[str]) -> None:
    """Remove partition units, their commits first, so that the next run measures their sources anew.

    The next listing removes what later phases derived from them.
    """
    if units:
        folders = (_PARTITION, f"clips/{SUPERSEDED}", _VIDEOS, "sidecar/thumbs", "sidecar/signals")
        unit_files.of(out).delete(dict.fromkeys(folders, units))


def remove_clips(out: str, phase: str, unit: str, clip_ids: Sequence[str]) -> None:
    """Remove clips from a committed unit's rows. Its record stays."""
    files, folder = unit_files.of(out), f"clips/{phase}"
    table, record = files.read(folder, unit), files.read_record(folder, unit)
    rest = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(clip_ids, pa.string()))))
    if record:
        rest = rest.replace_schema_metadata({RECORD_KEY: record})
    files.delete({folder: [unit]})
    files.put(folder, unit, to_parquet(rest))


def read_unit(out: str, phase: str, unit: str) -> list[Row]:
    """Return a committed unit's rows. FileNotFoundError where there is no such unit."""
    return unit_files.of(out).read(f"clips/{phase}", unit).to_pylist()


def read_all(out: str, folder: str, schema: pa.Schema) -> tuple[pa.Table, list[Record]]:
    """Read every unit of a folder as one table of this schema (columns a unit lacks are null), and the units' records."""
    pieces = list(unit_files.of(out).scan(folder, schema.names, records=True))
    return _fit(_concat(pieces), schema), [Record.from_json(record) for record in _records(pieces)]


def _records(pieces: Iterable[Piece]) -> list[bytes]:
    return [record for piece in pieces for record in piece.records if record]


def _concat(pieces: Iterable[Piece]) -> pa.Table:
    return join_rows(piece.table for piece in pieces)


def join_rows(tables: Iterable[pa.Table]) -> pa.Table:
    """Join the rows of tables. Columns that one of them lacks are null there. No rows: a table without columns."""
    some = [table.replace_schema_metadata(None) for table in tables if len(table)]
    return pa.concat_tables(some, promote_options="permissive") if some else pa.table({})


def verdicts(tables: Iterable[pa.Table]) -> pa.Table:
    """Return clip_id, reject and error of all rows."""
    return _fit(join_rows(tables), columns(CLIP, ("clip_id", "reject", "error")))


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    rows, present = len(table), set(table.column_names)
    arrays = [table[f.name].cast(f.type) if f.name in present else pa.nulls(rows, f.type) for f in schema]
    return pa.table(arrays, schema=schema.remove_metadata())


@dataclass(frozen=True)
class Part:
    """Some sources with all that the ledger has about them.

    clips: one row a clip, all phases joined. phases: the rows of each phase alone, with its own columns. videos: one row a
    source. records: of all units, if they were asked for. In the first part: also those of units that are of no source, such as
    shards. bounds: the video_id with which the part begins, and the one before which it ends (None: to the end).
    """

    clips: pa.Table
    phases: dict[str, pa.Table]
    videos: pa.Table
    records: list[bytes]
    bounds: tuple[str, str | None]


def scan(
    out: str, columns: Sequence[str] | None = None, skip: int = 0, duplicates: bool = True, records: bool = False
) -> Iterator[Part]:
    """Yield the ledger in parts, in order of video_id. Together they hold every clip and source once.

    columns: those of the clips that are wanted (None: all of `CLIP`), which saves most of the time. skip: parts to leave out at
    the beginning. Ids are hashes of contents, so the first parts are a sample of the sources. duplicates: False to leave out
    which clips repeat others. records: whether parts have the records of their units.
    """
    files = unit_files.of(out)
    wanted = None if columns is None else [*dict.fromkeys(("clip_id", "video_id", "unit_id", "index", *columns))]
    schema = CLIP if wanted is None else pa.schema([field for field in CLIP if field.name in wanted])
    stored = _StoredRows(files, wanted)
    known = _records(files.scan("clips/shard", ["clip_id"], records=True)) if records else []  # of no source: in the first part
    for low, high in islice(ranges(files, _UNITS_PER_PART), skip, None):
        folders = [f"clips/{phase}" for phase in PHASES if phase != "shard"]
        pieces = {folder: list(files.scan(folder, wanted, low, high, records)) for folder in folders}
        tables = {phase: _concat(pieces[f"clips/{phase}"]) for phase in CLIP_PHASES if phase != "shard"}
        tables["shard"] = stored.between(low, high)
        if not tables["partition"].column_names:
            tables["partition"] = CLIP.empty_table().select([name for name in CLIP.names if not wanted or name in wanted])
        if duplicates:
            tables["score"] = _add_phase(tables["score"], _concat(files.scan(f"clips/{DUPLICATES}", wanted, low, high)))
        clips = _add_phase(tables["partition"], _concat(files.scan(f"clips/{SUPERSEDED}", wanted, low, high)))
        for phase in CLIP_PHASES[1:]:
            clips = _add_phase(clips, tables[phase])
        if len(tables["shard"]):
            in_part = pc.is_in(tables["shard"]["clip_id"], clips["clip_id"].combine_chunks())
            tables["shard"] = tables["shard"].filter(in_part)
        videos = _fit(_concat(files.scan(_VIDEOS, None, low, high)), VIDEO)
        known += [record for some in pieces.values() for record in _records(some)] if records else []
        clips = _fit(clips, schema).sort_by([("video_id", "ascending"), ("index", "ascending")])
        yield Part(clips, tables, _with_superseded(files, videos, low, high), known, (low, high))
        known = []


class _StoredRows:
    """The rows of shards, found by video_id. Only the first and the last video_id of each shard are held in memory.

    A plan is in order of video_id, so the shards of one plan that have clips of a range of sources follow each other.
    """

    def __init__(self, files: unit_files.UnitFiles, columns: Sequence[str] | None) -> None:
        self._files, self._columns = files, columns
        self._names: list[str] = []
        spans: list[tuple[str, str]] = []
        for piece in files.scan("clips/shard", ["video_id"]):
            videos = piece.table["video_id"].combine_chunks()
            for unit, begin, end in piece.spans():
                if begin < end:
                    bounds = pc.min_max(videos[begin:end]).as_py()
                    self._names.append(unit)
                    spans.append((bounds["min"], bounds["max"]))
        order = np.argsort(np.array(self._names, "S")) if spans else np.empty(0, int)
        self._names = [self._names[number] for number in order]
        self._spans = np.array(spans, "S").reshape(-1, 2)[order]

    def between(self, low: str, high: str | None) -> pa.Table:
        """Return the rows of videos from `low` to before `high` (None: to the end)."""
        chosen = self._spans[:, 1] >= low.encode()
        if high is not None:
            chosen &= self._spans[:, 0] < high.encode()
        numbers = np.flatnonzero(chosen)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
        rows = join_rows(
            piece.table
            for run in runs
            for piece in self._files.scan("clips/shard", self._columns, self._names[run[0]], self._names[run[-1]] + "\0")
        )
        if not len(rows):
            return rows
        inside = pc.greater_equal(rows["video_id"], low)
        return rows.filter(inside if high is None else pc.and_(inside, pc.less(rows["video_id"], high)))


def ranges(files: unit_files.UnitFiles, size: int) -> Iterator[tuple[str, str | None]]:
    """Yield ranges of video_ids, from one to before another (None: to the end), with about so many units each.

    Those of `score` count, or those of `partition` where there are more of them. Names of units begin with their video_id, so
    all units of a source are in one range.
    """
    videos = max((np.concatenate(list(files.parts_of_names(name, 0))) for name in ("clips/score", _PARTITION)), key=len)
    starts = ["", *(video.decode() for video in np.unique(np.sort(videos)[size::size]))]
    yield from zip(starts, [*starts[1:], None], strict=True)


def clips(out: str) -> pa.Table:
    """Return one row a clip, all phases joined: a later phase's value wins, except that the first reject or error stays."""
    return pa.concat_tables([part.clips for part in scan(out)])


def _add_phase(ledger: pa.Table, later: pa.Table) -> pa.Table:
    """Join the rows of a later phase to the clips. Only columns that one of the two has are touched."""
    if not len(later) or not len(ledger):
        return ledger
    where = pc.index_in(ledger["clip_id"], later["clip_id"].combine_chunks())
    for name in later.column_names:
        if name in ("clip_id", "video_id", "unit_id"):
            continue
        theirs = later[name].combine_chunks().take(where)
        if name not in ledger.column_names:
            ledger = ledger.append_column(name, theirs)
        elif theirs.null_count < len(theirs):
            ours = ledger[name].combine_chunks().cast(theirs.type)
            joined = pc.coalesce(ours, theirs) if name in ("reject", "error") else pc.coalesce(theirs, ours)
            ledger = ledger.set_column(ledger.column_names.index(name), name, joined)
    return ledger


def videos(out: str) -> pa.Table:
    """Return one row a source. One that changed since it was measured is `superseded`, whatever it was before."""
    files = unit_files.of(out)
    table = _fit(_concat(files.scan(_VIDEOS)), VIDEO).sort_by([("uri", "ascending")])
    return _with_superseded(files, table)


def _with_superseded(files: unit_files.UnitFiles, table: pa.Table, low: str = "", high: str | None = None) -> pa.Table:
    superseded = set(files.names(f"clips/{SUPERSEDED}", low, high))
    if not superseded:
        return table
    changed = {"status": SUPERSEDED, "reason": "the source changed since it was measured"}
    rows = [row | changed if row["unit_id"] in superseded else row for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=table.schema)


def records(out: str) -> list[Record]:
    """Return the records of all committed units."""
    files = unit_files.of(out)
    known = (_records(files.scan(f"clips/{phase}", ["clip_id"], records=True)) for phase in PHASES)
    return [Record.from_json(record) for some in known for record in some]


def sidecars(out: str, kind: str, units: Iterable[str]) -> Iterator[pa.Table]:
    """Yield the sidecar files ("thumbs", "signals", "camera") of these units, a few in memory; absent ones are left out."""
    names = sorted(set(units))
    for first in range(0, len(names), _SIDECARS_AT_ONCE):
        yield from unit_files.of(out).read_present(f"sidecar/{kind}", names[first : first + _SIDECARS_AT_ONCE])


def cameras(out: str, units: Iterable[str]) -> dict[str, bytes]:
    """Return the camera.npz of every clip of these annotate units that has one, by clip_id."""
    tables = sidecars(out, "camera", units)
    return {row["clip_id"]: row["npz"] for table in tables for row in table.to_pylist()}


def write_sidecar(out: str, kind: str, unit: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist(list(rows), schema=schema)
    unit_files.of(out).put(f"sidecar/{kind}", unit, to_parquet(table))


def kept_clips(ledger: pa.Table) -> pa.Table:
    """Return the clips that are not dropped."""
    return ledger.filter(kept_mask(ledger))


def kept_mask(rows: pa.Table) -> pa.ChunkedArray:
    """Return which rows are not dropped, as booleans."""
    return pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["error"]))
