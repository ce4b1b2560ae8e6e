"""The one decoder (PyAV): probe a source, decode it, read the frames of a span. `curation.media.encode` stores spans.

Time is seconds from the first frame of the source by presentation time stamp, never frame number over rate, so variable
rates, edit lists and late starts need no special case. A span [a, b) holds the frames with a <= t < b, and reading it by
seeking gives exactly the frames that a decode from the start gives: see `_enter`.
"""

import errno
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from curation import storage, versions
from curation.errors import UnreadableVideo, is_machine_fault
from curation.media.repair import HDR, repaired
from curation.processes import ProcessLocal

av.logging.set_level(av.logging.PANIC)

# Containers whose seeks were checked against a decode from the start; others (AVI stores no time stamps) are read in order.
_SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})
# Containers that stamp packets in order of decoding, or not at all: a frame's time is that of the packet that let it out.
_UNSTAMPED = frozenset({"avi", "h264", "hevc", "vvc", "obu", "m4v", "mpegvideo", "vc1"})
# Steam's recordings, and others. FFmpeg reads them only where it was built with an XML parser.
_DASH = (
    "a recording in parts (DASH); join them in its folder and name the result: cat init-stream0.m4s chunk-stream0-*.m4s > a.mp4"
)
# What FFmpeg would paint or follow although it is no video of its own; pictures end in "_pipe" when read from a stream.
_NOT_VIDEO = {
    **dict.fromkeys(("tty", "bin", "adf", "idf", "xbin"), "text, not a video"),
    **dict.fromkeys(("image2", "image2pipe", "ico"), "a picture, not a video"),
    **dict.fromkeys(("hls", "concat", "imf", "sdp", "rtsp"), "a playlist, not a video; name the files that it lists"),
    "dash": _DASH,
}
# Streams that hold pictures to show beside a recording.
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
# FFmpeg's orders of fields: top first or bottom first, coded or shown.
_INTERLACED = (2, 3, 4, 5)
# How far to step back, in seconds, when a seek lands after its target or on a frame that is no key frame.
_STEPS_BACK_S = (0.0, 5.0, 20.0)
# How far before a time a decode may begin to be near it: some recordings have key frames minutes apart, or one, at the start.
_NEAR_S = 30.0
# A whole decode that leaves out more frames than this for each kept one has lost part of a recording, which must be said:
# MPEG-TS parts that are put one behind the other start their clocks anew.
_MAX_STALLED = 0.1
# A clip that begins this soon behind the one before is reached by decoding on; key frames are a few seconds apart.
_SOON_S = 2.0
# Times closer than this are equal: sums of seconds such as 0.7 + 0.1 miss a frame's own time by less, clocks tick slower.
_SAME_S = 1e-6

decodes: Counter[str] = Counter()
"""Decode passes of this process by what they were for; a test and every unit's record count them."""

damage: Counter[str] = Counter()
"""What this process met in sources: "damaged packets" (left out, or concealed by the decoder), "frames not advancing"."""

on_decode: Callable[[float], None] | None = None
"""Called during a decode of a whole source with the part done, 0 to 1, where its duration is declared."""

_threads = 1

# What a decoder answers to bytes that make no sense to it; anything else (no memory) is not the source's fault.
_DAMAGE = (av.InvalidDataError, av.PatchWelcomeError, av.ExternalError, av.UnknownError, av.BugError, av.ArgumentError)


def set_threads(count: int) -> None:
    """How many threads a decoder may use; scalers and encoders use one: x264's pixels depend on it."""
    global _threads
    _threads = count


@dataclass(frozen=True)
class Source:
    """What a source is, upright. `fps` and `duration_s` are what the container declares and may be absent or wrong.

    interlaced: some of its frames may be two fields; transfer: "pq" or "hlg" of HDR, else None. Of both `decode` gives whole
    frames in SDR. other_tracks: the video tracks that are not taken, in words.
    """

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
    interlaced: bool = False
    transfer: str | None = None
    other_tracks: tuple[str, ...] = ()

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
            interlaced=bool(first.interlaced_frame) or stream.codec_context.field_order in _INTERLACED,
            transfer=HDR.get(first.color_trc),
            other_tracks=tuple(_described(other) for other in _video_tracks(container) if other.index != stream.index),
        )


Shown = tuple[float, av.VideoFrame]
"""A decoded picture and the second at which it is shown."""


