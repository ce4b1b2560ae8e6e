"""No-reference picture quality (paper section 3.4, filtering): how far a clip is from clean, and which fault dominates.

A backend rates about one frame per second at native resolution, from the decode that runs anyway, and gives each frame a row of
numbers. `aggregate_quality` computes a clip's score from its rows and from the share of its time in which the picture stood
still. The default backend is a small network that ships with the package (`curation.quality.embedded_backend`). `pyiqa:musiq`
and other metrics of pyiqa are in `curation.quality.pyiqa_backend`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import av
import cv2
import numpy as np

FAULTS = ("compressed", "blurred", "noisy", "banded", "blocky", "upscaled")
"""The faults that the embedded network distinguishes. The words appear in the ledger and in reject reasons."""

PATCH = 64
_MAX_CELLS = 4  # patches along each side of the picture
_MARGIN = 0.06  # share of each side that is left out, because a HUD is there
_BLACK_LUMA = 32  # the largest luma in a row or column of black bars
_GRID_PX = 8  # patches lie on the grid of 8 px that most codecs use
# A picture that stands still for longer than this is frozen. Captures at twice a game's rate show each picture twice.
_STILL_S = 0.15
# Content score below which a frame repeats the one before. What a codec changes in a still picture is below it.
_REPEAT_CONTENT = 0.05
# A cell has changed within a tenth of a second if its pixels differ by this many grey levels on average: more than what a codec
# changes at a key frame. Beyond this share of changed cells the camera moves.
_CHANGED_LEVELS, _MAX_LOCAL_SHARE = 3.0, 0.35

# Combing: the lines of one pattern; the least difference in luma between adjacent lines, and the largest between lines of the
# same field; the share of the pixels from which a picture is combed.
_COMB_LINES, _COMB_STEP, _COMB_ALIKE, _COMBED = 4, 12, 8, 0.002


@dataclass(frozen=True)
class IqaSettings:
    """Which backend rates pictures, and how often."""

    # embedded: a small network that ships with the package | pyiqa:METRIC: a no-reference metric of pyiqa, such as pyiqa:musiq;
    # pyiqa and MUSIQ's weights are for non-commercial use only (PolyForm Noncommercial, NTU S-Lab), see docs/quality.md
    backend: str = "embedded"
    every_s: float = 1.0  # seconds between rated frames; larger values cost less and may miss short faults
    weights: str | None = None  # file with the weights of a pyiqa metric; null looks in $GAMECRAFT_WEIGHTS and the caches

    def __post_init__(self) -> None:
        if self.backend != "embedded" and not self.backend.startswith("pyiqa:"):
            raise ValueError(f"backend must be embedded or pyiqa:METRIC, not {self.backend!r}")
        if not self.every_s > 0:
            raise ValueError(f"every_s must be more than 0, not {self.every_s}")


class Iqa(Protocol):
    """A backend that rates pictures.

    Each row has the score, 0 to 1 with 1 = clean, and then what each of FAULTS took from it (NaN: unknown to this backend).
    """

    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int: ...

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        """Rate N decoded frames: float32 [N, 1 + FAULTS]. A row is all NaN if the picture is too small."""
        ...


class Quality(NamedTuple):
    """The quality columns of a clip, as `schema.CLIP` describes them."""

    iqa: float | None
    iqa_fault: str | None
    iqa_frozen: float


def luma_plane(frame: av.VideoFrame) -> np.ndarray:
    """Return a frame's luma as coded, uint8 [H, W], without applying a rotation. More than eight bits are cut to eight."""
    bits = frame.format.components[0].bits
    if not (
        frame.format.is_planar and frame.format.name.startswith(("yuv", "gray", "nv12")) and not frame.format.is_big_endian
    ):
        return frame.reformat(format="yuv444p").to_ndarray()[0]
    plane: Any = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    if bits == 8:
        return rows[:, : frame.width]
    return (rows.view("<u2")[:, : frame.width] >> (bits - 8)).astype(np.uint8)


