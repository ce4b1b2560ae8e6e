"""What a pass over a source notes down, one log a kind of measurement.

Each entry belongs to one frame and is a function of it and of a few frames around it, never of where the pass began. So
parts of a source that were measured apart join to what one pass gives, bit for bit (`curation.partition.chunks`).
"""

from array import array
from collections import deque
from typing import NamedTuple, Protocol

import av
import cv2
import numpy as np

from curation.media.time_gaps import MIN_GAP_S
from curation.partition.change_cells import CHANNELS, looks
from curation.partition.cuts import EXPLAINED, ContentScore, Layout, Matcher, small
from curation.partition.optical_flow import WIDTH, Flow, cell_means, gray
from curation.quality.iqa import FAULTS, Iqa, combing, luma_plane
from curation.quality.luminance import LumaLog

# Frames closer than this make one pair of flow skip to the next: 60 fps captures often show each game frame twice.
_MIN_PAIR_GAP_S = 1 / 37
_THUMBNAIL_EVERY_S = 1.0
_JPEG_QUALITY = 70
# Content score from which on a frame may be a cut and is matched with those before; in games one frame in three reaches it.
_MAYBE_CUT = 15.0
_FLASH_FRAMES = 3  # a picture that is back after so many frames was a flash, a blast or a hit, not a cut
# The window that an entry may depend on: a match looks from one before a flash to its end; samples once a second, at most,
# are compared with the one before, and flow begins less than a second back.
FRAMES_BEFORE, FRAMES_AFTER = _FLASH_FRAMES + 2, _FLASH_FRAMES
SECONDS_BEFORE = 1.0
# A frame whose time misses the start of its period by less belongs to it: 0.3 / 0.1 is 2.9999999999999996.
_SAME_S = 1e-6


class Look(NamedTuple):
    """A frame as the logs see it.

    number: counted from the first frame seen; before_s: the time of the frame before, None for the first; rgb uint8 [H, W, 3]
    and its luma gray uint8 [H, W] at the analysis size; frame: as decoded, at full size and not upright; own: whether it
    belongs to the part that is measured, and not to the frames around it.
    """

    number: int
    time_s: float
    before_s: float | None
    rgb: np.ndarray
    gray: np.ndarray
    frame: av.VideoFrame
    own: bool

    def first_in(self, every_s: float) -> bool:
        """Whether it is the first frame of a period; periods begin with the source, wherever the pass does."""
        return self.before_s is None or _period(self.time_s, every_s) > _period(self.before_s, every_s)


def _period(time_s: float, every_s: float) -> int:
    return int((time_s + _SAME_S) / every_s)


class Log(Protocol):
    """One kind of measurement: `add` is shown every frame in order; entry i of each array belongs to frame `frames[i]`.

    `frames` ascends. Arrays are [entries, ...]; one whose name ends in `_frame` holds indices of frames.
    """

    frames: "array[int]"

    def add(self, look: Look) -> None: ...

    def arrays(self) -> dict[str, np.ndarray]: ...


def logs(flow: Flow, pairs_per_s: float, iqa: Iqa, iqa_every_s: float) -> list[Log]:
    """Fresh logs of everything that a pass measures, save the viewport, whose evidence is sums and not entries."""
    return [FrameLog(), CutLog(), PairLog(flow, pairs_per_s), QualityLog(iqa, iqa_every_s), ThumbnailLog()]


class FrameLog:
    """Time and luma histogram of every frame, and whether it was interlaced: times_s float64 [N], luma_bins uint16 [N, B],
    deinterlaced uint8 [N].
    """

    def __init__(self) -> None:
        self.frames, self._times_s, self._lumas = array("l"), array("d"), LumaLog()
        self._deinterlaced = array("B")

    def add(self, look: Look) -> None:
        self.frames.append(look.number)
        self._times_s.append(look.time_s)
        self._lumas.add(look.gray)
        self._deinterlaced.append(bool(look.frame.opaque))

    def arrays(self) -> dict[str, np.ndarray]:
        made_whole = np.asarray(self._deinterlaced, np.uint8)
        return {"times_s": np.asarray(self._times_s), "luma_bins": self._lumas.result(), "deinterlaced": made_whole}


class CutLog:
    """Content score and likeness of layout of every frame, and of frames that score high how far those before explain them.

    content, layout, explained float64 [N]. What explains a frame is the best of three matches: with the frame before;
    with the one before a flash that may have ended here; and, once it is seen, of the frame after a flash that may have begun
    here with the one before it. A cut parts all three.
    """

    def __init__(self) -> None:
        self._score, self._alike, self._match = ContentScore(), Layout(), Matcher()
        self._last: deque[np.ndarray] = deque(maxlen=_FLASH_FRAMES + 2)
        self.frames, self._content, self._explained = array("l"), array("d"), array("d")
        self._layout = array("d")

    def add(self, look: Look) -> None:
        self.frames.append(look.number)
        self._layout.append(self._alike(look.rgb))
        self._content.append(self._score(look.rgb))
        self._explained.append(0.0 if self._asked(-1) else 1.0)
        self._last.append(small(look.rgb))
        if self._asked(-1):
            self._try(-1, before=-2, after=-1)
            self._try(-1, before=0, after=-1)
        if self._asked(-1 - _FLASH_FRAMES):
            self._try(-1 - _FLASH_FRAMES, before=0, after=-1)

    def _asked(self, frame: int) -> bool:
        return len(self._content) > -frame and self._content[frame] >= _MAYBE_CUT

    def _try(self, frame: int, before: int, after: int) -> None:
        """Match two of the frames at hand on behalf of a third, unless that one is explained well enough."""
        if self._explained[frame] < EXPLAINED:
            self._explained[frame] = max(self._explained[frame], self._match(self._last[before], self._last[after]))

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"content": self._content, "layout": self._layout, "explained": self._explained}
        return {name: np.asarray(values) for name, values in found.items()}