def decode(uri: str, span: Span | None = None, purpose: str = "read") -> Iterator[Shown]:
    """Time and picture of every frame of a span (or of the whole source), in order of strictly increasing time.

    Pictures are as coded: not upright yet. A damaged packet is left out; frames that do not advance in time are too.
    Raises `UnreadableVideo` at the end of a whole source of which a good part does not advance.
    """
    for time_s, frame in _run_up(uri, span, purpose):
        if not span or time_s >= span.start_s:
            yield time_s, frame


def _run_up(uri: str, span: Span | None, purpose: str) -> Iterator[Shown]:
    """As `decode`, from the frame that is on screen when the span starts, or from before it."""
    source = probe(uri)
    decodes[purpose] += 1
    if span is None:
        yield from _whole(source)
    else:
        yield from _span(source, span)


def _whole(source: Source) -> Iterator[Shown]:
    """Every frame; `UnreadableVideo` at the end if a good part of them went back in time."""
    stalled, kept = damage["frames not advancing"], 0
    for time_s, frame in _entered(source, 0.0):
        if on_decode and source.duration_s:
            on_decode(min(1.0, time_s / source.duration_s))
        kept += 1
        yield time_s, frame
    stalled = damage["frames not advancing"] - stalled
    if stalled > _MAX_STALLED * kept:
        raise UnreadableVideo(f"{stalled} of {stalled + kept} frames go back in time: its clock restarts; join its parts anew")


def _advancing(source: Source, frames: Iterator[av.VideoFrame]) -> Iterator[Shown]:
    """Frames with their times, those left out that do not advance."""
    last = -1.0
    for frame in frames:
        time_s = source.time_s(cast(int, frame.pts))
        if time_s <= last:
            damage["frames not advancing"] += 1
            continue
        last = time_s
        yield time_s, frame


def _entered(source: Source, start_s: float) -> Iterator[Shown]:
    """Frames from a point at or before `start_s` on."""
    with _opened(source.uri) as (container, stream):
        yield from _advancing(source, _enter(container, stream, source, start_s))


@dataclass
class _Reading:
    """A decode left open behind a span; `behind` is the last frame given, `ahead` the next one."""

    uri: str
    frames: Iterator[Shown]
    behind: Shown | None = None
    ahead: Shown | None = None

    def leads_to(self, source: Source, span: Span) -> bool:
        """Whether the span lies ahead: soon, where a seek would take a shorter way to what lies further on."""
        if self.uri != source.uri or self.behind is None:
            return False
        return 0 <= span.start_s - self.behind[0] <= (_SOON_S if source.seekable else math.inf)


_reading = ProcessLocal[_Reading]()


def _span(source: Source, span: Span) -> Iterator[Shown]:
    """A span, from the frame on screen at its start or from before it. The decode stays open behind it: a clip that touches
    the one before needs no run-up, and spans in order of a source that cannot be sought in cost one decode, not one each.
    """
    here = _reading.get()
    _reading.put(None)
    if here is None or not here.leads_to(source, span):
        here = _Reading(source.uri, _entered(source, span.start_s))
    again = [shown for shown in (here.behind, here.ahead) if shown is not None]
    for shown in itertools.chain(again, here.frames):
        if shown[0] >= span.end_s:
            here.ahead = shown
            _reading.put(here)
            return
        here.behind = shown
        yield shown


def read_frames(uri: str, span: Span, fps: float | None = None, size: tuple[int, int] | None = None) -> Frames:
    """The frames of a span as upright RGB, all of them or at `fps` (each tick shows the latest frame), at (width, height).

    Operators that ask for the same frames one after the other share one decode: the last answer is kept, and no more.
    """
    return _read_frames(uri, span, fps, size)


@lru_cache(maxsize=1)
def _read_frames(uri: str, span: Span, fps: float | None, size: tuple[int, int] | None) -> Frames:
    source, painter = probe(uri), Painter(probe(uri), size)
    times, pictures = [], []
    for time_s, frame in at_rate(uri, span, fps):
        times.append(time_s)
        pictures.append(painter(frame))
    width, height = size or (source.width, source.height)
    rgb = np.stack(pictures) if pictures else np.empty((0, height, width, 3), np.uint8)
    rgb.setflags(write=False)
    return Frames(np.asarray(times), rgb)


