"""The one encoder (PyAV): a span of a source as mp4, upright, cut to the picture, scaled.

Clips are stored as BT.601 limited range: decoders that ignore the tag assume it, so every reader sees the same colours, and
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
from curation.media.decode import Source, Span, at_rate, probe

# Stamps of stored frames are whole numbers of 1 / 90000 s, the clock of MPEG.
CLOCK = 90_000
# ISO/IEC 23001-8: range limited, matrix BT.601, primaries and transfer BT.709.
_RANGE, _MATRIX, _PRIMARIES, _TRANSFER = 1, 6, 1, 1


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
    """An encoded span: the mp4's bytes and what is in it; times_s f8 [frames] from the start of the span."""

    mp4: bytes
    width: int
    height: int
    times_s: np.ndarray


def encode(uri: str, span: Span, crop: tuple[int, int, int, int] | None, how: Encoding) -> Clip:
    """Decode a span once and store it as mp4: upright, cut to `crop` (x, y, w, h px), scaled, 8-bit 4:2:0 BT.601.

    Equal input, settings and build give equal bytes: x264 runs on one thread with cpu-independent decisions.
    Raises `UnreadableVideo` where the span holds no frame.
    """
    source = probe(uri)
    size, shown = pictures(uri, span, crop, how)
    mp4, times_s = store(shown, size, source.fps, how)
    if not len(times_s):
        raise UnreadableVideo(f"no frame between {span.start_s:.3f} s and {span.end_s:.3f} s")
    return Clip(mp4, *size, times_s)


def pictures(
    uri: str, span: Span, crop: tuple[int, int, int, int] | None, how: Encoding
) -> tuple[tuple[int, int], Iterator[av.VideoFrame]]:
    """The size that a span is stored at, and its frames as they are handed to the codec, decoded as they are asked for."""
    source = probe(uri)
    fit = _Fitter(source, crop or (0, 0, source.width, source.height), how)
    shown = at_rate(uri, span, how.fps, "encode")
    return fit.size, (_stamped(fit(frame), time_s - span.start_s) for time_s, frame in shown)


def store(
    pictures: Iterable[av.VideoFrame], size: tuple[int, int], fps: float | None, how: Encoding
) -> tuple[bytes, np.ndarray]:
    """Pictures of one size, stamped in 1 / 90000 s, as the bytes of an mp4, and the times of them in s; `fps` as declared.

    Each is stored at least one tick behind the one before it: frames that lie closer in the source are moved apart.
    """
    buffer, stamps = io.BytesIO(), list[int]()
    with av.open(buffer, "w", format="mp4") as output:
        stream = _output_stream(output, size, fps, how)
        for picture in pictures:
            picture.pict_type = av.video.frame.PictureType.NONE
            picture.pts = max(picture.pts or 0, stamps[-1] + 1 if stamps else 0)
            output.mux(stream.encode(picture))
            stamps.append(picture.pts)
        if stamps:
            output.mux(stream.encode())
    return buffer.getvalue(), np.array(stamps, float) / CLOCK


def _stamped(picture: av.VideoFrame, time_s: float) -> av.VideoFrame:
    picture.pts, picture.time_base = round(time_s * CLOCK), Fraction(1, CLOCK)
    return picture


def stored_size(width: float, height: float, how: Encoding) -> tuple[int, int]:
    """The largest even size with this aspect inside the bounds, never larger than the picture."""
    scale = min(1.0, how.max_width / width, how.max_height / height)
    return _even(width * scale, min(width, how.max_width)), _even(height * scale, min(height, how.max_height))


def _even(length: float, bound: float) -> int:
    return max(2, min(round(length / 2) * 2, int(bound) // 2 * 2))


def _output_stream(output: Any, size: tuple[int, int], fps: float | None, how: Encoding) -> Any:
    # One frame in 1001 s is the slowest rate that such a fraction holds; the frames' own stamps are what counts.
    rate = Fraction(max(how.fps or fps or 30, 1 / 1001)).limit_denominator(1001)
    options = {"preset": how.preset, "crf": str(how.crf)}
    if how.codec == "libx264":
        options["x264-params"] = "cpu-independent=1:threads=1:lookahead-threads=1"
    stream = output.add_stream(how.codec, rate=rate, options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base, context.thread_count, context.gop_size = Fraction(1, CLOCK), 1, how.gop
    context.color_range, context.colorspace = _RANGE, _MATRIX
    context.color_primaries, context.color_trc = _PRIMARIES, _TRANSFER
    return stream


class _Fitter:
    """Decoded pictures upright, cut and scaled to the stored size; its graph is built anew where a stream changes its."""

    def __init__(self, source: Source, crop: tuple[int, int, int, int], how: Encoding) -> None:
        self._source, self._crop = source, crop
        # Pixels that are not square lose on their long side: the other would have to be scaled up.
        self.size = stored_size(crop[2] * min(1, source.pixel_aspect), crop[3] / max(1, source.pixel_aspect), how)
        self._shape: tuple[Any, ...] = ()
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or shape != self._shape:
            self._graph, self._shape = self._built(frame), shape
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _built(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=self._source.time_base)
        graph.link_nodes(buffer, *(graph.add(*step) for step in self._steps(frame)), graph.add("buffersink"))
        graph.configure()
        return graph

    def _steps(self, frame: av.VideoFrame) -> Iterator[tuple[str, str]]:
        """Upright, crop, scale to BT.601 limited range; `bitexact` keeps the scaler's result equal on every CPU."""
        flags = "flags=bicubic+accurate_rnd+bitexact"
        turned = self._source.quarter_turns % 2 == 1
        shown = (frame.height, frame.width) if turned else (frame.width, frame.height)
        yield from [("hflip", "")] * self._source.mirrored
        yield from [("transpose", "cclock")] * self._source.quarter_turns
        if shown != (self._source.width, self._source.height):
            yield "scale", f"{self._source.width}:{self._source.height}:{flags}"
        yield "crop", "{2}:{3}:{0}:{1}:exact=1".format(*self._crop)
        yield "scale", f"{self.size[0]}:{self.size[1]}:{flags}:out_color_matrix=bt601:out_range=tv"
        yield "format", "yuv420p"
