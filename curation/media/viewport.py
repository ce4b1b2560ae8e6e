"""Where the 3-D view is: letterbox bars, and what never changes although the game moves (HUD, weapon, overlays).

Evidence is gathered while the source streams by. A bar is black in every frame. A pixel is static if it stays as it is in
nearly every step in which the picture as a whole changes; a step in which little changes says nothing, so a standing player
or a menu does not turn the whole picture into a HUD.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

# A bar's luma: limited-range black is 16, and codecs ring by a few levels.
_BLACK = 24
# A bar is at least 1 % of the picture and under 40 %: less is codec edge, more is a dark game.
_BAR_SHARE = (0.01, 0.40)
_CHANGE = 8
_STEP_CHANGED_SHARE = 0.15
# A fifth of the steps may change a HUD: a hit or a pickup tints the whole screen.
_STATIC_STEPS_SHARE = 0.2
_MIN_STEPS = 12
# A strip is a panel where this share of its row or column is static; 0.85 lets digits and faces in a status bar change.
_PANEL_SHARE = 0.85
_EDGE = 12


class Rect(NamedTuple):
    """A rectangle in px."""

    x: int
    y: int
    w: int
    h: int

    def scaled(self, width: float, height: float, even: bool = False) -> "Rect":
        """The rectangle in a picture `width` and `height` times as large, its sides rounded (to even numbers)."""
        unit = 2 if even else 1
        left, top, right, bottom = (
            round(side * scale / unit) * unit
            for side, scale in zip((self.x, self.y, self.x + self.w, self.y + self.h), (width, height) * 2, strict=True)
        )
        return Rect(left, top, right - left, bottom - top)

    def within(self, frame: "Rect") -> "Rect":
        """The part of it inside a frame; rounding may have put it one over."""
        x, y = max(self.x, frame.x), max(self.y, frame.y)
        right, bottom = min(self.x + self.w, frame.x + frame.w), min(self.y + self.h, frame.y + frame.h)
        return Rect(x, y, right - x, bottom - y)


@dataclass(frozen=True)
class Viewport:
    """picture: inside the bars. view: inside the static panels. static: bool [H, W], what never changes inside the view.

    All at the size that was watched. `steps` counts the moving steps behind it; with too few, nothing is called static.
    """

    picture: Rect
    view: Rect
    static: np.ndarray
    steps: int


@dataclass
class Evidence:
    """Sums over the lumas that were watched, whole numbers so that those of a video's parts add up to those of the whole.

    brightest uint8 [H, W]; total [H, W], of luma over `frames`; changed [H, W], how often each pixel did in `steps`.
    """

    brightest: np.ndarray
    total: np.ndarray
    changed: np.ndarray
    frames: int = 0
    steps: int = 0

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> "Evidence":
        return cls(np.zeros(shape, np.uint8), np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))

    def __add__(self, other: "Evidence") -> "Evidence":
        return Evidence(
            np.maximum(self.brightest, other.brightest),
            self.total + other.total,
            self.changed + other.changed,
            self.frames + other.frames,
            self.steps + other.steps,
        )


class ViewportWatch:
    """Gathers evidence from lumas uint8 [H, W], a few a second; memory does not grow."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self.evidence = Evidence.none((1, 1))

    def add(self, luma: np.ndarray, counts: bool = True) -> None:
        """The next sample; one that does not count is only what the one behind it is compared with."""
        before, self._before = self._before, luma
        if not counts:
            return
        if not self.evidence.frames:
            self.evidence = Evidence.none(luma.shape)
        found = self.evidence
        if before is not None:
            changed = cv2.absdiff(luma, before) > _CHANGE
            if changed.mean() > _STEP_CHANGED_SHARE:
                found.changed += changed
                found.steps += 1
        np.maximum(found.brightest, luma, out=found.brightest)
        found.total += luma
        found.frames += 1


def viewport(evidence: Evidence) -> Viewport:
    """What was found over all frames; the whole picture where nothing was seen."""
    if not evidence.frames:
        return Viewport(Rect(0, 0, 1, 1), Rect(0, 0, 1, 1), np.zeros((1, 1), bool), 0)
    picture = inside_bars(evidence.brightest)
    if evidence.steps < _MIN_STEPS:
        return Viewport(picture, picture, np.zeros(evidence.brightest.shape, bool), evidence.steps)
    still = evidence.changed <= _STATIC_STEPS_SHARE * evidence.steps
    static = still & _near_edges((evidence.total / evidence.frames).astype(np.float32))
    view = inside_panels(still, static, picture)
    outside = np.ones_like(static)
    outside[view.y : view.y + view.h, view.x : view.x + view.w] = False
    return Viewport(picture, view, static & ~outside, evidence.steps)


def inside_bars(brightest: np.ndarray) -> Rect:
    """The picture without black bars, from each pixel's brightest luma uint8 [H, W]; all of it where bars are implausible."""
    height, width = brightest.shape
    # The 98th percentile, not the maximum: a compression speck must not hide a bar.
    rows = np.percentile(brightest, 98, axis=1) > _BLACK
    columns = np.percentile(brightest, 98, axis=0) > _BLACK
    top, bottom = _bars(rows)
    left, right = _bars(columns)
    return Rect(left, top, width - left - right, height - top - bottom)


def _bars(lit: np.ndarray) -> tuple[int, int]:
    """Widths of the dark runs at both ends; 0 where a run is too thin or too wide for a bar."""
    where = np.flatnonzero(lit)
    if not len(where):
        return 0, 0
    low, high = (share * len(lit) for share in _BAR_SHARE)
    ends = int(where[0]), int(len(lit) - 1 - where[-1])
    return tuple(end if low <= end <= high else 0 for end in ends)  # type: ignore[return-value]


def _near_edges(mean: np.ndarray) -> np.ndarray:
    """Where the mean picture has structure close by: a flat sky does not change either, and is no HUD."""
    edges = cv2.morphologyEx(mean, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > _EDGE
    return cv2.dilate(edges.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0


def inside_panels(still: np.ndarray, static: np.ndarray, picture: Rect) -> Rect:
    """The picture without the panels along its sides: strips of rows or columns that stand still and show structure."""
    inner = np.s_[picture.y : picture.y + picture.h, picture.x : picture.x + picture.w]
    still, static = still[inner], static[inner]
    top, bottom = _panels(still.mean(1), static.mean(1))
    middle = np.s_[top : picture.h - bottom]
    left, right = _panels(still[middle].mean(0), static[middle].mean(0))
    return Rect(picture.x + left, picture.y + top, picture.w - left - right, picture.h - top - bottom)


def _panels(still_share: np.ndarray, static_share: np.ndarray) -> tuple[int, int]:
    ends = []
    for still, static in ((still_share, static_share), (still_share[::-1], static_share[::-1])):
        moving = np.flatnonzero(still < _PANEL_SHARE)
        width = int(moving[0]) if len(moving) else 0
        plausible = _BAR_SHARE[0] * len(still) <= width <= _BAR_SHARE[1] * len(still)
        ends.append(width if plausible and static[:width].mean() > 0.5 else 0)
    return ends[0], ends[1]
