"""Detect what the player does and what happens on screen, by a small network trained on a game engine's ground truth.

Thresholds on residual flow are no better than chance on first-person games (docs/log.md): walking makes parallax everywhere,
and most interactions happen while the player stands. So a network of 0.1 M weights reads flow and change in cells of 20 px over
about three seconds. `bench/shipped_weights/train_interactions.py` trained it; its card is `docs/models/interactions.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from curation.partition.change_cells import unpack

RATE_HZ = 10.0  # ticks a second of the network; signals at another rate are resampled to it
ROWS, COLUMNS = 12, 16
REGIMES = ("still", "forward", "back", "turn_left", "turn_right", "strafe_left", "strafe_right", "look_up", "look_down")
KINDS = ("door", "shot", "wield", "place", "dig", "torch", "explosion", "weather", "appear", "menu")
"""The kinds of interactions that engines' truth tells. wield: what is in the hand changes. appear: someone does."""
_DILATIONS = (1, 2, 4)
_TICKS_AT_ONCE = 512  # a convolution's patches are nine times its input: an hour at once would not fit into memory
# The size of one unit of input: px/s for flow and its unevenness, grey levels for the three changes.
_UNIT = np.array([20.0, 20.0, 4.0, 2.0, 4.0, 20.0], np.float32)


@dataclass(frozen=True)
class Prediction:
    """The network's output for T ticks."""

    times_s: np.ndarray  # [T]
    event_probability: np.ndarray  # [T], that an interaction happens
    regime_probability: np.ndarray  # [T, 9], of each of `REGIMES`
    kind_probability: np.ndarray  # [T, 10], of each of `KINDS`
    # [T]: how far the ten seconds around are from the training set; 1 is as far as its farthest 1 %
    distance: np.ndarray


def predict(
    times_s: np.ndarray, cells: np.ndarray, change_cells: np.ndarray, fps: float, detector: "Detector | None" = None
) -> Prediction:
    """Run the shipped network, or another one, on a source, given its P pairs of frames at times [P]; see `inputs`."""
    detector = detector or shipped_detector()
    if not len(times_s):
        return Prediction(times_s, np.zeros(0), np.zeros((0, len(REGIMES))), np.zeros((0, len(KINDS))), np.zeros(0))
    ticks = np.arange(times_s[0], times_s[-1] + 1e-6, 1 / RATE_HZ)
    nearest = np.searchsorted((times_s[1:] + times_s[:-1]) / 2, ticks)
    parts = [nearest[first : first + _TICKS_AT_ONCE] for first in range(0, len(nearest), _TICKS_AT_ONCE)]
    encoded = [detector.encode(inputs(cells[part], change_cells[part], fps)) for part in parts]
    return detector.classify(ticks, *(np.concatenate(of_all) for of_all in zip(*encoded, strict=True)))


def concatenate(predictions: Sequence[Prediction]) -> Prediction:
    """Concatenate the predictions of the parts of a source, at least one, in order."""
    if len(predictions) == 1:
        return predictions[0]
    return Prediction(*(np.concatenate([getattr(one, part.name) for one in predictions]) for part in fields(Prediction)))


def inputs(cells: np.ndarray, change_cells: np.ndarray, fps: float) -> np.ndarray:
    """Return the network's input, float32 [P, 6, 12, 16].

    cells: flow [P, R, C, 2] in px/frame. change_cells: uint8 [P, R, C, 4], packed.
    """
    change = unpack(change_cells)
    planes = np.concatenate([cells.astype(np.float32) * fps, change[..., :3], change[..., 3:] * fps], axis=-1)
    if planes.shape[1:3] != (ROWS, COLUMNS):
        planes = np.stack([cv2.resize(plane, (COLUMNS, ROWS), interpolation=cv2.INTER_LINEAR) for plane in planes])
    return np.arcsinh(planes / _UNIT).transpose(0, 3, 1, 2).astype(np.float32)


