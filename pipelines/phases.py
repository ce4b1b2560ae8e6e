"""Each phase: load a unit's rows, run the operators, commit. The same code under every runner."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from curation import shards, storage, versions, vlm
from curation.captions import embedding_cache
from curation.errors import NotExact, UnreadableVideo, describe
from curation.media import decode
from curation.output_folder import OutputFolder
from curation.partition import chunks, fingerprint, scan
from curation.quality.luminance import mean_luma
from curation.schema import CLIP, SIDECAR_COLUMNS, Row, columns, is_dropped
from curation.shards import Sample
from curation.vlm import answers
from curation.worker_state import worker
from operators import synth
from operators.op import Op, Step
from operators.shards import scratch_file
from pipelines import chains, chunk_units, dead_letters, ledger, unit_files
from pipelines.ledger import Record
from pipelines.recipes import Recipe
from pipelines.units import PART_CLIPS, Unit, UnitName

_LUMA_EVERY_S = 0.25
_MAX_SIGNAL_POINTS = 4000


@dataclass(frozen=True)
class Phase:
    """A phase bound to a recipe and an output folder; a worker needs nothing else."""

    name: str
    recipe: Recipe
    out: str
    manifest: int = 0  # which packed units it reads (`pipelines.unit_files`); 0: nothing is packed

    @property
    def chain(self) -> list[Op]:
        chain = chains.synthesise if self.name == "generate" else chains.curate
        return chain(self.recipe)[self.name]

    def load(self, unit: Unit) -> list[Row]:
        return _LOAD[self.name](self, unit)

    def commit(self, unit: Unit, rows: list[Row], record: Record) -> None:
        _COMMIT[self.name](self, unit, rows, record)


def work(
    phase: Phase,
    unit: Unit,
    on_progress: Callable[[float], None] | None = None,
    left_out: Mapping[str, str] | None = None,
    on_row: Callable[[Row | None], None] | None = None,
    commits: bool = True,
) -> Record:
    """Do one unit. What goes wrong outside its rows is the record's `failure`, and other units are not affected.

    on_progress: called with the part done (0 to 1), of the decode where the unit is a source, of its rows elsewhere. left_out:
    the reason of each row (`row_key`) that is rejected unseen. on_row: called with each row before it is worked on, and with
    None at the end. commits: False to store nothing.
    """
    record, began = Record(phase.name, unit.name, failure=unit.problem), time.monotonic()
    if unit.problem:
        return record
    decodes, usage = worker.decodes.copy(), worker.vlm_usage.copy()
    requests = worker.s3_requests.copy()
    worker.tracebacks.clear()  # `questions` may have left some
    answers.use_folder(OutputFolder(phase.out).answers)
    embedding_cache.use_folder(OutputFolder(phase.out).embeddings)
    try:
        unit_files.use(phase.out, phase.manifest)
        step, rows = _step(phase), _load_pinned(phase, unit)
        worker.on_decode = on_progress if phase.name in ("partition", "generate") else None
        rows = step([_without(row, left_out or {}) for row in rows], on_row, on_progress)
        if on_row:
            on_row(None)
        _count(record, rows, step.cpu_s, worker.decodes - decodes, worker.vlm_usage - usage)
        record.wall_s = round(time.monotonic() - began, 3)
        versions.check_opened()
        if commits:
            dead_letters.write(phase.out, record, rows, worker.tracebacks)
            phase.commit(unit, rows, record)
    except Exception as error:
        record.failure = describe(error)
        worker.note_unexpected(error)
    else:
        record.reasons = _count_reasons(rows)
    if worker.tracebacks:
        _write_log(phase, record)
    record.s3 = dict(worker.s3_requests - requests)
    return record


def _count_reasons(rows: Iterable[Row]) -> dict[str, int]:
    """Count dropped rows by verdict and kind of reason: the words before the first colon, of an error the operator."""
    dropped = ((name, row[name]) for row in rows for name in ("reject", "error") if row.get(name))
    verdicts = {"reject": "rejected", "error": "error"}
    return dict(Counter(f"{verdicts[name]} {reason.partition(':')[0]}" for name, reason in dropped))


def _write_log(phase: Phase, record: Record) -> None:
    """Store the tracebacks of errors in this unit that nobody foresaw, and name the file in the record."""
    uri = OutputFolder(phase.out).log(record.unit)
    with suppress(OSError):  # the log must not hide the error itself
        storage.put(uri, "\n".join(worker.tracebacks).encode())
        words = f"unexpected error, traceback in {uri}"
        if record.failure:
            record.failure += f" ({words})"
        else:
            record.note = record.note or words


def row_key(row: Row) -> str:
    """Return what identifies a row of any phase: its clip, or its source where there are no clips yet."""
    return str(row.get("clip_id") or row["video_id"])


def _without(row: Row, left_out: Mapping[str, str]) -> Row:
    reason = left_out.get(row_key(row))
    return {**row, "reject": reason} if reason and not row.get("reject") else row


def _load_pinned(phase: Phase, unit: Unit) -> list[Row]:
    """Load a unit's rows. Its sources must have the version they were listed with, or that their clips were measured on."""
    listed = {unit.uri: unit.token} if unit.uri else {}
    if listed:
        _pin(listed)
    rows = phase.load(unit)
    _pin({row["source_uri"]: row.get("source_token") for row in rows if row.get("source_uri")} | listed)
    return rows


