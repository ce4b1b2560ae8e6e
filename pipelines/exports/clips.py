"""The clips of an output's shards, as the exports read them."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from curation import scratch, shards, storage
from curation.cameras.camera import Camera, from_npz
from curation.errors import InputError
from curation.media.decode import Span
from curation.media.encode import Encoding, encode
from curation.schema import Row
from curation.shard_reader import decode_video
from curation.shards import Sample

# Captions in the order in which one is taken: by a model about the whole clip, else what was asked of a synthetic clip.
_CAPTIONS = ("caption_long", "caption_short", "instruction")
# Frames this close to a grid of one rate are on it: times of stored frames are rounded to 1 / 90000 s.
_ON_GRID_S = 5e-4


@dataclass(frozen=True)
class Video:
    """A clip's mp4, and the time of each frame in seconds; no times where it is as stored."""

    mp4: bytes
    times_s: np.ndarray


@dataclass
class Exported:
    """What an export wrote, and how many clips it left out, by reason."""

    clips: int
    left_out: dict[str, int]


def read_clips(out: str) -> Iterator[Sample]:
    """Yield the clips of all committed shards, in order. InputError where there is none."""
    out = storage.normal(out)
    shards.read_dataset(out)  # refuses other schema versions
    names = shards.list_committed(out)
    if not names:
        raise InputError(f"no committed shard in {out}; make some with `gamecraft curate`")
    for name in names:
        yield from shards.read_samples(out, name)


def caption_of(meta: Row | Any) -> str | None:
    """Return a clip's caption, the longest there is, on one line."""
    text = next((meta[name] for name in _CAPTIONS if meta.get(name)), None)
    return " ".join(text.split()) if text else None


def camera_of(sample: Sample) -> Camera | None:
    data = sample.members.get("camera.npz")
    return from_npz(data) if data else None


def video_at(sample: Sample, fps: float | None) -> Video:
    """Return a clip's video at one rate, encoded again only where its frames are at other times. None: as it is stored."""
    mp4 = sample.members["mp4"]
    times_s = decode_video(mp4)[1] if fps else np.empty(0)
    if fps is None or _is_on_grid(times_s, fps):
        return Video(mp4, times_s)
    stored = sample.meta.get("encoding", {})
    encoding = replace(Encoding(fps=fps), max_width=1 << 14, max_height=1 << 14, crf=min(18, stored.get("crf", 20)))
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        path = os.path.join(folder, "clip.mp4")
        Path(path).write_bytes(mp4)
        step_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 1 / fps
        encoded = encode(path, Span(0.0, float(times_s[-1]) + step_s), None, encoding)
    return Video(encoded.mp4, encoded.times_s)


def _is_on_grid(times_s: np.ndarray, fps: float) -> bool:
    return bool(np.all(np.abs(times_s - np.arange(len(times_s)) / fps) <= _ON_GRID_S))


class Target:
    """The folder or s3:// prefix of an export. Files of metadata come last: they say that the export is whole."""

    def __init__(self, uri: str, metadata: str) -> None:
        self.uri = storage.normal(uri)
        if storage.exists(storage.join(self.uri, metadata)):
            raise InputError(f"{uri}: holds an export already ({metadata}); name another folder")

    def put(self, name: str, data: bytes) -> None:
        storage.put(storage.join(self.uri, name), data)
