"""Dead letters: what is known about each source or clip that failed for good, one file a unit.

    OUT/dead/<phase>/<unit>.json    reasons, tracebacks, and the machine and time of the failure

A unit writes its letter before it commits the failure. The letter goes when the failure does: when `gamecraft retry` clears it,
or when the unit is done again.
"""

import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curation import storage
from curation.output_folder import OutputFolder
from curation.schema import Row
from pipelines import unit_files
from pipelines.ledger import Record

# `generate` stores its clips where `partition` stores those of footage.
_COMMITTED_IN = {"generate": "partition"}


def is_failure(row: Mapping[str, Any]) -> bool:
    """Whether an operator failed on a row, or workers crashed on it. A verdict of a rule is no failure."""
    return bool(row.get("error")) or str(row.get("reject") or "").startswith("quarantined")


def write(out: str, record: Record, rows: Sequence[Row], tracebacks: Sequence[str]) -> None:
    """Write the letter of a unit if any of its rows failed. A chunk has none: its source is measured in one pass instead."""
    failures = [row for row in rows if is_failure(row)]
    if not failures or record.phase == "scan":
        return
    uris = sorted({str(row["source_uri"]) for row in failures if row.get("source_uri")})
    letter = {
        "phase": record.phase,
        "unit": record.unit,
        "sources": [storage.printable(uri) for uri in uris],
        "failures": [_describe(row) for row in failures],
        "tracebacks": list(tracebacks),
        "node": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": record.wall_s,
    }
    text = json.dumps(letter, indent=2, ensure_ascii=False)
    storage.put(OutputFolder(out).dead_letter(record.phase, record.unit), text.encode("utf-8", "backslashreplace") + b"\n")


def _describe(row: Row) -> dict[str, Any]:
    """Return what failed: the clip, or None for a source, with the operator if an operator raised an error."""
    reason = row.get("error") or row["reject"]
    operator = reason.partition(":")[0] if row.get("error") else None
    return {"video_id": row.get("video_id"), "clip_id": row.get("clip_id"), "operator": operator, "reason": reason}


def list_letters(out: str) -> list[tuple[str, str]]:
    """List the letters as (phase, unit). Costs one listing."""
    paths = [entry.uri.split("/")[-2:] for entry in storage.list_files(OutputFolder(out).dead + "/")]
    return sorted((phase, name.removesuffix(".json")) for phase, name in paths)


def delete(out: str, letters: Iterable[tuple[str, str]]) -> None:
    """Delete letters. Those that are absent are no error."""
    folder = OutputFolder(out)
    storage.delete_all(folder.dead_letter(phase, unit) for phase, unit in letters)


def delete_outdated(out: str) -> None:
    """Delete the letters of units that are no longer committed: their source changed or moved, or settings did."""
    if letters := list_letters(out):
        files = unit_files.of(out)
        delete(out, [(p, unit) for p, unit in letters if not files.has(f"clips/{_COMMITTED_IN.get(p, p)}", unit)])
