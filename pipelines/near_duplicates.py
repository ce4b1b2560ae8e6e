"""Mark clips that repeat a clip of another video, of this run or an earlier one (`curation.near_duplicates` finds them).

This is the end of the phase `score`: all kept clips of the output are compared at once, so the result depends neither on the
order in which units finish nor on the number of workers. Of copies the first stays: a clip that a shard already has, else the
one with most pixels, else the one of the first video_id. Each source with copies gets a unit of rows in clips/duplicates, and
duplicates.json says from what they were made, so that a run with nothing new compares nothing. Where new clips come, all are
compared again. Sources that were measured by an earlier release have no fingerprint, and their clips are not compared.
"""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import scratch, shards, storage
from curation.near_duplicates import Clip, DuplicateSettings, Index
from curation.output_folder import OutputFolder
from curation.partition import fingerprint
from curation.partition.fingerprint import KEYS, Fingerprint
from curation.schema import CLIP, Row, columns, digest
from pipelines import ledger, lock, sources, unit_files, units
from pipelines.ids import IdList, Ids, column_to_array, to_array
from pipelines.ledger import DUPLICATES, Record
from pipelines.recipes import Recipe
from pipelines.units import UnitName

_ROWS = columns(CLIP, ("clip_id", "video_id", "unit_id", "duplicate_of_clip", "duplicate_similarity", "reject", "error"))
_COLUMNS = ("start_s", "end_s", "picture", "source", "reject", "error")


def mark_duplicates(out: str, recipe: Recipe) -> None:
    """Write the rows of all clips that repeat another one, and delete those that no longer do. Needs the lock."""
    settings, state = recipe.score.duplicates, OutputFolder(out).duplicates
    made_from = _digest_inputs(out, settings)
    if _read(state) == made_from or (settings.action == "off" and not unit_files.of(out).names(f"clips/{DUPLICATES}")):
        return
    wanted = {} if settings.action == "off" else _find(out, settings)
    files = unit_files.of(out)
    present, held = (
        set(files.names(f"clips/{DUPLICATES}")),
        {UnitName.parse(unit).video_id for unit in units.list_superseded(out)},
    )
    lock.renew_lock(out)
    outdated = [unit for unit in present - wanted.keys() if UnitName.parse(unit).video_id not in held]
    files.delete({f"clips/{DUPLICATES}": sorted(outdated)})
    for unit in sorted(wanted.keys() - present):
        rejected = sum(bool(row["reject"]) for row in wanted[unit])
        record = Record(DUPLICATES, unit, rows=len(wanted[unit]), rejected=rejected)
        ledger.write_clips(out, DUPLICATES, unit, wanted[unit], _ROWS, record)
    storage.put(state, json.dumps({"made_from": made_from}).encode())


def _digest_inputs(out: str, settings: DuplicateSettings) -> str:
    """Identify what the rows are made from. Names of scored units hash their clips and all limits."""
    sha = hashlib.sha256(f"{fingerprint.VERSION} {json.dumps(asdict(settings), sort_keys=True)}".encode())
    files = unit_files.of(out)
    for folder in ("clips/partition", f"clips/{units.SUPERSEDED}", "clips/score"):
        for videos in ledger.ranges(files, sources.GROUP):
            sha.update("".join(f"{folder}/{name}\n" for name in files.names(folder, *videos)).encode())
    return sha.hexdigest()


def _read(state: str) -> str | None:
    try:
        made_from: str = json.loads(storage.read(state))["made_from"]
    except FileNotFoundError:
        return None
    return made_from


def _find(out: str, settings: DuplicateSettings) -> dict[str, list[Row]]:
    """Return the rows of clips that repeat another one, by the name of the unit that holds them."""
    planned = Ids([column_to_array(shards.read_plan(out)["clip_id"])])
    clip_ids, of_unit = IdList(), IdList()  # the id of each clip, and its partition unit
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        index = Index(folder)
        for unit, prints, rows in _sources(out):
            is_planned = planned.mask(to_array([row["clip_id"] for row in rows]))
            index.add(prints, [_clip(row, bool(known)) for row, known in zip(rows, is_planned, strict=True)])
            for row in rows:
                clip_ids.append(row["clip_id"])
                of_unit.append(unit)
        copies = index.copies(settings.min_similarity)
    rows_of: dict[str, list[Row]] = defaultdict(list)
    for copy in copies:
        clip_id, original, unit = clip_ids[copy.clip], clip_ids[copy.original], of_unit[copy.clip]
        rejected = settings.action == "reject" and clip_id not in planned
        words = f"near-duplicate: {copy.similarity:.2f} of its motion is in clip {original}" if rejected else None
        rows_of[unit].append(
            {
                "clip_id": clip_id,
                "video_id": UnitName.parse(unit).video_id,
                "duplicate_of_clip": original,
                "duplicate_similarity": copy.similarity,
                "reject": words,
            }
        )
    return {_name(unit, rows): rows for unit, rows in rows_of.items()}


def _name(unit: str, rows: Sequence[Row]) -> str:
    return str(UnitName(UnitName.parse(unit).video_id, digest(unit, json.dumps(rows, sort_keys=True))))


def _clip(row: Row, is_planned: bool) -> Clip:
    """Describe a clip: what is in a shard stays before all others, and of the rest what has most pixels."""
    pixels = row["picture"]["w"] * row["picture"]["h"] if row["picture"] else 0
    return Clip(row["start_s"], row["end_s"], (not is_planned, -pixels))


def _sources(out: str) -> Iterator[tuple[str, Fingerprint, list[Row]]]:
    """Yield each source that has a fingerprint and kept clips: its partition unit, the fingerprint, and those clips' rows."""
    superseded = set(units.list_superseded(out))
    for part in ledger.scan(out, _COLUMNS, duplicates=False):
        rows_of: dict[str, list[Row]] = defaultdict(list)
        for row in ledger.kept_clips(part.clips).to_pylist():
            if row["unit_id"] not in superseded and row["source"] == "curated":
                rows_of[row["unit_id"]].append(row)
        prints = _fingerprints(out, part.bounds)
        for unit in sorted(rows_of.keys() & prints.keys()):  # in order, since the first of equal clips stays
            yield unit, prints[unit], sorted(rows_of[unit], key=lambda row: row["start_s"])


def _fingerprints(out: str, videos: tuple[str, str | None]) -> dict[str, Fingerprint]:
    """Return the fingerprints of a range of sources, by partition unit, of those that have one of this version."""
    prints = {}
    for piece in unit_files.of(out).scan("sidecar/signals", (*_PRINT_COLUMNS, "fingerprint_version"), *videos):
        if "fingerprint_version" in piece.table.column_names:
            current = pc.equal(piece.table["fingerprint_version"], fingerprint.VERSION).to_pylist()
            for unit, begin, end in piece.spans():
                if begin < end and current[begin]:
                    prints[unit] = _fingerprint(piece.table, begin)
    return prints


_PRINT_COLUMNS = ("hash_times_s", "hashes", "key_frame", "keys")


def _fingerprint(rows: pa.Table, number: int) -> Fingerprint:
    times_s, hashes, key_frame, keys = (np.asarray(rows[name][number].values) for name in _PRINT_COLUMNS)
    return Fingerprint(times_s, hashes, key_frame, keys.reshape(-1, KEYS))
