"""Which sources to measure, in which version. Only the current version of a source counts: clips of an older version are
superseded, and never stored later.

OUT/clips/superseded/<unit>.parquet   clips of a partition unit whose source changed before they were stored

A listing compares the version of each source (`storage.Entry.token`) with the one that was measured. Only sources that are new
to the output cost more than that, and only once (`pipelines.source_manifest`).
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pyarrow.compute as pc

from curation import shards, source_files, storage
from curation.errors import SourceChanged
from curation.schema import CLIP, Row, columns
from curation.storage import Entry
from pipelines import duplicates, ledger, source_manifest, unit_files, units
from pipelines.ledger import Record
from pipelines.recipes import Recipe
from pipelines.source_manifest import Identified
from pipelines.units import SUPERSEDED, Unit, UnitName, source_digest

CHANGED = "superseded: the source changed since it was measured"
GREW = "the file grew after clips of its shorter version were stored in shards; curate it into another --out"

# A file that changed this recently is listed again a second later. If it is being written, it waits for the next run.
_YOUNG_S, _RECHECK_S = 2.0, 1.0


class _Identity(NamedTuple):
    """What identifies a new source by its content."""

    entry: Entry
    video_id: str
    original: Entry | None  # an earlier source with the same recording; None: there is none
    same: str | None  # what is the same as in the original
    problem: str | None  # why the bytes cannot be read now; `video_id` is then a stand-in


def split_growing(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Return the sources that are not being written at this moment, and the uris of those that are."""
    young = {entry.uri for entry in entries if _age_s(entry) < _YOUNG_S}
    if not young:
        return list(entries), []
    time.sleep(_RECHECK_S)
    growing = {entry.uri for entry in entries if entry.uri in young and _changed(entry)}
    return [entry for entry in entries if entry.uri not in growing], sorted(growing)


def _age_s(entry: Entry) -> float:
    """Return seconds since a local file was written. Infinite on S3, where an object is complete or absent."""
    if storage.is_s3(entry.uri):
        return float("inf")
    return abs(time.time() - int(entry.token.rpartition("-")[2]) / 1e9)


def _changed(entry: Entry) -> bool:
    try:
        storage.check_version(entry.uri, entry.token)
    except (SourceChanged, FileNotFoundError):
        return True
    return False


def unmeasured_uris(entries: Iterable[Entry], out: str, recipe: Recipe) -> list[str]:
    """List the uris of sources that have no committed unit in `partition`."""
    measured = {name.digest for name in units.list_current(out)}
    return [entry.uri for entry in entries if source_digest(entry, recipe) not in measured]


def pending_sources(entries: Iterable[Entry], out: str, recipe: Recipe, probed_bytes: float = math.inf) -> list[Unit]:
    """List units for the sources that have none yet. A second copy of a recording gets a unit that only records the duplicate.

    Only new sources are read, and of those only the few blocks that identify them. The original among equal sources is the one
    that was committed before, else the first by uri.
    """
    entries = sorted(entries)
    committed = {name.digest for name in units.list_committed(out, "partition")}
    digest_of = {entry: source_digest(entry, recipe) for entry in entries}
    new = [entry for entry in entries if digest_of[entry] not in committed]
    if not new:
        return []
    identified = source_manifest.identify(out, new, probed_bytes)
    pending = [_source_unit(recipe, identity) for identity in _identify_new(new, entries, out, identified)]
    superseded = _superseded_rows(out)
    ids = {UnitName.parse(unit.name).video_id for unit in pending}
    moved = {UnitName.parse(unit.name).video_id for unit in pending if not unit.duplicate_of}
    returned = [name for name in superseded if UnitName.parse(name).video_id in ids]  # the same bytes under a new date or name
    taken_back = [*returned, *(str(name) for name in units.list_current(out) if name.video_id in moved)]
    ledger.take_back(out, taken_back)
    listed = set(digest_of.values())
    if any(UnitName.parse(name).digest in listed for name in taken_back):
        # A copy in the input had been recorded before its original was measured. It is new again, so sources are listed again.
        return pending_sources(entries, out, recipe, probed_bytes)
    superseded = {name: row for name, row in superseded.items() if name not in taken_back}
    return [_refuse_grown(out, unit, superseded) for unit in pending]


def _identify_new(
    new: Sequence[Entry], entries: Sequence[Entry], out: str, identified: Mapping[Entry, Identified]
) -> Iterator[_Identity]:
    """Identify each new source, and find an earlier source with the same recording."""
    listed = {entry.uri: entry for entry in entries}
    measured = {name.video_id: name for name in units.list_current(out)}
    unmeasured = set(new)
    remuxes = duplicates.find_remuxes(new, [entry for entry in entries if entry not in unmeasured])
    first: dict[str, Entry] = {}

    unstored = cache(lambda: _units_with_unstored_clips(out))

    def owner_of(video_id: str) -> Entry | None:
        if name := measured.get(video_id):
            source = _measured_source(out, name)
            # A source that is gone before all of its clips are stored has moved. It is measured where it is now.
            if source.uri in listed or storage.exists(source.uri) or str(name) not in unstored():
                return listed.get(source.uri, source)
        return first.get(video_id)

    for entry in new:
        video_id, _, problem = identified[entry]
        original, same = None, None
        if problem is None:
            try:
                video_id, original, same = duplicates.find_original(entry, video_id, owner_of, remuxes)
                original, same = (original, same) if original and original.uri != entry.uri else (None, None)
                first.setdefault(video_id, entry)
            except OSError as error:
                video_id, _, problem = source_manifest.stand_in(entry, error)
        yield _Identity(entry, video_id, original, same, problem)