class Detector:
    """The network in NumPy: three convolutions over the cells of a tick, three over time, three heads."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._w = {name: value.astype(np.float32) for name, value in weights.items()}

    @property
    def confidence_rule(self) -> tuple[np.ndarray, float]:
        """The weights and the bias of `curation.actions.confidence`."""
        return self._w["confidence.weight"], float(self._w["confidence.bias"])

    def encode(self, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode each tick by itself: float32 [T, 6, 12, 16] -> features [T, D] and `motion_statistics` [T, 48]."""
        x = planes
        for layer, stride in enumerate((1, 2, 2)):
            x = _relu(_conv(x, self._w[f"space{layer}.weight"], self._w[f"space{layer}.bias"], stride))
        return _relu(x.reshape(len(x), -1) @ self._w["look.weight"].T + self._w["look.bias"]), motion_statistics(planes)

    def classify(self, times_s: np.ndarray, features_TD: np.ndarray, statistics_TH: np.ndarray) -> Prediction:
        """Classify consecutive ticks, a tenth of a second apart, from what `encode` returns for them."""
        x = features_TD
        for layer, dilation in enumerate(_DILATIONS):
            x = x + _relu(self._convolve_time(x, f"time{layer}", dilation))
        heads = x @ self._w["head.weight"].T + self._w["head.bias"]
        distance = self._distance(mean_over_ten_seconds(statistics_TH))
        regimes, kinds = heads[:, 1 : 1 + len(REGIMES)], heads[:, 1 + len(REGIMES) :]
        return Prediction(times_s, _sigmoid(heads[:, 0]), _softmax(regimes), _sigmoid(kinds), distance)

    def _convolve_time(self, x_TD: np.ndarray, name: str, dilation: int) -> np.ndarray:
        """Convolve over time with five taps, with zeros beyond the ends."""
        weight = self._w[f"{name}.weight"]  # [D, D, 5]
        reach = 2 * dilation
        padded = np.pad(x_TD, ((reach, reach), (0, 0)))
        taps = (padded[tap * dilation : tap * dilation + len(x_TD)] @ weight[:, :, tap].T for tap in range(weight.shape[2]))
        return np.add.reduce([*taps], axis=0) + self._w[f"{name}.bias"]

    def _distance(self, statistics_TH: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance from the training set, 1 at its farthest 1 %."""
        whitened = (statistics_TH - self._w["known.mean"]) @ self._w["known.whiten"]
        return np.sqrt((whitened * whitened).mean(1)) / self._w["known.limit"]


def motion_statistics(planes: np.ndarray) -> np.ndarray:
    """Summarise how a game's picture moves, regardless of events: [T, 6, 12, 16] -> [T, 48].

    For each plane: its mean size in the middle and at the sides of the upper, middle and lower third, its mean size overall,
    and how much it varies over the picture.
    """
    size = np.abs(planes)
    thirds = size.reshape(len(size), len(_UNIT), 3, ROWS // 3, COLUMNS)
    middle, sides = thirds[..., 4:12].mean((3, 4)), (thirds[..., :4].mean((3, 4)) + thirds[..., 12:].mean((3, 4))) / 2
    return np.concatenate([*middle.transpose(2, 0, 1), *sides.transpose(2, 0, 1), size.mean((2, 3)), planes.std((2, 3))], 1)


def mean_over_ten_seconds(values_TH: np.ndarray) -> np.ndarray:
    """Return the running mean over ten seconds, or over those that exist: one moment says little about a game."""
    total = np.concatenate([np.zeros((1, values_TH.shape[1])), np.cumsum(values_TH, axis=0, dtype=np.float64)])
    ticks, half = np.arange(len(values_TH)), round(5 * RATE_HZ)
    low, high = np.maximum(ticks - half, 0), np.minimum(ticks + half, len(values_TH))
    return ((total[high] - total[low]) / (high - low)[:, None]).astype(np.float32)


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """Convolve 3 x 3 with a border of zeros: [T, I, H, W] -> [T, O, H / stride, W / stride]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]  # type: ignore[call-overload]
    ticks, _, height, width = patches.shape[:4]
    columns = patches.transpose(0, 2, 3, 1, 4, 5).reshape(ticks * height * width, -1)
    out = columns @ weight.reshape(len(weight), -1).T + bias
    return out.reshape(ticks, height, width, -1).transpose(0, 3, 1, 2)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    shifted = np.exp(x - x.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def shipped_detector() -> Detector:
    """Load the network that comes with the package."""
    with (files("curation.actions") / "interactions.npz").open("rb") as file:
        return Detector(dict(np.load(file)))
