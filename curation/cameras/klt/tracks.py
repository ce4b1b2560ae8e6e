"""Corners tracked through every frame of a clip (pyramidal Lucas-Kanade, checked forwards and backwards)."""

import math
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
_REFILL = 0.8  # new corners are searched when fewer than this share is left: each search costs as much as tracking
_QUALITY, _MIN_SPACING_PX, _BLOCK = 0.001, 9, 5
_COLUMNS, _ROWS, _CORNERS_PER_CELL = 8, 6, 7  # cells of the picture; beyond so many corners in one, other cells come first
_WINDOW = (13, 13)
_LEVELS = 2  # of the pyramid, with a prediction within some px: on a wall of bricks a coarser level leads to the wrong brick
_FLOW_LEVELS = 3  # with a prediction from dense flow of small pictures
_BACK_LEVELS = 2  # on the way back, which begins where a corner should come from; with 1 jerky turns over bricks are lost
_FAR_LEVELS = 3  # of a picture of half the size; the coarsest level of one 640 wide sees turns of 100 px a frame
_EVERY = 4  # one corner in so many is a pioneer: it is tracked first and predicts where the others are
_MIN_PIONEERS, _HOMOGRAPHY_PX = 12, 8.0  # pioneers that a homography needs, and how far from it they may be: depths differ
_MIN_PIONEER_SHARE = 0.5  # of the pioneers that must agree with the homography
_STRAIGHT_PX = 0.15  # a window whose corners a homography moves by less than this apart need not be warped
_MAX_DEVIATION_PX = 150  # a motion seen by a few corners is not believed at the other end of the picture
_SMALL = 160  # px wide
_BACK_PX = 0.7  # a corner that does not come back to within this was lost: Doom's nearest-neighbour textures jitter by 0.5
_STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03)
_AROUND_PX, _COARSE = 61, 4  # neighbourhood that a px is compared with, and how much smaller its mean and spread are computed
_CONTRAST, _MIN_SPREAD = 40.0, 4.0  # grey levels: what the spread becomes, and what is added so that noise is not amplified
_EDGE_PX = 4
_HUD_MARGIN = 5  # px around what never changes: a window there sees both
_MIN_STEP_CORNERS = 20  # corners whose median step predicts the next step
_MARK_EVERY_S, _MARK_SIZE_PX, _MARK_EDGE_PX = 0.4, 31.0, 16  # when corners are described, for recognising them later
_MIN_LENGTH = 4  # frames; a shorter track ties nothing together


class TrackingView(NamedTuple):
    """Where corners are tracked. All px are px of the decoded picture, which has square pixels.

    size: (W, H) of the whole picture. rect: the 3-D view in it. mask uint8 [rect.h, rect.w]: 255 where corners may lie.
    """

    size: tuple[int, int]
    rect: Rect
    mask: np.ndarray

    @property
    def static_share(self) -> float:
        return float((self.mask == 0).mean())


class Marks(NamedTuple):
    """How corners looked in some of the frames, to recognise them: frame, number int [D]; descriptor uint8 [D, 32] (ORB)."""

    frame: np.ndarray
    number: np.ndarray
    descriptor: np.ndarray


NO_MARKS = Marks(np.empty(0, int), np.empty(0, int), np.empty((0, 32), np.uint8))