def _source_unit(recipe: Recipe, identity: _Identity) -> Unit:
    entry, original = identity.entry, identity.original
    name = str(UnitName(identity.video_id, source_digest(entry, recipe)))
    duplicate_of = original.uri if original else None
    return Unit("partition", name, entry.uri, entry.token, duplicate_of, reason=identity.same, problem=identity.problem)


def _measured_source(out: str, name: UnitName) -> Entry:
    """Return the source whose bytes a committed unit measured. Its size is the first part of the unit's token."""
    row = ledger.read_video(out, str(name)) or {"uri": str(name), "token": "0-"}
    return Entry(row.get("duplicate_of") or row["uri"], int(row["token"].partition("-")[0]), "")


def _units_with_unstored_clips(out: str) -> set[str]:
    """Return the partition units with kept clips that are in no shard yet."""
    unstored: set[str] = set()
    for part in ledger.scan(out, ("reject", "error", "shard")):
        kept = ledger.kept_clips(part.clips)
        unstored.update(kept.filter(pc.is_null(kept["shard"]))["unit_id"].to_pylist())
    return unstored


def _superseded_rows(out: str) -> dict[str, Row]:
    """Return the rows of superseded sources, by unit."""
    names = units.list_superseded(out)
    rows = storage.at_once(lambda unit: ledger.read_video(out, unit), names)
    return {unit: row for unit, row in zip(names, rows, strict=True) if row}


def _refuse_grown(out: str, unit: Unit, superseded: Mapping[str, Row]) -> Unit:
    """Return the unit, marked as a duplicate if its source is an older version that grew and whose clips are stored."""
    try:
        grew = not (unit.duplicate_of or unit.problem) and any(
            _has_grown_from(out, unit, name, row) for name, row in superseded.items()
        )
    except OSError as error:
        return replace(unit, problem=f"{unit.uri}: {error.strerror or error}")
    return replace(unit, duplicate_of=unit.uri, reason=GREW) if grew else unit


def _has_grown_from(out: str, unit: Unit, name: str, row: Row) -> bool:
    """Whether a source begins with all bytes of an older version (unit `name`, with this row) of which clips are stored."""
    size = int(row["token"].partition("-")[0])
    if row["uri"] != unit.uri or size >= int(unit.token.partition("-")[0]) or not _has_stored_clips(out, name):
        return False
    return source_files.content_id(Entry(unit.uri, size, unit.token)) == row["video_id"]


def _has_stored_clips(out: str, unit: str) -> bool:
    return len(ledger.read_unit(out, "partition", unit)) > len(ledger.read_unit(out, SUPERSEDED, unit))


def supersede_changed(entries: Sequence[Entry], growing: Sequence[str], out: str, recipe: Recipe) -> None:
    """Drop the clips of sources that changed, and restore those of a version that returned.

    growing: uris of sources that are changing now. If no source has changed, this costs two listings.
    """
    committed, superseded = units.list_committed(out, "partition"), set(units.list_superseded(out))
    current = {source_digest(entry, recipe): entry for entry in entries}
    returned = [name for name in committed if name.digest in current and str(name) in superseded]
    # sources with the size and date of an earlier version again
    unit_files.of(out).delete({f"clips/{SUPERSEDED}": [str(name) for name in returned]})
    known = {name.digest for name in committed}
    new = {entry.uri for key, entry in current.items() if key not in known}
    new |= {current[name.digest].uri for name in returned}
    old = []
    if new or growing:
        old = [name for name in committed if name.digest not in current and str(name) not in superseded]
    rows = storage.at_once(lambda name: ledger.read_video(out, str(name)), old)
    changed = [(name, row) for name, row in zip(old, rows, strict=True) if row and row["uri"] in new.union(growing)]
    if not changed:
        return
    stored = {clip for shard in shards.list_committed(out) for clip in shards.read_index(out, shard)["clip_id"].to_pylist()}
    copies = _copies_by_original(out, [name for name in committed if name.digest in current])
    for name, row in changed:
        _replace_by_copy(out, name, copies.get(row["uri"], []), stored)


def _copies_by_original(out: str, names: Sequence[UnitName]) -> dict[str, list[UnitName]]:
    """Return the units that only record a source as a duplicate, by the uri of the original."""
    copies: dict[str, list[UnitName]] = defaultdict(list)
    for name, row in zip(names, storage.at_once(lambda name: ledger.read_video(out, str(name)), names), strict=True):
        if row and row["duplicate_of"] and row["duplicate_of"] != row["uri"]:
            copies[row["duplicate_of"]].append(name)
    return copies


def _replace_by_copy(out: str, name: UnitName, copies: Sequence[UnitName], stored: set[str]) -> None:
    """Supersede a source that changed. If the input has a copy of its old bytes, this run measures the copy.

    A copy with the same bytes gives the same clips. One with the same packets in another container gives other clips, so it
    stays a duplicate if shards hold clips of this recording.
    """
    equal = [copy for copy in copies if copy.video_id == name.video_id]
    clips = [row["clip_id"] for row in ledger.read_unit(out, "partition", str(name))]
    ledger.take_back(out, [str(copy) for copy in equal or ([] if stored.intersection(clips) else copies)])
    if equal:
        ledger.take_back(out, [str(name)])
    else:
        rows = [{"clip_id": clip, "video_id": name.video_id, "reject": CHANGED} for clip in clips if clip not in stored]
        schema = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject"))
        ledger.write_clips(out, SUPERSEDED, str(name), rows, schema, Record(SUPERSEDED, str(name), rows=len(rows)))
