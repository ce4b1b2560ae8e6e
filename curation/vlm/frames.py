"""Which frames of a clip a model is shown: before, at and after its strongest action, the ends, and the widest gaps between."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from av import VideoFrame

from curation.errors import UnreadableVideo
from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import Rect

# A state before an action and after it: far enough from its span that the action has not begun or is over.
_ASIDE_S = 0.3
# Nearer frames show the same.
_APART_S = 0.1
_JPEG_QUALITY = 85
# A whole unit's clips, so that the questions about a clip share one decode: about 20 MB of JPEG.
_KEPT_CLIPS = 64


@dataclass(frozen=True)
class FrameSettings:
    """count: frames a clip. width_px: of each, never enlarged. hud: keep, or crop to the 3-D view."""

    count: int = 8
    width_px: int = 448
    hud: str = "keep"

    def __post_init__(self) -> None:
        if self.hud not in ("keep", "crop"):
            raise ValueError(f"hud must be keep or crop, not {self.hud!r}")
        if not 2 <= self.count <= 64:
            raise ValueError(f"count must be 2 to 64 frames, not {self.count}")
        if self.width_px < 56:
            raise ValueError(f"width_px must be at least 56, not {self.width_px}")


class Moment(NamedTuple):
    """When a frame is taken (s of the source), and where it lies: before | during | after the action, or nothing."""

    time_s: float
    role: str


def moments(span: Span, action: Span | None, peak_s: float | None, count: int) -> list[Moment]:
    """At most `count` moments of a clip, in order of time; an action that fills the clip has no before or after."""
    last_s = max(span.start_s, span.end_s - 1e-3)
    wanted = [span.start_s, last_s]
    if action is not None and peak_s is not None:
        around = [peak_s, action.start_s - _ASIDE_S, action.end_s + _ASIDE_S, action.start_s, action.end_s]
        wanted += [min(max(t, span.start_s), last_s) for t in around]
    times: list[float] = []
    for time_s in wanted:
        if len(times) < count and all(abs(time_s - other) >= _APART_S for other in times):
            times.append(time_s)
    while len(times) < count and (middle := _middle_of_widest(times)) is not None:
        times.append(middle)
    return [Moment(t, _role(t, action)) for t in sorted(times)]


def _middle_of_widest(times: Sequence[float]) -> float | None:
    gaps = [(b - a, a) for a, b in pairwise(sorted(times))]
    width, start = max(gaps, default=(0.0, 0.0), key=lambda gap: gap[0])
    return start + width / 2 if width >= 2 * _APART_S else None


def _role(time_s: float, action: Span | None) -> str:
    if action is None:
        return ""
    return "before" if time_s < action.start_s else "after" if time_s > action.end_s else "during"


def labels(shown: Sequence[Moment], start_s: float) -> tuple[str, ...]:
    """What stands before each frame in the prompt; seconds count from the clip's start."""
    words = {"": "", "before": ", before the action", "during": ", during the action", "after": ", after the action"}
    return tuple(f"Frame {k}, {m.time_s - start_s:.1f} s{words[m.role]}:" for k, m in enumerate(shown, start=1))


@lru_cache(maxsize=_KEPT_CLIPS)
def grab(uri: str, span: Span, times_s: tuple[float, ...], view: Rect, width_px: int) -> tuple[bytes, ...]:
    """JPEGs of the frames shown at times inside a span, cut to `view` (px of the source) and at most `width_px` wide.

    UnreadableVideo where the span holds no frame.
    """
    source = probe(uri)
    scale = min(1.0, width_px / view.w)
    painter = decode.FrameConverter(source, (max(1, round(source.width * scale)), max(1, round(source.height * scale))))
    cut = view.scaled(scale, scale)
    shots = [_jpeg(painter(frame)[cut.y : cut.y + cut.h, cut.x : cut.x + cut.w]) for frame in _shown(uri, span, times_s)]
    if not shots:
        raise UnreadableVideo(f"no frame between {span.start_s:.2f} and {span.end_s:.2f} s")
    return (*shots, *[shots[-1]] * (len(times_s) - len(shots)))


def _shown(uri: str, span: Span, times_s: Sequence[float]) -> Iterator[VideoFrame]:
    """The frame on screen at each of these times, in order."""
    due, held = list(times_s), None
    for time_s, frame in decode.decode(uri, span, purpose="vlm"):
        while held is not None and due and due[0] < time_s:
            due.pop(0)
            yield held
        held = frame
        if not due:
            return
    yield from [held] * len(due) if held is not None else ()


def _jpeg(rgb: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert ok, rgb.shape
    return bytes(data)