@dataclass(frozen=True)
class Tracks:
    """Corners by frame, track after track. A track has no gaps.

    xy f4 [S, 2]: px of the tracking view's rect, corner-origin. Track i begins in frame start[i] and is visible in length[i]
    frames. times_s f8 [N]: presentation times of the frames, relative to the first. number int [M]: the number of each track,
    which it keeps in a selection or a part. marks: of the clip, by number.
    """

    times_s: np.ndarray
    xy: np.ndarray
    start: np.ndarray
    length: np.ndarray
    number: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    marks: Marks = NO_MARKS

    def __post_init__(self) -> None:
        if len(self.number) != len(self.start):
            assert not len(self.number), "a number for each track"
            object.__setattr__(self, "number", np.arange(len(self.start)))

    def dense(self) -> np.ndarray:
        """Return the corners as f4 [N, M, 2], NaN where a track is not visible."""
        dense = np.full((len(self.times_s), len(self.start), 2), np.nan, np.float32)
        which = np.repeat(np.arange(len(self.start)), self.length)
        offset = np.arange(len(self.xy)) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        dense[np.repeat(self.start, self.length) + offset, which] = self.xy
        return dense

    def per_frame(self) -> np.ndarray:
        """Return the number of tracks in each frame, int [N]."""
        count = len(self.times_s)
        begun = np.bincount(self.start, minlength=count + 1)
        ended = np.bincount(self.start + self.length, minlength=count + 1)
        return np.cumsum(begun - ended)[:count]

    def select(self, which: np.ndarray) -> "Tracks":
        """Return only the tracks flagged in bool [M]."""
        xy, number = self.xy[np.repeat(which, self.length)], self.number[which]
        return Tracks(self.times_s, xy, self.start[which], self.length[which], number, self.marks)

    def part(self, first: int, end: int) -> "Tracks":
        """Return what the frames [first, end) show of the tracks. Times are counted from the first of them."""
        begins, ends = np.clip(self.start, first, None), np.clip(self.start + self.length, None, end)
        length = np.maximum(ends - begins, 0)
        offset = np.arange(len(self.xy)) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        frame = np.repeat(self.start, self.length) + offset
        kept = length >= _MIN_LENGTH
        xy = self.xy[(frame >= first) & (frame < end) & np.repeat(kept, self.length)]
        times_s = self.times_s[first:end] - self.times_s[first]
        return Tracks(times_s, xy, begins[kept] - first, length[kept], self.number[kept], self.marks)


