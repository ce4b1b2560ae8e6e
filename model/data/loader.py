"""Batches of windows: in seeded order, split over ranks and workers, resumable to the sample, decoded in worker processes.

F frames, H W px. `data.order` decides which window comes when.
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
from curation.cameras.camera import PART, from_npz
from curation.errors import InputError
from model.config import check_frames
from model.control.pluecker import relative_to_origin
from model.data import latents
from model.data.captions import CaptionMix, caption, instruction, may_mirror, may_reverse
from model.data.decode import covering_crop, frames_at
from model.data.order import Order, SourceSchedule, WindowSpan, samples_by_source, source_of
from model.data.poses import CameraPath, chain_cameras, no_camera, span_around
from model.data.windows import ByteRange, StoredClip, StoredShard, Window, clips_in_order, stored_shards, touching_runs, windows

# If this many samples in a row cannot be read, the data set is not damaged in places but gone.
_MAX_UNREADABLE = 16
# Tolerance for the sum of shares, which are decimal numbers.
_SHARE_TOLERANCE = 1e-6

# The shards of a source as a checkpoint stores them: the epoch from which on they are used, and uri by sha256 of the tar.
Listing = Sequence[tuple[int, Mapping[str, str]]]


@dataclass(frozen=True)
class DataSource:
    """An output to train on, with its share of the samples."""

    uri: str  # output folder of `gamecraft curate` or `gamecraft synth`
    share: float  # share of all samples that come from this output

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of {self.uri} must be over 0 and at most 1, not {self.share:g}")


@dataclass(frozen=True)
class DataSettings:
    """What a sample is, and where samples come from."""

    frames: int = 81  # frames of a sample, 1 + 4k; in training the phase of the curriculum sets it
    fps: float = 16.0  # frame rate of training and of play
    size: tuple[int, int] = (832, 480)  # width and height, px; multiples of 16
    seed: int = 0  # seed of the order of windows, and of the random choices for each sample
    captions: CaptionMix = field(default_factory=CaptionMix)
    camera_dropout: float = 0.1  # share of samples without a camera, for guidance
    # camera statuses that are believed; a clip with another status is trained on without its camera. With ok_part, windows are
    # drawn inside the camera spans of a clip first, and have no camera where they leave them.
    cameras: tuple[str, ...] = ("ok", "ok_rotation", "ok_static", "ok_part")
    latents: str = ""  # folder made by `gamecraft encode`, which is read instead of the videos; empty: read the videos
    # share of samples that are mirrored, with their cameras; never where the text names a side or the picture contains writing
    # (`captions.may_mirror`)
    mirror_share: float = 0.0
    # share of samples that run backwards, with their cameras, since players seldom walk backwards (Hunyuan-GameCraft, arXiv
    # 2506.17201); never where the text names motion or time, or an interaction happens (`captions.may_reverse`)
    reverse_share: float = 0.0
    # largest distance of a sample's origin from its first frame, in the data set's unit (0: the origin is the first frame); a
    # stream that has been played for a minute is that far from its own origin
    max_origin_distance: float = 0.0
    # whether windows cross from one clip into the touching next one, so that samples show how what the text says begins; false:
    # a window stays inside one clip where it can
    join_clips: bool = False
    # with join_clips: this many windows more over each boundary between clips, where events begin
    at_boundaries: int = 0
    # outputs with their shares; empty: all outputs given on the command line are one source, each window once an epoch
    sources: tuple[DataSource, ...] = ()

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if self.sources and abs((total := sum(source.share for source in self.sources)) - 1) > _SHARE_TOLERANCE:
            raise ValueError(f"shares of sources must add up to 1, not {total:g}")
        if min(self.size) < 16 or any(side % 16 for side in self.size):
            raise ValueError(f"size must be a multiple of 16 px on both sides, not {self.size[0]}x{self.size[1]}")
        if self.at_boundaries < 0 or (self.at_boundaries and not self.join_clips):
            raise ValueError(f"at_boundaries must not be negative, and needs join_clips, not {self.at_boundaries}")
        for name in ("mirror_share", "reverse_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name):g}")
            if self.latents and getattr(self, name):
                raise ValueError(f"stored latents cannot be changed: {name} must be 0 where latents names a folder")


class TrainingSample(TypedDict):
    """One sample. Instead of `video`, a sample that was encoded before has `latents` f2 [C, T, h, w] and `image` f2
    [4 + C, T, h, w].
    """

    video: Tensor  # uint8 [3, F, H, W]
    pose: Tensor  # f4 [F, 4, 4], relative to the first frame, in the data set's unit
    origin: Tensor  # f4 [4, 4], from which rays are seen, likewise
    intrinsics: Tensor  # f4 [F, 4], px of the video
    camera_known: bool  # see `poses.CameraPath`
    text: str
    instruction: str  # the part of the text that says what happens
    spans: list[tuple[int, str]]  # the text of each clip that the window spans, from a frame on
    key: str  # of the window
    source: str  # name of the source
    replaced: list[str]  # windows that could not be read before this one, with the reasons


def sources_of(outputs: Sequence[str], settings: DataSettings) -> list[tuple[tuple[str, ...], float]]:
    """Return the outputs and the share of each source. InputError where arguments and settings both or neither name outputs."""
    if bool(outputs) == bool(settings.sources):
        conflict = "both name outputs" if outputs else "neither names an output"
        raise InputError(f"--data and data.sources of the recipe: {conflict}; name them in one place")
    return [(tuple(outputs), 1.0)] if outputs else [((source.uri,), source.share) for source in settings.sources]


def shards_by_source(outputs: Sequence[str], settings: DataSettings) -> list[list[StoredShard]]:
    """Return the committed shards of each source. InputError where a source has none."""
    return [stored_shards(uris) for uris, _ in sources_of(outputs, settings)]


class Windows(Dataset[TrainingSample]):
    """All windows of the committed shards of some outputs, by number. An index is (epoch, number): jitter and text differ."""

    def __init__(
        self,
        outputs: Sequence[str],
        settings: DataSettings,
        listings: Sequence[Listing] = (),
        position: int = 0,
        shards: Sequence[Sequence[StoredShard]] | None = None,
    ) -> None:
        """outputs: those of one source, or none where the settings name sources.

        listings: `listings` of the run that resumes at `position`. Its shards must still exist; new ones enter at the next
        epoch of their source. shards: the result of `shards_by_source`, where it is known already. InputError where shards are
        missing, or a source has no window.
        """
        self.settings, self.windows = settings, list[Window]()
        self._latents = latents.locations(settings.latents) if settings.latents else None
        sources = sources_of(outputs, settings)
        self.names = [", ".join(uris) for uris, _ in sources]
        shares = [share for _, share in sources]
        ordinals = samples_by_source(position, shares, settings.seed)
        shards = shards or shards_by_source(outputs, settings)
        parts = zip(shares, shards, listings or [()] * len(shares), ordinals, strict=True)
        schedules = [self._schedule(*part) for part in parts]
        self.schedules: list[SourceSchedule] = [schedule for schedule, _ in schedules]
        self.listings: list[Listing] = [listing for _, listing in schedules]

    def _schedule(
        self, share: float, shards: Sequence[StoredShard], listing: Listing, ordinal: int
    ) -> tuple[SourceSchedule, Listing]:
        """Return the windows of a source that has given `ordinal` samples so far, and its shards by epoch."""
        uris = {shard.sha256: shard.uri for shard in shards}
        listing = list(listing) or [(0, uris)]
        _, last = listing[-1]
        if lost := [uri for sha, uri in last.items() if sha not in uris]:
            raise InputError(
                f"{len(lost)} of {len(last)} shards that this run is trained on are gone or changed, the first {lost[0]}; "
                "bring them back, or use another folder"
            )
        spans = (self._span(epoch, [s for s in shards if s.sha256 in listed]) for epoch, listed in listing)
        schedule = SourceSchedule(share, tuple(spans))
        if len(uris) > len(last):
            epoch = schedule.next_epoch(ordinal)
            listing = [*(item for item in listing if item[0] < epoch), (epoch, uris)]
            earlier = (span for span in schedule.spans if span.first_epoch < epoch)
            schedule = SourceSchedule(share, (*earlier, self._span(epoch, shards)))
        return schedule, listing

    def _span(self, epoch: int, shards: Sequence[StoredShard]) -> WindowSpan:
        """Number the windows of these shards."""
        settings, start = self.settings, len(self.windows)
        frames, runs = settings.frames, touching_runs(clips_in_order(shards))
        in_spans = PART in settings.cameras
        new = windows(runs, frames, settings.fps, settings.join_clips, settings.at_boundaries, in_spans)
        if not new:
            where = ", ".join(sorted({shard.uri.rpartition("/shards/")[0] for shard in shards}))
            seconds = frames / self.settings.fps
            raise InputError(f"{where}: no run of touching clips is {seconds:.1f} s long; use fewer frames")
        self.windows += self._keep_encoded(new) if self._latents is not None else new
        return WindowSpan(epoch, start, len(self.windows) - start)

    def _keep_encoded(self, wanted: Sequence[Window]) -> list[Window]:
        """Return the windows that have latents, without those that could not be encoded.

        InputError where some are not encoded yet, or none could be.
        """
        assert self._latents is not None
        frames, folder = self.settings.frames, self.settings.latents
        names = [latents.window_name(window, frames) for window in wanted]
        if missing := sum(name not in self._latents for name in names):
            raise InputError(
                f"{missing} of {len(names)} windows of {frames} frames are not in {folder}; encode them with `gamecraft encode`"
            )
        encoded = [window for window, name in zip(wanted, names, strict=True) if self._latents[name] is not None]
        if not encoded:
            raise InputError(f"none of {len(names)} windows of {frames} frames could be encoded; see the reasons in {folder}")
        return encoded

    def _location(self, window: Window) -> ByteRange | None:
        return self._latents[latents.window_name(window, self.settings.frames)] if self._latents is not None else None

    @property
    def counts(self) -> dict[str, int]:
        """Number of windows of each source, by its name, in the newest of its epochs."""
        return {name: schedule.spans[-1].length for name, schedule in zip(self.names, self.schedules, strict=True)}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: tuple[int, int]) -> TrainingSample:
        """Read a window. One that cannot be read is replaced by a window of its source that the seed selects (`replaced`).

        RuntimeError where sixteen in a row cannot be read: the shards are gone, and training on the rest would hide that.
        """
        epoch, number = item
        unreadable: list[str] = []
        source, span = source_of(self.schedules, number)
        replacements = _rng(self.settings.seed, epoch, self.windows[number].key, "instead")
        while len(unreadable) < _MAX_UNREADABLE:
            window = self.windows[number]
            try:
                sample = read_sample(window, self.settings, epoch, self._location(window))
                return sample | {"source": self.names[source], "replaced": unreadable}  # type: ignore[return-value]
            except (OSError, ValueError, KeyError) as error:
                unreadable.append(f"{window.key}: {error}")
                number = span.start + int(replacements.integers(span.length))
        raise RuntimeError(
            f"{_MAX_UNREADABLE} samples in a row cannot be read, the last {unreadable[-1]}; are the shards still there?"
        )


def _rng(seed: int, epoch: int, key: str, purpose: str) -> np.random.Generator:
    """Return a generator that depends on the sample only, not on the worker or rank that reads it."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}/{purpose}".encode()).digest()
    return np.random.default_rng(list(digest[:16]))


