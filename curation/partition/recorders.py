"""The measurements of a scan, one recorder for each kind.

Each entry belongs to one frame. It depends on that frame and a few frames around it, never on where the scan began. So parts
of a source that were measured separately join to what one scan of the whole gives, bit for bit (`curation.partition.chunks`).
"""

from array import array
from collections.abc import Callable
from typing import NamedTuple, Protocol

import av
import numpy as np

from curation.media.jpeg import encode_jpeg
from curation.media.time_gaps import MIN_GAP_S
from curation.partition.change_cells import CHANNELS, change_cells
from curation.partition.cuts import LOOK_AHEAD, LOOK_BACK, CutMeter
from curation.partition.fingerprint import PER_S, SIZE, small_luma
from curation.partition.optical_flow import WIDTH, DisFlow, Flow, FramePair, cell_means, gray
from curation.quality.iqa import FAULTS, Iqa, combing, luma_plane
from curation.quality.luminance import LumaLog

# The two frames of a flow pair are at least this far apart: 60 fps captures often show each game frame twice.
_MIN_PAIR_GAP_S = 1 / 37
_THUMBNAIL_EVERY_S = 1.0
_JPEG_QUALITY = 70
# The window that an entry may depend on. Flow matches reach farthest in frames. Samples, which are at most a second apart, are
# compared with the one before, and a flow pair begins less than a second back.
FRAMES_BEFORE, FRAMES_AFTER = LOOK_BACK, LOOK_AHEAD
SECONDS_BEFORE = 1.0
# A frame that misses the start of a period by less than this belongs to it: 0.3 / 0.1 is 2.9999999999999996.
_SAME_S = 1e-6


class ScanFrame(NamedTuple):
    """A frame as the recorders get it."""

    number: int  # counted from the first frame of the scan or chunk
    time_s: float
    before_s: float | None  # time of the frame before; None for the first
    rgb: np.ndarray  # uint8 [H, W, 3] at the analysis size
    gray: np.ndarray  # uint8 [H, W], the luma of rgb
    decoded: av.VideoFrame  # as decoded: at full size and not upright
    in_chunk: bool  # belongs to the part that is measured, not to the frames around it

    def first_in(self, every_s: float) -> bool:
        """Return whether it is the first frame of a period. Periods count from the source's start, wherever the scan begins."""
        return self.before_s is None or _period(self.time_s, every_s) > _period(self.before_s, every_s)


def _period(time_s: float, every_s: float) -> int:
    return int((time_s + _SAME_S) / every_s)


class Recorder(Protocol):
    """One kind of measurement. `add` gets every frame in order. Entry i of each array belongs to frame `frames[i]`.

    `frames` ascends. Arrays are [entries, ...]. An array whose name ends in `_frame` holds indices of frames.
    """

    frames: "array[int]"

    def add(self, frame: ScanFrame) -> None: ...

    def arrays(self) -> dict[str, np.ndarray]: ...


def new_recorders(
    flow: Flow, pairs_per_s: float, iqa: Iqa, iqa_every_s: float, detector: str, min_cut_content: float
) -> list[Recorder]:
    """Return new recorders of everything that a scan measures, except the viewport, which needs sums and not entries.

    detector, min_cut_content: for which detector of cuts it is measured, as in `ScanSettings`.
    """
    from curation.partition.detectors import frame_measure  # here: it loads PySceneDetect, which drivers do without

    measure = frame_measure(detector)
    return [
        *([DetectorRecorder(measure)] if measure else []),
        FrameRecorder(),
        CutRecorder(min_cut_content),
        FlowRecorder(flow, pairs_per_s),
        QualityRecorder(iqa, iqa_every_s),
        ThumbnailRecorder(),
        FingerprintRecorder(),
    ]


class FrameRecorder:
    """Records time and luma histogram of every frame, and whether it was interlaced.

    times_s float64 [N], luma_bins uint16 [N, B], deinterlaced uint8 [N].
    """

    def __init__(self) -> None:
        self.frames, self._times_s, self._lumas = array("l"), array("d"), LumaLog()
        self._deinterlaced = array("B")

    def add(self, frame: ScanFrame) -> None:
        self.frames.append(frame.number)
        self._times_s.append(frame.time_s)
        self._lumas.add(frame.gray)
        self._deinterlaced.append(bool(frame.decoded.opaque))

    def arrays(self) -> dict[str, np.ndarray]:
        deinterlaced = np.asarray(self._deinterlaced, np.uint8)
        return {"times_s": np.asarray(self._times_s), "luma_bins": self._lumas.result(), "deinterlaced": deinterlaced}


