"""Choose the frames of a clip for a model: before, at and after its strongest action, both ends, and the widest gaps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from av import VideoFrame

from curation.errors import UnreadableVideo
from curation.media import decode
from curation.media.decode import Span
from curation.media.jpeg import encode_jpeg
from curation.media.source import probe
from curation.media.viewport import Rect

# How far from an action's span the frames before and after it are: the action has not begun, or is over.
_MARGIN_S = 0.3
# Frames that are nearer to each other show the same.
_MIN_GAP_S = 0.1
_JPEG_QUALITY = 85
_MAX_FRAMES, _MIN_VIDEO_FRAMES = 64, 4
# All clips of a unit, so that the questions about a clip share one decode: about 20 MB of JPEG.
_CACHED_CLIPS = 64


@dataclass(frozen=True)
class FrameSettings:
    """Which frames of a clip a model gets."""

    count: int = 8  # frames of each clip, 2 to 64; more show more of the action and cost more tokens
    width_px: int = 448  # maximum width of a frame in px; a frame is never enlarged
    hud: str = "keep"  # keep: frames with the HUD | crop: only the 3-D view
    # images: `count` separate pictures around the strongest action, each with its time | video: one video of the whole clip, as
    # Qwen's models were trained, with `fps` and `total_pixels` instead of `count`; it needs qwen-vl-utils. Pairs of clips and
    # synthetic clips are always shown as images.
    form: str = "images"
    fps: float = 2.0  # frames a second of the video; 2 is what Qwen2.5-VL was trained with
    # Pixels of all frames of the video; two frames count once. A token of Qwen2.5-VL is 28x28 px: these are 3072 tokens
    total_pixels: int = 2_408_448

    def __post_init__(self) -> None:
        if self.hud not in ("keep", "crop"):
            raise ValueError(f"hud must be keep or crop, not {self.hud!r}")
        if not 2 <= self.count <= _MAX_FRAMES:
            raise ValueError(f"count must be 2 to 64 frames, not {self.count}")
        if self.width_px < 56:
            raise ValueError(f"width_px must be at least 56, not {self.width_px}")
        if self.form not in ("images", "video"):
            raise ValueError(f"form must be images or video, not {self.form!r}")
        if not 0 < self.fps <= 30:
            raise ValueError(f"fps must be more than 0 and at most 30, not {self.fps:g}")
        if self.total_pixels < 56 * 56:
            raise ValueError(f"total_pixels must be at least {56 * 56}, not {self.total_pixels}")


class Moment(NamedTuple):
    """The time of a frame (s of the source), and its part: before | during | after the action, or "" without an action."""

    time_s: float
    role: str


def choose_moments(span: Span, action: Span | None, peak_s: float | None, count: int) -> list[Moment]:
    """Choose at most `count` moments of a clip, in order of time. An action that fills the clip has no before or after."""
    last_s = max(span.start_s, span.end_s - 1e-3)
    candidates = [span.start_s, last_s]
    if action is not None and peak_s is not None:
        around = [peak_s, action.start_s - _MARGIN_S, action.end_s + _MARGIN_S, action.start_s, action.end_s]
        candidates += [min(max(t, span.start_s), last_s) for t in around]
    times: list[float] = []
    for time_s in candidates:
        if len(times) < count and all(abs(time_s - other) >= _MIN_GAP_S for other in times):
            times.append(time_s)
    while len(times) < count and (middle := _middle_of_widest(times)) is not None:
        times.append(middle)
    return [Moment(t, _role(t, action)) for t in sorted(times)]


def video_times(span: Span, fps: float) -> tuple[float, ...]:
    """Return the times of a clip's frames as a video: evenly spaced, an even number of 4 to 64, since models merge pairs."""
    count = round((span.end_s - span.start_s) * fps / 2) * 2
    count = min(_MAX_FRAMES, max(_MIN_VIDEO_FRAMES, count))
    return tuple(span.start_s + (span.end_s - span.start_s) * number / count for number in range(count))


def video_label(times_s: Sequence[float], span: Span, action: Span | None) -> str:
    """Return the text before a video in the prompt: how its frames are counted, and which of them show the strongest action."""
    step_s = (span.end_s - span.start_s) / len(times_s)
    words = f"A video of {len(times_s)} frames, one every {step_s:.2f} s. Frame 1 is at 0.0 s."
    if action is None:
        return words
    numbers = [k for k, time_s in enumerate(times_s, start=1) if action.start_s - step_s < time_s <= action.end_s + step_s]
    numbers = numbers or [len(times_s)]
    return f"{words} The strongest action is in frames {numbers[0]} to {numbers[-1]}."


def _middle_of_widest(times: Sequence[float]) -> float | None:
    gaps = [(b - a, a) for a, b in pairwise(sorted(times))]
    width, start = max(gaps, default=(0.0, 0.0), key=lambda gap: gap[0])
    return start + width / 2 if width >= 2 * _MIN_GAP_S else None


def _role(time_s: float, action: Span | None) -> str:
    if action is None:
        return ""
    return "before" if time_s < action.start_s else "after" if time_s > action.end_s else "during"


def frame_labels(moments: Sequence[Moment], start_s: float) -> tuple[str, ...]:
    """Return the label before each frame in the prompt. Seconds count from the clip's start."""
    words = {"": "", "before": ", before the action", "during": ", during the action", "after": ", after the action"}
    return tuple(f"Frame {k}, {m.time_s - start_s:.1f} s{words[m.role]}:" for k, m in enumerate(moments, start=1))


@lru_cache(maxsize=_CACHED_CLIPS)
def grab_frames(uri: str, span: Span, times_s: tuple[float, ...], view: Rect, width_px: int) -> tuple[bytes, ...]:
    """Return JPEGs of the frames on screen at these times of a span.

    Frames are cut to `view` (px of the source) and are at most `width_px` wide. Raise UnreadableVideo if the span has no frame.
    """
    source = probe(uri)
    scale = min(1.0, width_px / view.w)
    painter = decode.FrameConverter(source, (max(1, round(source.width * scale)), max(1, round(source.height * scale))))
    cut = view.scaled(scale, scale)
    crops = [painter(frame)[cut.y : cut.y + cut.h, cut.x : cut.x + cut.w] for frame in _frames_at(uri, span, times_s)]
    pictures = [encode_jpeg(crop, _JPEG_QUALITY) for crop in crops]
    if not pictures:
        raise UnreadableVideo(f"no frame between {span.start_s:.2f} and {span.end_s:.2f} s")
    return (*pictures, *[pictures[-1]] * (len(times_s) - len(pictures)))


def _frames_at(uri: str, span: Span, times_s: Sequence[float]) -> Iterator[VideoFrame]:
    """Yield the frame on screen at each of these times, in order."""
    due, current = list(times_s), None
    for time_s, frame in decode.decode(uri, span, purpose="vlm"):
        while current is not None and due and due[0] < time_s:
            due.pop(0)
            yield current
        current = frame
        if not due:
            return
    yield from [current] * len(due) if current is not None else ()
