"""Which version of a source counts: the one that is there now. Clips of an older version are superseded, never stored later.

OUT/clips/superseded/<unit>.parquet   clips of a partition unit whose source changed before they were stored

A listing compares the version of each source (`storage.Entry.token`) with the one that was measured. Only sources that are new
to the output cost more than that.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from curation import shards, storage
from curation.schema import CLIP, Row, columns, digest
from curation.storage import Entry
from pipelines import duplicates, ledger, units
from pipelines.ledger import Record
from pipelines.recipes import Recipe
from pipelines.units import SUPERSEDED, Name, Unit, source_digest

CHANGED = "superseded: the source changed since it was measured"
GREW = "a longer version of a source of which clips are in shards already; curate it into another --out"

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
    except (storage.SourceChanged, FileNotFoundError):
        return True
    return False


def unmeasured(entries: Iterable[Entry], out: str, recipe: Recipe) -> list[str]:
    """The uris of sources that have no committed unit in `partition`."""
    measured = {name.digest for name in units.measured(out)}
    return [entry.uri for entry in entries if source_digest(entry, recipe) not in measured]


def source_units(entries: Iterable[Entry], out: str, recipe: Recipe) -> list[Unit]:
    """Units of the sources that have none yet; the same recording a second time is a unit that only says so.

    Only new sources are read, and of those the few blocks that name them. The first of equal sources is the one that was
    committed before, else the first by uri.
    """
    entries = sorted(entries)
    seen = {name.digest for name in units.done(out, "partition")}
    new = [entry for entry in entries if source_digest(entry, recipe) not in seen]
    if not new:
        return []
    listed = [_source_unit(recipe, *identity) for identity in _identified(new, entries, out)]
    ids = {Name.parse(unit.name).video_id for unit in listed}
    old = _superseded_rows(out)
    for name in [name for name in old if Name.parse(name).video_id in ids]:
        ledger.take_back(out, name)  # the same bytes are there again, under a new date or name
        del old[name]
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

    def owner_of(video_id: str) -> Entry | None:
        if name := measured.get(video_id):
            source = _measured_source(out, name)
            return listed.get(source.uri, source)
        return first.get(video_id)

    for entry, (video_id, problem) in zip(new, storage.at_once(_identify, new), strict=True):
        owner, same = None, None
        if problem is None:
            try:
                video_id, owner, same = duplicates.original(entry, video_id, owner_of, twins)
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
        return storage.content_id(entry), None
    except OSError as error:
        return _unreadable_now(entry, error)


def _unreadable_now(entry: Entry, error: OSError) -> tuple[str, str]:
    return digest(entry.uri, entry.token), f"{entry.uri}: {error.strerror or error}"


def _measured_source(out: str, name: Name) -> Entry:
    """Where the source is that stands for a committed unit's bytes, and its size: tokens begin with it."""
    row = ledger.read_video(out, str(name)) or {"uri": str(name), "token": "0-"}
    return Entry(row.get("duplicate_of") or row["uri"], int(row["token"].partition("-")[0]), "")


def _superseded_rows(out: str) -> dict[str, Row]:
    """The superseded units with the rows of their sources."""
    names = units.superseded(out)
    rows = storage.at_once(lambda unit: ledger.read_video(out, unit), names)
    return {unit: row for unit, row in zip(names, rows, strict=True) if row}


def _not_again(out: str, unit: Unit, old: Mapping[str, Row]) -> Unit:
    """The unit; one that says so where its source begins with all bytes of an older version of which clips are stored."""
    grew = not (unit.duplicate_of or unit.problem) and any(_goes_on(out, unit, name, row) for name, row in old.items())
    return replace(unit, duplicate_of=unit.uri, reason=GREW) if grew else unit


def _goes_on(out: str, unit: Unit, name: str, row: Row) -> bool:
    size = int(row["token"].partition("-")[0])
    if row["uri"] != unit.uri or size >= int(unit.token.partition("-")[0]) or not _has_stored(out, name):
        return False
    return storage.content_id(Entry(unit.uri, size, unit.token)) == row["video_id"]


def _has_stored(out: str, unit: str) -> bool:
    return len(ledger.read_unit(out, "partition", unit)) > len(ledger.read_unit(out, SUPERSEDED, unit))


def supersede_changed(entries: Sequence[Entry], out: str, recipe: Recipe) -> None:
    """Take the clips of sources that changed out of the output, and give back those of a version that returned.

    An output whose sources are as they were costs two listings.
    """
    finished, gone = units.done(out, "partition"), set(units.superseded(out))
    current = {source_digest(entry, recipe): entry for entry in entries}
    back = [name for name in finished if name.digest in current and str(name) in gone]
    for name in back:
        _revive(out, name)
    here = {name.digest for name in finished}
    new = {entry.uri for key, entry in current.items() if key not in here} | {current[name.digest].uri for name in back}
    old = [name for name in finished if name.digest not in current and str(name) not in gone] if new else []
    rows = storage.at_once(lambda name: ledger.read_video(out, str(name)), old)
    changed = [(name, row) for name, row in zip(old, rows, strict=True) if row and row["uri"] in new]
    if not changed:
        return
    stored = {clip for shard in shards.committed(out) for clip in shards.read_index(out, shard)["clip_id"].to_pylist()}
    for name, row in changed:
        twins = [twin for twin in finished if twin.video_id == name.video_id and twin.digest in current]
        if twins:  # the same bytes are there under another name, which was left out: that one is measured now
            for twin in [*twins, name]:
                ledger.take_back(out, str(twin))
        else:
            _supersede(out, name, row, stored)


def _supersede(out: str, name: Name, video: Row, stored: Collection[str]) -> None:
    """Keep the rows of a source's old version, with the reason; clips that are in shards stay what they are."""
    clips = [row for row in ledger.read_unit(out, "partition", str(name)) if row["clip_id"] not in stored]
    rows = [{"clip_id": row["clip_id"], "video_id": row["video_id"], "reject": CHANGED} for row in clips]
    ledger.write_video(out, str(name), {**video, "status": "superseded", "reason": CHANGED.partition(": ")[2]})
    schema = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject"))
    ledger.write_clips(out, SUPERSEDED, str(name), rows, schema, Record(SUPERSEDED, str(name), rows=len(rows)))


def _revive(out: str, name: Name) -> None:
    """The old version is there again, byte for byte by its date and size: its clips count again."""
    video = ledger.read_video(out, str(name))
    if video:
        ledger.write_video(out, str(name), {**video, "status": "ok", "reason": None})
    storage.delete(ledger.clips_uri(out, SUPERSEDED, str(name)))