def forget() -> None:
    """Drop what is kept of sources: they may have changed."""
    _reading.put(None)
    probe.cache_clear()
    _read_frames.cache_clear()


def at_rate(uri: str, span: Span, fps: float | None, purpose: str = "read") -> Iterator[Shown]:
    """Frames held on the ticks span.start_s + k / fps; the frames themselves where no rate is asked for.

    A tick shows the latest frame at or before it, which may lie before the span. A span that holds no frame has no ticks.
    """
    if fps is None:
        yield from decode(uri, span, purpose)
        return
    held: av.VideoFrame | None = None
    inside, due_s, ticks = False, span.start_s, 0
    for time_s, frame in _run_up(uri, span, purpose):
        while due_s < time_s - _SAME_S:
            if held is not None:
                yield due_s, held
            ticks += 1
            due_s = span.start_s + ticks / fps
        held, inside = frame, inside or time_s >= span.start_s
    while held is not None and inside and due_s < span.end_s - _SAME_S:
        yield due_s, held
        ticks += 1
        due_s = span.start_s + ticks / fps


class Painter:
    """Decoded pictures as upright arrays of one size; keeps its scaler between frames.

    pixels: "rgb24" for uint8 [H, W, 3], "gray" for the luma uint8 [H, W].
    """

    def __init__(self, source: Source, size: tuple[int, int] | None = None, pixels: str = "rgb24") -> None:
        self._source, self._scaler, self._pixels = source, VideoReformatter(), pixels
        width, height = size or (source.width, source.height)
        self._coded = (height, width) if source.quarter_turns % 2 else (width, height)

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        scaled = self._scaler.reformat(frame, *self._coded, format=self._pixels, interpolation=Interpolation.AREA, threads=1)
        picture = scaled.to_ndarray()
        if self._source.mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, self._source.quarter_turns))


@contextmanager
def _opened(uri: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and its video stream; both are closed on the way out, whatever happens."""
    if uri.lower().endswith(".mpd") and storage.read(uri, 0, 1):
        raise UnreadableVideo(f"is {_DASH}")
    with _bytes_of(uri) as file, _container(file) as container:
        yield container, _video_stream(container)


@contextmanager
def _bytes_of(uri: str) -> Iterator[Any]:
    """What FFmpeg opens: a file of ours for S3; else a name that it takes for no other protocol, whatever is in it."""
    token = versions.register_open(uri)
    if not storage.is_s3(uri):
        yield f"file:{storage.normal(uri)}"
        return
    with storage.open_binary(uri, token) as file:
        yield file


@contextmanager
def _container(file: Any) -> Iterator[av.container.InputContainer]:
    """The opened container. Only local files are followed, so that a playlist reaches no network before it is refused."""
    doing = "opened"
    try:
        with av.open(file, metadata_errors="ignore", options={"protocol_whitelist": "file"}) as container:
            doing = "read"
            yield cast(av.container.InputContainer, container)
    except av.InvalidDataError as error:
        raise UnreadableVideo(f"cannot be {doing}: no known container, or its header is missing or damaged") from error
    except av.FFmpegError as error:
        if is_machine_fault(error):
            raise
        if error.errno == errno.EIO and isinstance(file, str):
            _read_through(file.removeprefix("file:"))  # raises where it is the disk that cannot read
        raise UnreadableVideo(f"cannot be {doing}: {error.strerror}") from error


def _read_through(path: str) -> None:
    """Read a local file whole. OSError where the disk or the mount fails; FFmpeg answers alike for bytes it cannot parse."""
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    name = container.format.name
    if reason := "a picture, not a video" if name.endswith("_pipe") else _NOT_VIDEO.get(name):
        raise UnreadableVideo(f"is {reason}")
    tracks = _video_tracks(container)
    if not tracks:
        raise UnreadableVideo("holds no video stream")
    stream = max(tracks, key=_rank)
    if stream.codec_context is None:
        raise UnreadableVideo("its codec is not known to this decoder")
    stream.codec_context.thread_count = _threads
    return stream


def _video_tracks(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The tracks that are video: no cover, and no strip of thumbnails."""
    return [s for s in container.streams.video if not s.disposition & _PICTURES]


def _rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int]:
    """The track to take is the largest here: one that can be decoded and holds frames, the container's choice, the larger one.

    Of equal ones the first is taken. A preview or a camera's small copy may come before the recording.
    """
    context = stream.codec_context
    if context is None:
        return False, False, False, 0
    return True, stream.frames > 0, bool(stream.disposition & Disposition.default), context.width * context.height


