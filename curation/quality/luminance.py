"""Luminance over time (paper section 3.4, filtering), and the rules that judge luminance and picture quality.

`luminance` here and `curation.quality.iqa` only measure scores. `reject_reason` judges the scores by limits, which can change
without another decode.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np

BINS = 64
_BIN = 256 / BINS
_CENTRES = (np.arange(BINS) + 0.5) * _BIN - 0.5
# Rec. 709 weights of R, G and B.
_REC709 = np.array([[0.2126, 0.7152, 0.0722]], np.float32)
# A flash: the jump of mean luma that a viewer sees (WCAG 2.2 counts 10 % of the range), and how soon it must come back.
_FLASH, _FLASH_S = 25.6, 0.5
# A flash changes most of the picture: at least this share of its cells follows the mean by this share of its jump. Gunfire
# lights a part. Moments at which mean luma jumps by the third number tell which of the two a clip shows.
_FLASH_AREA, _FOLLOWS, _MIN_JUMP = 0.75, 0.4, 8.0
# A fade: mean luma drifts one way at this rate (luma/s) or faster for this long, towards or from a picture whose spread of luma
# is below the third number.
_FADE_PER_S, _FADE_S, _FLAT = 20.0, 0.4, 12.0


@dataclass(frozen=True)
class LuminanceLimits:
    """Limits of luminance for a kept clip. null switches a rule off."""

    min_mean: float | None = 16.0  # luma 0-255, mean of the clip: a darker clip is rejected
    max_mean: float | None = 235.0  # luma 0-255, mean of the clip: a brighter clip is rejected
    min_range: float | None = 24.0  # luma 0-255, from the 1st to the 99th percentile of all pixels: less is a flat picture
    max_black_share: float | None = 0.85  # share 0-1 of all pixels with luma under 16
    max_white_share: float | None = 0.60  # share 0-1 of all pixels with luma of 240 and more
    max_flashes_hz: float | None = 3.0  # flashes per second: mean luma jumps by a tenth of the range and back within 0.5 s
    max_fade_share: float | None = 0.5  # share 0-1 of the time in which the clip fades to or from a picture without contrast


@dataclass(frozen=True)
class QualityLimits:
    """Limits of picture quality for a kept clip. null switches a rule off. `docs/quality.md` says what other limits keep."""

    min_iqa: float | None = 0.45  # quality score 0-1, 1 is clean; other backends have other scales
    max_combed: float | None = 0.2  # share 0-1 of the clip's samples that show two fields though not marked as interlaced


class Luminance(NamedTuple):
    """The luminance columns of a clip, as `schema.CLIP` describes them."""

    luma_mean: float
    luma_min: float
    luma_max: float
    luma_range: float
    black_share: float
    white_share: float
    flashes_hz: float
    fade_share: float


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return the Rec. 709 luma, uint8 [H, W], of a picture uint8 [H, W, 3]."""
    return cv2.transform(rgb, _REC709)


def histogram(luma_HW: np.ndarray) -> np.ndarray:
    """Count the pixels in each of 64 equal bins of luma: float32 [64]."""
    return cv2.calcHist([luma_HW], [0], None, [BINS], [0, 256]).ravel()


def without_bars(histograms_NB: np.ndarray, share: float) -> np.ndarray:
    """Remove the pixels of black bars (`share` of the frame) from histograms, beginning with the darkest bin."""
    remaining, bars = histograms_NB.astype(np.float64), share * histograms_NB.sum(1)
    for bin_ in range(BINS):
        removed = np.minimum(remaining[:, bin_], bars)
        remaining[:, bin_] -= removed
        bars = bars - removed
    return remaining


def mean_luma(histograms_NB: np.ndarray) -> np.ndarray:
    """Return the mean luma of each frame [N] from histograms [N, 64] in any unit."""
    return _shares(histograms_NB) @ _CENTRES


def _shares(histograms_NB: np.ndarray) -> np.ndarray:
    return histograms_NB / np.maximum(histograms_NB.sum(1, keepdims=True), 1)


def luminance(times_s: np.ndarray, histograms_NB: np.ndarray, whole_flashes: float = 1.0) -> Luminance:
    """Measure a clip from its frames' times [N] and luma histograms [N, 64], N >= 1.

    whole_flashes: which share of its jumps of luma are flashes of most of the picture; only those count.
    """
    shares = _shares(histograms_NB)
    means, whole = shares @ _CENTRES, shares.mean(0)
    spread = np.sqrt(np.maximum(shares @ _CENTRES**2 - means**2, 0))
    cumulative = np.cumsum(whole)
    low, high = (int(np.searchsorted(cumulative, q)) for q in (0.01, 0.99))
    duration_s = max(float(times_s[-1] - times_s[0]), 1e-3)
    return Luminance(
        luma_mean=float(means.mean()),
        luma_min=float(means.min()),
        luma_max=float(means.max()),
        luma_range=(min(high, BINS - 1) - low) * _BIN,
        black_share=float(whole[: int(16 / _BIN)].sum()),
        white_share=float(whole[int(240 / _BIN) :].sum()),
        flashes_hz=flashes(times_s, means) * whole_flashes / duration_s if len(means) > 2 else 0.0,
        fade_share=fade_share(times_s, means, spread),
    )