class CutRecorder:
    """Records what `cut_frames` needs of every frame: content, layout_similarity and flow_match, each float64 [N]."""

    def __init__(self, min_content: float) -> None:
        self.frames, self._meter = array("l"), CutMeter(min_content)

    def add(self, frame: ScanFrame) -> None:
        self.frames.append(frame.number)
        self._meter.add(frame.rgb)

    def arrays(self) -> dict[str, np.ndarray]:
        self._meter.finish()
        measures = self._meter.measures()
        return {
            "content": measures.content_N,
            "layout_similarity": measures.layout_N,
            "flow_match": measures.flow_match_N,
        }


class DetectorRecorder:
    """Records what PySceneDetect's hash, threshold or transnet detector wants of every frame: detector_measure [N, ...]."""

    def __init__(self, measure: Callable[[np.ndarray], np.ndarray]) -> None:
        self.frames, self._measure = array("l"), measure
        self._rows: list[np.ndarray] = []

    def add(self, frame: ScanFrame) -> None:
        self.frames.append(frame.number)
        self._rows.append(self._measure(frame.rgb))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"detector_measure": np.array(self._rows)}


class _Frame(NamedTuple):
    """A frame of a flow pair, without the decoded frame, which takes 12 MB at 4K."""

    number: int
    time_s: float
    rgb: np.ndarray
    gray: np.ndarray


class _Pair(NamedTuple):
    """A flow pair, and the gray first frame of the pair before; its own first frame where there is a gap in time between."""

    earlier_gray: np.ndarray
    first: _Frame
    second: _Frame


class FlowRecorder:
    """Records flow `pairs_per_s` times a second, between the first frame of a period and the next that is not too close to it.

    pair_frame int64 [P], the later frame of a pair; cells float16 [P, R, C, 2] px/frame at 320 wide; change_cells uint8
    [P, R, C, 4] of the pair and the first frame of the pair before, unless there is a gap in time between them. Where the next
    period begins before such a next frame is decoded, the pair begins there instead. Pairs wait until there is a batch of the
    size that the backend wants.

    The learned detector of interactions needs DIS flow. With another backend `change_cells` are by DIS all the same, and
    `dis_cells` are as `cells`, by DIS; it takes 2 ms a pair.
    """

    def __init__(self, flow: Flow, pairs_per_s: float) -> None:
        self._flow, self._every_s = flow, max(1 / pairs_per_s, _MIN_PAIR_GAP_S)
        self._first: _Frame | None = None
        self._earlier: _Frame | None = None
        self._waiting: list[_Pair] = []
        self._dis = None if flow.name == "dis" else DisFlow()
        self._dis_cells = bytearray()
        self._shape = (1, 1)
        self._cells, self._change_cells = bytearray(), bytearray()
        self.frames = array("l")

    def add(self, frame: ScanFrame) -> None:
        first = self._first
        if first is not None and frame.time_s - first.time_s >= _MIN_PAIR_GAP_S:
            self._add_pair(first, _Frame(frame.number, frame.time_s, frame.rgb, gray(frame.rgb)))
            self._first, self._earlier = None, first
        if frame.first_in(self._every_s):
            self._first = _Frame(frame.number, frame.time_s, frame.rgb, gray(frame.rgb))

    def _add_pair(self, first: _Frame, second: _Frame) -> None:
        recent = self._earlier is not None and first.time_s - self._earlier.time_s <= MIN_GAP_S
        earlier = self._earlier.gray if self._earlier is not None and recent else first.gray
        self._waiting.append(_Pair(earlier, first, second))
        self.frames.append(second.number)
        if len(self._waiting) >= self._flow.batch:
            self._compute_waiting()

    def _compute_waiting(self) -> None:
        pairs = [FramePair(pair.first.rgb, pair.second.rgb) for pair in self._waiting]
        flows = self._flow(pairs) if pairs else []
        for (earlier, first, second), pair, flow in zip(self._waiting, pairs, flows, strict=True):
            dis_flow = flow if self._dis is None else self._dis([pair])[0]
            self._change_cells += change_cells(earlier, first.gray, second.gray, dis_flow).tobytes()
            scale = WIDTH / second.rgb.shape[1] / (second.number - first.number)
            cells = cell_means(flow * scale).astype(np.float16)
            self._shape = cells.shape[:2]
            self._cells += cells.tobytes()
            if self._dis is not None:
                self._dis_cells += cell_means(dis_flow * scale).astype(np.float16).tobytes()
        self._waiting.clear()

    def arrays(self) -> dict[str, np.ndarray]:
        self._compute_waiting()
        cells = np.frombuffer(self._cells, np.float16).reshape(-1, *self._shape, 2)
        change = np.frombuffer(self._change_cells, np.uint8).reshape(-1, *self._shape, CHANNELS)
        arrays: dict[str, np.ndarray] = {
            "pair_frame": np.asarray(self.frames, np.int64),
            "cells": cells,
            "change_cells": change,
        }
        if self._dis is not None:
            arrays["dis_cells"] = np.frombuffer(self._dis_cells, np.float16).reshape(-1, *self._shape, 2)
        return arrays


