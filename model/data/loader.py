"""Batches of windows: seeded order, split over ranks and workers, resumable to the sample, decoded off the main thread.

F frames, H W px. An order is a permutation of all windows, of which rank r of R takes every R-th; the position counts samples
over all ranks. So a run that goes on with another number of ranks sees exactly what is left.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from curation import storage
from curation.cameras.camera import from_npz
from model.config import check_frames
from model.control.pluecker import from_origin
from model.data import latents
from model.data.captions import CaptionMix, caption, instruction
from model.data.decode import cover, frames_at
from model.data.poses import Path, chained, unknown
from model.data.runs import Clip, Place, Window, runs, stored_clips, windows

# A data set of which so many samples in a row cannot be read is not damaged here and there, it is gone.
_MOST_LOST = 16


@dataclass(frozen=True)
class DataSettings:
    """What a sample is. size: (width, height) px. fps: of training and of play. camera_none_share: samples without a camera,
    for guidance. cameras: which statuses are believed; a clip with another is trained on without its camera. mirror_share:
    samples that are shown as in a mirror, with their cameras; only where no text says left or right and nothing is written.
    reverse_share: samples that run backwards, with their cameras, since players seldom walk so (Hunyuan-GameCraft, arXiv
    2506.17201); only where no text says what happens and nothing but the camera moves.
    origin_way: how far off a sample's origin may lie, in the data set's unit (0: at its first frame); a stream that has gone on
    for a minute is that far from its own.
    """

    frames: int = 81
    fps: float = 16.0
    size: tuple[int, int] = (832, 480)
    seed: int = 0
    captions: CaptionMix = field(default_factory=CaptionMix)
    camera_none_share: float = 0.1
    cameras: tuple[str, ...] = ("ok", "ok_rotation", "ok_static")
    latents: str = ""
    mirror_share: float = 0.0
    reverse_share: float = 0.0
    origin_way: float = 0.0

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if min(self.size) < 16 or any(side % 16 for side in self.size):
            raise ValueError(f"size must be a multiple of 16 px on both sides, not {self.size[0]}x{self.size[1]}")
        for name in ("mirror_share", "reverse_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name):g}")
            if self.latents and getattr(self, name):
                raise ValueError(f"latents are what they are: {name} must be 0 where latents names a folder")


class Sample(TypedDict):
    """video uint8 [3, F, H, W], or latents f2 [C, T, h, w] and image f2 [4 + C, T, h, w] that were encoded before; pose f4
    [F, 4, 4] relative to the first frame, in the data set's unit; origin f4 [4, 4], from which rays are seen, likewise;
    intrinsics f4 [F, 4] in px of the video; camera_known: see `poses.Path`; instruction: what of the text tells what happens;
    key: the window's; replaced: those that could not be read.
    """

    video: Tensor
    pose: Tensor
    origin: Tensor
    intrinsics: Tensor
    camera_known: bool
    text: str
    instruction: str
    key: str
    replaced: list[str]


class Windows(Dataset[Sample]):
    """All windows of the committed shards of some outputs, by number. An index is (epoch, number): jitter and text change."""

    def __init__(self, outputs: Sequence[str], how: DataSettings) -> None:
        self.how = how
        self.windows: list[Window] = windows(runs(stored_clips(outputs)), how.frames, how.fps)
        if not self.windows:
            raise ValueError(f"no run of touching clips is {how.frames / how.fps:.1f} s long; ask for fewer frames")
        self._latents = self._encoded() if how.latents else None

    def _encoded(self) -> dict[str, Place | None]:
        """Where latents lie; windows that could not be encoded are left out here. ValueError where some are not encoded yet."""
        found, names = latents.places(self.how.latents), [latents.name(window, self.how.frames) for window in self.windows]
        if missing := sum(name not in found for name in names):
            raise ValueError(
                f"{missing} of {len(names)} windows of {self.how.frames} frames are not in {self.how.latents}; "
                "encode them with `gamecraft encode`"
            )
        self.windows = [window for window, name in zip(self.windows, names, strict=True) if found[name] is not None]
        return found

    def _place(self, window: Window) -> Place | None:
        return self._latents[latents.name(window, self.how.frames)] if self._latents is not None else None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """A window; where it cannot be read, one that the seed names in its stead, and `replaced` says so. RuntimeError where
        that goes on for sixteen of them: the shards are gone, and training on what is left would hide it.
        """
        epoch, number = item
        lost: list[str] = []
        others = _rng(self.how.seed, epoch, self.windows[number].key, "instead")
        while len(lost) < _MOST_LOST:
            window = self.windows[number]
            try:
                return read(window, self.how, epoch, self._place(window)) | {"replaced": lost}  # type: ignore[return-value]
            except (OSError, ValueError, KeyError) as error:
                lost.append(f"{window.key}: {error}")
                number = int(others.integers(len(self.windows)))
        raise RuntimeError(f"{_MOST_LOST} samples in a row cannot be read, the last {lost[-1]}; are the shards still there?")


def _rng(seed: int, epoch: int, key: str, what: str) -> np.random.Generator:
    """Draws that belong to a sample, not to the worker or the rank that happens to make it."""
    words = hashlib.sha256(f"{seed}/{epoch}/{key}/{what}".encode()).digest()
    return np.random.default_rng(list(words[:16]))


def read(window: Window, how: DataSettings, epoch: int, encoded: Place | None = None) -> dict[str, Any]:
    """The sample of a window in an epoch, without `replaced`. encoded: where its latents lie; they have no jitter."""
    rng = _rng(how.seed, epoch, window.key, "sample")
    jitter, camera = rng.random(2)
    parts = parts_of(window, how, 0.5 if encoded else jitter)
    shown, stamps = decoded(parts, how) if encoded is None else latents.read(encoded)
    metas = [json.loads(_bytes(clip, "json")) for clip, _ in parts]
    clips, counts = [clip for clip, _ in parts], [len(times_s) for _, times_s in parts]
    believed = camera >= how.camera_none_share
    path = _path(clips, np.split(stamps, np.cumsum(counts)[:-1]), how) if believed else unknown(how.frames)
    stored = metas[0]["stored_width"], metas[0]["stored_height"]
    middle = metas[_middle(counts)]
    text = caption(middle, how.captions, rng)
    sample = {
        **shown,
        "pose": torch.from_numpy(path.pose),
        "intrinsics": torch.from_numpy(cover(stored, how.size).intrinsics(path.intrinsics, stored).astype(np.float32)),
        "camera_known": path.known,
        "text": text,
        "instruction": instruction(middle, text),
        "key": window.key,
    }
    mirrors, reverses = rng.random(2)
    sample = _mirrored(sample) if mirrors < how.mirror_share else sample
    sample = _reversed(sample) if reverses < how.reverse_share else sample
    return {**sample, "origin": torch.from_numpy(_origin(rng, how.origin_way))}


def _origin(rng: np.random.Generator, way: float) -> np.ndarray:
    """A pose somewhere on the ground up to so far away, looking anywhere; the identity for no way."""
    origin = np.eye(4, dtype=np.float32)
    if way:
        yaw, aside, far = rng.random(3) * (2 * np.pi, 2 * np.pi, 1)
        origin[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(yaw), np.sin(yaw), -np.sin(yaw), np.cos(yaw)
        origin[[0, 2], 3] = way * np.sqrt(far) * np.array([np.sin(aside), np.cos(aside)])
    return origin


def _mirrored(sample: dict[str, Any]) -> dict[str, Any]:
    """Left and right exchanged: in the pictures, in the poses (x of both worlds and cameras), in the principal point."""
    other = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    video, inner = sample["video"], sample["intrinsics"].clone()
    if sample["camera_known"]:
        inner[:, 2] = video.shape[3] - inner[:, 2]
    return {**sample, "video": video.flip(3), "pose": other @ sample["pose"] @ other, "intrinsics": inner}


def _reversed(sample: dict[str, Any]) -> dict[str, Any]:
    """Last frame first, poses relative to it."""
    pose = from_origin(sample["pose"].flip(0)[None])[0].float()
    return {**sample, "video": sample["video"].flip(1), "pose": pose, "intrinsics": sample["intrinsics"].flip(0)}


def decoded(parts: Sequence[tuple[Clip, np.ndarray]], how: DataSettings) -> tuple[dict[str, Tensor], np.ndarray]:
    """The video, and when each of its frames came on screen, s from its clip's start."""
    shown = [frames_at(_bytes(clip, "mp4"), times_s, how.size) for clip, times_s in parts]
    pictures = torch.from_numpy(_joined([part for part, _ in shown])).permute(3, 0, 1, 2)
    return {"video": pictures}, np.concatenate([stamps for _, stamps in shown])


