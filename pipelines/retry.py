"""Clear failures, so that the next run tries them again.

The phase that failed stored its reason in the row of a source (quarantined, unreadable) or of a clip. Clearing it deletes that
phase's unit. The next listing deletes what later phases derived from it. A shard stays as it is: a clip that it was committed
without goes into a later one.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from curation import storage
from curation.output_folder import OutputFolder
from curation.schema import Row
from pipelines import dead_letters, ledger, unit_files, units
from pipelines.lock import hold_lock
from pipelines.recipes import CLIP_PHASES
from pipelines.unit_files import UnitFiles

_REASON_COLUMNS = (
    "reject",
    "error",
    "consistency_status",
    "caption_error",
    "action_error",
    "interaction_error",
    "camera_status",
)
_FAILED_SOURCES = ("quarantined", "unreadable", "error")


@dataclass(frozen=True)
class ClearedReason:
    """A reason that was cleared."""

    phase: str  # that stored it
    video_id: str
    clip_id: str  # "" for a reason about a source
    uri: str  # of the source
    reason: str


def clear_reasons(out: str, reason: str = "", source: str = "") -> list[ClearedReason]:
    """Clear the reasons that match the pattern `reason`, of sources whose uri matches `source`. Return what was cleared.

    Patterns are those of a shell. Without `reason` this clears all failures (errors, quarantines, sources that could not be
    read), and no verdict of a rule. A source that is missing, or has changed since it was measured, is left alone. InputError
    if another run holds the output.
    """
    out = storage.normal(out)
    with hold_lock(out), unit_files.pinned(out) as files:
        missing = _missing_videos(out)
        matches = [*_clip_reasons(files, reason), *_source_reasons(out, reason)]
        matches = [
            (unit, match)
            for unit, match in matches
            if match.video_id not in missing
            and (not source or fnmatchcase(match.uri, source) or match.uri == storage.normal(source))
        ]
        _delete_units(out, matches)
        dead_letters.delete(out, {(phase, unit) for unit, match in matches for phase in _wrote_letter(match.phase)})
    return [match for _, match in matches]


def _wrote_letter(phase: str) -> tuple[str, ...]:
    return (phase, "generate") if phase == "partition" else (phase,)


def _clip_reasons(files: UnitFiles, pattern: str) -> list[tuple[str, ClearedReason]]:
    """Return the matching reasons of clips, each with the unit that stored it."""
    rows = [
        (phase, row, text)
        for phase in CLIP_PHASES
        for piece in files.scan(f"clips/{phase}", ("clip_id", "video_id", "unit_id", *_REASON_COLUMNS))
        for row in _rows_with_reasons(piece.table)
        for text in _matching_reasons(row, pattern)[:1]
    ]
    clips = pa.array({row["clip_id"] for _, row, _ in rows}, pa.string())
    uris: dict[str, str] = {}
    for piece in files.scan("clips/partition", ("clip_id", "source_uri")):
        table = piece.table.filter(pc.is_in(piece.table["clip_id"], clips))
        uris |= {row["clip_id"]: row.get("source_uri") or "" for row in table.to_pylist()}
    return [
        (row["unit_id"], ClearedReason(phase, row["video_id"], row["clip_id"], uris.get(row["clip_id"], ""), text))
        for phase, row, text in rows
    ]


def _rows_with_reasons(table: pa.Table) -> list[Row]:
    """Return the rows that have some reason. Absent columns have none."""
    masks = [pc.is_valid(table[name]) for name in _REASON_COLUMNS if name in table.column_names]
    rows: list[Row] = table.filter(reduce(pc.or_, masks)).to_pylist() if masks else []
    return [dict.fromkeys(_REASON_COLUMNS) | row for row in rows]


def _missing_videos(out: str) -> set[str]:
    """Return the video_ids of sources that are missing or have changed since they were measured. Their rows must stay."""
    synthetic = OutputFolder(out).made_videos + "/"
    rows = [row for row in ledger.videos(out).to_pylist() if not row["uri"].startswith(synthetic)]
    unchanged = storage.at_once(lambda row: _is_unchanged(row["uri"], row["token"] or ""), rows)
    missing = {row["video_id"] for row, is_unchanged in zip(rows, unchanged, strict=True) if not is_unchanged}
    return missing | {units.UnitName.parse(unit).video_id for unit in units.list_superseded(out)}


def _is_unchanged(uri: str, token: str) -> bool:
    try:
        return not token or storage.version(uri) == token
    except OSError:
        return False


def _source_reasons(out: str, pattern: str) -> Iterator[tuple[str, ClearedReason]]:
    for row in ledger.videos(out).to_pylist():
        if row["status"] not in _FAILED_SOURCES:
            continue
        text = f"{row['status']}: {row['reason']}"
        if not pattern or fnmatchcase(text, pattern) or fnmatchcase(row["reason"] or "", pattern):
            yield row["unit_id"], ClearedReason("partition", row["video_id"], "", row["uri"], text)


def _matching_reasons(row: Row, pattern: str) -> list[str]:
    """Return the row's reasons that match. Without a pattern, those of failures."""
    reasons = [(name, row[name]) for name in _REASON_COLUMNS if row[name]]
    if pattern:
        return [text for _, text in reasons if fnmatchcase(text, pattern)]
    return [text for name, text in reasons if name.endswith("error") or text.startswith(("quarantined", "failed:"))]


def _delete_units(out: str, matches: list[tuple[str, ClearedReason]]) -> None:
    """Delete the units, those of the last phase first, so that the output stays consistent if this run is killed here."""
    clips: dict[tuple[str, str], list[str]] = defaultdict(list)
    for unit, match in matches:
        clips[match.phase, unit].append(match.clip_id)
    for phase in reversed(CLIP_PHASES):
        names = sorted(unit for of_phase, unit in clips if of_phase == phase)
        if phase == "shard":
            for unit in names:
                ledger.remove_clips(out, phase, unit, clips[phase, unit])
        elif phase == "partition":
            ledger.take_back(out, names)
        else:
            unit_files.of(out).delete({f"clips/{phase}": names})
