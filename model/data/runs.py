"""Which windows of video there are to train on: clips of committed shards, joined into runs where they touch.

Only indexes are read here, one small file a shard; no tar and no video.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from curation import shards, storage
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


def stored_clips(outputs: Iterable[str]) -> list[Clip]:
    """The clips of all committed shards of these outputs, in order of source and time. ValueError where there are none."""
    outputs = list(outputs)
    found = [clip for out in outputs for clip in _clips_of(storage.normal(out))]
    if not found:
        raise ValueError(f"no committed shard in {', '.join(outputs)}; make some with `gamecraft curate`")
    return sorted(found, key=lambda clip: (clip.video_id, clip.index, clip.clip_id))


def _clips_of(out: str) -> list[Clip]:
    names = shards.committed(out)
    tables = storage.at_once(lambda name: shards.read_index(out, name), names)
    members: dict[str, dict[str, Place]] = {}
    about: dict[str, dict[str, object]] = {}
    for table in tables:
        for row in table.to_pylist():
            place = Place(storage.join(out, "shards", row["tar"]), row["offset"], row["size"])
            members.setdefault(row["clip_id"], {})[row["member"].partition(".")[2]] = place
            about[row["clip_id"]] = row
    return [_clip(about[clip_id], places) for clip_id, places in members.items()]


def _clip(row: dict, places: dict[str, Place]) -> Clip:  # type: ignore[type-arg]
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

    A short window stays inside one clip where it can: each clip is divided on its own, and only runs whose clips are all too
    short for one are joined. So a 45-frame phase never decodes two clips for one sample, and a 149-frame one uses them all.
    """
    length_s = frames / fps
    found = []
    for run in chains:
        parts = [(clip,) for clip in run] if all(clip.seconds >= length_s for clip in run) else [run]
        for part in parts:
            found += _inside(part, length_s)
    return found


def _inside(run: tuple[Clip, ...], length_s: float) -> list[Window]:
    whole_s = sum(clip.seconds for clip in run)
    count = math.floor(whole_s / length_s + 1e-6)
    slack_s = max(0.0, whole_s / count - length_s) if count else 0.0
    return [Window(run, i * (length_s + slack_s), slack_s) for i in range(count)]
