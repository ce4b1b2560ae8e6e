"""Measurements of a made video that need no model: whether, where, how and for how long it changes, and if the camera moves.

Pictures are compared with the first one, in cells of 10 px at 160 wide, ten times per second. Where a change begins, how far it
spreads and whether it moves is measured in pixels of that size. Cuts come from curation's scan.
"""

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from curation.media import decode
from curation.media.decode import Span
from curation.partition import cuts as scenes
from curation.partition.cuts import SceneSettings
from curation.partition.scan import Signals
from curation.quality.luminance import luma

WIDTH, CELL, RATE_FPS = 160, 10, 10.0
# A cell has changed if its pixels differ by this much (root mean square, 0-255). Codecs and dim flicker differ by less.
_CHANGED = 10.0
_WINDOW_S = 0.5
# The camera's motion is measured in tiles (rows, columns). A tile counts as moved beyond this shift (px). A tile whose grey
# levels have a smaller standard deviation than _FLAT has too little texture to tell.
_TILES, _SHIFT_PX, _FLAT = (2, 3), 1.0, 4.0
# A cut counts if this long after it at least this share of the picture is still different.
_AFTER_CUT_S, _CUT_SHARE = 1.0, 0.5
# Where the hands of a first-person player are: rows and columns, as shares of the picture.
_HANDS = (slice(0.5, 1.0), slice(0.2, 1.0))
# A pixel belongs to the change's shape if it differs by this much (0-255), and by this share of the largest difference. Less is
# the light that a thing casts. The largest difference is a quantile, since a few pixels say little.
_SHAPE, _SHAPE_SHARE, _LARGEST = 20.0, 0.35, 0.995
# The change begins in the first picture that has this share of the final change. Its beginning is looked at below this row.
_BEGUN, _LOWEST = 0.08, 0.8
# What has changed is at rest so long after its beginning, if it does not move by itself.
_SETTLE_S = 1.2


class VideoMetrics(NamedTuple):
    """What was measured of a made video. Shares are of the picture's cells, luma is on 0-255."""

    first_error: float  # mean difference of the first picture from the initial frame
    cuts: int  # places where the picture changes abruptly and stays different
    shifted: float  # share of the pictures in which most tiles are shifted against the first one
    change_peak: float  # share that differs from the first picture, at its largest over half a second
    change_brief: float  # the same, at its largest in a single picture
    change_end: float  # the same, at the end
    kept: float  # what remains of the change at the end, as a share of its peak
    hands: float  # share of the change that is where hands are
    entry: float  # share of the change's beginning that is in the lowest fifth of the picture
    spread: float  # how far the change spreads over the picture's width; 1: evenly over all of it
    motion: float  # how much the changed part changes from picture to picture afterwards, as a share of the change
    light_peak: float  # largest change of mean luma
    light_end: float  # change of mean luma at the end
    onset_s: float  # when the change begins


