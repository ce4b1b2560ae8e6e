"""The one decoder and the one encoder: probe, frames of a span, a span as mp4. PyAV does both.

Time is seconds from the first frame of the source by presentation time stamp, never frame number over rate, so variable
rates, edit lists and late starts need no special case. A span [a, b) holds the frames with a <= t < b, and reading it by
seeking gives exactly the frames that a decode from the start gives: see `_enter`.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from curation import storage

av.logging.set_level(av.logging.PANIC)

# Containers whose seeks were checked against a decode from the start; others (AVI stores no time stamps) are read in order.
_SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})
# How far to step back, in seconds, when a seek lands after its target or on a frame that is no key frame.
_STEPS_BACK_S = (0.0, 5.0, 20.0)
_CLOCK = 90_000

decodes: Counter[str] = Counter()
"""Decode passes of this process by what they were for; a test and every unit's record count them."""

on_decode: Callable[[float], None] | None = None
"""Called during a decode of a whole source with the part done, 0 to 1, where its duration is declared."""

_threads = 1


def set_threads(count: int) -> None:
    """How many threads a decoder may use; encoders always use one, since x264's pixels depend on the number."""
    global _threads
    _threads = count


class UnreadableVideo(ValueError):
    """A source from which no frame can be had; the message is the reason that the ledger shows."""


@dataclass(frozen=True)
class Source:
    """What a source is, upright. `fps` and `duration_s` are what the container declares and may be absent or wrong."""

    uri: str
    width: int
    height: int
    fps: float | None
    duration_s: float | None
    codec: str
    container: str
    time_base: Fraction
    origin: int
    quarter_turns: int
    mirrored: bool
    pixel_aspect: float
    seekable: bool

    def time_s(self, pts: int) -> float:
        return float((pts - self.origin) * self.time_base)


class Span(NamedTuple):
    """Seconds [start, end) of a source, and what the decode is for (counted in `decodes`)."""

    start_s: float
    end_s: float


class Frames(NamedTuple):
    """Frames of a span: times_s float64 [N]; rgb uint8 [N, H, W, 3]."""

    times_s: np.ndarray
    rgb: np.ndarray


@lru_cache(maxsize=64)
def probe(uri: str) -> Source:
    """Open a source and decode its first frame. Raises `UnreadableVideo` with the reason where that fails."""
    with _opened(uri) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise UnreadableVideo("no frame could be decoded")
        turns, mirrored = _orientation(first)
        width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        return Source(
            uri=uri,
            width=width,
            height=height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            duration_s=_declared_duration(container, stream),
            codec=stream.codec_context.name,
            container=container.format.name,
            time_base=Fraction(stream.time_base or Fraction(1, 1000)),
            origin=first.pts or 0,
            quarter_turns=turns,
            mirrored=mirrored,
            pixel_aspect=1 / aspect if turns % 2 else aspect,
            seekable=bool(_SEEKABLE & set(container.format.name.split(","))),
        )


def decode(uri: str, span: Span | None = None, purpose: str = "read") -> Iterator[tuple[float, av.VideoFrame]]:
    """Time and picture of every frame of a span (or of the whole source), in order of strictly increasing time.

    Pictures are as coded: not upright yet. A damaged packet is left out; frames that do not advance in time are too.
    """
    source = probe(uri)
    decodes[purpose] += 1
    last = -1.0
    with _opened(uri) as (container, stream):
        for frame in _enter(container, stream, source, span.start_s if span else 0.0):
            if frame.pts is None:
                continue
            time_s = source.time_s(frame.pts)
            if span and time_s >= span.end_s:
                return
            if time_s > last:
                last = time_s
                if on_decode and not span and source.duration_s:
                    on_decode(min(1.0, time_s / source.duration_s))
                if not span or time_s >= span.start_s:
                    yield time_s, frame


def read_frames(uri: str, span: Span, fps: float | None = None, size: tuple[int, int] | None = None) -> Frames:
    """The frames of a span as upright RGB, all of them or at `fps` (each tick shows the latest frame), at (width, height).

    Operators that ask for the same frames one after the other share one decode: the last answer is kept, and no more.
    """
    return _read_frames(uri, span, fps, size)


