"""Near-duplicates: clips whose pictures another video shows too, in the same order: a re-encode, another size or rate.

Clips are found by shared keys of their fingerprints and compared by their hashes over time. The cost is linear in clips: keys
are sorted on disk, and an entry is paired with few others of its key, however many there are. A clip needs motion: what
stands still (a menu, a black screen, a wait at the start of a map) looks alike in different recordings.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curation.partition.fingerprint import FLAT, KEYS, Fingerprint, distance

# Keys are sorted in this many parts by their first bits, so that few of them are in memory.
_PARTS = 64
_KEY_BITS = 28
# An entry is paired with the first entries of its key in order, and the one before it.
_PARTNERS = 4
# A pair of a clip and a video is compared from this many shared keys. Two frames that look alike may share one.
_MIN_SHARED = 2
# Hashes of one moment differ in at most so many of their 64 bits between copies; those of unrelated pictures in 32 +- 4.
_MAX_BITS = 11
# s, how far apart moments may be: samples of another frame rate or speed fall between those of the original.
_WITHIN_S = 0.15
# A moment counts as far as the view changed since the sample before: in full from so many bits.
_FULL_STEP_BITS = 8.0
# A clip with less motion than this many full steps is not compared.
_MIN_MOTION = 4.0
# Speeds of a copy that are tried, the smallest change first, and s, the width of the bins in which offsets are counted.
_SPEEDS = np.array(sorted(np.geomspace(0.5, 2.0, 57), key=lambda speed: abs(np.log(speed))))
_OFFSET_BIN_S = 0.2
# s before and after the clip with most shared keys: how much of the other video is compared, beyond the clip's own length.
_MARGIN_S = 8.0
_BLOCK = 1 << 20


@dataclass(frozen=True)
class DuplicateSettings:
    """What is done about a clip that repeats a clip of another video."""

    action: str = (
        "flag"  # off: clips are not compared; flag: the ledger says of which clip it is a copy; reject: it is dropped too
    )
    min_similarity: float = (
        0.75  # share 0-1 of a clip's motion that the other video must show; docs/benchmarks.md has the rates
    )

    def __post_init__(self) -> None:
        if self.action not in ("off", "flag", "reject"):
            raise ValueError(f"action must be off, flag or reject, not {self.action!r}")
        if not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity must be over 0 and at most 1, not {self.min_similarity:g}")


class Clip(NamedTuple):
    """A clip to be compared. order: the clip of least order among copies stays; ties are decided by the position."""

    start_s: float
    end_s: float
    order: tuple[int, ...]


class Copy(NamedTuple):
    """A clip that shows what another video shows. Clips are numbered in the order in which they were added."""

    clip: int
    original: int
    similarity: float  # 0 to 1: the share of its moving moments that are in clips of that video which stay


@dataclass
class _Columns:
    """What is known of every clip."""

    video: np.ndarray  # int32 [C]
    start_s: np.ndarray
    end_s: np.ndarray
    rank: np.ndarray  # int64 [C]: 0 for the clip that stays in any case


class Index:
    """Clips with fingerprints, videos one after the other. Hashes and keys lie in a folder, which must be empty."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._files: dict[str, Any] = {}
        # Arrays: as lists of Python's objects they would take seven times as much memory.
        self._video, self._start_s, self._end_s = array("i"), array("d"), array("d")
        self._order, self._orders = array("i"), dict[tuple[int, ...], int]()  # the number of each clip's order; few differ
        self._first_hash = array("q", [0])

    def add(self, video: Fingerprint, clips: Sequence[Clip]) -> None:
        """Add a video with its clips, in order of time."""
        number, first = len(self._first_hash) - 1, len(self._video)
        self._append("hashes", video.hashes.astype(np.uint64))
        self._append("times", video.times_s.astype(np.float32))
        self._first_hash.append(self._first_hash[-1] + len(video.hashes))
        for clip in clips:
            self._video.append(number)
            self._start_s.append(clip.start_s)
            self._end_s.append(clip.end_s)
            self._order.append(self._orders.setdefault(clip.order, len(self._orders)))
        owner = _owners(video.times_s[video.key_frame], [clip.start_s for clip in clips], [clip.end_s for clip in clips])
        keys, owners = video.keys[owner >= 0], owner[owner >= 0] + first
        tables = np.arange(KEYS, dtype=np.uint64) << np.uint64(_KEY_BITS)
        entries = np.stack([(keys.astype(np.uint64) | tables).ravel(), np.repeat(owners, KEYS).astype(np.uint64)], axis=1)
        parts = (entries[:, 0] >> np.uint64(_KEY_BITS - 6)) % np.uint64(_PARTS)
        for part in np.unique(parts):
            self._append(f"keys-{part}", entries[parts == part])

    def _append(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        self._files[name].write(np.ascontiguousarray(values).tobytes())

    def copies(self, min_similarity: float) -> list[Copy]:
        """Return the clips that repeat a clip that stays, in order of their numbers. It depends only on what was added."""
        for file in self._files.values():
            file.close()
        columns = self._columns()
        if not len(columns.video) or not self._first_hash[-1]:
            return []
        hashes = np.memmap(self._folder / "hashes", np.uint64, "r")
        times_s = np.memmap(self._folder / "times", np.float32, "r")
        first_clip = np.searchsorted(columns.video, np.arange(len(self._first_hash)))
        found: list[Copy] = []
        is_copy = np.zeros(len(columns.video), bool)
        for clip, originals in _candidates(self._shared_keys(columns), columns):
            sides = []
            for number in (clip, *originals):
                video = columns.video[number]
                window = slice(self._first_hash[video], self._first_hash[video + 1])
                sides.append((times_s[window], hashes[window]))
            for original, (video_times_s, video_hashes) in zip(originals, sides[1:], strict=True):
                video = columns.video[original]
                clips = slice(first_clip[video], first_clip[video + 1])
                found_in = _shared_moments(clip, original, columns, sides[0], (video_times_s, video_hashes), clips)
                stays = {c: share for c, share in found_in.items() if columns.rank[c] < columns.rank[clip] and not is_copy[c]}
                if stays and (similarity := min(1.0, sum(stays.values()))) >= min_similarity:
                    is_copy[clip] = True
                    found.append(Copy(clip, max(stays, key=lambda c: (stays[c], -columns.rank[c])), float(similarity)))
                    break
        return sorted(found)

    def _columns(self) -> _Columns:
        place = np.empty(len(self._orders), np.int64)
        place[[number for _, number in sorted(self._orders.items())]] = np.arange(len(self._orders))
        rank = np.empty(len(self._order), np.int64)
        rank[np.argsort(place[np.array(self._order)], kind="stable")] = np.arange(len(self._order))
        return _Columns(np.array(self._video, np.int32), np.array(self._start_s), np.array(self._end_s), rank)

    def _shared_keys(self, columns: _Columns) -> Iterator[np.ndarray]:
        """Yield pairs of clips of different videos that share a key, int64 [P, 2], the one that stays first."""
        for part in range(_PARTS):
            path = self._folder / f"keys-{part}"
            if not path.exists():
                continue
            entries = np.fromfile(path, np.uint64).reshape(-1, 2)
            clips = entries[:, 1].astype(np.int64)
            order = np.lexsort((columns.rank[clips], entries[:, 0]))
            yield from _pairs_of_keys(entries[order, 0], clips[order], columns.video)


def _owners(times_s: np.ndarray, starts_s: Sequence[float] | np.ndarray, ends_s: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return in which of some spans each time is, -1 for none."""
    if not len(starts_s):
        return np.full(len(times_s), -1)
    at = np.searchsorted(np.array(starts_s), times_s, "right") - 1
    return np.where((at >= 0) & (times_s < np.array(ends_s)[np.maximum(at, 0)]), at, -1)


def _pairs_of_keys(keys: np.ndarray, clips: np.ndarray, video: np.ndarray) -> Iterator[np.ndarray]:
    """Pair each entry with the first few of its key, and with the one before it. Entries are in order of key and rank."""
    position = np.arange(len(keys))
    is_first = np.concatenate([[True], keys[1:] != keys[:-1]])
    first = np.maximum.accumulate(np.where(is_first, position, 0))
    partners = [first + number for number in range(_PARTNERS)] + [position - 1]
    for number, partner in enumerate(partners):
        lowest = first + (_PARTNERS if number == _PARTNERS else 0)  # the one before it, unless it is among the first few
        valid = (partner < position) & (partner >= lowest)
        pairs = np.stack([clips[partner[valid]], clips[position[valid]]], axis=1)
        yield pairs[video[pairs[:, 0]] != video[pairs[:, 1]]]


def _candidates(shared: Iterator[np.ndarray], columns: _Columns) -> Iterator[tuple[int, list[int]]]:
    """Yield each clip with the clips of other videos that share most keys with it, one a video, all in order of rank."""
    pairs = np.concatenate([np.empty((0, 2), np.int64), *shared])
    # Of millions of clips many share a key by chance, and few share two with one video.
    _, group, size = np.unique((pairs[:, 1] << 32) | columns.video[pairs[:, 0]], return_inverse=True, return_counts=True)
    pairs = pairs[size[group] >= _MIN_SHARED]
    if not len(pairs):
        return
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    best: dict[int, dict[int, tuple[int, int, int]]] = defaultdict(dict)
    for (original, clip), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        video = int(columns.video[original])
        total, most, known = best[clip].get(video, (0, 0, original))
        better = count > most or (count == most and columns.rank[original] < columns.rank[known])
        best[clip][video] = (total + count, max(count, most), original if better else known)
    _add_neighbours(best, columns)
    for clip in sorted(best, key=lambda number: columns.rank[number]):
        originals = [original for total, _, original in best[clip].values() if total >= _MIN_SHARED]
        if originals:
            yield clip, sorted(originals, key=lambda number: columns.rank[number])


def _add_neighbours(best: dict[int, dict[int, tuple[int, int, int]]], columns: _Columns) -> None:
    """Compare the clips next to a pair with each other too: a clip that moves fast may share no key with its copy."""
    last = len(columns.video) - 1
    pairs = [(clip, video, item[2]) for clip, items in best.items() for video, item in items.items() if item[0] >= _MIN_SHARED]
    for clip, video, original in sorted(pairs):
        for step in (-1, 1):
            neighbour, other = clip + step, min(max(original + step, 0), last)
            if 0 <= neighbour <= last and columns.video[neighbour] == columns.video[clip]:
                nearest = other if columns.video[other] == video else original
                if best[neighbour].get(video, (0, 0, 0))[0] < _MIN_SHARED:
                    best[neighbour][video] = _MIN_SHARED, 0, nearest


Hashes = tuple[np.ndarray, np.ndarray]
"""Times in seconds and hashes of a video, in order."""


def _shared_moments(clip: int, original: int, columns: _Columns, own: Hashes, other: Hashes, clips: slice) -> dict[int, float]:
    """Return the share of a clip's moving moments that each clip of another video shows, around the clip `original`."""
    start_s, end_s = columns.start_s[clip], columns.end_s[clip]
    margin_s = 2 * (end_s - start_s) + _MARGIN_S
    times_s, hashes = _between(own, start_s, end_s)
    other_s, other_hashes = _between(other, columns.start_s[original] - margin_s, columns.end_s[original] + margin_s)
    weights = _motion(hashes)
    if weights.sum() < _MIN_MOTION or not len(other_s):
        return {}
    bits = distance(hashes[:, None], other_hashes[None])
    bits[hashes == FLAT] = bits[:, other_hashes == FLAT] = 64
    speed, offset_s = _alignment(times_s, other_s, bits)
    expected_s = speed * times_s + offset_s
    bits = np.where(np.abs(other_s[None] - expected_s[:, None]) <= _WITHIN_S, bits, 64)
    weights = weights / weights.sum()
    shared = bits.min(1) <= _MAX_BITS
    owner = _owners(expected_s, columns.start_s[clips], columns.end_s[clips])
    first, shares = int(clips.start), defaultdict[int, float](float)
    for number, weight in zip(owner[shared].tolist(), weights[shared].tolist(), strict=True):
        if number >= 0:
            shares[first + number] += weight
    return dict(shares)


def _between(video: Hashes, start_s: float, end_s: float) -> Hashes:
    first, last = np.searchsorted(video[0], [start_s - 1e-3, end_s - 1e-3])
    return np.asarray(video[0][first:last], np.float64), np.asarray(video[1][first:last])


def _motion(hashes: np.ndarray) -> np.ndarray:
    """Return how far each moment counts, 0 to 1: by how much the view changed since the one before."""
    steps = np.concatenate([[0], distance(hashes[1:], hashes[:-1])])
    return np.minimum(1.0, steps / _FULL_STEP_BITS) * (hashes != FLAT)


def _alignment(times_s: np.ndarray, other_s: np.ndarray, bits: np.ndarray) -> tuple[float, float]:
    """Return speed and offset in seconds (other = speed x own + offset) by which most moments look alike."""
    own, other = np.nonzero(bits <= _MAX_BITS)
    if not len(own):
        return 1.0, 0.0
    best, most = (1.0, 0.0), 0
    for speed in _SPEEDS:
        bins = np.rint((other_s[other] - speed * times_s[own]) / _OFFSET_BIN_S).astype(np.int64)
        lowest = int(bins.min())
        distinct = np.unique((bins - lowest) * len(times_s) + own)  # a moment counts once for an offset
        counts = np.bincount(distinct // len(times_s))
        if (count := int(counts.max())) > most:
            most, best = count, (float(speed), float((int(counts.argmax()) + lowest) * _OFFSET_BIN_S))
    return _refined(times_s[own], other_s[other], *best)


def _refined(own_s: np.ndarray, other_s: np.ndarray, speed: float, offset_s: float) -> tuple[float, float]:
    """Fit speed and offset to the moments near a first estimate of them."""
    for _ in range(2):
        near = np.abs(other_s - speed * own_s - offset_s) < 2 * _WITHIN_S
        if near.sum() < 3 or np.ptp(own_s[near]) < 1:
            break
        mean_own, mean_other = own_s[near].mean(), other_s[near].mean()
        centred = own_s[near] - mean_own
        speed = float((centred * (other_s[near] - mean_other)).sum() / (centred * centred).sum())
        offset_s = float(mean_other - speed * mean_own)
    return speed, offset_s
