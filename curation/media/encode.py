"""The encoder of stored clips (PyAV): a span of a source as mp4, upright, cropped and scaled.

Clips are stored as BT.601 limited range. Decoders that ignore the tag assume it, so every reader sees the same colours, and
footage of up to 576 lines is stored without a conversion.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from curation.errors import UnreadableVideo
from curation.media.decode import Span, frames_at_rate
from curation.media.source import Source, probe

# Time stamps of stored frames are whole numbers of 1 / 90000 s, the clock of MPEG.
CLOCK = 90_000
# ISO/IEC 23001-8: range limited, matrix BT.601, primaries and transfer BT.709.
_RANGE, _MATRIX, _PRIMARIES, _TRANSFER = 1, 6, 1, 1


@dataclass(frozen=True)
class Encoding:
    """How clips are stored."""

    codec: str = "libx264"  # name of an encoder of this FFmpeg build
    max_width: int = 864  # px; wider pictures are scaled down, none is scaled up
    max_height: int = 480  # px; higher pictures are scaled down, none is scaled up
    fps: float | None = None  # frames a second; null keeps every frame at its own time
    crf: int = 20  # constant rate factor: larger means smaller files and worse pictures
    preset: str = "veryfast"  # the encoder's preset: slower ones make smaller files
    gop: int = 32  # largest number of frames from one key frame to the next; larger means smaller files and slower seeks

    def __post_init__(self) -> None:
        if self.max_width < 16 or self.max_height < 16:
            raise ValueError(f"max_width and max_height must be at least 16 px, not {self.max_width}x{self.max_height}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive or null, not {self.fps}")
        try:
            av.Codec(self.codec, "w")
        except av.codec.codec.UnknownCodecError:
            raise ValueError(f"codec {self.codec!r} is not an encoder of this build; libx264 is") from None


class EncodedClip(NamedTuple):
    """An encoded span: the bytes of the mp4, its size in px, and its times_s float64 [frames] from the start of the span."""

    mp4: bytes
    width: int
    height: int
    times_s: np.ndarray


def encode(uri: str, span: Span, crop: tuple[int, int, int, int] | None, encoding: Encoding) -> EncodedClip:
    """Decode a span once and store it as mp4: upright, cropped to `crop` (x, y, w, h px), scaled, 8-bit 4:2:0 BT.601.

    Equal input, settings and build give equal bytes: x264 runs on one thread with cpu-independent decisions.
    Raises `UnreadableVideo` where the span holds no frame.
    """
    source = probe(uri)
    size, frames = fitted_frames(uri, span, crop, encoding)
    mp4, times_s = encode_frames(frames, size, source.fps, encoding)
    if not len(times_s):
        raise UnreadableVideo(f"no frame between {span.start_s:.3f} s and {span.end_s:.3f} s")
    return EncodedClip(mp4, *size, times_s)


def fitted_frames(
    uri: str, span: Span, crop: tuple[int, int, int, int] | None, encoding: Encoding
) -> tuple[tuple[int, int], Iterator[av.VideoFrame]]:
    """Return the size at which a span is stored, and an iterator that decodes and fits its frames for the codec."""
    source = probe(uri)
    fit = _FrameFitter(source, crop or (0, 0, source.width, source.height), encoding)
    frames = frames_at_rate(uri, span, encoding.fps, "encode")
    return fit.size, (_with_stamp(fit(frame), time_s - span.start_s) for time_s, frame in frames)


def encode_frames(
    frames: Iterable[av.VideoFrame], size: tuple[int, int], fps: float | None, encoding: Encoding
) -> tuple[bytes, np.ndarray]:
    """Encode frames of one size, stamped in 1 / 90000 s, and return the bytes of the mp4 and the frames' times in seconds.

    Each frame is stored at least one tick after the one before it: frames that lie closer in the source are moved apart.
    `fps` is the rate that the source declares.
    """
    buffer, stamps = io.BytesIO(), list[int]()
    with av.open(buffer, "w", format="mp4") as output:
        stream = _output_stream(output, size, fps, encoding)
        for frame in frames:
            frame.pict_type = av.video.frame.PictureType.NONE
            frame.pts = max(frame.pts or 0, stamps[-1] + 1 if stamps else 0)
            output.mux(stream.encode(frame))
            stamps.append(frame.pts)
        if stamps:
            output.mux(stream.encode())
    return buffer.getvalue(), np.array(stamps, float) / CLOCK


def _with_stamp(frame: av.VideoFrame, time_s: float) -> av.VideoFrame:
    frame.pts, frame.time_base = round(time_s * CLOCK), Fraction(1, CLOCK)
    return frame


def stored_size(width: float, height: float, encoding: Encoding) -> tuple[int, int]:
    """Return the largest even size with this aspect inside the bounds, never larger than the picture."""
    scale = min(1.0, encoding.max_width / width, encoding.max_height / height)
    return _even(width * scale, min(width, encoding.max_width)), _even(height * scale, min(height, encoding.max_height))


def _even(length: float, bound: float) -> int:
    return max(2, min(round(length / 2) * 2, int(bound) // 2 * 2))


def _output_stream(output: Any, size: tuple[int, int], fps: float | None, encoding: Encoding) -> Any:
    # One frame in 1001 s is the slowest rate that such a fraction holds; the frames' own stamps are what counts.
    rate = Fraction(max(encoding.fps or fps or 30, 1 / 1001)).limit_denominator(1001)
    options = {"preset": encoding.preset, "crf": str(encoding.crf)}
    if encoding.codec == "libx264":
        options["x264-params"] = "cpu-independent=1:threads=1:lookahead-threads=1"
    stream = output.add_stream(encoding.codec, rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base, context.thread_count, context.gop_size = Fraction(1, CLOCK), 1, encoding.gop
    context.color_range, context.colorspace = _RANGE, _MATRIX
    context.color_primaries, context.color_trc = _PRIMARIES, _TRANSFER
    return stream


class _FrameFitter:
    """Turns decoded frames upright, crops them and scales them to the stored size.

    Its filter graph is rebuilt where the stream changes size or format.
    """

    def __init__(self, source: Source, crop: tuple[int, int, int, int], encoding: Encoding) -> None:
        self._source, self._crop = source, crop
        # Pixels that are not square are scaled down along their long side: the other would have to be scaled up.
        self.size = stored_size(crop[2] * min(1, source.pixel_aspect), crop[3] / max(1, source.pixel_aspect), encoding)
        self._built_for: tuple[Any, ...] = ()
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        frame_format = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or frame_format != self._built_for:
            self._graph, self._built_for = self._build_graph(frame), frame_format
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build_graph(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=self._source.time_base)
        graph.link_nodes(buffer, *(graph.add(*step) for step in self._steps(frame)), graph.add("buffersink"))
        graph.configure()
        return graph

    def _steps(self, frame: av.VideoFrame) -> Iterator[tuple[str, str]]:
        """Yield the filters: turn upright, crop, scale to BT.601 limited range. `bitexact` gives equal results on every CPU."""
        flags = "flags=bicubic+accurate_rnd+bitexact"
        turned = self._source.quarter_turns % 2 == 1
        upright = (frame.height, frame.width) if turned else (frame.width, frame.height)
        yield from [("hflip", "")] * self._source.mirrored
        yield from [("transpose", "cclock")] * self._source.quarter_turns
        if upright != (self._source.width, self._source.height):
            yield "scale", f"{self._source.width}:{self._source.height}:{flags}"
        yield "crop", "{2}:{3}:{0}:{1}:exact=1".format(*self._crop)
        yield "scale", f"{self.size[0]}:{self.size[1]}:{flags}:out_color_matrix=bt601:out_range=tv"
        yield "format", "yuv420p"
