"""Which sources to measure, in which version. Only the current version of a source counts: clips of an older version are
superseded, and never stored later.

OUT/clips/superseded/<unit>.parquet   clips of a partition unit whose source changed before they were stored

A listing compares the version of each source (`storage.Entry.token`) with the one that was measured. Only sources that are new
to the output cost more than that, and only once (`pipelines.source_manifest`).
"""

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import shards, source_files, storage
from curation.errors import SourceChanged
from curation.schema import CLIP, Row, columns
from curation.storage import Entry
from pipelines import duplicates, ledger, source_manifest, unit_files, units
from pipelines.ids import Ids, to_array
from pipelines.ledger import Record
from pipelines.recipes import Recipe
from pipelines.source_manifest import Identified
from pipelines.units import SUPERSEDED, Group, Unit, UnitName, source_digest

CHANGED = "superseded: the source changed since it was measured"
GREW = "the file grew after clips of its shorter version were stored in shards; curate it into another --out"

# A file that changed this recently is listed again a second later. If it is being written, it waits for the next run.
_YOUNG_S, _RECHECK_S = 2.0, 1.0
GROUP = 1 << 15
"""Sources, or units of later phases, that are planned, done and packed together."""


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


class Listing(Sequence[Entry]):
    """The listed sources of an input, in order of their uris, with what is compared to the units of an output."""

    def __init__(self, entries: Iterable[Entry], recipe: Recipe) -> None:
        self._entries = sorted(entries)
        self._recipe = recipe

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        return self._entries[at]

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def digests(self) -> np.ndarray:
        """By `units.source_digest`, as bytes, [N]."""
        return to_array([source_digest(entry, self._recipe) for entry in self._entries])

    @cached_property
    def ids(self) -> Ids:
        """The digests as a set."""
        return Ids([self.digests])

    def find(self, uri: str) -> Entry | None:
        """Return the source with a uri."""
        at = bisect_left(self._entries, uri, key=lambda entry: entry.uri)
        return self._entries[at] if at < len(self) and self._entries[at].uri == uri else None

    def choose(self, mask_N: np.ndarray) -> list[Entry]:
        """Return the sources for which a mask, bool [N], is true."""
        return [self._entries[number] for number in np.flatnonzero(mask_N)]

    def of_units(self, partition_units: Iterable[str]) -> np.ndarray:
        """Return which sources, in the listed version, have one of these partition units, bool [N]."""
        return Ids([to_array([UnitName.parse(unit).digest for unit in partition_units])]).mask(self.digests)

    def unmeasured(self, out: str) -> list[Entry]:
        """Return the sources that have no committed unit in `partition`."""
        return self.choose(~units.committed_digests(out, "partition").mask(self.digests))


def unmeasured_uris(listing: Listing, out: str) -> list[str]:
    """List the uris of sources that have no committed unit in `partition`, or one of another version."""
    superseded = listing.of_units(units.list_superseded(out))
    measured = units.committed_digests(out, "partition").mask(listing.digests) & ~superseded
    return [entry.uri for entry in listing.choose(~measured)]


def pending_sources(entries: Iterable[Entry], out: str, recipe: Recipe, probed_bytes: float = math.inf) -> list[Unit]:
    """List units for the sources that have none yet: all groups of `pending_groups`, though none is measured in between."""
    groups = pending_groups(Listing(entries, recipe), out, recipe, probed_bytes)
    return [unit for group in groups for unit in group.units]


def pending_groups(listing: Listing, out: str, recipe: Recipe, probed_bytes: float = math.inf) -> Iterator[Group]:
    """Group the sources that have no unit yet. A second copy of a recording gets a unit that only records the duplicate.

    Only new sources are read, and of those only the few blocks that identify them. The original among equal sources is the one
    that was committed before, else the first by uri. A group is identified when it is asked for; what may be a remux of another
    source is opened before the first group. There is at least one group, which may be empty.
    """
    new = listing.unmeasured(out)
    done = len(listing) - len(new)
    if not new:
        yield Group([], done)
        return
    remuxes = duplicates.find_remuxes(new, _without(listing, new))
    originals: dict[str, Entry] = {}
    for first in range(0, len(new), GROUP):
        part = new[first : first + GROUP]
        pending = _pending_group(part, remuxes, originals, listing, out, recipe, probed_bytes)
        again = len(pending) - len(part)  # copies that had been done before, and are to be done again
        yield Group(pending, (done if first == 0 else 0) - again, min(1.0, (first + GROUP) / len(new)))


def _without(listing: Listing, entries: Iterable[Entry]) -> list[Entry]:
    left_out = set(entries)
    return [entry for entry in listing if entry not in left_out]


