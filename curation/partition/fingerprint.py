"""Fingerprints: what of a video survives a re-encode, another size, removed bars and a small overlay, but not another take.

A few pictures a second are kept as 24 x 32 lumas while the source is scanned. Once its bars are known, each picture becomes

- a hash of 64 bits: whether each cell of an 8 x 9 grid is brighter than its left neighbour. Copies differ in a few bits.
- and up to three pictures a second, at moments when the view hardly moves, `KEYS` keys of 28 bits. Copies share some of them
  exactly, whatever their frame rate, so that copies are found by sorting. Each key names which of four differences between
  cells is the largest, fourteen times (winner-take-all hashing: Yagnik et al., ICCV 2011), which noise seldom changes.

A picture without structure, such as a black one, has neither.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from curation.media.viewport import Rect

VERSION = 1
"""Fingerprints of different versions are never compared. It changes with anything that changes a hash or a key."""

PER_S = 8
"""Pictures that are kept a second, at most."""

KEYS = 6
FLAT = np.uint64(0)
"""The hash of a picture without structure. It matches nothing."""

SIZE = 24, 32
_GRID = 9
_HORIZONTAL = 8 * 8  # differences of a cell and its right neighbour; those below it come after them
# A difference between cells counts as structure from so many grey levels. A picture with fewer than so many is flat.
_MIN_STEP, _MIN_STEPS = 2.0, 16
# Codec noise in a mean over a cell is below a grey level: differences are compared in steps of a quarter of one.
_QUARTERS = 4.0
_WINNERS, _OF = 14, 4
# A moment is still if the view changes less around it than at any other within so many pictures: a quarter of a second.
_STILL_WITHIN = PER_S // 4


@dataclass(frozen=True)
class Fingerprint:
    """K hashes of a source, in order of time, and the keys of S of its moments.

    times_s float32 [K], seconds from the source's start; hashes uint64 [K]; key_frame int32 [S], which hash a moment has;
    keys uint32 [S, KEYS].
    """

    times_s: np.ndarray
    hashes: np.ndarray
    key_frame: np.ndarray
    keys: np.ndarray


def small_luma(luma_HW: np.ndarray) -> np.ndarray:
    """Return the picture as uint8 [24, 32]."""
    return cv2.resize(luma_HW, SIZE[::-1], interpolation=cv2.INTER_AREA)


def fingerprint(times_s: np.ndarray, lumas_KHW: np.ndarray, picture: Rect, frame: tuple[int, int]) -> Fingerprint:
    """Return the fingerprint of small lumas. picture: the part without bars, in a frame of (width, height) px."""
    differences = _differences(lumas_KHW, picture, frame)
    structured = (np.abs(differences[:, :_HORIZONTAL]) >= _MIN_STEP).sum(1) >= _MIN_STEPS
    bits = np.packbits(differences[:, :_HORIZONTAL] > 0, axis=1).view(">u8")[:, 0].astype(np.uint64)
    hashes = np.where(structured, np.maximum(bits, 1), FLAT)
    still = _still_moments(hashes)
    return Fingerprint(times_s.astype(np.float32), hashes, still.astype(np.int32), _keys(differences[still]))


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes differ."""
    return np.bitwise_count(one ^ other)


def _differences(lumas_KHW: np.ndarray, picture: Rect, frame: tuple[int, int]) -> np.ndarray:
    """Return the differences of neighbouring cells, in grey levels [K, 128]: 64 to the right, then 64 downwards."""
    rows = _shares(SIZE[0], picture.y / frame[1], (picture.y + picture.h) / frame[1])
    columns = _shares(SIZE[1], picture.x / frame[0], (picture.x + picture.w) / frame[0])
    cells = np.einsum("ih,khw,jw->kij", rows, lumas_KHW.astype(np.float64), columns, optimize=True)
    cells = np.rint(cells * _QUARTERS) / _QUARTERS
    right, down = np.diff(cells[:, :8], axis=2), np.diff(cells[:, :, :8], axis=1)
    return np.concatenate([right.reshape(len(cells), -1), down.reshape(len(cells), -1)], axis=1)


def _shares(size: int, begin: float, end: float) -> np.ndarray:
    """Return how much of each of `size` pixels is in each cell of a grid over [begin, end) of the side: float64 [9, size]."""
    bounds = size * np.linspace(begin, end, _GRID + 1)
    pixels = np.arange(size)
    overlap = np.minimum(bounds[1:, None], pixels + 1) - np.maximum(bounds[:-1, None], pixels)
    overlap = np.maximum(overlap, 0)
    shares: np.ndarray = overlap / overlap.sum(1, keepdims=True)
    return shares


def _still_moments(hashes: np.ndarray) -> np.ndarray:
    """Return the pictures around which the view changes less than around the others within a quarter of a second, [S]."""
    if len(hashes) < 2:
        return np.flatnonzero(hashes != FLAT)
    steps = distance(hashes[1:], hashes[:-1]).astype(np.int64)
    around = np.concatenate([steps[:1], steps]) + np.concatenate([steps, steps[-1:]])
    padded = np.pad(around, _STILL_WITHIN, constant_values=np.iinfo(np.int64).max)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _STILL_WITHIN + 1)
    is_first = windows.argmin(1) == _STILL_WITHIN  # of equals the first, so that a still scene has few
    return np.flatnonzero(is_first & (hashes != FLAT))


def _choices() -> np.ndarray:
    """Return which differences compete for each digit of each key, [KEYS, 14, 4]. They are part of the version."""
    raw = np.random.PCG64(1).random_raw(KEYS * _WINNERS * 2 * _HORIZONTAL)  # NumPy keeps raw streams equal over versions
    return raw.reshape(KEYS, _WINNERS, -1).argsort(-1)[..., :_OF]


_CHOICES = _choices()


def _keys(differences: np.ndarray) -> np.ndarray:
    """Return the keys of pictures, uint32 [S, KEYS]."""
    winners = differences[:, _CHOICES].argmax(-1)
    keys = np.zeros(winners.shape[:2], np.uint32)
    for digit in range(_WINNERS):
        keys = keys * np.uint32(_OF) + winners[:, :, digit].astype(np.uint32)
    return keys
