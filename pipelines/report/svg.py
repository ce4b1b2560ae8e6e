"""Geometry and labels of the report's figures: numbers in, SVG path data, percentages and words out.

The template draws and escapes. Figures stretch to the width they are given, so their x runs over fixed units (`BINS`,
`SPAN`) and their text stands beside them in HTML.
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
# A bin that holds one clip of thousands must still be seen.
_LEAST_BAR = 2.0
# A curve is two points a bucket (least and greatest), which keeps peaks; more than the pixels there are only weigh.
_BUCKETS = 500
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
_MOST_TICKS = 9
# A luma lane ends at its own maximum, but not below: noise in a black video is no signal.
_LEAST_LUMA = 64.0
# Under this a six-second clip is too narrow to point at; over that a page becomes hard to scroll.
_PX_PER_S, _WIDEST_PX = 1.5, 4000


@dataclass(frozen=True)
class Mark:
    """Something at a place along an axis: percent of its length, and the words beside it."""

    percent: float
    label: str


@dataclass(frozen=True)
class Bin:
    """One bin of a histogram: where it is pointed at, and what it says."""

    x: int
    label: str


@dataclass(frozen=True)
class Histogram:
    """Bars over `BINS` x 100 units: kept clips stand on the axis, those taken out on top of them."""

    kept: str
    taken: str
    bins: list[Bin]
    limits: list[Mark]
    low: str
    high: str
    tallest: int
    measured: int


def number(value: float) -> str:
    """Three significant digits, never in exponents."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def clock(seconds: float) -> str:
    """A time in a video: 1:02:03, 2:03 or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{text}" if minutes >= 60 else f"{minutes}:{text}"


def duration(seconds: float) -> str:
    """How much video: seconds under a minute, hours from ten hours on, else minutes."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"


def histogram(kept: np.ndarray, taken: np.ndarray, unit: str, limits: Sequence[tuple[str, float]]) -> Histogram:
    """Stack two samples; limits are (name, value). A unit that is a range ("0-255") is the axis."""
    everything = np.concatenate([kept, taken])
    high = _high(everything, unit, [value for _, value in limits])
    edges = np.linspace(0, high, BINS + 1)
    below = np.histogram(np.clip(kept, 0, high), edges)[0]
    above = np.histogram(np.clip(taken, 0, high), edges)[0]
    tallest = int((below + above).max())
    return Histogram(
        kept=_bars(np.zeros(BINS), below, tallest),
        taken=_bars(below, above, tallest),
        bins=[Bin(i, _bin_label(edges, i, below[i], above[i])) for i in range(BINS) if below[i] + above[i]],
        limits=[Mark(round(100 * value / high, 2), f"{name} {number(value)}") for name, value in limits],
        low="0",
        high=number(high) + ("+" if (everything > high).any() else ""),
        tallest=tallest,
        measured=len(everything),
    )


def _high(values: np.ndarray, unit: str, limits: Sequence[float]) -> float:
    """Where the axis ends. One clip in a hundred may lie beyond it, in the last bin, lest it squeeze all others."""
    if declared := re.fullmatch(r"0-(\d+)", unit):
        return float(declared[1])
    most = float(np.percentile(values, 99)) if len(values) else 0.0
    return max([most, *limits]) * 1.05 or 1.0


def _bars(base: np.ndarray, counts: np.ndarray, tallest: int) -> str:
    scale = _HEIGHT / max(tallest, 1)
    path = []
    for i, (under, count) in enumerate(zip(base, counts, strict=True)):
        if count:
            foot = _HEIGHT - under * scale
            top = foot - max(count * scale, _LEAST_BAR)
            path.append(f"M{i + 0.06:.2f} {foot:.1f}V{top:.1f}H{i + 0.94:.2f}V{foot:.1f}Z")
    return "".join(path)


def _bin_label(edges: np.ndarray, i: int, kept: int, taken: int) -> str:
    return f"{number(edges[i])} to {number(edges[i + 1])}: {kept} kept, {taken} taken out"


