"""Batches of windows: seeded order, split over ranks and workers, resumable to the sample, decoded off the main thread.

F frames, H W px. `data.order` says which window comes when.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curation import storage
from curation.cameras.camera import from_npz
from model.config import check_frames
from model.control.pluecker import from_origin
from model.data import latents
from model.data.captions import CaptionMix, caption, instruction, may_mirror, may_reverse
from model.data.decode import cover, frames_at
from model.data.order import Order, Span, Stock, source_of, taken
from model.data.poses import Path, chained, unknown
from model.data.windows import Clip, Place, Shard, Window, in_order, runs, stored_shards, windows

# A data set of which so many samples in a row cannot be read is not damaged here and there, it is gone.
_MOST_LOST = 16
# Shares are decimal numbers whose sum is 1.
_ROUNDED = 1e-6

# What a source of a run holds, as a checkpoint keeps it: from which epoch on, and the shards, uri by sha256 of the tar.
Listing = Sequence[tuple[int, Mapping[str, str]]]


@dataclass(frozen=True)
class Source:
    """An output of `gamecraft curate` or `synth`, and the share of all samples that come from it."""

    uri: str
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of {self.uri} must be over 0 and at most 1, not {self.share:g}")


@dataclass(frozen=True)
class DataSettings:
    """What a sample is, and where samples come from.

    sources: outputs with their shares; where none are named, all outputs that the command is given are one source, each window
    once an epoch. size: (width, height) px. fps: of training and of play. camera_none_share: samples without a camera, for
    guidance. cameras: which statuses are believed; a clip with another is trained on without its camera. mirror_share: samples
    that are shown as in a mirror, with their cameras; not where the text names a side or something is written
    (`captions.may_mirror`). reverse_share: samples that run backwards, with their cameras, since players seldom walk so
    (Hunyuan-GameCraft, arXiv 2506.17201); not where the text tells motion or time, or something happens
    (`captions.may_reverse`). origin_way: how far off a sample's origin may lie, in the data set's unit (0: at its first frame);
    a stream that has gone on for a minute is that far from its own. latents: a folder of `gamecraft encode`, read in the place
    of videos.
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
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if self.sources and abs((total := sum(source.share for source in self.sources)) - 1) > _ROUNDED:
            raise ValueError(f"shares of sources must add up to 1, not {total:g}")
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
    key: the window's; source: where it comes from; replaced: those that could not be read.
    """

    video: Tensor
    pose: Tensor
    origin: Tensor
    intrinsics: Tensor
    camera_known: bool
    text: str
    instruction: str
    key: str
    source: str
    replaced: list[str]


def sources_of(outputs: Sequence[str], how: DataSettings) -> list[tuple[tuple[str, ...], float]]:
    """What is trained on: outputs that are one source, and its share. ValueError where both or neither say it."""
    if bool(outputs) == bool(how.sources):
        said = "both name outputs" if outputs else "neither names an output"
        raise ValueError(f"--data and data.sources of the recipe: {said}; name them in one place")
    return [(tuple(outputs), 1.0)] if outputs else [((source.uri,), source.share) for source in how.sources]


def stored_in(outputs: Sequence[str], how: DataSettings) -> list[list[Shard]]:
    """The committed shards of each source. ValueError where one has none."""
    return [stored_shards(uris) for uris, _ in sources_of(outputs, how)]


class Windows(Dataset[Sample]):
    """All windows of the committed shards of some outputs, by number. An index is (epoch, number): jitter and text change.

    outputs: one source, or none where the settings name sources. pinned: `listings` of the run that resumes at a position; its
    shards must be there still, and those that are new enter at the next epoch of their source. stored: what `stored_in` gives,
    where that is known. ValueError where shards are not there, or a source has no window.
    """

    def __init__(
        self,
        outputs: Sequence[str],
        how: DataSettings,
        pinned: Sequence[Listing] = (),
        position: int = 0,
        stored: Sequence[Sequence[Shard]] | None = None,
    ) -> None:
        self.how, self.windows = how, list[Window]()
        self._latents = latents.places(how.latents) if how.latents else None
        sources = sources_of(outputs, how)
        self.names = [", ".join(uris) for uris, _ in sources]
        shares = [share for _, share in sources]
        given = taken(position, shares, how.seed)
        parts = zip(shares, stored or stored_in(outputs, how), pinned or [()] * len(shares), given, strict=True)
        found = [self._stock(*part) for part in parts]
        self.stocks: list[Stock] = [stock for stock, _ in found]
        self.listings: list[Listing] = [listing for _, listing in found]

    def _stock(self, share: float, there: Sequence[Shard], listing: Listing, ordinal: int) -> tuple[Stock, Listing]:
        """The windows of a source of which `ordinal` samples have been given, and its shards by epoch."""
        now = {shard.sha256: shard.uri for shard in there}
        listing = list(listing) or [(0, now)]
        _, last = listing[-1]
        if lost := [uri for sha, uri in last.items() if sha not in now]:
            raise ValueError(
                f"{len(lost)} of {len(last)} shards that this run is trained on are gone or changed, {lost[0]} the first; "
                "bring them back, or use another folder"
            )
        stock = Stock(share, tuple(self._span(epoch, [s for s in there if s.sha256 in held]) for epoch, held in listing))
        if len(now) > len(last):
            epoch = stock.next_epoch(ordinal)
            listing = [*(item for item in listing if item[0] < epoch), (epoch, now)]
            kept = (span for span in stock.spans if span.first_epoch < epoch)
            stock = Stock(share, (*kept, self._span(epoch, there)))
        return stock, listing

    def _span(self, epoch: int, held: Sequence[Shard]) -> Span:
        """Number the windows of these shards."""
        frames, start = self.how.frames, len(self.windows)
        found = windows(runs(in_order(held)), frames, self.how.fps)
        if not found:
            where = ", ".join(sorted({shard.uri.rpartition("/shards/")[0] for shard in held}))
            raise ValueError(f"{where}: no run of touching clips is {frames / self.how.fps:.1f} s long; ask for fewer frames")
        self.windows += self._encoded(found) if self._latents is not None else found
        return Span(epoch, start, len(self.windows) - start)

    def _encoded(self, found: Sequence[Window]) -> list[Window]:
        """Those that were encoded; what could not be is left out. ValueError where some are not encoded yet, or none can be."""
        assert self._latents is not None
        names, folder = [latents.name(window, self.how.frames) for window in found], self.how.latents
        if missing := sum(name not in self._latents for name in names):
            raise ValueError(
                f"{missing} of {len(names)} windows of {self.how.frames} frames are not in {folder}; "
                "encode them with `gamecraft encode`"
            )
        kept = [window for window, name in zip(found, names, strict=True) if self._latents[name] is not None]
        if not kept:
            raise ValueError(f"none of {len(names)} windows of {self.how.frames} frames could be encoded; {folder} says why")
        return kept

    def _place(self, window: Window) -> Place | None:
        return self._latents[latents.name(window, self.how.frames)] if self._latents is not None else None

    @property
    def counts(self) -> dict[str, int]:
        """How many windows each source has, by its name, in the newest of its epochs."""
        return {name: stock.spans[-1].length for name, stock in zip(self.names, self.stocks, strict=True)}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """A window; where it cannot be read, one of its source that the seed names instead, and `replaced` says so.

        RuntimeError where sixteen in a row cannot be: the shards are gone, and training on what is left would hide it.
        """
        epoch, number = item
        lost: list[str] = []
        source, span = source_of(self.stocks, number)
        others = _rng(self.how.seed, epoch, self.windows[number].key, "instead")
        while len(lost) < _MOST_LOST:
            window = self.windows[number]
            try:
                sample = read(window, self.how, epoch, self._place(window))
                return sample | {"source": self.names[source], "replaced": lost}  # type: ignore[return-value]
            except (OSError, ValueError, KeyError) as error:
                lost.append(f"{window.key}: {error}")
                number = span.start + int(others.integers(span.length))
        raise RuntimeError(f"{_MOST_LOST} samples in a row cannot be read, the last {lost[-1]}; are the shards still there?")


def _rng(seed: int, epoch: int, key: str, what: str) -> np.random.Generator:
    """Draws that belong to a sample, not to the worker or the rank that happens to make it."""
    words = hashlib.sha256(f"{seed}/{epoch}/{key}/{what}".encode()).digest()
    return np.random.default_rng(list(words[:16]))


def read(window: Window, how: DataSettings, epoch: int, encoded: Place | None = None) -> dict[str, Any]:
    """The sample of a window in an epoch, without `source` and `replaced`.

    encoded: where its latents lie; they have no jitter.
    """
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
    if mirrors < how.mirror_share and may_mirror(text, metas):
        sample = _mirrored(sample)
    if reverses < how.reverse_share and may_reverse(text, metas):
        sample = _reversed(sample)
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
    words = {name: [s[name] for s in samples] for name in ("text", "instruction", "key", "source")}
    return {**stacked, **known, **words, "replaced": [key for s in samples for key in s["replaced"]]}


class Batches:
    """Batches for one rank, without end. `state()` after a batch is where to go on; `samples` counts those handed out here."""

    def __init__(self, data: Windows, batch: int, rank: int = 0, ranks: int = 1, workers: int = 2, position: int = 0) -> None:
        self._order = Order(data.stocks, data.how.seed, rank, ranks, position)
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