def _described(stream: av.VideoStream) -> str:
    context = stream.codec_context
    return f"{context.name} {context.width}x{context.height}" if context else "unknown codec"


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Frames in order of presentation, each with its stamp; one that has none follows the frame before by one step."""
    in_order = container.format.name in _UNSTAMPED
    step = max(1, round(1 / ((stream.average_rate or 25) * cast(Fraction, stream.time_base))))
    last: int | None = None
    for frame in _pictures(container, stream):
        stamp = frame.dts if in_order else frame.pts
        if stamp is None or (in_order and last is not None and stamp <= last):
            stamp = 0 if last is None else last + step
        frame.pts = last = stamp
        yield frame


def _pictures(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """What the decoder gives; a packet that it refuses is passed over. That, holes and what was concealed are damage."""
    for packet in _packets(container, stream):
        try:
            frames = stream.decode(packet)
        except _DAMAGE:
            damage["damaged packets"] += 1
            continue
        damage["damaged packets"] += (packet is not None and packet.is_corrupt) or any(frame.is_corrupt for frame in frames)
        yield from frames


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Any]:
    """Packets up to the end, or to where the container itself is broken; the last one flushes the decoder."""
    try:
        yield from container.demux(stream)
    except av.InvalidDataError:
        damage["damaged packets"] += 1
        yield None


def packet_digest(uri: str, most: int | None = None) -> str:
    """Name a recording by its coded video, whatever holds it: SHA-256 over the packets of its track (the first `most` of them).

    Nothing is decoded. A remux from MKV to MP4 keeps the packets; one from or to MPEG-TS writes them in another form.
    """
    sha = hashlib.sha256()
    with _opened(uri) as (container, stream):
        for packet in itertools.islice(_packets(container, stream), most):
            if packet is not None and packet.size:
                sha.update(packet.size.to_bytes(8, "big"))
                sha.update(packet)
    return sha.hexdigest()[:16]


def can_enter(uri: str, time_s: float) -> bool:
    """Whether a decode can begin, exactly, at most half a minute before a time: a few seeks, a frame each."""
    source = probe(uri)
    if not source.seekable or time_s <= _NEAR_S:
        return source.seekable
    with _opened(uri) as (container, stream):
        first = next(_landed(container, stream, source, time_s) or iter(()), None)
        return first is not None and source.time_s(cast(int, first.pts)) >= time_s - _NEAR_S


def _enter(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame]:
    """Frames from a point at or before `start_s` on, the start of the source if there is no better one."""
    repair = partial(repaired, interlaced=source.interlaced, transfer=source.transfer)
    if not (source.seekable and start_s > 0):
        yield from repair(_decoded(container, stream))
        return
    landed = _landed(container, stream, source, start_s)
    if landed is not None:
        yield from repair(landed, skip=int(source.interlaced))
        return
    with _opened(source.uri) as (again, anew):
        yield from repair(_decoded(again, anew))


def _landed(
    container: av.container.InputContainer, stream: av.VideoStream, source: Source, start_s: float
) -> Iterator[av.VideoFrame] | None:
    """Frames from where a seek lands that can be trusted: the first frame out is a key frame at or before the target; of an
    interlaced source the second one is too, since the first lacks the neighbour that its fields are filled in from.

    MPEG-TS lands after it and intra-refresh streams on a picture without its references; for those it steps back. None
    where the steps lead to the start of the source.
    """
    target = source.origin + math.floor(start_s / source.time_base)
    for back_s in _STEPS_BACK_S:
        point = target - round(back_s / source.time_base)
        if point <= source.origin or not _sought(container, stream, point):
            return None
        frames = _decoded(container, stream)
        first = next(frames, None)
        if first is not None and first.key_frame and cast(int, first.pts) <= target:
            lead = [first, *itertools.islice(frames, int(source.interlaced))]
            if len(lead) == 1 + source.interlaced and cast(int, lead[-1].pts) <= target:
                return itertools.chain(lead, frames)
    return None


def _sought(container: av.container.InputContainer, stream: av.VideoStream, point: int) -> bool:
    """Whether the container could seek at all: one without an index may refuse."""
    try:
        container.seek(point, stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


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
