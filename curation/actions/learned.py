"""Detect what the player does and what happens on screen, by a small network trained on a game engine's ground truth.

Thresholds on residual flow are no better than chance on first-person games (docs/log.md): walking makes parallax everywhere,
and most interactions happen while the player stands. So a few networks of 0.1 M weights each read
flow and change in cells of 20 px over about three seconds. Their mean is the answer; how much they differ tells how sure it is.
`bench/shipped_weights/train_interactions.py` trained them; their card is `docs/models/interactions.md`.
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
PLANES, CONTEXT_PLANES = 6, 5
_CHANGES = slice(3, 6)  # the planes of sizes: what flow does not explain, the change, how unevenly a cell moves
_CONTEXT_TICKS = 30  # to each side
_FIT_STEPS, _FIT_FLOOR = 3, 0.1  # of the camera's motion by reweighted least squares; px/s are in units of `_UNIT`
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
    spread: np.ndarray  # [T], standard deviation of the event's probability over the networks

    def ticks_within(self, start_s: float, end_s: float) -> slice:
        """Return the ticks in [start_s, end_s)."""
        first, end = np.searchsorted(self.times_s, [start_s - 1e-6, end_s])
        return slice(int(first), max(int(first), int(end)))


def predict(
    times_s: np.ndarray, cells: np.ndarray, change_cells: np.ndarray, fps: float, detector: "Detector | None" = None
) -> Prediction:
    """Run the shipped network, or another one, on a source, given its P pairs of frames at times [P]; see `inputs`."""
    detector = detector or shipped_detector()
    if not len(times_s):
        none = np.zeros(0)
        return Prediction(times_s, none, np.zeros((0, len(REGIMES))), np.zeros((0, len(KINDS))), none, none)
    ticks = np.arange(times_s[0], times_s[-1] + 1e-6, 1 / RATE_HZ)
    nearest = np.searchsorted((times_s[1:] + times_s[:-1]) / 2, ticks)
    encoded = []
    for first in range(0, len(nearest), _TICKS_AT_ONCE):
        lead = min(first, _CONTEXT_TICKS)
        part = nearest[first - lead : first + _TICKS_AT_ONCE + _CONTEXT_TICKS]
        planes = with_context(inputs(cells[part], change_cells[part], fps))
        encoded.append(detector.encode(planes[lead : lead + _TICKS_AT_ONCE]))
    return detector.classify(ticks, *(np.concatenate(of_all) for of_all in zip(*encoded, strict=True)))


def concatenate(predictions: Sequence[Prediction]) -> Prediction:
    """Concatenate the predictions of the parts of a source, at least one, in order."""
    if len(predictions) == 1:
        return predictions[0]
    return Prediction(*(np.concatenate([getattr(one, part.name) for one in predictions]) for part in fields(Prediction)))


def inputs(cells: np.ndarray, change_cells: np.ndarray, fps: float) -> np.ndarray:
    """Return what is measured of each pair, float32 [P, 6, 12, 16].

    cells: flow [P, R, C, 2] in px/frame. change_cells: uint8 [P, R, C, 4], packed.
    """
    change = unpack(change_cells)
    planes = np.concatenate([cells.astype(np.float32) * fps, change[..., :3], change[..., 3:] * fps], axis=-1)
    if planes.shape[1:3] != (ROWS, COLUMNS):
        planes = np.stack([cv2.resize(plane, (COLUMNS, ROWS), interpolation=cv2.INTER_LINEAR) for plane in planes])
    return np.arcsinh(planes / _UNIT).transpose(0, 3, 1, 2).astype(np.float32)


def with_context(planes: np.ndarray) -> np.ndarray:
    """Return the network's input [T, 11, 12, 16] from the planes [T, 6, 12, 16] of consecutive ticks.

    Added are the flow that is left when the camera's motion, a polynomial of second order fitted to all cells, is taken away
    (2 planes), and how far the sizes of changes are from their mean over three seconds to each side (3 planes): what is usual
    in a game differs, and its panels stand still.
    """
    ticks = len(planes)
    left = _flow_residual(np.sinh(planes[:, :2].astype(np.float32)))
    sizes = planes[:, _CHANGES].astype(np.float32)
    total = np.concatenate([np.zeros_like(sizes[:1], np.float64), np.cumsum(sizes, axis=0, dtype=np.float64)])
    at = np.arange(ticks)
    low, high = np.maximum(at - _CONTEXT_TICKS, 0), np.minimum(at + _CONTEXT_TICKS + 1, ticks)
    usual = (total[high] - total[low]) / (high - low)[:, None, None, None]
    return np.concatenate([planes, np.arcsinh(left), sizes - usual.astype(np.float32)], axis=1).astype(np.float32)


def _flow_residual(flow: np.ndarray) -> np.ndarray:
    """Take from flow [T, 2, 12, 16] the polynomial of second order that most cells follow, by reweighted least squares."""
    y, x = np.meshgrid(np.linspace(-1, 1, ROWS), np.linspace(-1, 1, COLUMNS), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6).astype(np.float32)
    wanted = flow.reshape(len(flow), 2, -1).transpose(0, 2, 1)
    weight = np.ones(wanted.shape[:2], np.float32)
    residual = wanted
    for _ in range(_FIT_STEPS):
        weighted = terms * weight[..., None]  # [T, N, 6]
        normal = weighted.transpose(0, 2, 1) @ terms + 1e-4 * np.eye(6, dtype=np.float32)
        fit = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ wanted)
        residual = wanted - terms @ fit
        weight = 1 / (np.linalg.norm(residual, axis=2) + _FIT_FLOOR)
    return residual.transpose(0, 2, 1).reshape(flow.shape)


class Detector:
    """Networks in NumPy: three convolutions over a tick's cells, three over time, and heads. Their weighted mean counts.

    Of an event's probability the weighted mean over the ticks nearby counts, because on games that the networks have not seen a
    single tick is often wrong.
    """

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        """weights: those of network k alone begin with "k/"; where none does, there is one network.

        Networks without convolutions of their own have those without a prefix in common. `votes` [K] are the networks' shares,
        `nearby` [odd] those of the ticks around each tick.
        """
        self._w = {name: value.astype(np.float32) for name, value in weights.items()}
        count = len({name.partition("/")[0] for name in weights if "/" in name})
        own = [_named_after(self._w, f"{k}/") for k in range(count)] or [self._w]
        self._networks = [_Network(one) for one in own]
        # Those that several networks have in common, also as copies, run once.
        self._convolutions: list[dict[str, np.ndarray]] = []
        for one in own:
            weights_of = one if "space0.weight" in one else self._w
            self._convolutions.append(next((w for w in self._convolutions if _convolve_alike(w, weights_of)), weights_of))
        self._votes = self._w.get("votes", np.full(len(own), 1 / len(own), np.float32))
        self._nearby = self._w.get("nearby", np.ones(1, np.float32))

    def __len__(self) -> int:
        return len(self._networks)

    @property
    def confidence_rule(self) -> tuple[np.ndarray, float]:
        """The weights and the bias of `curation.actions.confidence`."""
        return self._w["confidence.weight"], float(self._w["confidence.bias"])

    def encode(self, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode ticks [T, 11, 12, 16] that `with_context` returned: features [T, K, D] and `motion_statistics` [T, 48]."""
        seen: dict[int, np.ndarray] = {}
        features = []
        for network, weights in zip(self._networks, self._convolutions, strict=True):
            if id(weights) not in seen:
                seen[id(weights)] = _convolve(planes, weights)
            features.append(network.look(seen[id(weights)]))
        return np.stack(features, axis=1), motion_statistics(planes[:, :PLANES])

    def classify(self, times_s: np.ndarray, features_TKD: np.ndarray, statistics_TH: np.ndarray) -> Prediction:
        """Classify consecutive ticks, a tenth of a second apart, from what `encode` returns for them."""
        heads = [network.classify(features_TKD[:, k]) for k, network in enumerate(self._networks)]
        split = 1 + len(REGIMES)
        events = np.stack([_sigmoid(head[:, 0]) for head in heads])
        regimes = np.tensordot(self._votes, [_softmax(head[:, 1:split]) for head in heads], 1)
        kinds = np.tensordot(self._votes, [_sigmoid(head[:, split:]) for head in heads], 1)
        distance = self._distance(mean_over_ten_seconds(statistics_TH))
        mean = self._votes @ events
        event = _weighted_mean_nearby(mean, self._nearby)
        return Prediction(times_s, event, regimes, kinds, distance, np.sqrt(self._votes @ (events - mean) ** 2))

    def _distance(self, statistics_TH: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance from the training set, 1 at its farthest 1 %."""
        whitened = (statistics_TH - self._w["known.mean"]) @ self._w["known.whiten"]
        return np.sqrt((whitened * whitened).mean(1)) / self._w["known.limit"]


def _weighted_mean_nearby(values_T: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the mean of each value and those around it, weighted by `shares` [odd]. The ends are repeated."""
    if not len(values_T):
        return values_T
    return np.correlate(np.pad(values_T, len(shares) // 2, mode="edge"), shares / shares.sum(), "valid").astype(values_T.dtype)


def _convolve_alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[f"space{layer}.weight"], other[f"space{layer}.weight"]) for layer in range(3))


def _convolve(planes: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return [T, 624]: the last convolution's output at each place, and the highest of all places."""
    x = planes[:, : weights["space0.weight"].shape[1]]  # those of the first releases read six planes
    for layer, stride in enumerate((1, 2, 2)):
        x = _relu(_conv(x, weights[f"space{layer}.weight"], weights[f"space{layer}.bias"], stride))
    return np.concatenate([x.reshape(len(x), -1), x.max((2, 3))], axis=1)


class _Network:
    """What one of the networks has for itself."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._w = weights

    def look(self, cells: np.ndarray) -> np.ndarray:
        """Read the convolved cells of each tick, [T, 624] -> [T, D]. The first releases read the first 576."""
        weight = self._w["look.weight"]
        return _relu(cells[:, : weight.shape[1]] @ weight.T + self._w["look.bias"])

    def classify(self, x_TD: np.ndarray) -> np.ndarray:
        """Return the logits [T, 1 + 9 + 10] of an event, the regimes and the kinds."""
        x = x_TD
        for layer, dilation in enumerate(_DILATIONS):
            x = x + _relu(self._convolve_time(x, f"time{layer}", dilation))
        return x @ self._w["head.weight"].T + self._w["head.bias"]

    def _convolve_time(self, x_TD: np.ndarray, name: str, dilation: int) -> np.ndarray:
        """Convolve over time with five taps, with zeros beyond the ends."""
        weight = self._w[f"{name}.weight"]  # [D, D, 5]
        reach = 2 * dilation
        padded = np.pad(x_TD, ((reach, reach), (0, 0)))
        taps = (padded[tap * dilation : tap * dilation + len(x_TD)] @ weight[:, :, tap].T for tap in range(weight.shape[2]))
        return np.add.reduce([*taps], axis=0) + self._w[f"{name}.bias"]


def _named_after(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


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