def read_sample(window: Window, settings: DataSettings, epoch: int, location: ByteRange | None = None) -> dict[str, Any]:
    """Read the sample of a window in an epoch, without `source` and `replaced`.

    location: of its stored latents, which have no jitter; None: decode the video.
    """
    rng = _rng(settings.seed, epoch, window.key, "sample")
    jitter, camera = rng.random(2)
    parts = times_by_clip(window, settings, 0.5 if location else jitter)
    tensors, stamps = decode_window(parts, settings) if location is None else latents.read(location)
    metas = [json.loads(_read_member(clip, "json")) for clip, _ in parts]
    clips, counts = [clip for clip, _ in parts], [len(times_s) for _, times_s in parts]
    with_camera = camera >= settings.camera_dropout
    stamps_by_clip = np.split(stamps, np.cumsum(counts)[:-1])
    path = _camera_path(clips, stamps_by_clip, settings) if with_camera else no_camera(settings.frames)
    stored = metas[0]["stored_width"], metas[0]["stored_height"]
    intrinsics = covering_crop(stored, settings.size).intrinsics(path.intrinsics, stored).astype(np.float32)
    middle = metas[_middle_clip(counts)]
    draws = rng.random(2)
    text = caption(middle, settings.captions, *draws)
    first_frames = np.cumsum([0, *counts[:-1]])
    spans = [(int(first), caption(meta, settings.captions, *draws)) for first, meta in zip(first_frames, metas, strict=True)]
    sample = {
        **tensors,
        "pose": torch.from_numpy(path.pose),
        "intrinsics": torch.from_numpy(intrinsics),
        "camera_known": path.known,
        "text": text,
        "instruction": instruction(middle, text),
        "spans": spans,
        "key": window.key,
    }
    mirror, backwards = rng.random(2)
    if mirror < settings.mirror_share and may_mirror(text, metas):
        sample = _mirror(sample)
    if backwards < settings.reverse_share and may_reverse(text, metas):
        sample = _reverse(sample)
    return {**sample, "origin": torch.from_numpy(_draw_origin(rng, settings.max_origin_distance))}