def flashes(times_s: np.ndarray, means: np.ndarray) -> int:
    """Count how often mean luma leaves a level by a flash's height and comes back within half a second."""
    count, i = 0, 0
    while i < len(means) - 1:
        window = np.flatnonzero((times_s > times_s[i]) & (times_s <= times_s[i] + _FLASH_S))
        jump = means[window] - means[i]
        peak = int(np.argmax(np.abs(jump))) if len(window) else 0
        back = np.flatnonzero(np.abs(jump[peak:]) < np.abs(jump[peak : peak + 1]) / 2)
        if len(window) and abs(jump[peak]) >= _FLASH and len(back):
            count += 1
            i = int(window[peak + back[0]])
        else:
            i += 1
    return count


def whole_flash_share(change_PRC: np.ndarray) -> float:
    """Return which share of a clip's jumps of mean luma changes most of the picture: a strobe does, gunfire does not.

    change_PRC: how much the mean luma of each cell changed within a tenth of a second, at P moments. 1 if none shows a jump.
    """
    means = change_PRC.mean((1, 2)) if len(change_PRC) else np.zeros(0)
    jumps = np.flatnonzero(np.abs(means) >= _MIN_JUMP)
    if not len(jumps):
        return 1.0
    relative = change_PRC[jumps] / means[jumps, None, None]
    return float(((relative >= _FOLLOWS).mean((1, 2)) >= _FLASH_AREA).mean())


def fade_share(times_s: np.ndarray, means: np.ndarray, spread: np.ndarray) -> float:
    """Return the share of the time in which mean luma drifts steadily one way, to or from a picture without contrast."""
    if len(means) < 3:
        return 0.0
    drift = np.sign(np.where(np.abs(np.gradient(means, times_s)) >= _FADE_PER_S, np.gradient(means, times_s), 0))
    edges = np.flatnonzero(np.diff(drift, prepend=np.nan, append=np.nan) != 0)
    faded = 0.0
    for start, end in pairwise(edges):
        length = times_s[end - 1] - times_s[start]
        if drift[start] and length >= _FADE_S and min(spread[start], spread[end - 1]) < _FLAT:
            faded += length
    return float(faded / max(times_s[-1] - times_s[0], 1e-3))


@dataclass(frozen=True)
class Rule:
    """One threshold of the recipe's `score` settings.

    score: the ledger's column. settings, limit: `score.<settings>.<limit>` in the recipe. is_minimum: the limit is the least
    allowed score, not the largest. reason: the words in front of the two numbers when a clip breaks the rule.
    """

    score: str
    settings: str
    limit: str
    is_minimum: bool
    reason: str

    def breaks(self, score: float | None, limit: float | None) -> bool:
        """Whether a score is beyond a limit. An unknown score or a limit of null breaks nothing."""
        return score is not None and limit is not None and (score < limit if self.is_minimum else score > limit)


RULES = (
    Rule("luma_mean", "luminance", "min_mean", True, "too dark: mean luma"),
    Rule("luma_mean", "luminance", "max_mean", False, "too bright: mean luma"),
    Rule("luma_range", "luminance", "min_range", True, "flat picture: luma range"),
    Rule("black_share", "luminance", "max_black_share", False, "mostly black: share"),
    Rule("white_share", "luminance", "max_white_share", False, "mostly white: share"),
    Rule("flashes_hz", "luminance", "max_flashes_hz", False, "flashing: per second"),
    Rule("fade_share", "luminance", "max_fade_share", False, "fading: share of the time"),
    Rule("combed", "quality", "max_combed", False, "combed, though not marked as interlaced: share of samples"),
    Rule("iqa", "quality", "min_iqa", True, "{fault}: quality"),
)


def reject_reason(scores: Mapping[str, Any], limits: LuminanceLimits | QualityLimits) -> str | None:
    """Return the first rule of these limits that a clip breaks, in words with both numbers, or None if it breaks none."""
    for rule in RULES:
        score, limit = scores.get(rule.score), getattr(limits, rule.limit, None)
        if rule.breaks(score, limit):
            words = rule.reason.format(fault=scores.get("iqa_fault") or "poor picture")
            return f"{words} {score:.3g} {'<' if rule.is_minimum else '>'} {limit:g}"
    return None


class LumaLog:
    """Collects one luma histogram for each frame, 128 bytes each: shares of the frame in steps of 1 / 65535."""

    def __init__(self) -> None:
        self._shares = bytearray()

    def add(self, luma_HW: np.ndarray) -> None:
        shares = histogram(luma_HW) * (65535 / luma_HW.size)
        self._shares += np.rint(shares).astype(np.uint16).tobytes()

    def result(self) -> np.ndarray:
        """Return all histograms: uint16 [N, 64]."""
        return np.frombuffer(self._shares, np.uint16).reshape(-1, BINS)