def ticks(total_s: float) -> list[Mark]:
    """A handful of round times from 0 on."""
    step = next((s for s in _TICK_STEPS_S if total_s / s <= _MOST_TICKS), 86_400 * math.ceil(total_s / 86_400 / _MOST_TICKS))
    times = [step * i for i in range(int(total_s / step + 1e-6) + 1)]
    return [Mark(round(100 * t / total_s, 3), f"{number(t)} s" if total_s <= 60 else clock(t)) for t in times]


def least_width_px(total_s: float) -> int:
    """How wide a timeline must be for its clips to be told apart; a narrower page scrolls it."""
    return round(min(total_s * _PX_PER_S, _WIDEST_PX))


def place(start_s: float, end_s: float, total_s: float) -> tuple[int, int]:
    """Start and width of a span, in `SPAN` units; never nothing."""
    x = round(SPAN * start_s / total_s)
    return x, max(1, round(SPAN * min(end_s, total_s) / total_s) - x)


def curves(signals: Row | None, total_s: float) -> dict[str, str | float]:
    """The lines of a video's stored signals and where their lanes end; empty lines where nothing is stored."""
    found = signals or {}
    motion, luma = found.get("motion_camera") or [], found.get("luma") or []
    motion_high, luma_high = top(motion, 0.1), top(luma, _LEAST_LUMA)
    return {
        "motion": curve(found.get("times_s") or [], motion, total_s, motion_high),
        "motion_high": motion_high,
        "luma": curve(found.get("luma_times_s") or [], luma, total_s, luma_high),
        "luma_high": luma_high,
    }


def top(values: Sequence[float | None], least: float) -> float:
    """Where a lane's axis ends: a little over the greatest value or `least`, in two digits that fit beside the lane."""
    most = 1.05 * max([least, *(v for v in values if v is not None and np.isfinite(v))])
    unit = 10.0 ** (math.floor(math.log10(most)) - 1)
    return float(f"{math.ceil(most / unit) * unit:.6g}")


def curve(times_s: Sequence[float], values: Sequence[float], total_s: float, high: float) -> str:
    """A signal as a line over `SPAN` x 100 units, `high` at the top; empty where there is none."""
    t, v = np.asarray(times_s, float), np.asarray(values, float)
    good = np.isfinite(v) & (t <= total_s)
    t, v = _thinned(t[good], v[good])
    x, y = np.rint(SPAN * t / total_s).astype(int), _HEIGHT * (1 - np.clip(v / high, 0, 1))
    return "M" + "L".join(f"{a} {b:.1f}" for a, b in zip(x, y, strict=True)) if len(x) > 1 else ""


def _thinned(t: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(t) <= 2 * _BUCKETS:
        return t, v
    pieces = np.array_split(np.arange(len(t)), _BUCKETS)
    keep = np.unique([i for piece in pieces for i in (piece[v[piece].argmin()], piece[v[piece].argmax()])])
    return t[keep], v[keep]


def regimes(spans: Sequence[Row], total_s: float) -> dict[str, str]:
    """One path a name over `SPAN` x 100 units: regimes fill the lane, or its foot where interactions stand above."""
    paths: dict[str, list[str]] = {}
    roof = 36 if any(span["kind"] == "interaction" for span in spans) else 0
    for span in spans:
        x, width = place(span["start_s"], span["end_s"], total_s)
        interaction = span["kind"] == "interaction"
        above, foot = (0, 30) if interaction else (roof, _HEIGHT)
        name = "interaction" if interaction else span["name"] or "unnamed"
        paths.setdefault(name, []).append(f"M{x} {foot}V{above}h{width}V{foot}Z")
    return {name: "".join(parts) for name, parts in sorted(paths.items())}


def spread(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Which items to show of groups of these sizes, `most` in all: fair shares, evenly spaced within each group."""
    shown = [0] * len(sizes)
    left = min(most, sum(sizes))
    while left:
        open_ = [i for i, size in enumerate(sizes) if shown[i] < size]
        if len(open_) > left:
            open_ = [open_[int((k + 0.5) * len(open_) / left)] for k in range(left)]
        for i in open_:
            more = min(left // len(open_), sizes[i] - shown[i])
            shown[i] += more
        left = min(most, sum(sizes)) - sum(shown)
    return [[int((k + 0.5) * size / n) for k in range(n)] for size, n in zip(sizes, shown, strict=True)]
