"""No-reference picture quality (paper section 3.4, filtering): how far a clip is from clean, and by what.

A backend looks at about one frame a second of the decode that is made anyway, at native resolution, and gives each a row of
numbers. `fold` makes a clip's score of the rows in it and of the share of its time in which the picture stood still. The
default backend is a small network that ships with the package (`curation.quality.embedded_backend`); `pyiqa:musiq` and the
like are `curation.quality.pyiqa_backend`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import av
import cv2
import numpy as np

FAULTS = ("compressed", "blurred", "noisy", "banded", "blocky", "upscaled")
"""What the embedded network tells apart; the words stand in the ledger and in reject reasons."""

PATCH = 64
_CELLS = 4  # at most so many patches along each side
_MARGIN = 0.06  # of each side: where a HUD sits
_BLACK = 32  # luma up to which a row or column of bars may reach
_STEP = 8  # patches lie on the grid of 8 px on which most codecs code
# A picture that stands still for longer than this is frozen; captures at twice a game's rate show each picture twice.
_STILL_S = 0.15
# Content score under which a frame repeats the one before: a codec's touch on a still picture stays under it.
_REPEATED = 0.05

# Combing: four lines; how far apart, and how alike, alternate lines are in luma; from which share of the pixels on.
_COMB_LINES, _COMB_STEP, _COMB_ALIKE, _COMBED = 4, 12, 8, 0.002


@dataclass(frozen=True)
class IqaSettings:
    """Which backend looks ("embedded" or "pyiqa:METRIC"), how often, and the file of a metric's weights if not in a cache.

    pyiqa and MUSIQ's weights are licensed for non-commercial use only (PolyForm Noncommercial, NTU S-Lab): see docs/quality.md.
    """

    backend: str = "embedded"
    every_s: float = 1.0
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.backend != "embedded" and not self.backend.startswith("pyiqa:"):
            raise ValueError(f"backend must be embedded or pyiqa:METRIC, not {self.backend!r}")
        if not self.every_s > 0:
            raise ValueError(f"every_s must be more than 0, not {self.every_s}")


class Iqa(Protocol):
    """Rates pictures. Each row: the score, 0 to 1 and 1 = clean, then what each of FAULTS took from it (NaN: not told)."""

    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int: ...

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        """Frames as decoded -> float32 [N, 1 + FAULTS]; NaN throughout where there is nothing to look at."""
        ...


class Quality(NamedTuple):
    """The quality columns of a clip, as `schema.CLIP` describes them."""

    iqa: float | None
    iqa_fault: str | None
    iqa_frozen: float


def luma_plane(frame: av.VideoFrame) -> np.ndarray:
    """A decoded picture's luma as coded, uint8 [H, W], not upright; more than eight bits are cut to eight."""
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