@lru_cache(maxsize=1)
def _read_frames(uri: str, span: Span, fps: float | None, size: tuple[int, int] | None) -> Frames:
    source, painter = probe(uri), Painter(probe(uri), size)
    times, pictures = [], []
    for time_s, frame in _at_rate(decode(uri, span), span, fps):
        times.append(time_s)
        pictures.append(painter(frame))
    width, height = size or (source.width, source.height)
    rgb = np.stack(pictures) if pictures else np.empty((0, height, width, 3), np.uint8)
    rgb.setflags(write=False)
    return Frames(np.asarray(times), rgb)


def _at_rate(
    frames: Iterator[tuple[float, av.VideoFrame]], span: Span, fps: float | None
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Hold frames on the ticks span.start_s + k / fps; the frames themselves where no rate is asked for."""
    if fps is None:
        yield from frames
        return
    held: av.VideoFrame | None = None
    tick = 0
    for time_s, frame in frames:
        while held is not None and span.start_s + tick / fps < time_s:
            yield span.start_s + tick / fps, held
            tick += 1
        held = frame
    while held is not None and span.start_s + tick / fps < span.end_s:
        yield span.start_s + tick / fps, held
        tick += 1


class Painter:
    """Decoded pictures as upright RGB arrays uint8 [H, W, 3] of one size; keeps its scaler between frames."""

    def __init__(self, source: Source, size: tuple[int, int] | None = None) -> None:
        self._source, self._scaler = source, VideoReformatter()
        width, height = size or (source.width, source.height)
        self._coded = (height, width) if source.quarter_turns % 2 else (width, height)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        scaled = self._scaler.reformat(frame, *self._coded, format="rgb24", interpolation=Interpolation.AREA)
        rgb = scaled.to_ndarray()
        if self._source.mirrored:
            rgb = rgb[:, ::-1]
        return np.ascontiguousarray(np.rot90(rgb, self._source.quarter_turns))


@contextmanager
def _opened(uri: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and its first video stream; both are closed on the way out, whatever happens."""
    file = storage.open_binary(uri) if storage.is_s3(uri) else None
    try:
        with av.open(file or uri, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise UnreadableVideo("holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise UnreadableVideo("its codec is not known to this decoder")
            stream.codec_context.thread_count = _threads
            yield cast(av.container.InputContainer, container), stream
    except av.FFmpegError as error:
        raise UnreadableVideo(f"cannot be opened: {error.strerror}") from error
    finally:
        if file is not None:
            file.close()


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames in order of presentation; a packet that the decoder refuses is passed over and counted as damage."""
    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except (av.InvalidDataError, av.PatchWelcomeError):
            decodes["damaged packets"] += 1


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Any]:
    """Packets up to the end, or to where the container itself is broken; the last one flushes the decoder."""
    try:
        yield from container.demux(stream)
    except av.InvalidDataError:
        decodes["damaged packets"] += 1


def _enter(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame]:
    """Frames from a point at or before `start_s` on.

    A seek is trusted only if the first frame out is a key frame at or before the target. MPEG-TS lands after it and
    intra-refresh streams on a picture without its references; for those the steps back end at the start of the source.
    """
    target = source.origin + round(start_s / source.time_base)
    for back_s in _STEPS_BACK_S if source.seekable and start_s > 0 else ():
        point = target - round(back_s / source.time_base)
        if point <= source.origin:
            break
        container.seek(point, stream=stream, backward=True)
        frames = _decoded(container, stream)
        first = next(frames, None)
        if first is not None and first.key_frame and first.pts is not None and first.pts <= target:
            yield first
            yield from frames
            return
    with _opened(source.uri) as (again, anew):
        yield from _decoded(again, anew)


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Counter-clockwise quarter turns that bring a coded picture upright, and whether to mirror it first.

    The display matrix maps coded to shown coordinates; ours are its four rotations, alone or after a mirror.
    """
    sides: Any = frame.side_data
    data = next((bytes(side) for side in sides if side.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(data, "<i4") / 65536
    mirrored = bool(a * d - b * c < 0)
    if mirrored:
        a, b = -a, -b
    return round(float(np.degrees(np.arctan2(-b, a))) / 90) % 4, mirrored


def _declared_duration(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


@dataclass(frozen=True)
class Encoding:
    """How clips are stored. `max_width` and `max_height` bound the size (never scaled up); fps None keeps every frame."""

    codec: str = "libx264"
    max_width: int = 864
    max_height: int = 480
    fps: float | None = None
    crf: int = 20
    preset: str = "veryfast"
    gop: int = 32

    def __post_init__(self) -> None:
        if self.max_width < 16 or self.max_height < 16:
            raise ValueError(f"max_width and max_height must be at least 16 px, not {self.max_width}x{self.max_height}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive or null, not {self.fps}")
        try:
            av.Codec(self.codec, "w")
        except av.codec.codec.UnknownCodecError:
            raise ValueError(f"codec {self.codec!r} is not an encoder of this build; libx264 is") from None


class Clip(NamedTuple):
    """An encoded span: the mp4's bytes and what is in it."""

    mp4: bytes
    width: int
    height: int
    frames: int


def encode(uri: str, span: Span, crop: tuple[int, int, int, int] | None, how: Encoding) -> Clip:
    """Decode a span once and store it as mp4: upright, cut to `crop` (x, y, w, h px), scaled, 8-bit 4:2:0 BT.709.

    Equal input, settings and build give equal bytes: x264 runs on one thread with cpu-independent decisions.
    Raises `UnreadableVideo` where the span holds no frame.
    """
    source = probe(uri)
    crop = crop or (0, 0, source.width, source.height)
    size = stored_size(crop[2], crop[3] / source.pixel_aspect, how)
    buffer, count = io.BytesIO(), 0
    graph = _filter_graph(source, crop, size)
    with av.open(buffer, "w", format="mp4") as output:
        stream = _output_stream(output, size, source, how)
        for time_s, frame in _at_rate(decode(uri, span, "encode"), span, how.fps):
            graph.vpush(frame)
            picture = graph.vpull()
            picture.pts, picture.time_base = round((time_s - span.start_s) * _CLOCK), Fraction(1, _CLOCK)
            picture.pict_type = av.video.frame.PictureType.NONE
            output.mux(stream.encode(picture))
            count += 1
        if not count:
            raise UnreadableVideo(f"no frame between {span.start_s:.3f} s and {span.end_s:.3f} s")
        output.mux(stream.encode())
    return Clip(buffer.getvalue(), *size, count)


def stored_size(width: float, height: float, how: Encoding) -> tuple[int, int]:
    """The largest even size with this aspect inside the bounds, never larger than the picture."""
    scale = min(1.0, how.max_width / width, how.max_height / height)
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _output_stream(output: Any, size: tuple[int, int], source: Source, how: Encoding) -> Any:
    rate = Fraction(how.fps or source.fps or 30).limit_denominator(1001)
    options = {"preset": how.preset, "crf": str(how.crf)}
    if how.codec == "libx264":
        options["x264-params"] = "cpu-independent=1:threads=1:lookahead-threads=1"
    stream = output.add_stream(how.codec, rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base, context.thread_count, context.gop_size = Fraction(1, _CLOCK), 1, how.gop
    context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
    return stream


def _filter_graph(source: Source, crop: tuple[int, int, int, int], size: tuple[int, int]) -> av.filter.Graph:
    """Upright, crop, scale to BT.709 limited range; `bitexact` keeps the scaler's result equal on every CPU."""
    turns = [("hflip", "")] if source.mirrored else []
    turns += [("transpose", "cclock")] * source.quarter_turns
    scale = f"{size[0]}:{size[1]}:flags=bicubic+accurate_rnd+bitexact+full_chroma_int:out_color_matrix=bt709:out_range=tv"
    steps = [*turns, ("crop", "{2}:{3}:{0}:{1}:exact=1".format(*crop)), ("scale", scale), ("format", "yuv420p")]
    with _opened(source.uri) as (_, stream):
        graph = av.filter.Graph()
        chain = [graph.add_buffer(template=stream), *(graph.add(*step) for step in steps), graph.add("buffersink")]
    for here, there in pairwise(chain):
        here.link_to(there)
    graph.configure()
    return graph