def _joined(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return pictures[0] if len(pictures) == 1 else np.concatenate(pictures)


def parts_of(window: Window, how: DataSettings, jitter: float) -> list[tuple[Clip, np.ndarray]]:
    """The window's times by clip, from that clip's start; jitter: how much of the slack is passed over, 0 to 1."""
    times_s = window.start_s + jitter * window.slack_s + np.arange(how.frames) / how.fps
    starts = np.cumsum([0.0, *(clip.seconds for clip in window.run)])
    owner = np.clip(np.searchsorted(starts, times_s + 1e-6, side="right") - 1, 0, len(window.run) - 1)
    return [(window.run[i], times_s[owner == i] - starts[i]) for i in np.unique(owner)]


def _middle(counts: Sequence[int]) -> int:
    return int(np.searchsorted(np.cumsum(counts), sum(counts) // 2, side="right"))


def _path(clips: Sequence[Clip], stamps_s: Sequence[np.ndarray], how: DataSettings) -> Path:
    frames = sum(len(stamps) for stamps in stamps_s)
    if any(clip.camera_status not in how.cameras or clip.place("camera.npz") is None for clip in clips):
        return unknown(frames)
    return chained([from_npz(_bytes(clip, "camera.npz")) for clip in clips], stamps_s)


def _bytes(clip: Clip, extension: str) -> bytes:
    place: Place | None = clip.place(extension)
    if place is None:
        raise KeyError(f"clip {clip.clip_id} has no {extension}")
    return storage.read(place.uri, place.offset, place.size)


@dataclass
class Order(Sampler[tuple[int, int]]):
    """The order of windows for one rank, from a position on. `position` counts samples over all ranks and epochs; it is what a
    checkpoint keeps. Every rank gets as many samples: what is left over at an epoch's end goes to the next.
    """

    count: int
    seed: int
    rank: int = 0
    ranks: int = 1
    position: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank must be from 0 to {self.ranks - 1}, not {self.rank}")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Without end: (epoch, window)."""
        place, epoch, order = self.position + self.rank, -1, np.empty(0, int)
        while True:
            if place // self.count != epoch:
                epoch = place // self.count
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            yield epoch, int(order[place % self.count])
            place += self.ranks


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Tensors stacked, words in lists. A video [B, 3, F, H, W] lies in memory as it was decoded, channels last: one copy, and
    none of a single sample.
    """
    stacked = {name: torch.stack([s[name] for s in samples]) for name in ("pose", "origin", "intrinsics")}
    if "video" in samples[0]:
        videos = [s["video"].permute(1, 2, 3, 0) for s in samples]
        stacked["video"] = (torch.stack(videos) if videos[1:] else videos[0][None]).permute(0, 4, 1, 2, 3)
    else:
        stacked |= {name: torch.stack([s[name] for s in samples]) for name in ("latents", "image")}
    known = {"camera_known": torch.tensor([s["camera_known"] for s in samples])}
    words = {name: [s[name] for s in samples] for name in ("text", "instruction", "key")}
    return {**stacked, **known, **words, "replaced": [key for s in samples for key in s["replaced"]]}


class Batches:
    """Batches for one rank, without end. `state()` after a batch is where to go on; `samples` counts those handed out here."""

    def __init__(self, data: Windows, batch: int, rank: int = 0, ranks: int = 1, workers: int = 2, position: int = 0) -> None:
        self._order = Order(len(data), data.how.seed, rank, ranks, position)
        self._batch = batch
        self.position = position
        keep = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
        self._loader = DataLoader(
            data,
            batch,
            sampler=self._order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            **keep,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for found in self._loader:
            self.position += self._batch * self._order.ranks
            yield found

    def state(self) -> dict[str, int]:
        """For a checkpoint: how many samples all ranks have been given, workers' unfinished ones left out."""
        return {"position": self.position}