def _pin(source_versions: Mapping[str, str | None]) -> None:
    if versions.pin(source_versions):
        decode.clear_caches()


def questions(phase: Phase, unit: Unit) -> list[vlm.Prompt]:
    """Return the prompts of a unit that the cache does not answer. None where the unit fails: its own turn reports why."""
    answers.use_folder(OutputFolder(phase.out).answers)
    embedding_cache.use_folder(OutputFolder(phase.out).embeddings)
    unit_files.use(phase.out, phase.manifest)
    model = vlm.load(phase.recipe.caption.vlm)
    assert isinstance(model, vlm.CacheOnlyVlm), model
    model.missing.clear()
    with suppress(OSError, ValueError):
        _step(phase)(_load_pinned(phase, unit))
    return list(model.missing)


@lru_cache(maxsize=4)
def _start_step(phase: Phase) -> Step:
    return Step(phase.chain)


def _step(phase: Phase) -> Step:
    """Return the phase's operators, started once a process, with their clocks at zero."""
    step = _start_step(phase)
    step.cpu_s.clear()
    return step


def _count(record: Record, rows: list[Row], cpu_s: dict[str, float], decodes: Counter[str], usage: Counter[str]) -> None:
    record.rows = len(rows)
    record.errors = sum(bool(row.get("error")) for row in rows)
    record.rejected = sum(bool(row.get("reject")) for row in rows)
    record.cpu_s = {name: round(seconds, 3) for name, seconds in cpu_s.items()}
    record.decodes, record.vlm = dict(decodes), dict(usage)


def _load_chunk(phase: Phase, unit: Unit) -> list[Row]:
    end_s = math.inf if unit.end_s is None else unit.end_s
    return [{**_fresh_source(phase, unit), "start_s": unit.start_s, "end_s": end_s}]


def _commit_chunk(phase: Phase, unit: Unit, rows: list[Row], record: Record) -> None:
    """Store what was measured, then the record, which is the commit. Where one pass might differ, store only the record."""
    (row,) = rows
    if reason := row.get("reject") or row.get("error"):
        record.note = f"{unit.uri} is measured in one pass: {_readable(reason)}"
    else:
        chunk = chunks.finished_chunk(unit.uri, phase.recipe.partition.scan, row["start_s"], row["end_s"])
        chunk_units.put_chunk(phase.out, unit.name, chunk)
    ledger.write_clips(phase.out, phase.name, unit.name, [], ledger.phase_columns(phase.chain), record)


def _load_source(phase: Phase, unit: Unit) -> list[Row]:
    """Return the source's row, or none for a duplicate of another source."""
    if unit.duplicate_of:
        return []
    row = _fresh_source(phase, unit)
    if unit.chunks:
        _join_chunks(phase, unit)
    return [row]


