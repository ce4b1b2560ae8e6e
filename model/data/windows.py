"""Which windows of video there are to train on: clips of committed shards, joined into runs where they touch.

Only indexes are read here, one small file a shard; no tar and no video.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from curation import shards, storage
from curation.output_folder import OutputFolder
from curation.schema import TOUCHING_S


class Place(NamedTuple):
    """Where a member's bytes lie."""

    uri: str
    offset: int
    size: int


@dataclass(frozen=True)
class Clip:
    """A stored clip: which, when in its source, and where its members lie, by extension ("json", "mp4", "camera.npz")."""

    clip_id: str
    video_id: str
    index: int
    start_s: float
    end_s: float
    camera_status: str | None
    members: tuple[tuple[str, Place], ...]

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def place(self, extension: str) -> Place | None:
        return dict(self.members).get(extension)


class Window(NamedTuple):
    """Seconds [start_s, start_s + length) of a run, counted from its first clip's start; up to `slack_s` later is as good."""

    run: tuple[Clip, ...]
    start_s: float
    slack_s: float

    @property
    def key(self) -> str:
        """Names the window whatever else is in the data set: its first clip, and where in the run it begins."""
        return f"{self.run[0].clip_id}@{self.start_s:.3f}"


class Shard(NamedTuple):
    """A committed shard: where it lies, the hash of its tar, its clips."""

    uri: str
    sha256: str
    clips: tuple[Clip, ...]


def stored_shards(outputs: Iterable[str]) -> list[Shard]:
    """The committed shards of these outputs. ValueError where there are none."""
    outputs = list(outputs)
    found = [shard for out in outputs for shard in _shards_of(storage.normal(out))]
    if not any(shard.clips for shard in found):
        raise ValueError(f"no committed shard in {', '.join(outputs)}; make some with `gamecraft curate`")
    return found


def stored_clips(outputs: Iterable[str]) -> list[Clip]:
    """The clips of all committed shards of these outputs, in order of source and time. ValueError where there are none."""
    return in_order(stored_shards(outputs))


def in_order(found: Iterable[Shard]) -> list[Clip]:
    """All clips of some shards, in order of source and time."""
    clips = (clip for shard in found for clip in shard.clips)
    return sorted(clips, key=lambda clip: (clip.video_id, clip.index, clip.clip_id))


def _shards_of(out: str) -> list[Shard]:
    names = shards.list_committed(out)
    tables = storage.at_once(lambda name: shards.read_index(out, name), names)
    return [_shard(out, name, table.to_pylist()) for name, table in zip(names, tables, strict=True)]


def _shard(out: str, name: str, rows: Sequence[dict[str, Any]]) -> Shard:
    members: dict[str, dict[str, Place]] = {}
    about: dict[str, dict[str, Any]] = {}
    for row in rows:
        place = Place(storage.join(OutputFolder(out).shards, row["tar"]), row["offset"], row["size"])
        members.setdefault(row["clip_id"], {})[row["member"].partition(".")[2]] = place
        about[row["clip_id"]] = row
    clips = tuple(_clip(about[clip_id], places) for clip_id, places in members.items())
    sha = rows[0]["tar_sha256"] if rows else hashlib.sha256().hexdigest()
    return Shard(storage.join(OutputFolder(out).shards, name), sha, clips)


def _clip(row: dict[str, Any], places: dict[str, Place]) -> Clip:
    named = {name: row[name] for name in ("clip_id", "video_id", "index", "start_s", "end_s", "camera_status")}
    return Clip(**named, members=tuple(sorted(places.items())))


def runs(clips: Sequence[Clip]) -> list[tuple[Clip, ...]]:
    """Clips in order -> chains of neighbours: same source, index one apart, touching in time."""
    found: list[list[Clip]] = [[clip] for clip in clips[:1]]
    for before, clip in pairwise(clips):
        near = (clip.video_id, clip.index) == (before.video_id, before.index + 1)
        if near and abs(clip.start_s - before.end_s) < TOUCHING_S:
            found[-1].append(clip)
        else:
            found.append([clip])
    return [tuple(run) for run in found]


def windows(chains: Iterable[tuple[Clip, ...]], frames: int, fps: float) -> list[Window]:
    """As many windows of `frames` at `fps` as fit side by side into each run, spread over it.

    A window stays inside one clip where it can: only clips that are too short for one are joined (`_parts`). So a 45-frame
    phase seldom decodes two clips for one sample, and a 149-frame one uses them all.
    """
    length_s = frames / fps
    return [window for run in chains for part in _parts(run, length_s) for window in _inside(part, length_s)]


def _parts(run: tuple[Clip, ...], length_s: float) -> Iterator[tuple[Clip, ...]]:
    """Divide a run: a clip that is long enough for a window stands alone, short ones that touch are joined.

    Joined ones that are too short even so go to a long neighbour, where that makes one window more.
    """
    parts = [tuple(part) for _, part in groupby(run, key=lambda clip: _count((clip,), length_s) > 0)]
    groups = [group for part in parts for group in ([(c,) for c in part] if _count(part[:1], length_s) else [part])]
    done: list[tuple[Clip, ...]] = []
    for group in groups:
        if done and (not _count(group, length_s) or not _count(done[-1], length_s)):
            joined = done[-1] + group
            if _count(joined, length_s) > _count(done[-1], length_s) + _count(group, length_s):
                done[-1] = joined
                continue
        done.append(group)
    return iter(done)


def _count(run: tuple[Clip, ...], length_s: float) -> int:
    """How many windows fit into a run."""
    return math.floor(sum(clip.seconds for clip in run) / length_s + 1e-6)


def _inside(run: tuple[Clip, ...], length_s: float) -> list[Window]:
    whole_s, count = sum(clip.seconds for clip in run), _count(run, length_s)
    slack_s = max(0.0, whole_s / count - length_s) if count else 0.0
    return [Window(run, i * (length_s + slack_s), slack_s) for i in range(count)]
