"""The windows of video to train on: clips of committed shards, joined into runs where they touch.

Only indexes are read here, one small file per shard; no tar and no video.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from curation import shards, storage
from curation.cameras.camera import PART
from curation.errors import InputError
from curation.output_folder import OutputFolder
from curation.schema import TOUCHING_S

# Statuses with which every frame of a clip has a camera.
_WHOLE = ("ok", "ok_rotation", "ok_static")
# A clip's last frame is at most this long before the first frame of the next one.
_TOUCHING_FRAMES_S = 0.1


class ByteRange(NamedTuple):
    """Where the bytes of a shard's member are stored."""

    uri: str
    offset: int
    size: int


@dataclass(frozen=True)
class StoredClip:
    """A clip in a shard, when it was in its source, and where its members are, by extension ("json", "mp4", "camera.npz").

    camera_spans: where a clip with the status ok_part has a camera, and its scale is known: first and last frame in seconds
    from its start.
    """

    clip_id: str
    video_id: str
    index: int
    start_s: float
    end_s: float
    camera_status: str | None
    members: tuple[tuple[str, ByteRange], ...]
    camera_spans: tuple[tuple[float, float], ...] = ()

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s

    def member(self, extension: str) -> ByteRange | None:
        """Return where the member with this extension is, None where the clip has none."""
        return dict(self.members).get(extension)


class Window(NamedTuple):
    """Seconds [start_s, start_s + length) of touching clips, counted from the start of the first.

    The window may start up to `slack_s` later without touching the next one.
    """

    clips: tuple[StoredClip, ...]
    start_s: float
    slack_s: float

    @property
    def key(self) -> str:
        """Name of the window, the same in every data set: its first clip, and where it starts."""
        return f"{self.clips[0].clip_id}@{self.start_s:.3f}"


class StoredShard(NamedTuple):
    """A committed shard: its location, the hash of its tar, its clips."""

    uri: str
    sha256: str
    clips: tuple[StoredClip, ...]


def stored_shards(outputs: Iterable[str]) -> list[StoredShard]:
    """Return the committed shards of these outputs. InputError where there are none."""
    outputs = list(outputs)
    stored = [shard for out in outputs for shard in _shards_of(storage.normal(out))]
    if not any(shard.clips for shard in stored):
        raise InputError(f"no committed shard in {', '.join(outputs)}; make some with `gamecraft curate`")
    return stored


def stored_clips(outputs: Iterable[str]) -> list[StoredClip]:
    """Return the clips of all committed shards of these outputs, by source and time. InputError where there are none."""
    return clips_in_order(stored_shards(outputs))


def clips_in_order(stored: Iterable[StoredShard]) -> list[StoredClip]:
    """Return all clips of some shards, by source and time."""
    clips = (clip for shard in stored for clip in shard.clips)
    return sorted(clips, key=lambda clip: (clip.video_id, clip.index, clip.clip_id))


def _shards_of(out: str) -> list[StoredShard]:
    names = shards.list_committed(out)
    tables = storage.at_once(lambda name: shards.read_index(out, name), names)
    return [_shard(out, name, table.to_pylist()) for name, table in zip(names, tables, strict=True)]


def _shard(out: str, name: str, rows: Sequence[dict[str, Any]]) -> StoredShard:
    members: dict[str, dict[str, ByteRange]] = {}
    clip_rows: dict[str, dict[str, Any]] = {}
    for row in rows:
        location = ByteRange(storage.join(OutputFolder(out).shards, row["tar"]), row["offset"], row["size"])
        members.setdefault(row["clip_id"], {})[row["member"].partition(".")[2]] = location
        clip_rows[row["clip_id"]] = row
    clips = tuple(_clip(clip_rows[clip_id], locations) for clip_id, locations in members.items())
    sha = rows[0]["tar_sha256"] if rows else hashlib.sha256().hexdigest()
    return StoredShard(storage.join(OutputFolder(out).shards, name), sha, clips)


def _clip(row: dict[str, Any], members: dict[str, ByteRange]) -> StoredClip:
    fields = {name: row[name] for name in ("clip_id", "video_id", "index", "start_s", "end_s", "camera_status")}
    spans = [span for span in row.get("camera_spans") or [] if span["model"] != "general" or span["scale_source"] != "none"]
    usable = tuple((span["start_s"], span["end_s"]) for span in spans) if row["camera_status"] == PART else ()
    return StoredClip(**fields, members=tuple(sorted(members.items())), camera_spans=usable)


def touching_runs(clips: Sequence[StoredClip]) -> list[tuple[StoredClip, ...]]:
    """Group clips, given in order, into runs of neighbours: same source, index one apart, touching in time."""
    runs: list[list[StoredClip]] = [[clip] for clip in clips[:1]]
    for before, clip in pairwise(clips):
        neighbours = (clip.video_id, clip.index) == (before.video_id, before.index + 1)
        if neighbours and abs(clip.start_s - before.end_s) < TOUCHING_S:
            runs[-1].append(clip)
        else:
            runs.append([clip])
    return [tuple(run) for run in runs]


