"""Geometry and labels of the report's figures: numbers in, SVG path data, percentages and words out.

The template draws and escapes. Figures stretch to the available width, so their x axis has fixed units (`BINS`, `SPAN`), and
their text is separate HTML.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.schema import Row

BINS = 32
SPAN = 10_000
_HEIGHT = 100
# Height of the lowest bar: a bin with one clip of thousands must stay visible.
_MIN_BAR = 2.0
# A curve has two points per bucket (minimum and maximum), which keeps its peaks. More points than pixels only enlarge the page.
_BUCKETS = 500
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
_MAX_TICKS = 9
# The axis of a luma lane ends at the lane's maximum, but not below this: noise in a black video should not look like a signal.
_MIN_LUMA_TOP = 64.0
# With fewer pixels per second a six-second clip is too narrow to point at. Wider timelines are hard to scroll.
_PX_PER_S, _MAX_WIDTH_PX = 1.5, 4000


@dataclass(frozen=True)
class Mark:
    """A labelled position on an axis, in percent of its length."""

    percent: float
    label: str


@dataclass(frozen=True)
class Bin:
    """One bin of a histogram: its position and its tooltip."""

    x: int
    label: str


@dataclass(frozen=True)
class Histogram:
    """Stacked bars over `BINS` x 100 units: kept clips at the bottom, dropped clips on top."""

    kept: str
    dropped: str
    bins: list[Bin]
    limits: list[Mark]
    low: str
    high: str
    tallest: int
    measured: int


def number(value: float) -> str:
    """Format a number with three significant digits and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def clock(seconds: float) -> str:
    """Format a time in a video: 1:02:03, 2:03 or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def duration(seconds: float) -> str:
    """Format an amount of video: in seconds under a minute, in hours from ten hours on, else in minutes."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"


def histogram(kept: np.ndarray, dropped: np.ndarray, unit: str, limits: Sequence[tuple[str, float]]) -> Histogram:
    """Stack two samples. Limits are (name, value). If the unit is a range ("0-255"), the axis has that range."""
    everything = np.concatenate([kept, dropped])
    high = _high(everything, unit, [value for _, value in limits])
    edges = np.linspace(0, high, BINS + 1)
    below = np.histogram(np.clip(kept, 0, high), edges)[0]
    above = np.histogram(np.clip(dropped, 0, high), edges)[0]
    tallest = int((below + above).max())
    return Histogram(
        kept=_bars(np.zeros(BINS), below, tallest),
        dropped=_bars(below, above, tallest),
        bins=[Bin(i, _bin_label(edges, i, below[i], above[i])) for i in range(BINS) if below[i] + above[i]],
        limits=[Mark(round(100 * value / high, 2), f"{name} {number(value)}") for name, value in limits],
        low="0",
        high=number(high) + ("+" if (everything > high).any() else ""),
        tallest=tallest,
        measured=len(everything),
    )


def _high(values: np.ndarray, unit: str, limits: Sequence[float]) -> float:
    """Return the end of the axis. The largest one percent of the values go into the last bin, lest they squeeze the others."""
    if declared := re.fullmatch(r"0-(\d+)", unit):
        return float(declared[1])
    high = float(np.percentile(values, 99)) if len(values) else 0.0
    return max([high, *limits]) * 1.05 or 1.0


def _bars(base: np.ndarray, counts: np.ndarray, tallest: int) -> str:
    scale = _HEIGHT / max(tallest, 1)
    path = []
    for i, (under, count) in enumerate(zip(base, counts, strict=True)):
        if count:
            foot = _HEIGHT - under * scale
            top = foot - max(count * scale, _MIN_BAR)
            path.append(f"M{i + 0.06:.2f} {foot:.1f}V{top:.1f}H{i + 0.94:.2f}V{foot:.1f}Z")
    return "".join(path)


def _bin_label(edges: np.ndarray, i: int, kept: int, dropped: int) -> str:
    return f"{number(edges[i])} to {number(edges[i + 1])}: {kept} kept, {dropped} dropped"


def ticks(total_s: float) -> list[Mark]:
    """Return a few round times from 0 on."""
    step = next((s for s in _TICK_STEPS_S if total_s / s <= _MAX_TICKS), 86_400 * math.ceil(total_s / 86_400 / _MAX_TICKS))
    times = [step * i for i in range(int(total_s / step + 1e-6) + 1)]
    return [Mark(round(100 * t / total_s, 3), f"{number(t)} s" if total_s <= 60 else clock(t)) for t in times]


