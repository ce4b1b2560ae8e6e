"""Corners followed through every frame of a clip (pyramidal Lucas-Kanade, checked forwards and backwards)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np

from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import Rect

_CORNERS = 400
_REFILL = 0.8  # new corners are looked for when fewer than this share is left: each search costs as much as following
_CANDIDATES, _QUALITY, _APART_PX, _BLOCK = 1600, 0.001, 10, 5
_COLUMNS, _ROWS, _A_CELL = 8, 6, 7  # parts of the picture; beyond so many corners in one, others come first
_WINDOW = (13, 13)
_LEVELS = 2  # of the pyramid, where it is known within some px: on a wall of bricks a coarser one leads to the wrong brick
_FLOW_LEVELS = 3  # where dense flow of small pictures leads
_FAR_LEVELS = 4  # the coarsest level of a picture 640 wide sees turns of 100 px a frame
_EVERY = 3  # corner that goes first and tells the others where to look
_LEAST_LEAD, _SHARED_PX = 12, 8.0  # corners that a homography needs, and how far from it they may be: depths differ
_MOST = 0.5  # of those that go first
_FAR_PX = 150  # a motion told by a few corners is not believed at the other end of the picture
_SMALL = 160  # px wide
_BACK_PX = 0.7  # a corner that does not come back to within this was lost: Doom's nearest-neighbour textures jitter by 0.5
_STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03)
_AROUND_PX, _COARSE = 61, 4  # px that a px is held against, and how much smaller their mean and spread are worked out
_CONTRAST, _LEAST_SPREAD = 40.0, 4.0  # grey levels: what that spread becomes, and what is added to it lest noise be blown up
_EDGE_PX = 4
_HUD_MARGIN = 5  # px around what never changes: a window there sees both
_LEAST_TOLD = 20  # corners whose median step is where the next one is looked for
_LEAST = 4  # frames; a shorter track ties nothing together


class Watched(NamedTuple):
    """How a clip is looked at: size (W, H) px of the whole picture as decoded, with square pixels, and the view in it.

    mask uint8 [view.h, view.w]: 255 where corners may lie.
    """

    size: tuple[int, int]
    view: Rect
    mask: np.ndarray

    @property
    def static_share(self) -> float:
        return float((self.mask == 0).mean())


@dataclass(frozen=True)
class Tracks:
    """Corners by frame. xy f4 [S, 2], track after track, in px of the view as watched, corner-origin; the i-th begins in
    frame start[i] and is seen in length[i] frames without a gap.

    times_s f8 [N]: presentation times of the frames, from the first on.
    """

    times_s: np.ndarray
    xy: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def dense(self) -> np.ndarray:
        """f4 [N, M, 2], NaN where a track is not seen."""
        found = np.full((len(self.times_s), len(self.start), 2), np.nan, np.float32)
        which = np.repeat(np.arange(len(self.start)), self.length)
        offset = np.arange(len(self.xy)) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        found[np.repeat(self.start, self.length) + offset, which] = self.xy
        return found

    def a_frame(self) -> np.ndarray:
        """Int [N], how many tracks each frame holds."""
        count = len(self.times_s)
        begun = np.bincount(self.start, minlength=count + 1)
        ended = np.bincount(self.start + self.length, minlength=count + 1)
        return np.cumsum(begun - ended)[:count]

    def keep(self, which: np.ndarray) -> "Tracks":
        """Only the tracks flagged in bool [M]."""
        return Tracks(self.times_s, self.xy[np.repeat(which, self.length)], self.start[which], self.length[which])


def watched(uri: str, viewport: Rect, static: np.ndarray | None, max_width: int) -> Watched:
    """How to look at a source: at most `max_width` px wide, pixels made square."""
    source = probe(uri)
    scale = min(1.0, max_width / (source.width * source.pixel_aspect))
    size = max(16, round(source.width * source.pixel_aspect * scale)), max(16, round(source.height * scale))
    across, down = size[0] / source.width, size[1] / source.height
    view = viewport.scaled(across, down).within(Rect(0, 0, *size))
    mask = np.full((view.h, view.w), 255, np.uint8)
    if static is not None and static.any():
        still = cv2.resize(static.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        still = still[view.y : view.y + view.h, view.x : view.x + view.w]
        mask[cv2.dilate(still, np.ones((2 * _HUD_MARGIN + 1,) * 2, np.uint8)) > 0] = 0
    return Watched(size, view, mask)


def follow(uri: str, span: Span, how: Watched) -> Tracks:
    """The tracks of a span, one decode, frames not kept. Raises `UnreadableVideo` where the source cannot be read."""
    times, follower = [], _Follower(how.mask)
    for time_s, luma in _lumas(uri, span, how):
        times.append(time_s)
        follower.add(luma)
    times_s = np.asarray(times, float)
    return follower.tracks(times_s - times_s[0] if times else times_s)


def _lumas(uri: str, span: Span, how: Watched) -> Iterator[tuple[float, np.ndarray]]:
    painter, view = decode.FrameConverter(probe(uri), how.size, "gray"), how.view
    for time_s, frame in decode.decode(uri, span, "camera"):
        yield time_s, painter(frame)[view.y : view.y + view.h, view.x : view.x + view.w]


def evened(luma: np.ndarray) -> np.ndarray:
    """Luma uint8 [H, W] with each px held against the mean and spread of those around it.

    Dark corridors have corners then too, and a picture that flashes, as games' do when the player is hit, looks as it did.
    """
    height, width = luma.shape
    size, around = (max(1, width // _COARSE), max(1, height // _COARSE)), (_AROUND_PX // _COARSE | 1,) * 2
    exact = luma.astype(np.float32)
    mean, square = (cv2.blur(cv2.resize(v, size, interpolation=cv2.INTER_AREA), around) for v in (exact, exact * exact))
    gain = _CONTRAST / (np.sqrt(np.maximum(square - mean * mean, 0)) + _LEAST_SPREAD)
    by, more = (cv2.resize(v, (width, height)) for v in (gain, 128 - mean * gain))
    return cv2.add(exact * by, more, dtype=cv2.CV_8U)


class _Lead(NamedTuple):
    """near f4 [P, 1, 2], where to look for each corner; share of the corners that went first and bear it out; matrix: the
    homography [3, 3] that leads there, None where it is not borne out by most.
    """

    near: np.ndarray
    share: float
    matrix: np.ndarray | None = None


class _Shown(NamedTuple):
    """A frame as it is, in which large motions are found, and evened, in which corners are."""

    whole: np.ndarray
    even: np.ndarray


@dataclass
class _Follower:
    """Takes one luma uint8 [H, W] a frame. `_live` are the numbers of the tracks at `_points`, float32 [P, 1, 2]."""

    mask: np.ndarray
    _made: int = 0
    _before: _Shown | None = None
    _step: np.ndarray = field(default_factory=lambda: np.zeros((1, 2), np.float32))
    _points: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 2), np.float32))
    _live: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _seen: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def add(self, luma: np.ndarray) -> None:
        shown = _Shown(np.ascontiguousarray(luma), evened(luma))
        if self._before is not None and len(self._points):
            self._follow(self._before, shown)
        if len(self._points) < _REFILL * _CORNERS:
            self._search(shown.even)
        self._seen.append((self._live, self._points.reshape(-1, 2)))
        self._before = shown

    def _follow(self, before: _Shown, shown: _Shown) -> None:
        there, kept = self._found(before.even, shown.even, self._led(before, shown))
        if kept.sum() >= _LEAST_TOLD:
            self._step = np.median(there[kept] - self._points[kept], axis=0)
        self._points, self._live = there[kept], self._live[kept]

    def _found(self, before: np.ndarray, even: np.ndarray, lead: _Lead) -> tuple[np.ndarray, np.ndarray]:
        """Corners after a step, and flags of those that come back.

        A turn of ten degrees stretches what is at the side by a third, and a window that is only moved does not fit there; so
        the picture before is bent as the lead has it, and windows are compared at their new place and shape.
        """
        if lead.matrix is None:
            return self._traced(before, even, self._points, lead.near, _LEVELS)
        bent = cv2.warpPerspective(before, lead.matrix, before.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        return self._traced(bent, even, lead.near, lead.near, _LEVELS)

    def _led(self, before: _Shown, shown: _Shown) -> _Lead:
        """Where to look for each corner.

        A fast turn takes corners at the sides twice as far as those in the middle, and none as far as the frame before; so
        some go first, from where the last step leads, and if most of those are lost, from where dense flow does.
        """
        lead = self._lead(before.whole, shown.whole, self._points + self._step, _FAR_LEVELS)
        if lead.matrix is None:
            flow = self._flow(before.whole, shown.whole)
            lead = max(lead, self._lead(before.even, shown.even, flow, _FLOW_LEVELS), key=lambda each: each.share)
        return lead

    def _lead(self, before: np.ndarray, luma: np.ndarray, near: np.ndarray, levels: int) -> _Lead:
        """By the homography, exact for a turn, that most of some corners share; `near` itself where too few do."""
        some, towards = (np.ascontiguousarray(p[::_EVERY]) for p in (self._points, near))
        there, kept = self._traced(before, luma, some, towards, levels)
        if kept.sum() < _LEAST_LEAD:
            return _Lead(near, 0.0)
        matrix, shared = cv2.findHomography(some[kept], there[kept], cv2.RANSAC, _SHARED_PX)
        if matrix is None:
            return _Lead(near, 0.0)
        led, share = cv2.perspectiveTransform(self._points, matrix), float(shared.sum() / len(some))
        return _Lead(led, share, matrix) if share >= _MOST else _Lead(self._sober(led), share)

    def _sober(self, near: np.ndarray) -> np.ndarray:
        """Where a lead would take a corner far from where it takes most of them, there."""
        plain = self._points + np.median(near - self._points, axis=0)
        return np.where(np.abs(near - plain).max(-1, keepdims=True) < _FAR_PX, near, plain)

    def _flow(self, before: np.ndarray, luma: np.ndarray) -> np.ndarray:
        """About where each corner has gone, [P, 1, 2] px, by dense flow of small pictures: it finds a jerk of any size."""
        scale = luma.shape[1] / _SMALL
        size = _SMALL, max(16, round(luma.shape[0] / scale))
        start = np.full((size[1], size[0], 2), self._step / scale, np.float32)
        small, now = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (before, luma))
        flow = self._dense.calc(small, now, start)
        x, y = (self._points[:, :, k] / np.float32(scale) for k in (0, 1))
        moved = cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return self._points + moved.reshape(-1, 1, 2) * np.float32(scale)

    def _traced(
        self, before: np.ndarray, luma: np.ndarray, points: np.ndarray, near: np.ndarray, levels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where points [P, 1, 2] of the picture before are now, sought from `near` on; flags [P] of those that come back."""
        how: Any = {"winSize": _WINDOW, "maxLevel": levels, "criteria": _STOP, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
        near = near.astype(np.float32)
        there, found, _ = cv2.calcOpticalFlowPyrLK(before, luma, points, near.copy(), **how)
        back, again, _ = cv2.calcOpticalFlowPyrLK(luma, before, there, there - (near - points), **how)
        lost = np.abs(back - points).reshape(-1, 2).max(1)
        return there, (found.ravel() == 1) & (again.ravel() == 1) & (lost < _BACK_PX) & self._inside(there.reshape(-1, 2))

    def _inside(self, xy: np.ndarray) -> np.ndarray:
        height, width = self.mask.shape
        x, y = (np.clip(np.nan_to_num(side), -1e6, 1e6) for side in xy.T)
        inside = (x >= _EDGE_PX) & (y >= _EDGE_PX) & (x < width - _EDGE_PX) & (y < height - _EDGE_PX)
        column, row = (np.clip(np.rint(side).astype(int), 0, top - 1) for side, top in ((x, width), (y, height)))
        return inside & (self.mask[row, column] > 0)

    def _search(self, luma: np.ndarray) -> None:
        free = self.mask.copy()
        free[:_EDGE_PX], free[-_EDGE_PX:], free[:, :_EDGE_PX], free[:, -_EDGE_PX:] = 0, 0, 0, 0
        for x, y in self._points.reshape(-1, 2).astype(int).tolist():
            cv2.circle(free, (x, y), _APART_PX, 0, -1)
        found = cv2.goodFeaturesToTrack(luma, _CANDIDATES, _QUALITY, _APART_PX, mask=free, blockSize=_BLOCK)
        if found is None:
            return
        found = found[np.sort(self._spread(found)[: _CORNERS - len(self._points)])]
        self._points = np.concatenate([self._points, found.astype(np.float32)])
        self._live = np.concatenate([self._live, np.arange(self._made, self._made + len(found))])
        self._made += len(found)

    def _spread(self, found: np.ndarray) -> np.ndarray:
        """In which order to take corners, best ones first as found: or else a bright sky takes them all from a dark wall."""
        cell, held = self._cell(found), np.bincount(self._cell(self._points), minlength=_COLUMNS * _ROWS)
        order = np.argsort(cell, kind="stable")
        rank = np.empty(len(cell), int)
        rank[order] = np.arange(len(cell)) - np.searchsorted(cell[order], cell[order])
        return np.argsort(np.maximum(rank + held[cell], _A_CELL), kind="stable")

    def _cell(self, points: np.ndarray) -> np.ndarray:
        """Which part of the picture each of points [P, 1, 2] is in."""
        height, width = self.mask.shape
        part = (points.reshape(-1, 2) * (_COLUMNS / width, _ROWS / height)).astype(int)
        column, row = np.clip(part, 0, (_COLUMNS - 1, _ROWS - 1)).T
        return row * _COLUMNS + column

    def tracks(self, times_s: np.ndarray) -> Tracks:
        numbers = np.concatenate([live for live, _ in self._seen] or [np.empty(0, np.int64)])
        points = np.concatenate([xy for _, xy in self._seen] or [np.empty((0, 2), np.float32)])
        frame = np.repeat(np.arange(len(self._seen)), [len(live) for live, _ in self._seen])
        order = np.argsort(numbers, kind="stable")
        length = np.bincount(numbers, minlength=self._made)
        start = frame[order][np.cumsum(length) - length] if len(order) else np.empty(0, int)
        found = Tracks(times_s, points[order] + np.float32(0.5), start, length)
        return found.keep(length >= _LEAST)
