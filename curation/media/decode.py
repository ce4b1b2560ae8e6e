"""The decoder of curation (PyAV): read the frames of a source or of a span of it. `curation.media.encode` stores spans.

Time is seconds from the first frame of the source by presentation time stamp, never frame number divided by rate, so variable
rates, edit lists and late starts need no special case. A span [a, b) holds the frames with a <= t < b. Reading it by seeking
gives exactly the frames that a decode from the start gives: see `curation.media.seek`.

There are two decoders. This one reads arbitrary files, checks every seek against them and judges damage. `model.data.decode`
reads short clips that curation has encoded, from memory. Of the model only its evaluation may import this one.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from curation.errors import UnreadableVideo
from curation.media.container import close_left_open, open_video
from curation.media.seek import frames_from
from curation.media.source import Source, clear_probed, probe
from curation.processes import ProcessLocal
from curation.worker_state import worker

# A whole decode that skips more frames than this for each one it keeps has lost part of a recording, which must be reported:
# concatenated MPEG-TS parts restart their clock.
_MAX_STALLED = 0.1
# A clip that begins this soon after the one before is reached by decoding on, without a seek: key frames are seconds apart.
_SOON_S = 2.0
# Times closer than this are equal: sums of seconds such as 0.7 + 0.1 miss a frame's own time by less, clocks tick slower.
_SAME_S = 1e-6


class Span(NamedTuple):
    """Seconds [start_s, end_s) of a source."""

    start_s: float
    end_s: float


class Frames(NamedTuple):
    """Frames of a span: times_s float64 [N]; rgb uint8 [N, H, W, 3]."""

    times_s: np.ndarray
    rgb: np.ndarray


TimedFrame = tuple[float, av.VideoFrame]
"""The second at which a frame is displayed, and the frame."""


def decode(uri: str, span: Span | None = None, purpose: str = "read") -> Iterator[TimedFrame]:
    """Yield time and frame of every frame of a span (or of the whole source), in order of strictly increasing time.

    Frames are as coded, not upright yet; `FrameConverter` turns them. Damaged packets and frames that do not advance in time
    are skipped. `purpose` names the pass in `worker.decodes`.
    Raises `UnreadableVideo` at the end of a whole source of which a good part does not advance.
    """
    for time_s, frame in _decode_with_lead(uri, span, purpose):
        if not span or time_s >= span.start_s:
            yield time_s, frame


def decode_part(source: Source, frames: Iterator[av.VideoFrame], start_s: float, purpose: str) -> Iterator[TimedFrame]:
    """As `decode`, of frames that begin at or before `start_s` and whose reader knows where to stop: see `seek.open_part`."""
    worker.decodes[purpose] += 1
    for time_s, frame in _advancing(source, frames):
        if time_s >= start_s:
            yield time_s, frame


def _decode_with_lead(uri: str, span: Span | None, purpose: str) -> Iterator[TimedFrame]:
    """As `decode`, but begin at the frame on screen when the span starts, or before it."""
    source = probe(uri)
    worker.decodes[purpose] += 1
    if span is None:
        yield from _decode_whole(source)
    else:
        yield from _decode_span(source, span)


def _decode_whole(source: Source) -> Iterator[TimedFrame]:
    """Yield every frame. Raises `UnreadableVideo` at the end if a good part of them went back in time."""
    stalled, kept = worker.damage["frames not advancing"], 0
    for time_s, frame in _open_at(source, 0.0):
        if worker.on_decode and source.duration_s:
            worker.on_decode(min(1.0, time_s / source.duration_s))
        kept += 1
        yield time_s, frame
    stalled = worker.damage["frames not advancing"] - stalled
    if stalled > _MAX_STALLED * kept:
        raise UnreadableVideo(f"{stalled} of {stalled + kept} frames go back in time: its clock restarts; join its parts anew")


def _advancing(source: Source, frames: Iterator[av.VideoFrame]) -> Iterator[TimedFrame]:
    """Yield frames with their times, without those that do not advance."""
    last = -1.0
    for frame in frames:
        time_s = source.time_s(cast(int, frame.pts))
        if time_s <= last:
            worker.damage["frames not advancing"] += 1
            continue
        last = time_s
        yield time_s, frame


def _open_at(source: Source, start_s: float) -> Iterator[TimedFrame]:
    """Open the source and yield its frames from a point at or before `start_s`."""
    with open_video(source.uri) as (container, stream):
        yield from _advancing(source, frames_from(container, stream, source, start_s))


@dataclass
class _OpenDecode:
    """A decode that was left open after a span, so that the next span can continue it."""

    uri: str
    frames: Iterator[TimedFrame]
    last: TimedFrame | None = None  # the last frame that was yielded
    following: TimedFrame | None = None  # decoded already, but after the end of the span

    def can_continue_to(self, source: Source, span: Span) -> bool:
        """Return whether to reach the span by decoding on. Further ahead than `_SOON_S` a seek, where possible, is quicker."""
        if self.uri != source.uri or self.last is None:
            return False
        return 0 <= span.start_s - self.last[0] <= (_SOON_S if source.seekable else math.inf)


_open_decode = ProcessLocal[_OpenDecode]()


def _decode_span(source: Source, span: Span) -> Iterator[TimedFrame]:
    """Yield a span, from the frame on screen at its start or from before it, and leave the decode open after it.

    A clip that touches the one before then needs no seek. In a source that cannot be seeked, spans in order cost one decode
    together, not one each.
    """
    current = _open_decode.get()
    _open_decode.put(None)
    if current is None or not current.can_continue_to(source, span):
        current = _OpenDecode(source.uri, _open_at(source, span.start_s))
    decoded = [frame for frame in (current.last, current.following) if frame is not None]
    for timed in itertools.chain(decoded, current.frames):
        if timed[0] >= span.end_s:
            current.following = timed
            _open_decode.put(current)
            return
        current.last = timed
        yield timed


def read_frames(uri: str, span: Span, fps: float | None = None, size: tuple[int, int] | None = None) -> Frames:
    """Return the frames of a span as upright RGB of `size` (width, height), all of them or at `fps`.

    At `fps`, each tick shows the latest frame. The last result, and no more, is cached, so that consecutive operators that
    need the same frames share one decode.
    """
    return _read_frames(uri, span, fps, size)


@lru_cache(maxsize=1)
def _read_frames(uri: str, span: Span, fps: float | None, size: tuple[int, int] | None) -> Frames:
    source, converter = probe(uri), FrameConverter(probe(uri), size)
    times, pictures = [], []
    for time_s, frame in frames_at_rate(uri, span, fps):
        times.append(time_s)
        pictures.append(converter(frame))
    width, height = size or (source.width, source.height)
    rgb = np.stack(pictures) if pictures else np.empty((0, height, width, 3), np.uint8)
    rgb.setflags(write=False)
    return Frames(np.asarray(times), rgb)


def clear_caches() -> None:
    """Drop everything that is cached of sources, because their files may have changed."""
    _open_decode.put(None)
    close_left_open()
    clear_probed()
    _read_frames.cache_clear()


def frames_at_rate(uri: str, span: Span, fps: float | None, purpose: str = "read") -> Iterator[TimedFrame]:
    """Yield frames at the ticks span.start_s + k / fps, or all frames where `fps` is None.

    A tick shows the latest frame at or before it, which may lie before the span. A span that holds no frame has no ticks. The
    last tick of a span without an end is the first at or after its last frame.
    """
    if fps is None:
        yield from decode(uri, span, purpose)
        return
    latest: av.VideoFrame | None = None
    inside, due_s, last_s, ticks = False, span.start_s, span.start_s, 0
    for time_s, frame in _decode_with_lead(uri, span, purpose):
        while due_s < time_s - _SAME_S:
            if latest is not None:
                yield due_s, latest
            ticks += 1
            due_s = span.start_s + ticks / fps
        latest, inside, last_s = frame, inside or time_s >= span.start_s, time_s
    end_s = span.end_s if math.isfinite(span.end_s) else last_s + 1 / fps
    while latest is not None and inside and due_s < end_s - _SAME_S:
        yield due_s, latest
        ticks += 1
        due_s = span.start_s + ticks / fps


class FrameConverter:
    """Converts decoded frames to upright arrays of one size. It keeps its scaler between frames.

    pixels: "rgb24" for uint8 [H, W, 3], "gray" for the luma uint8 [H, W].
    """

    def __init__(self, source: Source, size: tuple[int, int] | None = None, pixels: str = "rgb24") -> None:
        self._source, self._scaler, self._pixels = source, VideoReformatter(), pixels
        width, height = size or (source.width, source.height)
        self._coded_size = (height, width) if source.quarter_turns % 2 else (width, height)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        scaled = self._scaler.reformat(
            frame, *self._coded_size, format=self._pixels, interpolation=Interpolation.AREA, threads=1
        )
        picture = scaled.to_ndarray()
        if self._source.mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, self._source.quarter_turns))