class QualityRecorder:
    """Records the picture quality of the first frame of each period, as decoded, and its combing.

    iqa_frame int64 [S], iqa_rows float32 [S, 1 + FAULTS], combing float64 [S]. Frames wait until there is a batch of the size
    that the backend wants.
    """

    def __init__(self, rate: Iqa, every_s: float) -> None:
        self._rate, self._every_s = rate, every_s
        self._waiting: list[av.VideoFrame] = []
        self._rows = bytearray()
        self.frames, self._combing = array("l"), array("d")

    def add(self, frame: ScanFrame) -> None:
        if frame.first_in(self._every_s):
            self.frames.append(frame.number)
            self._combing.append(combing(luma_plane(frame.decoded)))
            self._waiting.append(frame.decoded)
            if len(self._waiting) >= self._rate.batch:
                self._rate_waiting()

    def _rate_waiting(self) -> None:
        if self._waiting:
            self._rows += self._rate(self._waiting).astype(np.float32).tobytes()
            self._waiting.clear()

    def arrays(self) -> dict[str, np.ndarray]:
        self._rate_waiting()
        rows = np.frombuffer(self._rows, np.float32).reshape(-1, 1 + len(FAULTS))
        return {"iqa_frame": np.asarray(self.frames, np.int64), "iqa_rows": rows, "combing": np.asarray(self._combing)}


class ThumbnailRecorder:
    """Records a small JPEG of the first frame of each second: thumbnail_frame int64 [T], jpegs, an array of `bytes` [T]."""

    def __init__(self) -> None:
        self.frames = array("l")
        self._jpegs: list[bytes] = []

    def add(self, frame: ScanFrame) -> None:
        if frame.first_in(_THUMBNAIL_EVERY_S):
            self.frames.append(frame.number)
            self._jpegs.append(encode_jpeg(frame.rgb, _JPEG_QUALITY))

    def arrays(self) -> dict[str, np.ndarray]:
        jpegs = np.empty(len(self._jpegs), object)
        jpegs[:] = self._jpegs
        return {"thumbnail_frame": np.asarray(self.frames, np.int64), "jpegs": jpegs}


class FingerprintRecorder:
    """Records the small pictures of which a fingerprint is made: small_frame int64 [K], small_lumas uint8 [K, 24, 32]."""

    def __init__(self) -> None:
        self.frames, self._lumas = array("l"), bytearray()

    def add(self, frame: ScanFrame) -> None:
        if frame.first_in(1 / PER_S):
            self.frames.append(frame.number)
            self._lumas += small_luma(frame.gray).tobytes()

    def arrays(self) -> dict[str, np.ndarray]:
        lumas = np.frombuffer(self._lumas, np.uint8).reshape(-1, *SIZE)
        return {"small_frame": np.asarray(self.frames, np.int64), "small_lumas": lumas}