def patches(luma_HW: np.ndarray) -> np.ndarray:
    """Up to sixteen squares of 64 px, uint8 [P, 64, 64], inside the bars; none where the picture is smaller than one.

    One a cell of a grid; in every other cell the place with the most detail, since flat walls and skies say little, in the
    cells between the middle.
    """
    top, bottom, left, right = _inside(luma_HW)
    inner = luma_HW[top:bottom, left:right]
    rows, columns = (min(_CELLS, side // PATCH) for side in inner.shape)
    if not rows or not columns:
        return np.empty((0, PATCH, PATCH), luma_HW.dtype)
    detail = _detail(inner)
    ys, xs = (np.linspace(0, side, n + 1).astype(int) for side, n in zip(detail.shape, (rows, columns), strict=True))
    found = []
    for i in range(rows):
        for j in range(columns):
            cell = detail[ys[i] : ys[i + 1], xs[j] : xs[j + 1]]
            y, x = _place(cell, busiest=(i + j) % 2 == 0)
            y, x = (ys[i] + y) * _STEP, (xs[j] + x) * _STEP
            found.append(inner[y : y + PATCH, x : x + PATCH])
    return np.stack(found)


def _inside(luma_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Where the picture is without black bars and without the margin in which a HUD sits: top, bottom, left, right."""
    thin = luma_HW[::4, ::4] > _BLACK
    bounds = []
    for side, lit in zip(luma_HW.shape, (thin.any(1), thin.any(0)), strict=True):
        where = np.flatnonzero(lit)
        low, high = (int(where[0]) * 4, min(int(where[-1]) * 4 + 4, side)) if len(where) else (0, side)
        if high - low < PATCH:
            low, high = 0, side
        margin = int((high - low) * _MARGIN)
        if high - low - 2 * margin >= 2 * PATCH:
            low, high = low + margin, high - margin
        low = low if high - low < PATCH + _STEP else -(-low // _STEP) * _STEP
        bounds += [low, high]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _detail(inner_HW: np.ndarray) -> np.ndarray:
    """Mean gradient at an eighth of the size, in cells of 8 px: float32 [H / 8, W / 8]."""
    height, width = (side // _STEP for side in inner_HW.shape)
    small = cv2.resize(inner_HW[: height * _STEP, : width * _STEP], (width, height), interpolation=cv2.INTER_AREA)
    small = small.astype(np.float32)
    return np.abs(cv2.Sobel(small, -1, 1, 0, ksize=1)) + np.abs(cv2.Sobel(small, -1, 0, 1, ksize=1))


def _place(cell: np.ndarray, busiest: bool) -> tuple[int, int]:
    """Where in a cell of the detail map a patch goes, in its pixels: the window with the most detail, or the middle."""
    room = [side - PATCH // _STEP for side in cell.shape]
    if not busiest:
        return room[0] // 2, room[1] // 2
    sums = cv2.boxFilter(cell, -1, (PATCH // _STEP, PATCH // _STEP), anchor=(0, 0), normalize=False)
    y, x = np.unravel_index(int(sums[: room[0] + 1, : room[1] + 1].argmax()), (room[0] + 1, room[1] + 1))
    return int(y), int(x)


def combing(luma_HW: np.ndarray) -> float:
    """How much of a picture looks like two fields of different moments: the share of its pixels, 0 to 1.

    Four lines that alternate between two levels, at neighbouring columns. Fields part on both sides of what moves, so that odd
    lines are the brighter ones on one side of it and the darker ones on the other; the lines of a screen or of a HUD are not.
    Gameplay that was not interlaced stays under 0.001 (43 recordings), fields of successive frames reach 0.02 and more.
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
    """Share of a clip's samples that are combed, from the `combing` of each; None without a sample."""
    return float((combing_S > _COMBED).mean()) if len(combing_S) else None


def frozen_share(times_s: np.ndarray, content: np.ndarray, end_s: float) -> float:
    """Share of a clip's time in which the picture stood still for longer than a capture's rate explains.

    times_s [N] of its frames, N >= 1; content [N], their change from the frame before (of the first: from outside the clip).
    """
    new = np.flatnonzero(content > _REPEATED)
    new = new if len(new) and new[0] == 0 else np.concatenate([[0], new])
    held = np.diff(np.append(times_s[new], end_s))
    return float(held[held > _STILL_S].sum() / max(end_s - times_s[0], 1e-3))


def fold(rows: np.ndarray, frozen: float) -> Quality:
    """A clip's score from its samples [S, 1 + FAULTS] and its frozen share; null where none could be rated."""
    rows = rows[np.isfinite(rows[:, 0])].astype(np.float64)
    if not len(rows):
        return Quality(None, None, frozen)
    picture, *faults = rows.mean(0)
    lost = {"frozen": frozen, **{name: took for name, took in zip(FAULTS, faults, strict=True) if np.isfinite(took)}}
    worst = max(lost, key=lambda name: lost[name])
    return Quality(float(picture * (1 - frozen)), worst if lost[worst] > 0 else None, frozen)