def select_patches(luma_HW: np.ndarray) -> np.ndarray:
    """Return up to sixteen squares of 64 px, uint8 [P, 64, 64], inside the bars; none if the picture is smaller than one.

    Each cell of a grid gives one. Every other cell gives the square with the most detail, because flat walls and skies say
    little. The cells between give their middle.
    """
    top, bottom, left, right = _content_bounds(luma_HW)
    inner = luma_HW[top:bottom, left:right]
    rows, columns = (min(_MAX_CELLS, side // PATCH) for side in inner.shape)
    if not rows or not columns:
        return np.empty((0, PATCH, PATCH), luma_HW.dtype)
    detail = _detail_map(inner)
    ys, xs = (np.linspace(0, side, n + 1).astype(int) for side, n in zip(detail.shape, (rows, columns), strict=True))
    squares = []
    for i in range(rows):
        for j in range(columns):
            cell = detail[ys[i] : ys[i + 1], xs[j] : xs[j + 1]]
            y, x = _patch_position(cell, busiest=(i + j) % 2 == 0)
            y, x = (ys[i] + y) * _GRID_PX, (xs[j] + x) * _GRID_PX
            squares.append(inner[y : y + PATCH, x : x + PATCH])
    return np.stack(squares)


def _content_bounds(luma_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Return the bounds of the picture without black bars and without the margin of a HUD: top, bottom, left, right."""
    bright = luma_HW[::4, ::4] > _BLACK_LUMA
    bounds = []
    for side, lit in zip(luma_HW.shape, (bright.any(1), bright.any(0)), strict=True):
        indices = np.flatnonzero(lit)
        low, high = (int(indices[0]) * 4, min(int(indices[-1]) * 4 + 4, side)) if len(indices) else (0, side)
        if high - low < PATCH:
            low, high = 0, side
        margin = int((high - low) * _MARGIN)
        if high - low - 2 * margin >= 2 * PATCH:
            low, high = low + margin, high - margin
        low = low if high - low < PATCH + _GRID_PX else -(-low // _GRID_PX) * _GRID_PX
        bounds += [low, high]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _detail_map(inner_HW: np.ndarray) -> np.ndarray:
    """Return the mean gradient at an eighth of the size, in cells of 8 px: float32 [H / 8, W / 8]."""
    height, width = (side // _GRID_PX for side in inner_HW.shape)
    small = cv2.resize(inner_HW[: height * _GRID_PX, : width * _GRID_PX], (width, height), interpolation=cv2.INTER_AREA)
    small = small.astype(np.float32)
    return np.abs(cv2.Sobel(small, -1, 1, 0, ksize=1)) + np.abs(cv2.Sobel(small, -1, 0, 1, ksize=1))


def _patch_position(cell: np.ndarray, busiest: bool) -> tuple[int, int]:
    """Return the place of a patch in a cell of the detail map, in cells of 8 px: the most detailed window, or the middle."""
    room = [side - PATCH // _GRID_PX for side in cell.shape]
    if not busiest:
        return room[0] // 2, room[1] // 2
    sums = cv2.boxFilter(cell, -1, (PATCH // _GRID_PX, PATCH // _GRID_PX), anchor=(0, 0), normalize=False)
    y, x = np.unravel_index(int(sums[: room[0] + 1, : room[1] + 1].argmax()), (room[0] + 1, room[1] + 1))
    return int(y), int(x)


def combing(luma_HW: np.ndarray) -> float:
    """Return the share of a picture's pixels, 0 to 1, that look like two fields of different moments.

    A pixel counts if four lines alternate between two levels, and at the neighbouring column too. Two fields differ on both
    sides of a moving object, so odd lines are brighter on one side and darker on the other; this does not hold for the lines of
    a screen or of a HUD. Gameplay that was not interlaced stays under 0.001 (43 recordings). Fields of successive frames reach
    0.02 and more.
    """
    if luma_HW.shape[0] < _COMB_LINES or luma_HW.shape[1] < 2:
        return 0.0
    x = luma_HW.astype(np.int16)
    a, b, c, d = x[:-3], x[1:-2], x[2:-1], x[3:]
    alike = (np.abs(a - c) < _COMB_ALIKE) & (np.abs(b - d) < _COMB_ALIKE)
    bright = alike & (np.minimum(np.minimum(b - a, b - c), d - c) > _COMB_STEP)
    dark = alike & (np.minimum(np.minimum(a - b, c - b), c - d) > _COMB_STEP)
    bright, dark = bright[:, 1:] & bright[:, :-1], dark[:, 1:] & dark[:, :-1]
    even, odd = (int(bright[k::2].sum() + dark[1 - k :: 2].sum()) for k in (0, 1))
    return 2 * min(even, odd) / bright.size


def combed_share(combing_S: np.ndarray) -> float | None:
    """Return the share of a clip's samples that are combed, from the `combing` of each, or None without a sample."""
    return float((combing_S > _COMBED).mean()) if len(combing_S) else None


class PairChange(NamedTuple):
    """How much of the picture changes at each of P moments of a source or a clip, about ten a second."""

    times_s: np.ndarray  # [P]
    share: np.ndarray  # [P], 0-1: of the cells that have changed since a tenth of a second before


def pair_change(times_s: np.ndarray, levels_PRC: np.ndarray) -> PairChange:
    """Return which share of the picture's cells changes, from the mean size of each cell's change in grey levels."""
    return PairChange(times_s, (levels_PRC >= _CHANGED_LEVELS).mean((1, 2)) if len(levels_PRC) else np.zeros(0))


def frozen_share(times_s: np.ndarray, content: np.ndarray, end_s: float, change: PairChange | None = None) -> float:
    """Return the share of a clip's time in which the picture stands still for longer than a capture's rate explains.

    times_s [N]: times of the clip's frames, N >= 1. content [N]: the change of each frame from the frame before; for the first
    frame that frame is outside the clip. change: of the pairs in the clip; others are ignored. A picture in which only a part
    changes now and then is not frozen in between: a player stands, and digs, builds or opens a door.
    """
    new = np.flatnonzero(content > _REPEAT_CONTENT)
    new = new if len(new) and new[0] == 0 else np.concatenate([[0], new])
    shown_s = np.diff(np.append(times_s[new], end_s))
    frozen = shown_s > _STILL_S
    if change is not None:
        middle_s = times_s[new] + shown_s / 2
        for start_s, stop_s in _stands(change, float(times_s[0]), end_s):
            frozen &= ~((middle_s >= start_s) & (middle_s < stop_s))
    return float(shown_s[frozen].sum() / max(end_s - times_s[0], 1e-3))


def _stands(change: PairChange, start_s: float, end_s: float) -> list[tuple[float, float]]:
    """Return the times in which the camera stands and a part of the picture changes, with stillness before and after."""
    inside = (change.times_s >= start_s) & (change.times_s < end_s)
    times_s, share = change.times_s[inside], change.share[inside]
    moving = np.concatenate([[True], share > _MAX_LOCAL_SHARE, [True]])
    bounds = np.flatnonzero(moving)
    stands = []
    for first, last in pairwise(bounds):  # pairs first .. last - 2 of the clip lie between two moments of motion
        local = np.flatnonzero(share[first : last - 1] > 0)
        still = np.flatnonzero(share[first : last - 1] == 0)
        if len(local) and len(still) and still[0] < local[-1] and still[-1] > local[0]:
            from_s = start_s if first == 0 else float(times_s[first - 1])
            stands.append((from_s, float(times_s[last - 1]) if last - 1 < len(times_s) else end_s))
    return stands


def aggregate_quality(rows: np.ndarray, frozen: float) -> Quality:
    """Compute a clip's score from its samples [S, 1 + FAULTS] and its frozen share; None if no sample could be rated."""
    rows = rows[np.isfinite(rows[:, 0])].astype(np.float64)
    if not len(rows):
        return Quality(None, None, frozen)
    picture, *faults = rows.mean(0)
    losses = {"frozen": frozen, **{name: loss for name, loss in zip(FAULTS, faults, strict=True) if np.isfinite(loss)}}
    worst = max(losses, key=lambda name: losses[name])
    return Quality(float(picture * (1 - frozen)), worst if losses[worst] > 0 else None, frozen)