def _fresh_source(phase: Phase, unit: Unit) -> Row:
    scan.load_models(phase.recipe.partition.scan)
    scan.clear_caches()
    return {"video_id": UnitName.parse(unit.name).video_id, "source_uri": unit.uri, "source_token": unit.token}


def _join_chunks(phase: Phase, unit: Unit) -> None:
    """Reuse the measured chunks. If they cannot be joined, the whole source is scanned, which reports errors better."""
    with suppress(OSError, NotExact, UnreadableVideo):
        scan.use_chunks(unit.uri, phase.recipe.partition.scan, chunk_units.read_chunks(phase.out, unit.chunks))


def _load_attempt(phase: Phase, unit: Unit) -> list[Row]:
    scan.load_models(phase.recipe.partition.scan)
    scan.clear_caches()
    return [{"video_id": UnitName.parse(unit.name).video_id, **json.loads(unit.request)}]


def _commit_attempt(phase: Phase, unit: Unit, rows: list[Row], record: Record) -> None:
    """Store the video, its thumbnails and signals, then its row next to the clips of footage, which is the commit."""
    (row,) = rows
    made = scratch_file(row["video_id"])
    if row.get("end_s"):
        signals = scan.finished_scan(row["source_uri"], phase.recipe.partition.scan)
        times_s, jpegs = synth.preview_frames(row, phase.recipe.partition.scan)
        preview = {"clip_id": row["clip_id"], "times_s": times_s, "jpegs": jpegs}
        ledger.write_sidecar(phase.out, "thumbs", unit.name, [preview], ledger.THUMBS)
        ledger.write_sidecar(phase.out, "signals", unit.name, [_signals(row, signals)], ledger.SIGNALS)
        row = {**row, "source_uri": OutputFolder(phase.out).made_video(row["video_id"])}
        storage.put_file(row["source_uri"], str(made))
        about = {"video_id": row["video_id"], "uri": row["source_uri"], "token": unit.token, "status": "ok"}
        ledger.write_video(phase.out, unit.name, {**about, **_source_columns(signals, [row])})
    schema = columns(CLIP, {*ledger.phase_columns(phase.chain).names, "source_uri"})
    ledger.write_clips(phase.out, "partition", unit.name, [row], schema, record)
    made.unlink(missing_ok=True)


def _commit_source(phase: Phase, unit: Unit, rows: list[Row], record: Record) -> None:
    clips = [row for row in rows if row.get("clip_id")]
    ledger.write_video(phase.out, unit.name, _video_row(phase, unit, rows))
    if clips:
        signals = scan.finished_scan(unit.uri, phase.recipe.partition.scan)
        ledger.write_sidecar(phase.out, "thumbs", unit.name, [_thumbs(row, signals) for row in clips], ledger.THUMBS)
        sidecar = _signals(clips[0], signals) | _fingerprint(signals)
        ledger.write_sidecar(phase.out, "signals", unit.name, [sidecar], ledger.SIGNALS)
    schema = columns(CLIP, {*ledger.phase_columns(phase.chain).names, "source_uri", "source_token"})
    ledger.write_clips(phase.out, phase.name, unit.name, clips, schema, record)
    chunk_units.delete_chunks(phase.out, unit.chunks)


def _video_row(phase: Phase, unit: Unit, rows: list[Row]) -> Row:
    row: Row = {"video_id": UnitName.parse(unit.name).video_id, "uri": unit.uri, "token": unit.token}
    if unit.duplicate_of:
        return {**row, "status": "duplicate", "reason": unit.reason, "duplicate_of": unit.duplicate_of}
    left = next((r for r in rows if not r.get("clip_id")), None)
    if left is not None:
        return {**row, **_status_and_reason(left)}
    signals = scan.finished_scan(unit.uri, phase.recipe.partition.scan)
    return {**row, "status": "ok", **_source_columns(signals, rows)}


def _status_and_reason(row: Row) -> Row:
    """Return status and reason of a source that gave no clips."""
    if row.get("reject"):
        return {"status": "quarantined", "reason": row["reject"]}
    unreadable = row["error"].split(": ", 2)[1] == UnreadableVideo.__name__
    return {"status": "unreadable" if unreadable else "error", "reason": _readable(row["error"])}