class _First(NamedTuple):
    """The first frame of a pair: of the frame itself, at 4K 12 MB, nothing is kept."""

    number: int
    time_s: float
    rgb: np.ndarray
    gray: np.ndarray


class PairLog:
    """Flow between the first frame of each period and the next one that is not too close to it, `pairs_per_s` times a second.

    pair_frame int64 [P], the later frame of a pair; cells float16 [P, R, C, 2] px/frame at 320 wide; looks uint8 [P, R, C, 4],
    of the pair and the first frame of the one before, if that is no longer ago than a hole. Where a period begins before such
    a next frame is seen, the pair begins there instead.
    """

    def __init__(self, flow: Flow, pairs_per_s: float) -> None:
        self._flow, self._every_s = flow, max(1 / pairs_per_s, _MIN_PAIR_GAP_S)
        self._first: _First | None = None
        self._earlier: _First | None = None
        self._shape = (1, 1)
        self._cells, self._looks = bytearray(), bytearray()
        self.frames = array("l")

    def add(self, look: Look) -> None:
        first = self._first
        if first is not None and look.time_s - first.time_s >= _MIN_PAIR_GAP_S:
            self._pair(first, look)
            self._first, self._earlier = None, first
        if look.first_in(self._every_s):
            self._first = _First(look.number, look.time_s, look.rgb, gray(look.rgb))

    def _pair(self, first: _First, look: Look) -> None:
        field = self._flow(first.rgb, look.rgb)
        recent = self._earlier is not None and first.time_s - self._earlier.time_s <= MIN_GAP_S
        earlier = self._earlier.gray if self._earlier is not None and recent else first.gray
        self._looks += looks(earlier, first.gray, gray(look.rgb), field).tobytes()
        cells = cell_means(field * (WIDTH / look.rgb.shape[1] / (look.number - first.number))).astype(np.float16)
        self._shape = cells.shape[:2]
        self._cells += cells.tobytes()
        self.frames.append(look.number)

    def arrays(self) -> dict[str, np.ndarray]:
        cells = np.frombuffer(self._cells, np.float16).reshape(-1, *self._shape, 2)
        change = np.frombuffer(self._looks, np.uint8).reshape(-1, *self._shape, CHANNELS)
        return {"pair_frame": np.asarray(self.frames, np.int64), "cells": cells, "looks": change}


class QualityLog:
    """What a backend says of the first frame of each period, as decoded: iqa_frame int64 [S], iqa_rows float32 [S, 1 + FAULTS];
    and combing float64 [S] of it.

    A backend that likes batches gets them; until then the frames wait.
    """

    def __init__(self, rate: Iqa, every_s: float) -> None:
        self._rate, self._every_s = rate, every_s
        self._waiting: list[av.VideoFrame] = []
        self._rows = bytearray()
        self.frames, self._combing = array("l"), array("d")

    def add(self, look: Look) -> None:
        if look.first_in(self._every_s):
            self.frames.append(look.number)
            self._combing.append(combing(luma_plane(look.frame)))
            self._waiting.append(look.frame)
            if len(self._waiting) >= self._rate.batch:
                self._look()

    def _look(self) -> None:
        if self._waiting:
            self._rows += self._rate(self._waiting).astype(np.float32).tobytes()
            self._waiting.clear()

    def arrays(self) -> dict[str, np.ndarray]:
        self._look()
        rows = np.frombuffer(self._rows, np.float32).reshape(-1, 1 + len(FAULTS))
        return {"iqa_frame": np.asarray(self.frames, np.int64), "iqa_rows": rows, "combing": np.asarray(self._combing)}


class ThumbnailLog:
    """A small JPEG of the first frame of each second: thumbnail_frame int64 [T], jpegs, an array of `bytes` [T]."""

    def __init__(self) -> None:
        self.frames = array("l")
        self._jpegs: list[bytes] = []

    def add(self, look: Look) -> None:
        if look.first_in(_THUMBNAIL_EVERY_S):
            self.frames.append(look.number)
            self._jpegs.append(_jpeg(look.rgb))

    def arrays(self) -> dict[str, np.ndarray]:
        jpegs = np.empty(len(self._jpegs), object)
        jpegs[:] = self._jpegs
        return {"thumbnail_frame": np.asarray(self.frames, np.int64), "jpegs": jpegs}


def _jpeg(rgb: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert ok, rgb.shape
    return bytes(data)