def tracking_view(uri: str, viewport: Rect, static: np.ndarray | None, max_width: int) -> TrackingView:
    """Return the view of a source in which corners are tracked: at most `max_width` px wide, pixels made square."""
    source = probe(uri)
    scale = min(1.0, max_width / (source.width * source.pixel_aspect))
    size = max(16, round(source.width * source.pixel_aspect * scale)), max(16, round(source.height * scale))
    across, down = size[0] / source.width, size[1] / source.height
    rect = viewport.scaled(across, down).within(Rect(0, 0, *size))
    mask = np.full((rect.h, rect.w), 255, np.uint8)
    if static is not None and static.any():
        still = cv2.resize(static.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        still = still[rect.y : rect.y + rect.h, rect.x : rect.x + rect.w]
        mask[cv2.dilate(still, np.ones((2 * _HUD_MARGIN + 1,) * 2, np.uint8)) > 0] = 0
    return TrackingView(size, rect, mask)


def track_corners(uri: str, span: Span, view: TrackingView) -> Tracks:
    """Return the tracks of a span. It is decoded once, and frames are not kept.

    Raises `UnreadableVideo` where the source cannot be read.
    """
    times, tracker = [], _CornerTracker(view.mask)
    for time_s, luma in _lumas(uri, span, view):
        times.append(time_s)
        tracker.add(luma, time_s)
    times_s = np.asarray(times, float)
    return tracker.tracks(times_s - times_s[0] if times else times_s)


def _lumas(uri: str, span: Span, view: TrackingView) -> Iterator[tuple[float, np.ndarray]]:
    painter, rect = decode.FrameConverter(probe(uri), view.size, "gray"), view.rect
    for time_s, frame in decode.decode(uri, span, "camera"):
        yield time_s, painter(frame)[rect.y : rect.y + rect.h, rect.x : rect.x + rect.w]


def normalize_contrast(luma: np.ndarray) -> np.ndarray:
    """Normalize each px of luma uint8 [H, W] by the mean and spread of the px around it.

    Dark corridors then have corners too. A picture that flashes, as games' pictures do when the player is hit, looks as before.
    """
    height, width = luma.shape
    size, around = (max(1, width // _COARSE), max(1, height // _COARSE)), (_AROUND_PX // _COARSE | 1,) * 2
    exact = luma.astype(np.float32)
    mean, square = (cv2.blur(cv2.resize(v, size, interpolation=cv2.INTER_AREA), around) for v in (exact, exact * exact))
    gain = _CONTRAST / (np.sqrt(np.maximum(square - mean * mean, 0)) + _MIN_SPREAD)
    factor, offset = (cv2.resize(v, (width, height)) for v in (gain, 128 - mean * gain))
    return cv2.add(exact * factor, offset, dtype=cv2.CV_8U)


class _Prediction(NamedTuple):
    """Where to look for the corners.

    near f4 [P, 1, 2]: the predicted place of each. share: of the pioneers that confirm the prediction. matrix: the homography
    [3, 3] behind it, None where most pioneers do not confirm it.
    """

    near: np.ndarray
    share: float
    matrix: np.ndarray | None = None


class _Picture(NamedTuple):
    """A frame as it is, at half the size, in which large motions are found, and with normalized contrast."""

    luma: np.ndarray
    small: np.ndarray
    normalized: np.ndarray

    @classmethod
    def of(cls, luma: np.ndarray) -> "_Picture":
        luma = np.ascontiguousarray(luma)
        half = luma.shape[1] // 2, luma.shape[0] // 2
        return cls(luma, np.asarray(cv2.resize(luma, half, interpolation=cv2.INTER_AREA)), normalize_contrast(luma))


def _best_corners(luma: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Return the corners f4 [P, 1, 2] of a picture where `free` is not zero, best first, each the best in some px around it.

    The measure is that of `cv2.goodFeaturesToTrack` (Shi & Tomasi 1994), which takes three times as long.
    """
    strength = cv2.cornerMinEigenVal(luma, _BLOCK)
    lowest = _QUALITY * float(strength.max())
    strength[free == 0] = 0
    best = cv2.dilate(strength, np.ones((2 * _MIN_SPACING_PX - 1,) * 2, np.uint8))
    where = np.flatnonzero((strength == best) & (strength > lowest))
    where = where[np.argsort(-strength.ravel()[where], kind="stable")]
    return np.stack([where % luma.shape[1], where // luma.shape[1]], 1)[:, None].astype(np.float32)


@dataclass
class _CornerTracker:
    """Tracks corners; takes one luma uint8 [H, W] a frame. `_live` numbers the tracks at `_points`, float32 [P, 1, 2]."""

    mask: np.ndarray
    _count: int = 0
    _before: _Picture | None = None
    _step: np.ndarray = field(default_factory=lambda: np.zeros((1, 2), np.float32))
    _points: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 2), np.float32))
    _live: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _history: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _marks: list[Marks] = field(default_factory=list)
    _marked_s: float = -math.inf

    def __post_init__(self) -> None:
        self._orb = cv2.ORB.create(nlevels=1, edgeThreshold=_MARK_EDGE_PX)
        self._dense_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def add(self, luma: np.ndarray, time_s: float) -> None:
        picture = _Picture.of(luma)
        if self._before is not None and len(self._points):
            self._track(self._before, picture)
        if len(self._points) < _REFILL * _CORNERS:
            self._search(picture.normalized)
        if time_s - self._marked_s >= _MARK_EVERY_S and len(self._points):
            self._mark(picture.normalized)
            self._marked_s = time_s
        self._history.append((self._live, self._points.reshape(-1, 2)))
        self._before = picture

    def _mark(self, normalized: np.ndarray) -> None:
        """Describe the corners as they look now. All are described upright, as cameras in games do not roll."""
        places = self._points.reshape(-1, 2).tolist()
        points = [cv2.KeyPoint(x, y, _MARK_SIZE_PX, 0.0, 0.0, 0, k) for k, (x, y) in enumerate(places)]
        described, descriptor = self._orb.compute(normalized, points)
        if descriptor is not None:
            number = self._live[[point.class_id for point in described]]
            self._marks.append(Marks(np.full(len(number), len(self._history)), number, descriptor))

    def _track(self, before: _Picture, now: _Picture) -> None:
        points, kept = self._track_from(before.normalized, now.normalized, self._predict(before, now))
        if kept.sum() >= _MIN_STEP_CORNERS:
            self._step = np.median(points[kept] - self._points[kept], axis=0)
        self._points, self._live = points[kept], self._live[kept]

    def _track_from(self, before: np.ndarray, now: np.ndarray, prediction: _Prediction) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners after a step, and flags of those that come back.

        A turn of ten degrees stretches the sides of the picture by a third, so a window that is only shifted does not match
        there. The picture before is therefore warped by the homography, and windows are compared at their new place and shape.
        """
        if prediction.matrix is None or self._moves_straight(prediction.matrix):
            return self._match(before, now, self._points, prediction.near, _LEVELS)
        warped = cv2.warpPerspective(before, prediction.matrix, before.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        return self._match(warped, now, prediction.near, prediction.near, _LEVELS)

    def _moves_straight(self, matrix: np.ndarray) -> bool:
        """Whether a homography only shifts windows, all over the picture, and does not stretch or turn them."""
        height, width = self.mask.shape
        x, y = np.meshgrid(np.linspace(0, width, 4), np.linspace(0, height, 4))
        middle = np.stack([x.ravel(), y.ravel()], 1)
        edge = middle + np.array(_WINDOW) / 2
        moved = cv2.perspectiveTransform(np.stack([middle, edge]), matrix)
        return bool(np.abs(moved[1] - moved[0] - (edge - middle)).max() < _STRAIGHT_PX)

    def _predict(self, before: _Picture, now: _Picture) -> _Prediction:
        """Predict where to look for each corner.

        A fast turn moves corners at the sides twice as far as those in the middle, and none as far as in the frame before. So
        the pioneers are tracked first, from where the last step leads. If most of them are lost, they start from dense flow.
        """
        prediction = self._predict_from(before.small, now.small, self._points + self._step, _FAR_LEVELS)
        if prediction.matrix is None:
            flow = self._flow(before.luma, now.luma)
            other = self._predict_from(before.normalized, now.normalized, flow, _FLOW_LEVELS)
            prediction = max(prediction, other, key=lambda each: each.share)
        return prediction

    def _predict_from(self, before: np.ndarray, now: np.ndarray, near: np.ndarray, levels: int) -> _Prediction:
        """Predict by the homography, exact for a turn, that most pioneers share; `near` itself where too few are left."""
        scale = now.shape[1] / self.mask.shape[1]  # of the pictures
        pioneers, start = (np.ascontiguousarray(p[::_EVERY]) for p in (self._points, near))
        points, kept = self._match(before, now, pioneers * np.float32(scale), start * np.float32(scale), levels, scale)
        points = points / np.float32(scale)
        if kept.sum() < _MIN_PIONEERS:
            return _Prediction(near, 0.0)
        matrix, agreeing = cv2.findHomography(pioneers[kept], points[kept], cv2.RANSAC, _HOMOGRAPHY_PX)
        if matrix is None:
            return _Prediction(near, 0.0)
        predicted, share = cv2.perspectiveTransform(self._points, matrix), float(agreeing.sum() / len(pioneers))
        if share >= _MIN_PIONEER_SHARE:
            return _Prediction(predicted, share, matrix)
        return _Prediction(self._limit_deviation(predicted), share)

    def _limit_deviation(self, near: np.ndarray) -> np.ndarray:
        """Replace the prediction of a corner that is far from the median motion by the median motion."""
        plain = self._points + np.median(near - self._points, axis=0)
        return np.where(np.abs(near - plain).max(-1, keepdims=True) < _MAX_DEVIATION_PX, near, plain)

    def _flow(self, before: np.ndarray, now: np.ndarray) -> np.ndarray:
        """Return roughly where each corner is now, [P, 1, 2] px, by dense flow of small pictures, which finds any jerk."""
        scale = now.shape[1] / _SMALL
        size = _SMALL, max(16, round(now.shape[0] / scale))
        start = np.full((size[1], size[0], 2), self._step / scale, np.float32)
        small_before, small_now = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (before, now))
        flow = self._dense_flow.calc(small_before, small_now, start)
        x, y = (self._points[:, :, k] / np.float32(scale) for k in (0, 1))
        moved = cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return self._points + moved.reshape(-1, 1, 2) * np.float32(scale)

    def _match(
        self, before: np.ndarray, now: np.ndarray, points: np.ndarray, near: np.ndarray, levels: int, scale: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search points [P, 1, 2] of the picture before in the picture now, starting at `near`.

        Returns where they are, and flags [P] of those that come back. scale: of these pictures, and all points in them.
        """
        options: Any = {"winSize": _WINDOW, "criteria": _STOP, "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
        near = near.astype(np.float32)
        matched, status, _ = cv2.calcOpticalFlowPyrLK(before, now, points, near.copy(), maxLevel=levels, **options)
        start, back_levels = matched - (near - points), min(levels, _BACK_LEVELS)
        back, back_status, _ = cv2.calcOpticalFlowPyrLK(now, before, matched, start, maxLevel=back_levels, **options)
        error_px = np.abs(back - points).reshape(-1, 2).max(1)
        tracked = (status.ravel() == 1) & (back_status.ravel() == 1) & (error_px < _BACK_PX)
        return matched, tracked & self._inside(matched.reshape(-1, 2) / np.float32(scale))

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
            cv2.circle(free, (x, y), _MIN_SPACING_PX, 0, -1)
        corners = _best_corners(luma, free)
        corners = corners[np.sort(self._spread_order(corners)[: _CORNERS - len(self._points)])]
        self._points = np.concatenate([self._points, corners])
        self._live = np.concatenate([self._live, np.arange(self._count, self._count + len(corners))])
        self._count += len(corners)

    def _spread_order(self, corners: np.ndarray) -> np.ndarray:
        """Return the order in which to take corners, which come best first.

        Cells with few corners come first. Otherwise a bright sky would take all corners from a dark wall.
        """
        cell, taken = self._cell(corners), np.bincount(self._cell(self._points), minlength=_COLUMNS * _ROWS)
        order = np.argsort(cell, kind="stable")
        rank = np.empty(len(cell), int)
        rank[order] = np.arange(len(cell)) - np.searchsorted(cell[order], cell[order])
        return np.argsort(np.maximum(rank + taken[cell], _CORNERS_PER_CELL), kind="stable")

    def _cell(self, points: np.ndarray) -> np.ndarray:
        """Return the cell of the picture that each of points [P, 1, 2] is in."""
        height, width = self.mask.shape
        part = (points.reshape(-1, 2) * (_COLUMNS / width, _ROWS / height)).astype(int)
        column, row = np.clip(part, 0, (_COLUMNS - 1, _ROWS - 1)).T
        return row * _COLUMNS + column

    def tracks(self, times_s: np.ndarray) -> Tracks:
        numbers = np.concatenate([live for live, _ in self._history] or [np.empty(0, np.int64)])
        points = np.concatenate([xy for _, xy in self._history] or [np.empty((0, 2), np.float32)])
        frame = np.repeat(np.arange(len(self._history)), [len(live) for live, _ in self._history])
        order = np.argsort(numbers, kind="stable")
        length = np.bincount(numbers, minlength=self._count)
        start = frame[order][np.cumsum(length) - length] if len(order) else np.empty(0, int)
        marks = Marks(*(np.concatenate(column) for column in zip(NO_MARKS, *self._marks, strict=True)))
        every = Tracks(times_s, points[order] + np.float32(0.5), start, length, marks=marks)
        return every.select(length >= _MIN_LENGTH)
