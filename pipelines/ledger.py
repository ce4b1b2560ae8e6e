"""The ledger: every clip and source ever seen, kept or rejected, joined over the phases that wrote about it.

A phase writes one file of rows a unit, with the unit's record in the file's metadata (`curation.output_folder` has the paths).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import storage
from curation.output_folder import OutputFolder
from curation.schema import CLIP, SIDECAR_COLUMNS, VIDEO, Row, columns, conform
from curation.shards import from_parquet, to_parquet
from operators.op import Op
from pipelines.recipes import CLIP_PHASES, PHASES
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
    ]
)
CAMERAS = pa.schema([("clip_id", pa.string()), ("npz", pa.binary())])
_RECORD_KEY = b"gamecraft.record"


@dataclass
class Record:
    """What one unit did and cost.

    failure: why the unit could not be committed; None where it was. note: a remark for whoever watches the run. wall_s, cpu_s:
    seconds, the latter by operator. decodes, vlm, s3: as `WorkerState` counts them; s3 is not stored.
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
    failure: str | None = None
    note: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        return cls(**json.loads(text))


def phase_columns(chain: Iterable[Op]) -> pa.Schema:
    """Return the columns of a phase's files: keys, verdicts, and what its operators write."""
    written = {name for op in chain for name in op.writes} - SIDECAR_COLUMNS
    return columns(CLIP, written | {"clip_id", "video_id", "unit_id", "reject", "error"})


def write_clips(out: str, phase: str, unit: str, rows: Sequence[Row], schema: pa.Schema, record: Record) -> None:
    """Store a unit's rows and its record. This is the unit's commit in every phase except `shard`."""
    rows = [{name: row.get(name) for name in schema.names} | {"unit_id": unit} for row in rows]
    table = conform(rows, schema)
    table = table.replace_schema_metadata({_RECORD_KEY: record.to_json().encode()})
    storage.put(OutputFolder(out).clip_rows(phase, unit), to_parquet(table))


def write_video(out: str, unit: str, row: Row) -> None:
    storage.put(OutputFolder(out).video(unit), to_parquet(conform([{**row, "unit_id": unit}], VIDEO)))


def read_video(out: str, unit: str) -> Row | None:
    """Return the row of a unit's source, or None where it has none."""
    try:
        rows = _read_table(OutputFolder(out).video(unit)).to_pylist()
    except FileNotFoundError:
        return None
    return dict(rows[0]) if rows else None


def take_back(out: str, unit: str) -> None:
    """Remove a partition unit, its commit first, so that the next run measures its source anew.

    The next listing removes what later phases derived from it.
    """
    folder = OutputFolder(out)
    rows = [folder.clip_rows("partition", unit), folder.clip_rows(SUPERSEDED, unit), folder.video(unit)]
    for uri in [*rows, *(folder.sidecar(kind, unit) for kind in ("thumbs", "signals"))]:
        storage.delete(uri)


def remove_clips(out: str, phase: str, unit: str, clip_ids: Sequence[str]) -> None:
    """Remove clips from a committed unit's rows. Its record stays."""
    table = _read_table(OutputFolder(out).clip_rows(phase, unit))
    rest = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(clip_ids, pa.string()))))
    storage.put(OutputFolder(out).clip_rows(phase, unit), to_parquet(rest))


def read_unit(out: str, phase: str, unit: str) -> list[Row]:
    """Return a committed unit's rows."""
    return _read_table(OutputFolder(out).clip_rows(phase, unit)).to_pylist()


def read_all(folder: str, schema: pa.Schema) -> tuple[pa.Table, list[Record]]:
    """Read every file of a folder as one table of this schema (columns a file lacks are null), and the records in them."""
    uris = [storage.join(folder, name) for name in storage.names(folder)]
    tables = storage.at_once(_read_table, uris)
    records = [Record.from_json(meta[_RECORD_KEY]) for t in tables if (meta := t.schema.metadata or {}).get(_RECORD_KEY)]
    return pa.concat_tables([_fit(table, schema) for table in tables] or [schema.empty_table()]), records


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = [table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type) for f in schema]
    return pa.table(arrays, schema=schema.remove_metadata())


def clips(out: str) -> pa.Table:
    """Return one row a clip, all phases joined: a later phase's value wins, except that the first reject or error stays."""
    ledger, _ = read_all(OutputFolder(out).clips(CLIP_PHASES[0]), CLIP)
    for phase in (SUPERSEDED, *CLIP_PHASES[1:]):
        later, _ = read_all(OutputFolder(out).clips(phase), CLIP)
        ledger = _add_phase(ledger, later)
    return ledger.sort_by([("video_id", "ascending"), ("index", "ascending")])


def _add_phase(ledger: pa.Table, later: pa.Table) -> pa.Table:
    if not len(later):
        return ledger
    where = pc.index_in(ledger["clip_id"], later["clip_id"].combine_chunks())
    return pa.table([_column(ledger, later, f.name, where) for f in ledger.schema], schema=ledger.schema)


def _column(ledger: pa.Table, later: pa.Table, name: str, where: pa.Array) -> pa.Array:
    ours, theirs = ledger[name].combine_chunks(), later[name].combine_chunks()
    if name in ("clip_id", "video_id", "unit_id") or theirs.null_count == len(theirs):
        return ours
    return pc.coalesce(ours, theirs.take(where)) if name in ("reject", "error") else pc.coalesce(theirs.take(where), ours)


def videos(out: str) -> pa.Table:
    """Return one row a source. One that changed since it was measured is `superseded`, whatever it was before."""
    table = read_all(OutputFolder(out).videos, VIDEO)[0].sort_by([("uri", "ascending")])
    superseded = {name.removesuffix(".parquet") for name in storage.names(OutputFolder(out).clips(SUPERSEDED))}
    if not superseded:
        return table
    changed = {"status": SUPERSEDED, "reason": "the source changed since it was measured"}
    rows = [row | changed if row["unit_id"] in superseded else row for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=table.schema)


def records(out: str) -> list[Record]:
    """Return the records of all committed units."""
    return [record for phase in PHASES for record in read_all(OutputFolder(out).clips(phase), CLIP)[1]]


def sidecars(out: str, kind: str, units: Iterable[str]) -> list[pa.Table]:
    """Read the sidecar files ("thumbs", "signals", "camera") of these units; absent ones are left out."""
    folder = OutputFolder(out).sidecars(kind)
    present = sorted({f"{unit}.parquet" for unit in units} & set(storage.names(folder)))
    return storage.at_once(_read_table, (storage.join(folder, name) for name in present))


def cameras(out: str, units: Iterable[str]) -> dict[str, bytes]:
    """Return the camera.npz of every clip of these annotate units that has one, by clip_id."""
    tables = sidecars(out, "camera", units)
    return {row["clip_id"]: row["npz"] for table in tables for row in table.to_pylist()}


def _read_table(uri: str) -> pa.Table:
    return from_parquet(storage.read(uri))


def write_sidecar(out: str, kind: str, unit: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist(list(rows), schema=schema)
    storage.put(OutputFolder(out).sidecar(kind, unit), to_parquet(table))


def kept_clips(ledger: pa.Table) -> pa.Table:
    """Return the clips that are not dropped."""
    return ledger.filter(pc.and_(pc.is_null(ledger["reject"]), pc.is_null(ledger["error"])))