def _readable(reason: str) -> str:
    """Return a row's error as people read it: messages of our own exceptions without operator, class and line."""
    parts = reason.split(": ", 2)
    ours = len(parts) == 3 and parts[1] in (UnreadableVideo.__name__, NotExact.__name__)
    return parts[2].rpartition(" (")[0] if ours else reason


def _source_columns(signals: scan.Signals, clips: list[Row]) -> Row:
    source = signals.source
    return {
        "duration_s": signals.end_s - float(signals.times_s[0]),
        "gap_s": signals.gap_s,
        "frames": len(signals.times_s),
        "fps": signals.fps,
        "width": source.width,
        "height": source.height,
        "codec": source.codec,
        "container": source.container,
        "cuts_s": [clip["start_s"] for before, clip in pairwise(clips) if clip["scene_index"] != before["scene_index"]],
        "note": "; ".join(signals.notes) or None,
    }


def _thumbs(row: Row, signals: scan.Signals) -> dict[str, Any]:
    """Return the thumbnails nearest to a clip's start, middle and end."""
    inside = [t for t in signals.thumbnails if row["start_s"] <= t.time_s < row["end_s"]]
    near = inside or [min(signals.thumbnails, key=lambda t: abs(t.time_s - row["start_s"]))]
    chosen = [near[i] for i in sorted({0, len(near) // 2, len(near) - 1})]
    return {"clip_id": row["clip_id"], "times_s": [t.time_s for t in chosen], "jpegs": [t.jpeg for t in chosen]}


def _signals(row: Row, signals: scan.Signals) -> dict[str, Any]:
    every = max(1, round(len(signals.pair_frame) / _MAX_SIGNAL_POINTS))
    step = max(1, round(_LUMA_EVERY_S * signals.fps), round(len(signals.times_s) / _MAX_SIGNAL_POINTS))
    ok, png = cv2.imencode(".png", signals.viewport.static.astype(np.uint8) * 255)
    assert ok, signals.viewport.static.shape
    return {
        "video_id": row["video_id"],
        "times_s": signals.pair_times_s[::every].tolist(),
        "motion_camera": signals.motion.camera[::every].tolist(),
        "motion_object": signals.motion.object[::every].tolist(),
        "luma_times_s": signals.times_s[::step].tolist(),
        "luma": mean_luma(signals.luma_bins[::step]).tolist(),
        "static_png": bytes(png),
    }


def _fingerprint(signals: scan.Signals) -> dict[str, Any]:
    prints = signals.fingerprint
    return {
        "fingerprint_version": fingerprint.VERSION,
        "hash_times_s": prints.times_s,
        "hashes": prints.hashes,
        "key_frame": prints.key_frame,
        "keys": prints.keys.ravel(),
    }


def _read_upstream(phase: Phase, unit: Unit) -> list[Row]:
    """Return the clips' rows, joined over the unit's upstream. A later phase's value replaces an earlier one."""
    return _join_rows(row for _, rows in _upstream(phase, unit) for row in rows)


def _upstream(phase: Phase, unit: Unit) -> list[tuple[str, list[Row]]]:
    """Return the phase and the rows of each unit that goes in."""
    paths = [path.split("/") for path in unit.upstream]
    return [(name, ledger.read_unit(phase.out, name, of)) for name, of in paths]


def _join_rows(loaded: Iterable[Row]) -> list[Row]:
    rows: dict[str, Row] = {}
    for row in loaded:
        known = rows.setdefault(row["clip_id"], {})
        known |= {name: value for name, value in row.items() if value is not None or name not in known}
    return list(rows.values())


def _load_part(phase: Phase, unit: Unit) -> list[Row]:
    """Return the clips of one part of a partition unit that are not dropped yet."""
    rows = _not_dropped(_read_upstream(phase, unit))
    part = UnitName.parse(unit.name).part
    return rows[part * PART_CLIPS : (part + 1) * PART_CLIPS]


def _load_kept(phase: Phase, unit: Unit) -> list[Row]:
    """Return the clips that the last phase upstream worked on and that are not dropped."""
    upstream = _upstream(phase, unit)
    last = next(name for name, _ in reversed(upstream) if name != ledger.DUPLICATES)
    clip_ids = {row["clip_id"] for name, rows in upstream if name == last for row in rows}
    return [row for row in _not_dropped(_join_rows(row for _, rows in upstream for row in rows)) if row["clip_id"] in clip_ids]


def _load_annotation(phase: Phase, unit: Unit) -> list[Row]:
    """Return the kept clips of one scored part, each with its source's mask."""
    source = unit.upstream[0].removeprefix("partition/")
    masks = [row["static_png"] for table in ledger.sidecars(phase.out, "signals", [source]) for row in table.to_pylist()]
    mask = masks[0] if masks else None
    return [{**row, "static_png": mask} for row in _load_kept(phase, unit)]


def _not_dropped(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not is_dropped(row)]


def _commit_annotation(phase: Phase, unit: Unit, rows: list[Row], record: Record) -> None:
    """Store cameras first, since the rows that refer to them are the commit."""
    cameras = [{"clip_id": row["clip_id"], "npz": row["camera_npz"]} for row in rows if row.get("camera_npz")]
    ledger.write_sidecar(phase.out, "camera", unit.name, cameras, ledger.CAMERAS)
    _commit_part(phase, unit, rows, record)


def _commit_part(phase: Phase, unit: Unit, rows: list[Row], record: Record) -> None:
    ledger.write_clips(phase.out, phase.name, unit.name, rows, ledger.phase_columns(phase.chain), record)


def _load_shard(phase: Phase, unit: Unit) -> list[Row]:
    """Return the planned clips' rows, in the plan's order, each with its camera."""
    rows = {row["clip_id"]: row for row in _read_upstream(phase, unit)}
    annotated = [path.removeprefix("annotate/") for path in unit.upstream if path.startswith("annotate/")]
    cameras = ledger.cameras(phase.out, annotated)
    return [{**rows[clip_id], "camera_npz": cameras.get(clip_id)} for clip_id in unit.clips]


def _commit_shard(phase: Phase, unit: Unit, rows: list[Row], record: Record) -> None:
    """Store tar, ledger rows, and index, in this order. The index is the commit, so nothing that it lists can be missing."""
    stored = _not_dropped(rows)
    index = shards.put_tar(phase.out, unit.name, _samples(stored, phase.recipe))
    in_tar = set(index["clip_id"].to_pylist())
    rows = [{**row, "shard": unit.name if row["clip_id"] in in_tar else None} for row in rows]
    schema = columns(CLIP, {*ledger.phase_columns(phase.chain).names, "shard"})
    ledger.write_clips(phase.out, phase.name, unit.name, rows, schema, record)
    shards.put_index(phase.out, unit.name, index)
    for row in stored:
        scratch_file(row["clip_id"]).unlink(missing_ok=True)


def _samples(rows: list[Row], recipe: Recipe) -> Iterator[Sample]:
    for row in rows:
        left_out = shards.NOT_IN_SHARDS | SIDECAR_COLUMNS
        meta = {name: value for name, value in row.items() if name not in left_out and value is not None}
        meta["encoding"] = asdict(recipe.shard.encoding)
        members = {"mp4": scratch_file(row["clip_id"]).read_bytes(), "camera.npz": row.get("camera_npz")}
        yield Sample(row["clip_id"], meta, {name: data for name, data in members.items() if data is not None})


_LOAD: dict[str, Callable[[Phase, Unit], list[Row]]] = {
    "scan": _load_chunk,
    "generate": _load_attempt,
    "partition": _load_source,
    "score": _load_part,
    "annotate": _load_annotation,
    "caption": _load_kept,
    "relate": _load_kept,
    "shard": _load_shard,
}
_COMMIT: dict[str, Callable[[Phase, Unit, list[Row], Record], None]] = {
    "scan": _commit_chunk,
    "generate": _commit_attempt,
    "partition": _commit_source,
    "score": _commit_part,
    "annotate": _commit_annotation,
    "caption": _commit_part,
    "relate": _commit_part,
    "shard": _commit_shard,
}
