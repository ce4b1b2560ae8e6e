"""Probe a source: its size, rate, orientation, and what its frames need before they can be used."""

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from curation.errors import UnreadableVideo
from curation.media.container import describe_track, open_video, stamped_frames, video_tracks
from curation.media.repair import HDR_TRANSFERS

# Containers whose seeks were checked against a decode from the start. Others (AVI stores no time stamps) are read in order.
_SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})
# FFmpeg's orders of fields: top first or bottom first, coded or displayed. PyAV tells them from 18 (Python 3.11) on; before,
# the first frame alone says whether a source is interlaced.
_INTERLACED = (2, 3, 4, 5)
_MAX_PROBED = 64


@dataclass(frozen=True)
class Source:
    """What a source is, upright. `fps` and `duration_s` are what the container declares and may be absent or wrong."""

    uri: str
    width: int  # px, upright
    height: int  # px, upright
    fps: float | None
    duration_s: float | None
    codec: str
    container: str
    time_base: Fraction
    origin: int  # time stamp of the first frame, in units of time_base
    quarter_turns: int  # counter-clockwise turns that bring a coded picture upright
    mirrored: bool  # the coded picture is mirrored before it is turned
    pixel_aspect: float  # width of a pixel by its height, upright
    seekable: bool
    interlaced: bool = False  # some frames may be two fields; `decode` gives whole frames
    transfer: str | None = None  # "pq" or "hlg" of HDR, else None; `decode` gives SDR
    other_tracks: tuple[str, ...] = ()  # the video tracks that are not read, in words

    def time_s(self, pts: int) -> float:
        """Return the time of a stamp in seconds from the first frame."""
        return float((pts - self.origin) * self.time_base)


_probed: OrderedDict[str, Source] = OrderedDict()


def probe(uri: str) -> Source:
    """Open a source and decode its first frame. Raises `UnreadableVideo` with the reason where that fails.

    The last sources are kept, until `clear_probed`.
    """
    if source := _probed.get(uri):
        return source
    with open_video(uri) as (container, stream):
        return probe_open(uri, container, stream)


def clear_probed() -> None:
    """Forget every source, because their files may have changed."""
    _probed.clear()


def probe_open(uri: str, container: av.container.InputContainer, stream: av.VideoStream) -> Source:
    """As `probe`, of a container that was just opened and from which nothing was read yet."""
    first = next(stamped_frames(container, stream), None)
    if first is None:
        raise UnreadableVideo("no frame could be decoded")
    turns, mirrored = _orientation(first)
    width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    source = _probed[uri] = Source(
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
        interlaced=bool(first.interlaced_frame) or getattr(stream.codec_context, "field_order", None) in _INTERLACED,
        transfer=HDR_TRANSFERS.get(first.color_trc),
        other_tracks=tuple(describe_track(other) for other in video_tracks(container) if other.index != stream.index),
    )
    while len(_probed) > _MAX_PROBED:
        with suppress(KeyError):  # another thread has dropped it just now
            _probed.popitem(last=False)
    return source


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Return the counter-clockwise quarter turns that bring a coded picture upright, and whether to mirror it first.

    The display matrix maps coded to displayed coordinates. Supported are its four rotations, alone or after a mirror.
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
