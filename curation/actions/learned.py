"""What the player does and what happens on screen, by a small network learned from a game engine's truth.

Thresholds on residual flow are no better than chance on first-person games (docs/log.md): walking makes parallax everywhere,
and most interactions happen while the player stands. So a network of 0.1 M weights looks at flow and change in cells of 20 px
over about three seconds; `bench/shipped_weights/train_interactions.py` trained it, `docs/models/interactions.md` is its card.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from curation.partition.change_cells import unpacked

RATE_HZ = 10.0  # the network's clock; signals taken at another rate are resampled to it
ROWS, COLUMNS = 12, 16
REGIMES = ("still", "forward", "back", "turn_left", "turn_right", "strafe_left", "strafe_right")
_DILATIONS = (1, 2, 4)
_TICKS_AT_ONCE = 512  # a convolution's patches are nine times its input: an hour at once would not fit
# What one unit of input is: px/s for flow and its unevenness, grey levels for the three changes.
_UNIT = np.array([20.0, 20.0, 4.0, 2.0, 4.0, 20.0], np.float32)


@dataclass(frozen=True)
class Reading:
    """What the network says of T ticks at times_s [T].

    event [T]: the probability that something happens; regime [T, 7]: of each of `REGIMES`; distance [T]: how far the ten
    seconds around are from what the network was trained on, 1 at the farthest 1 % of that.
    """

    times_s: np.ndarray
    event: np.ndarray
    regime: np.ndarray
    distance: np.ndarray


def read(times_s: np.ndarray, cells: np.ndarray, looks: np.ndarray, fps: float) -> Reading:
    """What the trained network says of a source, from its P pairs of frames at times [P]; see `inputs`."""
    if not len(times_s):
        return Reading(times_s, np.zeros(0), np.zeros((0, len(REGIMES))), np.zeros(0))
    ticks = np.arange(times_s[0], times_s[-1] + 1e-6, 1 / RATE_HZ)
    nearest = np.searchsorted((times_s[1:] + times_s[:-1]) / 2, ticks)
    parts = [nearest[first : first + _TICKS_AT_ONCE] for first in range(0, len(nearest), _TICKS_AT_ONCE)]
    seen = [trained().look(inputs(cells[part], looks[part], fps)) for part in parts]
    return trained().judge(ticks, *(np.concatenate(of_all) for of_all in zip(*seen, strict=True)))


def joined(readings: Sequence[Reading]) -> Reading:
    """Readings of the parts of a source as one, in order; at least one."""
    if len(readings) == 1:
        return readings[0]
    return Reading(*(np.concatenate([getattr(one, part.name) for one in readings]) for part in fields(Reading)))


def inputs(cells: np.ndarray, looks: np.ndarray, fps: float) -> np.ndarray:
    """The network's input, float32 [P, 6, 12, 16], from flow [P, R, C, 2] px/frame and looks uint8 [P, R, C, 4]."""
    look = unpacked(looks)
    planes = np.concatenate([cells.astype(np.float32) * fps, look[..., :3], look[..., 3:] * fps], axis=-1)
    if planes.shape[1:3] != (ROWS, COLUMNS):
        planes = np.stack([cv2.resize(plane, (COLUMNS, ROWS), interpolation=cv2.INTER_LINEAR) for plane in planes])
    return np.arcsinh(planes / _UNIT).transpose(0, 3, 1, 2).astype(np.float32)


class Detector:
    """The network, run in NumPy: three convolutions over the cells of a tick, three over time, two heads."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._w = {name: value.astype(np.float32) for name, value in weights.items()}

    def look(self, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each tick by itself: float32 [T, 6, 12, 16] -> what the network sees in it [T, D], and its `habits` [T, 48]."""
        x = planes
        for layer, stride in enumerate((1, 2, 2)):
            x = _relu(_conv(x, self._w[f"space{layer}.weight"], self._w[f"space{layer}.bias"], stride))
        return _relu(x.reshape(len(x), -1) @ self._w["look.weight"].T + self._w["look.bias"]), habits(planes)

    def judge(self, times_s: np.ndarray, seen_TD: np.ndarray, habits_TH: np.ndarray) -> Reading:
        """Ticks a tenth of a second apart, as `look` gives them, in their course."""
        x = seen_TD
        for layer, dilation in enumerate(_DILATIONS):
            x = x + _relu(self._in_time(x, f"time{layer}", dilation))
        heads = x @ self._w["head.weight"].T + self._w["head.bias"]
        distance = self._distance(over_ten_seconds(habits_TH))
        return Reading(times_s, 1 / (1 + np.exp(-heads[:, 0])), _softmax(heads[:, 1:]), distance)

    def _in_time(self, x_TD: np.ndarray, name: str, dilation: int) -> np.ndarray:
        """Convolution over time with five taps, the ends held at zero."""
        weight = self._w[f"{name}.weight"]  # [D, D, 5]
        reach = 2 * dilation
        padded = np.pad(x_TD, ((reach, reach), (0, 0)))
        taps = (padded[tap * dilation : tap * dilation + len(x_TD)] @ weight[:, :, tap].T for tap in range(weight.shape[2]))
        return np.add.reduce([*taps], axis=0) + self._w[f"{name}.bias"]

    def _distance(self, habits_TH: np.ndarray) -> np.ndarray:
        away = (habits_TH - self._w["known.mean"]) @ self._w["known.whiten"]
        return np.sqrt((away * away).mean(1)) / self._w["known.limit"]


def habits(planes: np.ndarray) -> np.ndarray:
    """How a game moves, whatever happens in it: [T, 6, 12, 16] -> [T, 48].

    Mean size of each plane in the middle and at the sides of the upper, middle and lower third, its mean size over all, and
    how much it varies over the picture.
    """
    size = np.abs(planes)
    thirds = size.reshape(len(size), len(_UNIT), 3, ROWS // 3, COLUMNS)
    middle, sides = thirds[..., 4:12].mean((3, 4)), (thirds[..., :4].mean((3, 4)) + thirds[..., 12:].mean((3, 4))) / 2
    return np.concatenate([*middle.transpose(2, 0, 1), *sides.transpose(2, 0, 1), size.mean((2, 3)), planes.std((2, 3))], 1)


def over_ten_seconds(habits_TH: np.ndarray) -> np.ndarray:
    """Running mean over ten seconds, or what there is of them: one moment says little about a game."""
    total = np.concatenate([np.zeros((1, habits_TH.shape[1])), np.cumsum(habits_TH, axis=0, dtype=np.float64)])
    ticks, half = np.arange(len(habits_TH)), round(5 * RATE_HZ)
    low, high = np.maximum(ticks - half, 0), np.minimum(ticks + half, len(habits_TH))
    return ((total[high] - total[low]) / (high - low)[:, None]).astype(np.float32)


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """3 x 3 convolution with a border of zeros: [T, I, H, W] -> [T, O, H / stride, W / stride]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]  # type: ignore[call-overload]
    ticks, _, height, width = patches.shape[:4]
    columns = patches.transpose(0, 2, 3, 1, 4, 5).reshape(ticks * height * width, -1)
    out = columns @ weight.reshape(len(weight), -1).T + bias
    return out.reshape(ticks, height, width, -1).transpose(0, 3, 1, 2)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _softmax(x: np.ndarray) -> np.ndarray:
    shifted = np.exp(x - x.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def trained() -> Detector:
    """The network that comes with the package."""
    with (files("curation.actions") / "interactions.npz").open("rb") as file:
        return Detector(dict(np.load(file)))