def min_width_px(total_s: float) -> int:
    """Return the width at which the clips of a timeline can be distinguished. A narrower page scrolls it."""
    return round(min(total_s * _PX_PER_S, _MAX_WIDTH_PX))


def span_position(start_s: float, end_s: float, total_s: float) -> tuple[int, int]:
    """Return start and width of a span, in `SPAN` units. The width is at least 1."""
    x = round(SPAN * start_s / total_s)
    return x, max(1, round(SPAN * min(end_s, total_s) / total_s) - x)


def signal_curves(signals: Row | None, total_s: float) -> dict[str, str | float]:
    """Return the curves of a video's stored signals and the ends of their axes. Without stored signals the curves are empty."""
    signals = signals or {}
    motion, luma = signals.get("motion_camera") or [], signals.get("luma") or []
    motion_high, luma_high = axis_top(motion, 0.1), axis_top(luma, _MIN_LUMA_TOP)
    return {
        "motion": curve_path(signals.get("times_s") or [], motion, total_s, motion_high),
        "motion_high": motion_high,
        "luma": curve_path(signals.get("luma_times_s") or [], luma, total_s, luma_high),
        "luma_high": luma_high,
    }


def axis_top(values: Sequence[float | None], min_top: float) -> float:
    """Return the end of a lane's axis: a little over the largest value, at least `min_top`, rounded up to two digits."""
    high = 1.05 * max([min_top, *(v for v in values if v is not None and np.isfinite(v))])
    unit = 10.0 ** (math.floor(math.log10(high)) - 1)
    return float(f"{math.ceil(high / unit) * unit:.6g}")


def curve_path(times_s: Sequence[float], values: Sequence[float], total_s: float, high: float) -> str:
    """Return a signal as a line over `SPAN` x 100 units, with `high` at the top; empty for fewer than two values."""
    t, v = np.asarray(times_s, float), np.asarray(values, float)
    good = np.isfinite(v) & (t <= total_s)
    t, v = _decimate(t[good], v[good])
    x, y = np.rint(SPAN * t / total_s).astype(int), _HEIGHT * (1 - np.clip(v / high, 0, 1))
    return "M" + "L".join(f"{a} {b:.1f}" for a, b in zip(x, y, strict=True)) if len(x) > 1 else ""


def _decimate(t: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(t) <= 2 * _BUCKETS:
        return t, v
    pieces = np.array_split(np.arange(len(t)), _BUCKETS)
    keep = np.unique([i for piece in pieces for i in (piece[v[piece].argmin()], piece[v[piece].argmax()])])
    return t[keep], v[keep]


def regime_paths(spans: Sequence[Row], total_s: float) -> dict[str, str]:
    """Return one path per name over `SPAN` x 100 units. Interactions, if there are any, are at the top, regimes below."""
    paths: dict[str, list[str]] = {}
    roof = 36 if any(span["kind"] == "interaction" for span in spans) else 0
    for span in spans:
        x, width = span_position(span["start_s"], span["end_s"], total_s)
        above, foot = (0, 30) if span["kind"] == "interaction" else (roof, _HEIGHT)
        paths.setdefault(action_name(span), []).append(f"M{x} {foot}V{above}h{width}V{foot}Z")
    return {name: "".join(parts) for name, parts in sorted(paths.items())}


def action_name(span: Row) -> str:
    """Return the report's name for an action span: all interactions have the same one."""
    return "interaction" if span["kind"] == "interaction" else span["name"] or "unnamed"


def sample_evenly(sizes: Sequence[int], max_items: int) -> list[list[int]]:
    """Choose at most `max_items` items of groups of these sizes: fair shares, evenly spaced within each group."""
    shown = [0] * len(sizes)
    left = min(max_items, sum(sizes))
    while left:
        open_ = [i for i, size in enumerate(sizes) if shown[i] < size]
        if len(open_) > left:
            open_ = [open_[int((k + 0.5) * len(open_) / left)] for k in range(left)]
        for i in open_:
            more = min(left // len(open_), sizes[i] - shown[i])
            shown[i] += more
        left = min(max_items, sum(sizes)) - sum(shown)
    return [[int((k + 0.5) * size / n) for k in range(n)] for size, n in zip(sizes, shown, strict=True)]
