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
from curation.output_folder import OutputFolder
from curation.schema import digest
from curation.storage import Entry
from pipelines.recipes import Recipe

PART_CLIPS = 64
SUPERSEDED = "superseded"
"""The folder, beside those of the phases, with the clips that a change of their source took out."""


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
    return [Name.parse(name) for name in storage.names(OutputFolder(out).clips(phase))]


def superseded(out: str) -> list[str]:
    """The partition units whose source has changed since (`pipelines.sources`), by one listing."""
    return [str(name) for name in done(out, SUPERSEDED)]


def measured(out: str) -> list[Name]:
    """The committed partition units of sources that are as they were measured."""
    gone = set(superseded(out))
    return [name for name in done(out, "partition") if str(name) not in gone]


def of_videos(out: str, phase: str, video_ids: Collection[str]) -> list[str]:
    """The names of the committed units of a phase that hold clips of these videos."""
    return [str(name) for name in done(out, phase) if name.video_id in video_ids]


def source_digest(entry: Entry, recipe: Recipe) -> str:
    """Names a source's unit before its bytes are read: where it is, its listing token, the partition settings."""
    return digest(entry.uri, entry.token, recipe.digest("partition"))


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
