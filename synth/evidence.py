"""What can be measured of a made video without a model: whether, where and for how long it changes, and if the camera moves.

Pictures are compared with the first one, in cells of 10 px at 160 wide, ten times a second; cuts come from curation's one pass.
"""

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
# A cell has changed where its pixels differ by this much (root mean square of 0-255); codecs and dim flicker stay under it.
_CHANGED = 10.0
_WINDOW_S = 0.5
# Tiles (rows, columns) are held against each other; one whose grey levels spread less shows nothing to go by.
_TILES, _SHIFT_PX, _FLAT = (2, 3), 1.0, 4.0
# So long after a cut most of the picture (this share) is another one still.
_PASSES_S, _OTHER = 1.0, 0.5
# Where things in the hands of whom one plays are seen: the lower part of the picture, its sides left out.
_HANDS = (slice(0.5, 1.0), slice(0.2, 0.9))


class Evidence(NamedTuple):
    """Shares are of the picture's cells, luma is on 0-255.

    first_error: mean difference of the first picture from the initial frame. cuts: places where the picture jumps for good.
    shifted: share of the pictures in most of which the first one fits best where it is moved. change_peak: share that
    differs from the first picture when most does. change_brief: the same for a moment. change_end: the same at the end. kept:
    what is left of the change at the end, as a share of its peak. hands: share of the change that lies where hands are.
    light_peak: change of mean luma where it is largest; light_end: at the end. onset_s: when it begins.
    """

    first_error: float
    cuts: int
    shifted: float
    change_peak: float
    change_brief: float
    change_end: float
    kept: float
    hands: float
    light_peak: float
    light_end: float
    onset_s: float


def small(rgb: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, 3] at the size at which pictures are compared."""
    height = max(CELL, round(WIDTH * rgb.shape[0] / rgb.shape[1]))
    return cv2.resize(rgb, (WIDTH, height), interpolation=cv2.INTER_AREA)


def evidence(uri: str, signals: Signals, initial: np.ndarray, scene: SceneSettings) -> Evidence:
    """Measure a made video; `initial`: the frame uint8 [H, W, 3] that it was to begin with."""
    first = small(initial)
    size = (first.shape[1], first.shape[0])
    rgb = decode.read_frames(uri, Span(0.0, signals.end_s), RATE_FPS, size).rgb
    change = changes(rgb)
    return Evidence(
        first_error=float(np.abs(rgb[0].astype(np.float32) - first).mean()),
        cuts=jumps(rgb, signals, scene),
        shifted=shifted(rgb),
        **_course(change, _light(rgb)),
    )


def jumps(rgb_NHW3: np.ndarray, signals: Signals, scene: SceneSettings) -> int:
    """Cuts behind which most of the picture stays another one; a blast or a flash close up looks like a cut, and passes."""
    cuts = scenes.cut_frames(signals.content, signals.flow_match, signals.layout_similarity, signals.fps, scene)
    count, last = 0, len(rgb_NHW3) - 1
    for time_s in signals.times_s[cuts]:
        before = max(0, int(time_s * RATE_FPS) - 1)
        after = min(last, round((time_s + _PASSES_S) * RATE_FPS))
        count += int((changes(rgb_NHW3[[before, after]])[1] > _CHANGED).mean() > _OTHER)
    return count


def changes(rgb_NHW3: np.ndarray) -> np.ndarray:
    """How far each cell of each picture is from the first picture's: root mean square [N, R, C]."""
    first = rgb_NHW3[0].astype(np.float32)
    rows, columns = first.shape[0] // CELL, first.shape[1] // CELL
    found = np.empty((len(rgb_NHW3), rows, columns), np.float32)
    for number, picture in enumerate(rgb_NHW3):
        squares = np.square(picture.astype(np.float32) - first).mean(axis=2)[: rows * CELL, : columns * CELL]
        found[number] = np.sqrt(squares.reshape(rows, CELL, columns, CELL).mean(axis=(1, 3)))
    return found


def shifted(rgb_NHW3: np.ndarray) -> float:
    """The share of the pictures, two a second, in most tiles of which phase correlation puts the first one aside.

    Rain, fog and darkness leave what they cover where it is, and what appears covers some of the tiles; a camera moves all.
    """
    every = max(1, round(RATE_FPS / 2))
    grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float32) for picture in rgb_NHW3[::every]]
    aside = [_moved(grey[0], picture) for picture in grey[1:]]
    return float(np.mean(aside)) if aside else 0.0


def _moved(first: np.ndarray, picture: np.ndarray) -> bool:
    """Whether most of the tiles that show something have moved."""
    pairs = [(a, b) for a, b in zip(_tiles(first), _tiles(picture), strict=True) if min(a.std(), b.std()) > _FLAT]
    window = cv2.createHanningWindow((first.shape[1] // _TILES[1], first.shape[0] // _TILES[0]), cv2.CV_32F)
    aside = [np.hypot(*cv2.phaseCorrelate(a, b, window)[0]) > _SHIFT_PX for a, b in pairs]
    return bool(np.mean(aside) > 0.5) if aside else False


def _tiles(grey: np.ndarray) -> list[np.ndarray]:
    rows, columns = _TILES
    height, width = grey.shape[0] // rows, grey.shape[1] // columns
    places = [(r * height, c * width) for r in range(rows) for c in range(columns)]
    return [np.ascontiguousarray(grey[y : y + height, x : x + width]) for y, x in places]


def _light(rgb_NHW3: np.ndarray) -> np.ndarray:
    means = np.array([luma(np.ascontiguousarray(picture)).mean() for picture in rgb_NHW3], np.float32)
    return means - means[0]


def _course(change_NRC: np.ndarray, light_N: np.ndarray) -> dict[str, float]:
    """The course of the change over time in numbers."""
    share = (change_NRC > _CHANGED).mean(axis=(1, 2))
    energy = np.where(change_NRC > _CHANGED, change_NRC, 0).mean(axis=(1, 2))
    window = max(1, min(len(share), round(_WINDOW_S * RATE_FPS)))
    steady, power = _running_median(share, window), _running_median(energy, window)
    end = slice(len(share) - window, None)
    at = int(np.argmax(energy))
    return {
        "change_peak": float(steady.max()),
        "change_brief": float(share.max()),
        "change_end": float(np.median(share[end])),
        "kept": float(np.median(energy[end]) / max(power.max(), 1e-6)),
        "hands": _hands(change_NRC[end].mean(axis=0) if steady[-1] > 0 else change_NRC[at]),
        "light_peak": float(light_N[np.argmax(np.abs(light_N))]),
        "light_end": float(np.median(light_N[end])),
        "onset_s": float(np.argmax(share > share.max() / 4) / RATE_FPS),
    }


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    return np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)


def _hands(change_RC: np.ndarray) -> float:
    """The share of the change, squared, that lies where hands are: a torch lights the room, but most of all changes there."""
    rows, columns = change_RC.shape
    power = np.where(change_RC > _CHANGED, change_RC, 0) ** 2
    inside = power[tuple(slice(int(s.start * n), int(s.stop * n)) for s, n in zip(_HANDS, (rows, columns), strict=True))]
    return float(inside.sum() / max(power.sum(), 1e-6))