def _draw_origin(rng: np.random.Generator, max_distance: float) -> np.ndarray:
    """Draw a pose on the ground up to a distance away, looking in any direction; the identity for a distance of 0."""
    origin = np.eye(4, dtype=np.float32)
    if max_distance:
        yaw, bearing, area = rng.random(3) * (2 * np.pi, 2 * np.pi, 1)
        origin[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(yaw), np.sin(yaw), -np.sin(yaw), np.cos(yaw)
        origin[[0, 2], 3] = max_distance * np.sqrt(area) * np.array([np.sin(bearing), np.cos(bearing)])
    return origin


def _mirror(sample: dict[str, Any]) -> dict[str, Any]:
    """Exchange left and right: in the pictures, in the poses (x of world and camera), and in the principal point."""
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    video, intrinsics = sample["video"], sample["intrinsics"].clone()
    if sample["camera_known"]:
        intrinsics[:, 2] = video.shape[3] - intrinsics[:, 2]
    return {**sample, "video": video.flip(3), "pose": flip @ sample["pose"] @ flip, "intrinsics": intrinsics}


def _reverse(sample: dict[str, Any]) -> dict[str, Any]:
    """Put the last frame first, with poses relative to it."""
    ends = [first for first, _ in sample["spans"][1:]] + [len(sample["pose"])]
    spans = [(len(sample["pose"]) - end, text) for end, (_, text) in zip(ends, sample["spans"], strict=True)][::-1]
    pose = relative_to_origin(sample["pose"].flip(0)[None])[0].float()
    return {
        **sample,
        "video": sample["video"].flip(1),
        "pose": pose,
        "intrinsics": sample["intrinsics"].flip(0),
        "spans": spans,
    }


def decode_window(
    parts: Sequence[tuple[StoredClip, np.ndarray]], settings: DataSettings
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Return the video of a window, and when each of its frames came on screen, s from the start of its clip."""
    decoded = [frames_at(_read_member(clip, "mp4"), times_s, settings.size) for clip, times_s in parts]
    pictures = torch.from_numpy(_concatenate([part for part, _ in decoded])).permute(3, 0, 1, 2)
    return {"video": pictures}, np.concatenate([stamps for _, stamps in decoded])


def _concatenate(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Join arrays, without a copy of a single one."""
    return pictures[0] if len(pictures) == 1 else np.concatenate(pictures)


def times_by_clip(window: Window, settings: DataSettings, jitter: float) -> list[tuple[StoredClip, np.ndarray]]:
    """Return the times of a window's frames by clip, from the start of that clip.

    jitter: how much of the slack the window is shifted by, 0 to 1.
    """
    times_s = window.start_s + jitter * window.slack_s + np.arange(settings.frames) / settings.fps
    starts = np.cumsum([0.0, *(clip.seconds for clip in window.clips)])
    clip_of_frame = np.clip(np.searchsorted(starts, times_s + 1e-6, side="right") - 1, 0, len(window.clips) - 1)
    return [(window.clips[i], times_s[clip_of_frame == i] - starts[i]) for i in np.unique(clip_of_frame)]


def _middle_clip(counts: Sequence[int]) -> int:
    """Return the number of the clip that has a window's middle frame."""
    return int(np.searchsorted(np.cumsum(counts), sum(counts) // 2, side="right"))


def _camera_path(clips: Sequence[StoredClip], stamps_s: Sequence[np.ndarray], settings: DataSettings) -> CameraPath:
    frames = sum(len(stamps) for stamps in stamps_s)
    if any(clip.camera_status not in settings.cameras or clip.member("camera.npz") is None for clip in clips):
        return no_camera(frames)
    cameras = [from_npz(_read_member(clip, "camera.npz")) for clip in clips]
    for k, clip in enumerate(clips):
        if clip.camera_status == PART:
            span = span_around(cameras[k], stamps_s[k])
            if span is None or (k and span.start) or (k + 1 < len(clips) and span.end < len(cameras[k].times_s)):
                return no_camera(frames)
            cameras[k] = cameras[k].cut(span)
    return chain_cameras(cameras, stamps_s)


def _read_member(clip: StoredClip, extension: str) -> bytes:
    location = clip.member(extension)
    if location is None:
        raise KeyError(f"clip {clip.clip_id} has no {extension}")
    return storage.read(*location)


def collate(samples: list[TrainingSample]) -> dict[str, Any]:
    """Make a batch: tensors are stacked, other values are lists.

    A video [B, 3, F, H, W] stays channels-last in memory, as it was decoded: stacking takes one copy, a single sample none.
    """
    stacked = {name: torch.stack([s[name] for s in samples]) for name in ("pose", "origin", "intrinsics")}
    if "video" in samples[0]:
        videos = [s["video"].permute(1, 2, 3, 0) for s in samples]
        stacked["video"] = (torch.stack(videos) if videos[1:] else videos[0][None]).permute(0, 4, 1, 2, 3)
    else:
        stacked |= {name: torch.stack([s[name] for s in samples]) for name in ("latents", "image")}
    known = {"camera_known": torch.tensor([s["camera_known"] for s in samples])}
    texts = {name: [s[name] for s in samples] for name in ("text", "instruction", "spans", "key", "source")}
    return {**stacked, **known, **texts, "replaced": [reason for s in samples for reason in s["replaced"]]}


class Batches:
    """Batches for one rank, without end.

    `position` is what a checkpoint stores: the number of samples given to all ranks, without those that workers have prepared.
    """

    def __init__(self, data: Windows, batch: int, rank: int = 0, ranks: int = 1, workers: int = 2, position: int = 0) -> None:
        self._order = Order(data.schedules, data.settings.seed, rank, ranks, position)
        self._batch = batch
        self.position = position
        worker_options = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
        self._loader = DataLoader(
            data,
            batch,
            sampler=self._order,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            **worker_options,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._loader:
            self.position += self._batch * self._order.ranks
            yield batch
