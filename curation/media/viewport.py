"""Find the 3-D view: letterbox bars, and what never changes although the game moves (HUD, weapon, overlays).

Sums are gathered while the source is decoded. A bar is black in every frame. A pixel is static if it does not change in nearly
every step in which the picture as a whole changes. A step in which little changes does not count, so a standing player or a
menu does not turn the whole picture into a HUD.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

# The largest luma of a bar: limited-range black is 16, and codecs ring by a few levels.
_BLACK = 24
# A bar is at least 1 % of the picture and under 40 %: less is codec edge, more is a dark game.
_BAR_SHARE = (0.01, 0.40)
_CHANGE = 8  # grey levels: a pixel that differs by more has changed
_STEP_CHANGED_SHARE = 0.15  # a step counts if more of the picture than this changes
# A fifth of the steps may change a HUD: a hit or a pickup tints the whole screen.
_STATIC_STEPS_SHARE = 0.2
_MIN_STEPS = 12  # with fewer steps that count, nothing is called static
# A strip is a panel where this share of its row or column is static; 0.85 lets digits and faces in a status bar change.
_PANEL_SHARE = 0.85
_EDGE = 12  # grey levels between neighbouring pixels of the mean picture


class Rect(NamedTuple):
    """A rectangle in px."""

    x: int
    y: int
    w: int
    h: int

    def scaled(self, width: float, height: float, even: bool = False) -> "Rect":
        """Return the rectangle in a picture `width` and `height` times as large, its sides rounded (to even numbers)."""
        unit = 2 if even else 1
        left, top, right, bottom = (
            round(side * scale / unit) * unit
            for side, scale in zip((self.x, self.y, self.x + self.w, self.y + self.h), (width, height) * 2, strict=True)
        )
        return Rect(left, top, right - left, bottom - top)

    def within(self, frame: "Rect") -> "Rect":
        """Return the part of it inside a frame: rounding may have put it one px outside."""
        x, y = max(self.x, frame.x), max(self.y, frame.y)
        right, bottom = min(self.x + self.w, frame.x + frame.w), min(self.y + self.h, frame.y + frame.h)
        return Rect(x, y, right - x, bottom - y)


@dataclass(frozen=True)
class Viewport:
    """Where the picture and the 3-D view are, at the size of the lumas that were added."""

    picture: Rect  # inside the bars
    view: Rect  # inside the static panels
    static: np.ndarray  # bool [H, W]: pixels inside the view that never change
    steps: int  # the moving steps that were counted; with too few, nothing is called static


@dataclass
class ViewportSums:
    """Sums over lumas. They are whole numbers, so that the sums of a video's parts add up to those of the whole."""

    brightest: np.ndarray  # uint8 [H, W]
    total: np.ndarray  # uint32 [H, W]: luma summed over `frames`
    changed: np.ndarray  # uint32 [H, W]: in how many of the `steps` each pixel changed
    frames: int = 0
    steps: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "ViewportSums":
        return cls(np.zeros(shape, np.uint8), np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))

    def __add__(self, other: "ViewportSums") -> "ViewportSums":
        return ViewportSums(
            np.maximum(self.brightest, other.brightest),
            self.total + other.total,
            self.changed + other.changed,
            self.frames + other.frames,
            self.steps + other.steps,
        )


class ViewportAccumulator:
    """Gathers `ViewportSums` from lumas uint8 [H, W], a few a second. Memory does not grow."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self.sums = ViewportSums.empty((1, 1))

    def add(self, luma: np.ndarray, counts: bool = True) -> None:
        """Add the next sample. One that does not count only serves as the one before of the next."""
        before, self._before = self._before, luma
        if not counts:
            return
        if not self.sums.frames:
            self.sums = ViewportSums.empty(luma.shape)
        sums = self.sums
        if before is not None:
            changed = cv2.absdiff(luma, before) > _CHANGE
            if changed.mean() > _STEP_CHANGED_SHARE:
                sums.changed += changed
                sums.steps += 1
        np.maximum(sums.brightest, luma, out=sums.brightest)
        sums.total += luma
        sums.frames += 1


def find_viewport(sums: ViewportSums) -> Viewport:
    """Find the viewport from the sums over all frames; a single pixel where no frame was added."""
    if not sums.frames:
        return Viewport(Rect(0, 0, 1, 1), Rect(0, 0, 1, 1), np.zeros((1, 1), bool), 0)
    picture = inside_bars(sums.brightest)
    if sums.steps < _MIN_STEPS:
        return Viewport(picture, picture, np.zeros(sums.brightest.shape, bool), sums.steps)
    still = sums.changed <= _STATIC_STEPS_SHARE * sums.steps
    static = still & _near_edges((sums.total / sums.frames).astype(np.float32))
    view = inside_panels(still, static, picture)
    outside = np.ones_like(static)
    outside[view.y : view.y + view.h, view.x : view.x + view.w] = False
    return Viewport(picture, view, static & ~outside, sums.steps)


def inside_bars(brightest: np.ndarray) -> Rect:
    """Return the picture without black bars, from each pixel's brightest luma uint8 [H, W].

    Bars of an implausible width are not cut off.
    """
    height, width = brightest.shape
    # The 98th percentile, not the maximum: a compression speck must not hide a bar.
    rows = np.percentile(brightest, 98, axis=1) > _BLACK
    columns = np.percentile(brightest, 98, axis=0) > _BLACK
    top, bottom = _bars(rows)
    left, right = _bars(columns)
    return Rect(left, top, width - left - right, height - top - bottom)


def _bars(lit: np.ndarray) -> tuple[int, int]:
    """Return the widths of the dark runs at both ends; 0 where a run is too thin or too wide for a bar."""
    where = np.flatnonzero(lit)
    if not len(where):
        return 0, 0
    low, high = (share * len(lit) for share in _BAR_SHARE)
    ends = int(where[0]), int(len(lit) - 1 - where[-1])
    return tuple(end if low <= end <= high else 0 for end in ends)  # type: ignore[return-value]


def _near_edges(mean: np.ndarray) -> np.ndarray:
    """Return where the mean picture has structure close by: a flat sky does not change either, but is not a HUD."""
    edges = cv2.morphologyEx(mean, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > _EDGE
    return cv2.dilate(edges.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0


def inside_panels(still: np.ndarray, static: np.ndarray, picture: Rect) -> Rect:
    """Return the picture without the panels along its sides: strips of rows or columns that stand still and show structure."""
    inner = np.s_[picture.y : picture.y + picture.h, picture.x : picture.x + picture.w]
    still, static = still[inner], static[inner]
    top, bottom = _panels(still.mean(1), static.mean(1))
    middle = np.s_[top : picture.h - bottom]
    left, right = _panels(still[middle].mean(0), static[middle].mean(0))
    return Rect(picture.x + left, picture.y + top, picture.w - left - right, picture.h - top - bottom)


def _panels(still_share: np.ndarray, static_share: np.ndarray) -> tuple[int, int]:
    """Return the widths of the panels at both ends of the rows or columns; 0 where there is none."""
    ends = []
    for still, static in ((still_share, static_share), (still_share[::-1], static_share[::-1])):
        moving = np.flatnonzero(still < _PANEL_SHARE)
        width = int(moving[0]) if len(moving) else 0
        plausible = _BAR_SHARE[0] * len(still) <= width <= _BAR_SHARE[1] * len(still)
        ends.append(width if plausible and static[:width].mean() > 0.5 else 0)
    return ends[0], ends[1]
