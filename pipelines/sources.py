"""Which version of a source counts: the one that is there now. Clips of an older version are superseded, never stored later.

OUT/clips/superseded/<unit>.parquet   clips of a partition unit whose source changed before they were stored

A listing compares the version of each source (`storage.Entry.token`) with the one that was measured. Only sources that are new
to the output cost more than that.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import pyarrow.compute as pc

from curation import shards, source_files, storage
from curation.errors import SourceChanged
from curation.output_folder import OutputFolder
from curation.schema import CLIP, Row, columns, digest
from curation.storage import Entry
from pipelines import duplicates, ledger, units
from pipelines.ledger import Record
from pipelines.recipes import Recipe
from pipelines.units import SUPERSEDED, Name, Unit, source_digest

CHANGED = "superseded: the source changed since it was measured"
GREW = "the file grew after clips of its shorter version were stored in shards; curate it into another --out"

# A file that changed so recently is looked at again a moment later: one that is being written waits for the next run.
_YOUNG_S, _AGAIN_S = 2.0, 1.0


def settled(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """The sources that are not being written at this moment, and the uris of those that are."""
    young = {entry.uri for entry in entries if _age_s(entry) < _YOUNG_S}
    if not young:
        return list(entries), []
    time.sleep(_AGAIN_S)
    growing = {entry.uri for entry in entries if entry.uri in young and _changed(entry)}
    return [entry for entry in entries if entry.uri not in growing], sorted(growing)


def _age_s(entry: Entry) -> float:
    """Seconds since a local file was written; on S3 an object is whole or not there."""
    if storage.is_s3(entry.uri):
        return float("inf")
    return abs(time.time() - int(entry.token.rpartition("-")[2]) / 1e9)


def _changed(entry: Entry) -> bool:
    try:
        storage.check_version(entry.uri, entry.token)
    except (SourceChanged, FileNotFoundError):
        return True
    return False


def unmeasured(entries: Iterable[Entry], out: str, recipe: Recipe) -> list[str]:
    """The uris of sources that have no committed unit in `partition`."""
    measured = {name.digest for name in units.measured(out)}
    return [entry.uri for entry in entries if source_digest(entry, recipe) not in measured]


def source_units(entries: Iterable[Entry], out: str, recipe: Recipe) -> list[Unit]:
    """Units of the sources that have none yet. A second copy of a recording gets a unit that only records the duplicate.

    Only new sources are read, and of those the few blocks that name them. The first of equal sources is the one that was
    committed before, else the first by uri.
    """
    entries = sorted(entries)
    seen = {name.digest for name in units.done(out, "partition")}
    new = [entry for entry in entries if source_digest(entry, recipe) not in seen]
    if not new:
        return []
    listed = [_source_unit(recipe, *identity) for identity in _identified(new, entries, out)]
    old = _superseded_rows(out)
    ids = {Name.parse(unit.name).video_id for unit in listed}
    moved = {Name.parse(unit.name).video_id for unit in listed if not unit.duplicate_of}
    again = [name for name in old if Name.parse(name).video_id in ids]  # the same bytes under a new date or name
    for name in [*again, *(str(name) for name in units.measured(out) if name.video_id in moved)]:
        ledger.take_back(out, name)
        old.pop(name, None)
    return [_not_again(out, unit, old) for unit in listed]


def _identified(
    new: Sequence[Entry], entries: Sequence[Entry], out: str
) -> Iterator[tuple[Entry, str, Entry | None, str | None, str | None]]:
    """Of each new source its id, and the source that stands for the same recording with what is the same, or its problem."""
    listed = {entry.uri: entry for entry in entries}
    measured = {name.video_id: name for name in units.measured(out)}
    fresh = set(new)
    twins = duplicates.twins(new, [entry for entry in entries if entry not in fresh])
    first: dict[str, Entry] = {}

    unstored = cache(lambda: _with_unstored_clips(out))

    def owner_of(video_id: str) -> Entry | None:
        if name := measured.get(video_id):
            source = _measured_source(out, name)
            # One that is gone before all of its clips are stored has moved: it is measured where it is now.
            if source.uri in listed or storage.exists(source.uri) or str(name) not in unstored():
                return listed.get(source.uri, source)
        return first.get(video_id)

    for entry, (video_id, problem) in zip(new, storage.at_once(_identify, new), strict=True):
        owner, same = None, None
        if problem is None:
            try:
                video_id, owner, same = duplicates.original(entry, video_id, owner_of, twins)
                owner, same = (owner, same) if owner and owner.uri != entry.uri else (None, None)
                first.setdefault(video_id, entry)
            except OSError as error:
                video_id, problem = _unreadable_now(entry, error)
        yield entry, video_id, owner, same, problem


def _source_unit(
    recipe: Recipe, entry: Entry, video_id: str, owner: Entry | None, same: str | None, problem: str | None
) -> Unit:
    name = str(Name(video_id, source_digest(entry, recipe)))
    return Unit("partition", name, entry.uri, entry.token, owner.uri if owner else None, reason=same, problem=problem)


def _identify(entry: Entry) -> tuple[str, str | None]:
    """The source's id, or a stand-in and why its bytes cannot be read now: no right to, or a store that does not answer."""
    try:
        return source_files.content_id(entry), None
    except OSError as error:
        return _unreadable_now(entry, error)