def downscale(rgb: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [H, W, 3] at the size at which pictures are compared."""
    height = max(CELL, round(WIDTH * rgb.shape[0] / rgb.shape[1]))
    return cv2.resize(rgb, (WIDTH, height), interpolation=cv2.INTER_AREA)


def measure_video(uri: str, signals: Signals, initial: np.ndarray, scene: SceneSettings) -> VideoMetrics:
    """Measure a made video. `initial` is the frame uint8 [H, W, 3] with which it should begin."""
    first = downscale(initial)
    size = (first.shape[1], first.shape[0])
    rgb = decode.read_frames(uri, Span(0.0, signals.end_s), RATE_FPS, size).rgb
    change = cell_changes(rgb)
    return VideoMetrics(
        first_error=float(np.abs(rgb[0].astype(np.float32) - first).mean()),
        cuts=count_cuts(rgb, signals, scene),
        shifted=shifted_share(rgb),
        **_change_metrics(change, _luma_changes(rgb)),
        **_shape_metrics(rgb),
    )


def count_cuts(rgb_NHW3: np.ndarray, signals: Signals, scene: SceneSettings) -> int:
    """Count the cuts after which most of the picture stays different.

    A blast or a flash close to the camera is detected as a cut too, but the picture before it returns.
    """
    cuts = scenes.cut_frames(signals.content, signals.flow_match, signals.layout_similarity, signals.fps, scene)
    count, last = 0, len(rgb_NHW3) - 1
    for time_s in signals.times_s[cuts]:
        before = max(0, int(time_s * RATE_FPS) - 1)
        after = min(last, round((time_s + _AFTER_CUT_S) * RATE_FPS))
        count += int((cell_changes(rgb_NHW3[[before, after]])[1] > _CHANGED).mean() > _CUT_SHARE)
    return count


def cell_changes(rgb_NHW3: np.ndarray) -> np.ndarray:
    """Return how much each cell of each picture differs from the first picture: root mean square [N, R, C]."""
    first = rgb_NHW3[0].astype(np.float32)
    rows, columns = first.shape[0] // CELL, first.shape[1] // CELL
    rms_NRC = np.empty((len(rgb_NHW3), rows, columns), np.float32)
    for number, picture in enumerate(rgb_NHW3):
        squares = np.square(picture.astype(np.float32) - first).mean(axis=2)[: rows * CELL, : columns * CELL]
        rms_NRC[number] = np.sqrt(squares.reshape(rows, CELL, columns, CELL).mean(axis=(1, 3)))
    return rms_NRC


def shifted_share(rgb_NHW3: np.ndarray) -> float:
    """Return the share of the pictures, two per second, in which most tiles are shifted against the first picture.

    Shifts come from phase correlation. Rain, fog and darkness do not shift what they cover, and a thing that appears covers
    only some tiles. A moving camera shifts all of them.
    """
    every = max(1, round(RATE_FPS / 2))
    grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32) for picture in rgb_NHW3[::every]]
    shifted = [_is_shifted(grey[0], picture) for picture in grey[1:]]
    return float(np.mean(shifted)) if shifted else 0.0


def _is_shifted(first: np.ndarray, picture: np.ndarray) -> bool:
    """Whether most of the tiles with enough texture have moved."""
    pairs = [(a, b) for a, b in zip(_tiles(first), _tiles(picture), strict=True) if min(a.std(), b.std()) > _FLAT]
    window = cv2.createHanningWindow((first.shape[1] // _TILES[1], first.shape[0] // _TILES[0]), cv2.CV_32F)
    shifted = [np.hypot(*cv2.phaseCorrelate(a, b, window)[0]) > _SHIFT_PX for a, b in pairs]
    return bool(np.mean(shifted) > 0.5) if shifted else False


def _tiles(grey: np.ndarray) -> list[np.ndarray]:
    rows, columns = _TILES
    height, width = grey.shape[0] // rows, grey.shape[1] // columns
    places = [(r * height, c * width) for r in range(rows) for c in range(columns)]
    return [np.ascontiguousarray(grey[y : y + height, x : x + width]) for y, x in places]


def _luma_changes(rgb_NHW3: np.ndarray) -> np.ndarray:
    means = np.array([luma(np.ascontiguousarray(picture)).mean() for picture in rgb_NHW3], np.float32)
    return means - means[0]


def _change_metrics(change_NRC: np.ndarray, light_N: np.ndarray) -> dict[str, float]:
    """Return the metrics of the change over time."""
    share = (change_NRC > _CHANGED).mean(axis=(1, 2))
    energy = np.where(change_NRC > _CHANGED, change_NRC, 0).mean(axis=(1, 2))
    window = max(1, min(len(share), round(_WINDOW_S * RATE_FPS)))
    steady, power = _running_median(share, window), _running_median(energy, window)
    end = slice(len(share) - window, None)
    peak = int(np.argmax(energy))
    return {
        "change_peak": float(steady.max()),
        "change_brief": float(share.max()),
        "change_end": float(np.median(share[end])),
        "kept": float(np.median(energy[end]) / max(power.max(), 1e-6)),
        "hands": _hands_share(change_NRC[end].mean(axis=0) if steady[-1] > 0 else change_NRC[peak]),
        "light_peak": float(light_N[np.argmax(np.abs(light_N))]),
        "light_end": float(np.median(light_N[end])),
        "onset_s": float(np.argmax(share > share.max() / 4) / RATE_FPS),
    }


def _shape_metrics(rgb_NHW3: np.ndarray) -> dict[str, float]:
    """Return where a change begins, how far it spreads, and whether what has changed moves by itself.

    A thing that is taken in the hand comes over the lower edge of the picture. What appears in the scene does not.
    """
    window = max(1, min(len(rgb_NHW3), round(_WINDOW_S * RATE_FPS)))
    difference_NHW = np.stack([_pixel_changes(picture, rgb_NHW3[0]) for picture in rgb_NHW3])
    final = np.median(difference_NHW[-window:], axis=0)
    if np.quantile(final, _LARGEST) < _SHAPE:  # it has passed
        final = difference_NHW[np.argmax(np.square(difference_NHW).mean(axis=(1, 2)))]
    least = max(_SHAPE, _SHAPE_SHARE * float(np.quantile(final, _LARGEST)))
    shape = final > least
    power_NHW = np.where(difference_NHW > least, difference_NHW, 0) ** 2
    begun_N = power_NHW[:, shape].sum(axis=1) > _BEGUN * np.square(final[shape]).sum()
    if not begun_N.any():
        return {"entry": 0.0, "spread": 0.0, "motion": 0.0}
    onset = int(np.argmax(begun_N))
    lowest = power_NHW[onset, int(_LOWEST * final.shape[0]) :]
    settled = rgb_NHW3[min(onset + round(_SETTLE_S * RATE_FPS), len(rgb_NHW3) - 2) :]
    steps = [_pixel_changes(after, before)[shape].mean() for before, after in pairwise(settled)]
    return {
        "entry": float(lowest.sum() / power_NHW[onset].sum()),
        "spread": float(np.nonzero(shape)[1].std() / (final.shape[1] / np.sqrt(12))),
        "motion": float(np.mean(steps) / final[shape].mean()),
    }


def _pixel_changes(picture: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the largest difference of the three colours for each pixel [H, W]."""
    difference: np.ndarray = np.abs(picture.astype(np.float32) - first).max(axis=2)
    return difference


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    return np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)


def _hands_share(change_RC: np.ndarray) -> float:
    """Return the share of the squared change that is where hands are.

    Squared, because a torch lights the whole room, but the largest change is in the hand.
    """
    rows, columns = change_RC.shape
    power = np.where(change_RC > _CHANGED, change_RC, 0) ** 2
    inside = power[tuple(slice(int(s.start * n), int(s.stop * n)) for s, n in zip(_HANDS, (rows, columns), strict=True))]
    return float(inside.sum() / max(power.sum(), 1e-6))
