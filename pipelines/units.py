"""Units: what commits at once. A chunk of a long source in `scan`, a source in `partition`, at most 64 clips of one video in
`score` and `annotate`, one shard in `shard`.

A unit's name is a hash of what goes in and of the recipe, and its file `clips/<phase>/<name>.parquet` is its commit. So one
listing of names tells what is done; no row is read for it. Units of `scan` and `score` say in their name how many parts their
video has.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from curation import storage
from curation.schema import digest
from curation.shards import from_parquet
from curation.storage import Entry
from pipelines import duplicates
from pipelines.recipes import Recipe

PART_CLIPS = 64


class Name(NamedTuple):
    """`<video_id>-<digest>-<part>of<parts>`, of one unit of clips."""

    video_id: str
    digest: str
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.video_id}-{self.digest}-{self.part}of{self.parts}"

    @classmethod
    def parse(cls, text: str) -> "Name":
        video_id, digest_, parts = text.removesuffix(".parquet").split("-")
        part, _, total = parts.partition("of")
        return cls(video_id, digest_, int(part), int(total))


@dataclass(frozen=True)
class Unit:
    """One unit of a phase. `uri`, `token` and `duplicate_of` for sources; `upstream` are the units whose rows go in
    ("phase/name", in order of phase), `clips` those that a shard takes of them, in order. `chunks`: those that a source was
    measured in. `reason`: why a source is not measured.
    `problem`: why its source cannot even be named. `request`: what an attempt of `generate` is to make, as JSON.
    """

    phase: str
    name: str
    uri: str = ""
    token: str = ""
    duplicate_of: str | None = None
    upstream: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()
    chunks: tuple[str, ...] = ()
    reason: str | None = None
    problem: str | None = None
    request: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        fields: dict[str, Any] = json.loads(text)
        fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**fields)


def done(out: str, phase: str) -> list[Name]:
    """The committed units of a phase, by one listing."""
    return [Name.parse(name) for name in storage.names(storage.join(out, "clips", phase))]


def of_videos(out: str, phase: str, video_ids: Collection[str]) -> list[str]:
    """The names of the committed units of a phase that hold clips of these videos."""
    return [str(name) for name in done(out, phase) if name.video_id in video_ids]


def source_digest(entry: Entry, recipe: Recipe) -> str:
    """Names a source's unit before its bytes are read: where it is, its listing token, the partition settings."""
    return digest(entry.uri, entry.token, recipe.digest("partition"))


def source_units(entries: Iterable[Entry], out: str, recipe: Recipe) -> list[Unit]:
    """Units of the sources that have none yet; the same recording a second time is a unit that only says so.

    Only new sources are read, and of those the few blocks that name them. The first of equal sources is the one that was
    committed before, else the first by uri.
    """
    entries = sorted(entries)
    finished = done(out, "partition")
    seen = {name.digest for name in finished}
    owners = {name.video_id: name for name in finished}
    listed = {entry.uri: entry for entry in entries}
    new = [entry for entry in entries if source_digest(entry, recipe) not in seen]
    identified = storage.at_once(_identify, new)
    twins = duplicates.twins(new, [entry for entry in entries if source_digest(entry, recipe) in seen])
    first: dict[str, Entry] = {}

    def owner_of(video_id: str) -> Entry | None:
        if video_id not in owners:
            return first.get(video_id)
        uri, size = _owner(out, owners[video_id])
        return listed.get(uri, Entry(uri, size, ""))

    units = []
    for entry, (video_id, problem) in zip(new, identified, strict=True):
        owner, reason = None, None
        if problem is None:
            video_id, owner, reason = duplicates.original(entry, video_id, owner_of, twins)
            first.setdefault(video_id, entry)
        if owner is None or owner.uri != entry.uri:  # equal: the same file with a new date, and its clips are there
            name, of = Name(video_id, source_digest(entry, recipe)), owner.uri if owner else None
            units.append(Unit("partition", str(name), entry.uri, entry.token, of, reason=reason, problem=problem))
    return units


def _identify(entry: Entry) -> tuple[str, str | None]:
    """The source's id, or a stand-in and why its bytes cannot be read now: no right to, or a store that does not answer."""
    try:
        return storage.content_id(entry), None
    except OSError as error:
        return digest(entry.uri, entry.token), f"{entry.uri}: {error.strerror or error}"


def _owner(out: str, name: Name) -> tuple[str, int]:
    """Where the source with a committed unit's bytes is, and their size: tokens begin with it."""
    row = from_parquet(storage.read(storage.join(out, "videos", f"{name}.parquet"))).to_pylist()[0]
    return str(row["duplicate_of"] or row["uri"]), int(row["token"].partition("-")[0])


def part_names(upstream: str, clips: int, phase_digest: str) -> list[Name]:
    """The names of the units that a partition unit's clips make in a later phase: 64 clips each, at least one unit."""
    video_id, key = Name.parse(upstream).video_id, digest(upstream, phase_digest)
    parts = max(1, -(-clips // PART_CLIPS))
    return [Name(video_id, key, part, parts) for part in range(parts)]


def incomplete(upstream: Iterable[Name], finished: Iterable[Name], phase_digest: str) -> list[tuple[str, set[int]]]:
    """The partition units whose parts are not all committed in a later phase, with the parts that are."""
    parts: dict[str, dict[int, int]] = {}
    for name in finished:
        parts.setdefault(name.digest, {})[name.part] = name.parts
    found = []
    for name in upstream:
        have = parts.get(digest(str(name), phase_digest), {})
        if not have or len(have) < next(iter(have.values())):
            found.append((str(name), set(have)))
    return found


def stale(upstream: Iterable[Name], finished: Iterable[Name], phase_digest: str) -> list[Name]:
    """Committed units that belong to other settings of the phase, or to a source unit that is gone."""
    current = {digest(str(name), phase_digest) for name in upstream}
    return [name for name in finished if name.digest not in current]