def windows(
    runs: Iterable[tuple[StoredClip, ...]],
    frames: int,
    fps: float,
    join_clips: bool = False,
    at_boundaries: int = 0,
    in_spans: bool = True,
) -> list[Window]:
    """Return as many windows of `frames` at `fps` as fit into each run without overlap, spread evenly over it.

    A window stays inside one clip where it can: clips are joined only where they are too short for one (`_parts`). So a
    45-frame phase seldom decodes two clips for one sample, and a 149-frame phase uses all clips. join_clips: treat each run as
    one clip. at_boundaries: then so many windows more over each boundary between clips, which lies at another place in each.

    in_spans: draw the windows of a clip that has a camera in part of it inside its camera spans first. Others fill the rest.
    """
    length_s = frames / fps
    if join_clips:
        joined = list(runs)
        over = [window for run in joined for window in _windows_over_boundaries(run, length_s, at_boundaries)]
        return [window for run in joined for window in _windows_in(run, length_s)] + over
    return [
        window
        for run in runs
        for part in _parts(run, length_s)
        for window in (_windows_around_spans(part, length_s, 1 / fps) if in_spans else _windows_in(part, length_s))
    ]


def _windows_around_spans(clips: tuple[StoredClip, ...], length_s: float, frame_s: float) -> list[Window]:
    """Return windows inside the camera spans of these clips, and windows without overlap in the time that they leave.

    A window covers times up to one frame before its end, so a span may be one frame shorter than a window.
    """
    if not any(clip.camera_spans for clip in clips):
        return _windows_in(clips, length_s)
    spans, whole_s = _known_spans(clips), sum(clip.seconds for clip in clips)
    drawn = [window for a, b in spans for window in _windows_between(clips, a, min(b + frame_s, whole_s), length_s)]
    edges = [0.0, *(edge for window in drawn for edge in (window.start_s, window.start_s + length_s + window.slack_s)), whole_s]
    rest = [window for a, b in zip(edges[::2], edges[1::2], strict=True) for window in _windows_between(clips, a, b, length_s)]
    return sorted(drawn + rest, key=lambda window: window.start_s)


def _known_spans(clips: tuple[StoredClip, ...]) -> list[tuple[float, float]]:
    """Return where touching clips have a camera, first and last frame in seconds from the start of the first clip.

    Where both a clip's last frame and the first one of the next clip have one, the span continues over the boundary.
    """
    spans: list[tuple[float, float]] = []
    start_s = 0.0
    for clip in clips:
        is_whole = bool(clip.camera_status) and clip.camera_status in _WHOLE
        for a, b in [(0.0, clip.seconds)] if is_whole else clip.camera_spans:
            continues = a == 0 and spans and start_s - spans[-1][1] < _TOUCHING_FRAMES_S
            spans.append((spans.pop()[0] if continues else start_s + a, start_s + b))
        start_s += clip.seconds
    return spans


def _windows_between(clips: tuple[StoredClip, ...], start_s: float, end_s: float, length_s: float) -> list[Window]:
    """Return the windows that fit between two times of touching clips, spread evenly."""
    count = math.floor((end_s - start_s) / length_s + 1e-6)
    slack_s = max(0.0, (end_s - start_s) / count - length_s) if count else 0.0
    return [Window(clips, start_s + i * (length_s + slack_s), slack_s) for i in range(count)]


def _parts(run: tuple[StoredClip, ...], length_s: float) -> Iterator[tuple[StoredClip, ...]]:
    """Divide a run: a clip that is long enough for a window is a part by itself, touching short clips are joined.

    Joined clips that are still too short go to a long neighbour, if that makes one more window.
    """
    groups = [tuple(group) for _, group in groupby(run, key=lambda clip: _count((clip,), length_s) > 0)]
    parts = [part for group in groups for part in ([(c,) for c in group] if _count(group[:1], length_s) else [group])]
    divided: list[tuple[StoredClip, ...]] = []
    for part in parts:
        if divided and (not _count(part, length_s) or not _count(divided[-1], length_s)):
            joined = divided[-1] + part
            if _count(joined, length_s) > _count(divided[-1], length_s) + _count(part, length_s):
                divided[-1] = joined
                continue
        divided.append(part)
    return iter(divided)


def _count(clips: tuple[StoredClip, ...], length_s: float) -> int:
    """Return how many windows fit into touching clips."""
    return math.floor(sum(clip.seconds for clip in clips) / length_s + 1e-6)


def _windows_in(clips: tuple[StoredClip, ...], length_s: float) -> list[Window]:
    return _windows_between(clips, 0.0, sum(clip.seconds for clip in clips), length_s)


def _windows_over_boundaries(clips: tuple[StoredClip, ...], length_s: float, count: int) -> Iterator[Window]:
    whole_s, boundary_s = sum(clip.seconds for clip in clips), 0.0
    for clip in clips[:-1]:
        boundary_s += clip.seconds
        for number in range(count):
            start_s = boundary_s - length_s * (number + 0.5) / count
            if 0 <= start_s <= whole_s - length_s:
                yield Window(clips, start_s, 0.0)