def _unreadable_now(entry: Entry, error: OSError) -> tuple[str, str]:
    return digest(entry.uri, entry.token), f"{entry.uri}: {error.strerror or error}"


def _measured_source(out: str, name: Name) -> Entry:
    """Where the source is that stands for a committed unit's bytes, and its size: tokens begin with it."""
    row = ledger.read_video(out, str(name)) or {"uri": str(name), "token": "0-"}
    return Entry(row.get("duplicate_of") or row["uri"], int(row["token"].partition("-")[0]), "")


def _with_unstored_clips(out: str) -> set[str]:
    """The partition units of which kept clips are in no shard yet."""
    kept = ledger.kept(ledger.clips(out))
    return set(kept.filter(pc.is_null(kept["shard"]))["unit_id"].to_pylist())


def _superseded_rows(out: str) -> dict[str, Row]:
    """The superseded units with the rows of their sources."""
    names = units.superseded(out)
    rows = storage.at_once(lambda unit: ledger.read_video(out, unit), names)
    return {unit: row for unit, row in zip(names, rows, strict=True) if row}


def _not_again(out: str, unit: Unit, old: Mapping[str, Row]) -> Unit:
    """The unit; one that says so where its source begins with all bytes of an older version of which clips are stored."""
    try:
        grew = not (unit.duplicate_of or unit.problem) and any(_goes_on(out, unit, name, row) for name, row in old.items())
    except OSError as error:
        return replace(unit, problem=f"{unit.uri}: {error.strerror or error}")
    return replace(unit, duplicate_of=unit.uri, reason=GREW) if grew else unit


def _goes_on(out: str, unit: Unit, name: str, row: Row) -> bool:
    size = int(row["token"].partition("-")[0])
    if row["uri"] != unit.uri or size >= int(unit.token.partition("-")[0]) or not _has_stored(out, name):
        return False
    return source_files.content_id(Entry(unit.uri, size, unit.token)) == row["video_id"]


def _has_stored(out: str, unit: str) -> bool:
    return len(ledger.read_unit(out, "partition", unit)) > len(ledger.read_unit(out, SUPERSEDED, unit))


def supersede_changed(entries: Sequence[Entry], growing: Sequence[str], out: str, recipe: Recipe) -> None:
    """Take the clips of sources that changed out of the output, and give back those of a version that returned.

    growing: uris of those that are changing now. An output whose sources are as they were costs two listings.
    """
    finished, gone = units.done(out, "partition"), set(units.superseded(out))
    current = {source_digest(entry, recipe): entry for entry in entries}
    back = [name for name in finished if name.digest in current and str(name) in gone]
    for name in back:  # the same version is there again, by its size and date
        storage.delete(OutputFolder(out).clip_rows(SUPERSEDED, str(name)))
    here = {name.digest for name in finished}
    new = {entry.uri for key, entry in current.items() if key not in here} | {current[name.digest].uri for name in back}
    old = [name for name in finished if name.digest not in current and str(name) not in gone] if new or growing else []
    rows = storage.at_once(lambda name: ledger.read_video(out, str(name)), old)
    changed = [(name, row) for name, row in zip(old, rows, strict=True) if row and row["uri"] in new.union(growing)]
    if not changed:
        return
    stored = {clip for shard in shards.list_committed(out) for clip in shards.read_index(out, shard)["clip_id"].to_pylist()}
    copies = _copies(out, [name for name in finished if name.digest in current])
    for name, row in changed:
        _replace_by_copy(out, name, copies.get(row["uri"], []), stored)


def _copies(out: str, names: Sequence[Name]) -> dict[str, list[Name]]:
    """The units that only say that a source is the same recording as another one, by the uri of that one."""
    copies: dict[str, list[Name]] = defaultdict(list)
    for name, row in zip(names, storage.at_once(lambda name: ledger.read_video(out, str(name)), names), strict=True):
        if row and row["duplicate_of"] and row["duplicate_of"] != row["uri"]:
            copies[row["duplicate_of"]].append(name)
    return copies


def _replace_by_copy(out: str, name: Name, copies: Sequence[Name], stored: set[str]) -> None:
    """Supersede a source that changed. Where a copy of its old bytes is in the input, that is measured by this run.

    A copy with the same bytes gives the same clips. One with the same packets in another container gives others, so it stays
    left out where clips of this recording are in shards.
    """
    equal = [copy for copy in copies if copy.video_id == name.video_id]
    clips = [row["clip_id"] for row in ledger.read_unit(out, "partition", str(name))]
    for copy in equal or ([] if stored.intersection(clips) else copies):
        ledger.take_back(out, str(copy))
    if equal:
        ledger.take_back(out, str(name))
    else:
        rows = [{"clip_id": clip, "video_id": name.video_id, "reject": CHANGED} for clip in clips if clip not in stored]
        schema = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject"))
        ledger.write_clips(out, SUPERSEDED, str(name), rows, schema, Record(SUPERSEDED, str(name), rows=len(rows)))