def _pending_group(
    new: Sequence[Entry],
    remuxes: Mapping[str, Entry],
    originals: dict[str, Entry],
    listing: Listing,
    out: str,
    recipe: Recipe,
    probed_bytes: float,
) -> list[Unit]:
    """Return the units of some sources that have none yet. originals: the first source of each recording of earlier groups, by
    video_id, to which those of this group are added.
    """
    identified = source_manifest.identify(out, new, probed_bytes)
    first: dict[str, Entry] = {}
    identities = _identify_new(new, listing, out, identified, remuxes, originals, first)
    pending = [_source_unit(recipe, identity) for identity in identities]
    superseded = _superseded_rows(out)
    ids = {UnitName.parse(unit.name).video_id for unit in pending}
    moved = {UnitName.parse(unit.name).video_id for unit in pending if not unit.duplicate_of}
    returned = [name for name in superseded if UnitName.parse(name).video_id in ids]  # the same bytes under a new date or name
    measured = units.list_of_videos(out, "partition", moved)
    taken_back = [*returned, *(name for name in measured if name not in superseded)]
    ledger.take_back(out, taken_back)
    is_new_again = listing.of_units(taken_back)
    if is_new_again.any():
        # A copy in the input had been recorded before its original was measured.
        new = sorted({*new, *listing.choose(is_new_again)})
        remuxes = duplicates.find_remuxes(new, _without(listing, (*new, *listing.unmeasured(out))))
        return _pending_group(new, remuxes, originals, listing, out, recipe, probed_bytes)
    originals.update({video_id: entry for video_id, entry in first.items() if video_id not in originals})
    superseded = {name: row for name, row in superseded.items() if name not in taken_back}
    return [_refuse_grown(out, unit, superseded) for unit in pending]


def _identify_new(
    new: Sequence[Entry],
    listing: Listing,
    out: str,
    identified: Mapping[Entry, Identified],
    remuxes: Mapping[str, Entry],
    originals: Mapping[str, Entry],
    first: dict[str, Entry],
) -> Iterator[_Identity]:
    """Identify each new source, and find an earlier source with the same recording: a measured one, one of `originals`, or the
    first in this group, which is entered into `first`.
    """
    superseded = set(units.list_superseded(out))
    known_ids = {identified[entry].video_id for entry in new}
    measured = _by_video(units.list_of_videos(out, "partition", known_ids), superseded)

    unstored = cache(lambda: _units_with_unstored_clips(out))

    def owner_of(video_id: str) -> Entry | None:
        if video_id not in known_ids:  # by all bytes of a source
            known_ids.add(video_id)
            measured.update(_by_video(units.list_of_videos(out, "partition", {video_id}), superseded))
        if name := measured.get(video_id):
            source = _measured_source(out, name)
            listed = listing.find(source.uri)
            # A source that is gone before all of its clips are stored has moved. It is measured where it is now.
            if listed or storage.exists(source.uri) or str(name) not in unstored():
                return listed or source
        return originals.get(video_id) or first.get(video_id)

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


def _by_video(partition_units: Iterable[str], superseded: set[str]) -> dict[str, UnitName]:
    """Return the units whose source has not changed, by video_id."""
    names = (UnitName.parse(unit) for unit in partition_units if unit not in superseded)
    return {name.video_id: name for name in names}


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


def supersede_changed(listing: Listing, growing: Sequence[str], out: str) -> None:
    """Drop the clips of sources that changed, and restore those of a version that returned.

    growing: uris of sources that are changing now. If no source has changed, this costs two listings.
    """
    superseded = units.list_superseded(out)
    returned = [name for name in superseded if UnitName.parse(name).digest in listing.ids]
    # sources with the size and date of an earlier version again
    unit_files.of(out).delete({f"clips/{SUPERSEDED}": returned})
    new = {entry.uri for entry in (*listing.unmeasured(out), *listing.choose(listing.of_units(returned)))}
    if not (new or growing):
        return
    changed, copies = _changed_sources(out, listing, new.union(growing), set(superseded))
    if not changed:
        return
    stored = {clip for shard in shards.list_committed(out) for clip in shards.read_index(out, shard)["clip_id"].to_pylist()}
    for name, uri in changed:
        _replace_by_copy(out, name, copies.get(uri, []), stored)


def _changed_sources(
    out: str, listing: Listing, changed_uris: Collection[str], superseded: Collection[str]
) -> tuple[list[tuple[UnitName, str]], dict[str, list[UnitName]]]:
    """Return units of older versions of these sources, each with its uri, and units of copies in the input by original."""
    files, uris = unit_files.of(out), pa.array(sorted(changed_uris), pa.string())
    changed: list[tuple[UnitName, str]] = []
    copies: dict[str, list[UnitName]] = defaultdict(list)
    for piece in files.scan("videos", ("unit_id", "uri", "duplicate_of")):
        either = pc.or_(pc.is_in(piece.table["uri"], uris), pc.is_in(piece.table["duplicate_of"], uris))
        for row in piece.table.filter(either).to_pylist():
            name = UnitName.parse(row["unit_id"])
            is_listed = name.digest in listing.ids
            if not files.has("clips/partition", row["unit_id"]):
                continue
            if row["uri"] in changed_uris and not is_listed and row["unit_id"] not in superseded:
                changed.append((name, row["uri"]))
            elif is_listed and row["duplicate_of"] != row["uri"] and row["duplicate_of"]:
                copies[row["duplicate_of"]].append(name)
    return sorted(changed), copies


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
