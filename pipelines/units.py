"""Units: what commits at once. A chunk of a long source in `scan`, a source in `partition`, at most 64 clips of one video in
`score` and `annotate`, one shard in `shard`.

A unit's name is a hash of its inputs and of the recipe, and its file `clips/<phase>/<name>.parquet` is its commit, until it is
packed with others (`pipelines.unit_files`). So names alone tell which units are done, and no row is read for that. The names of
units in `scan` and `score` also say how many parts their video has.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from curation.schema import digest
from curation.storage import Entry
from pipelines import unit_files
from pipelines.ids import Ids
from pipelines.recipes import Recipe

PART_CLIPS = 64
SUPERSEDED = "superseded"
"""The folder under `clips`, next to those of the phases, with clips that were dropped because their source changed."""


class UnitName(NamedTuple):
    """The name of a unit of clips: `<video_id>-<digest>-<part>of<parts>`."""

    video_id: str
    digest: str
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.video_id}-{self.digest}-{self.part}of{self.parts}"

    @classmethod
    def parse(cls, text: str) -> "UnitName":
        video_id, digest_, part_of_parts = text.removesuffix(".parquet").split("-")
        part, _, parts = part_of_parts.partition("of")
        return cls(video_id, digest_, int(part), int(parts))


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit of a phase. It travels to workers as JSON."""

    phase: str
    name: str
    uri: str = ""  # of a source
    token: str = ""  # the listed version of that source (`storage.Entry.token`)
    duplicate_of: str | None = None  # uri of the source that has the same recording
    upstream: tuple[str, ...] = ()  # the units whose rows go in, as "phase/name", in order of phase
    clips: tuple[str, ...] = ()  # the clip_ids that a shard takes from them, in order
    chunks: tuple[str, ...] = ()  # the units of `scan` in which a source was measured
    start_s: float = 0.0  # of a chunk
    end_s: float | None = None  # of a chunk; None: it ends with the source
    reason: str | None = None  # why a source is not measured
    problem: str | None = None  # why a source cannot even be named by its bytes; the unit fails with it
    request: str = ""  # what an attempt of `generate` is to make, as JSON

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        fields: dict[str, Any] = json.loads(text)
        fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**fields)


class Group(NamedTuple):
    """Units of a phase that are planned together. The next group is planned after these were done.

    done: units, of the part of the input that this group is about, that were done before. planned: share of the phase that is
    planned with this group and the ones before it.
    """

    units: list[Unit]
    done: int = 0
    planned: float = 1.0


class Range(NamedTuple):
    """Video_ids from `low` to before `high` (None: to the end). The names of most units begin with a video_id."""

    low: str = ""
    high: str | None = None

    @classmethod
    def of(cls, first: str, last: str) -> "Range":
        """Return the range from one video_id to another, both included."""
        return cls(first, last + _AFTER_DASH)


ALL = Range()
_AFTER_DASH = "."  # the character after "-", which follows the video_id in names
# Units of so many videos are looked up one by one, and those of more in the whole list.
_FEW_VIDEOS = 64


def list_committed(out: str, phase: str, videos: Range = ALL) -> list[UnitName]:
    """List the committed units of a phase, of a range of videos.

    Costs one listing, or none where this process has listed them before.
    """
    files, key = unit_files.of(out), ("committed", phase)
    if videos != ALL:
        return [UnitName.parse(name) for name in files.names(f"clips/{phase}", *videos)]
    if key not in files.memo:
        files.memo[key] = [UnitName.parse(name) for name in files.names(f"clips/{phase}")]
    return list(files.memo[key])


def list_superseded(out: str, videos: Range = ALL) -> list[str]:
    """List the partition units whose source has changed since (`pipelines.sources`)."""
    return [str(name) for name in list_committed(out, SUPERSEDED, videos)]


def list_current(out: str, videos: Range = ALL) -> list[UnitName]:
    """List the committed partition units whose source has not changed since it was measured."""
    superseded = set(list_superseded(out, videos))
    return [name for name in list_committed(out, "partition", videos) if str(name) not in superseded]


def list_of_videos(out: str, phase: str, video_ids: Collection[str]) -> list[str]:
    """List the committed units of a phase that hold clips of these videos."""
    files, folder = unit_files.of(out), f"clips/{phase}"
    if len(video_ids) > _FEW_VIDEOS:
        return files.names_of_videos(folder, video_ids)
    return [name for video in sorted(video_ids) for name in files.names(folder, *Range.of(video, video))]


def committed_digests(out: str, phase: str) -> Ids:
    """Return the digests in the names of a phase's committed units: in `partition`, those of their sources."""
    return Ids(unit_files.of(out).parts_of_names(f"clips/{phase}", 1))


def source_digest(entry: Entry, recipe: Recipe) -> str:
    """Identify a source's unit before its bytes are read: by its uri, its listed version, and the partition settings."""
    return digest(entry.uri, entry.token, recipe.digest("partition"))


def part_names(upstream: str, clips: int, phase_digest: str) -> list[UnitName]:
    """Name the units that a partition unit's clips make in a later phase: 64 clips each, at least one unit."""
    video_id, key = UnitName.parse(upstream).video_id, digest(upstream, phase_digest)
    parts = max(1, -(-clips // PART_CLIPS))
    return [UnitName(video_id, key, part, parts) for part in range(parts)]


def find_incomplete(
    upstream: Iterable[UnitName], committed: Iterable[UnitName], phase_digest: str
) -> list[tuple[str, set[int]]]:
    """Find the partition units whose parts are not all committed in a later phase, each with its committed parts."""
    parts: dict[str, dict[int, int]] = {}
    for name in committed:
        parts.setdefault(name.digest, {})[name.part] = name.parts
    incomplete = []
    for name in upstream:
        present = parts.get(digest(str(name), phase_digest), {})
        if not present or len(present) < next(iter(present.values())):
            incomplete.append((str(name), set(present)))
    return incomplete


def find_stale(upstream: Iterable[UnitName], committed: Iterable[UnitName], phase_digest: str) -> list[UnitName]:
    """Find committed units of other settings of the phase, or of a source unit that no longer exists."""
    current = {digest(str(name), phase_digest) for name in upstream}
    return [name for name in committed if name.digest not in current]
