"""Signals of a video without a judge, and where they contradict a judge.

The first picture is compared with all others, in cells, ten times a second (`synth.metrics`). A signal cannot see what an
interaction is. It can see that nothing changes, that a change is gone at the end, or that the picture jumps.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from model.evaluation.interbench.suite import Subset
from model.evaluation.videos import fitted_size, read_video
from synth.metrics import RATE_FPS, WIDTH, cell_changes, shifted_share

# A cell has changed if its pixels differ by this much (root mean square, 0-255), as in synth.metrics.
_CHANGED = 10.0
_WINDOW_S = 0.5
# The camera counts as still below this share of shifted pictures: what changes is then not only the view.
MAX_SHIFTED = 0.3
# Below this share of the picture nothing has changed; below that one a global effect is not global; above it a local one is.
_NOTHING, _GLOBAL, _LOCAL = 0.01, 0.3, 0.7
# A lasting change of which less is left has vanished.
_KEPT = 0.15
# A picture jumps where so much more of it changes in one step than in the typical one.
_JUMP_SHARE = 0.3
# Flicker: the mean of |second difference| of luma beyond that of the two steps, 0-255.
_FLICKER = 6.0


class VideoSignals(NamedTuple):
    """What is measured of a video. Shares are of the picture's cells, luma is on 0-255."""

    change_peak: float  # share that differs from the first picture, at its largest over half a second
    change_end: float  # the same over the last half second
    kept: float  # what is left of the change at the end, as a share of its peak
    shifted: float  # share of the pictures that the camera's motion shifts
    largest_step: float  # largest share of the picture that changes from one picture to the next
    flicker: float  # mean amount by which pixels change and change back, luma levels
    still: float  # share of steps in which nothing changes at all
    onset_s: float  # when a quarter of the largest change is reached


def measure(uri: str) -> VideoSignals:
    """Measure a video. UnreadableVideo where it has no frame."""
    width, height = fitted_size(uri, WIDTH)
    rgb = read_video(uri, RATE_FPS, (width, max(10, height))).rgb
    return measure_pictures(rgb)


def measure_pictures(rgb_FHW3: np.ndarray) -> VideoSignals:
    """Measure pictures uint8 [F, H, W, 3], ten a second, about 160 px wide."""
    change_FRC = cell_changes(rgb_FHW3)
    share = (change_FRC > _CHANGED).mean((1, 2))
    energy = np.where(change_FRC > _CHANGED, change_FRC, 0).mean((1, 2))
    window = max(1, min(len(share), round(_WINDOW_S * RATE_FPS)))
    steady = np.median(np.lib.stride_tricks.sliding_window_view(share, window), 1)
    power = np.median(np.lib.stride_tricks.sliding_window_view(energy, window), 1)
    luma = rgb_FHW3.astype(np.float32).mean(3)
    steps = np.abs(np.diff(luma, axis=0))
    rows, columns = change_FRC.shape[1:]
    cells = steps[:, : rows * 10, : columns * 10].reshape(len(steps), rows, 10, columns, 10).mean((2, 4))
    moved = (cells > _CHANGED).mean((1, 2))
    return VideoSignals(
        change_peak=float(steady.max()),
        change_end=float(np.median(share[-window:])),
        kept=float(np.median(energy[-window:]) / max(float(power.max()), 1e-6)),
        shifted=float(shifted_share(rgb_FHW3)),
        largest_step=float(moved.max()) if len(moved) else 0.0,
        flicker=_flicker(luma),
        still=float((steps.max((1, 2)) < 2).mean()) if len(steps) else 1.0,
        onset_s=float(np.argmax(share > share.max() / 4) / RATE_FPS),
    )


def _flicker(luma_FHW: np.ndarray) -> float:
    """Return how much pixels change and change back at once, mean of luma levels: what motion in one direction does not do."""
    if len(luma_FHW) < 3:
        return 0.0
    first, second = np.diff(luma_FHW[:-1], axis=0), np.diff(luma_FHW[1:], axis=0)
    back = np.where(first * second < 0, np.minimum(np.abs(first), np.abs(second)), 0)
    return float(back.mean())


def contradictions(scores: Mapping[str, float], signals: VideoSignals, subset: Subset) -> Iterator[str]:
    """Yield where a judge's scores and the measurements cannot both be right. Each names the measured value.

    Where the camera moves, the picture changes for other reasons, and only stillness and jumps are compared.
    """
    if not scores["trigger"]:
        return
    still_camera = signals.shifted <= MAX_SHIFTED
    if signals.change_peak < _NOTHING and signals.largest_step < _NOTHING:
        yield f"triggered, but nothing changes: share of the picture {signals.change_peak:.3f}"
        return
    if scores["fluency"] >= 5 and signals.largest_step > _JUMP_SHARE and still_camera and subset.end == "lasting":
        yield f"fluency {scores['fluency']:g}, but the picture jumps: {signals.largest_step:.2f} of it in a tenth of a second"
    if scores["fluency"] >= 5 and signals.flicker > _FLICKER and subset.scope == "local":
        yield f"fluency {scores['fluency']:g}, but it flickers: {signals.flicker:.1f} luma levels there and back"
    if not still_camera:
        return
    if scores["end_state"] >= 5 and subset.end == "lasting" and signals.kept < _KEPT:
        yield f"end state {scores['end_state']:g}, but the change is gone: share kept {signals.kept:.2f}"
    if scores["scope"] >= 5 and subset.scope == "global" and signals.change_peak < _GLOBAL and subset.end == "lasting":
        yield f"scope {scores['scope']:g}, but only {signals.change_peak:.2f} of the picture changes"
    if scores["scope"] >= 5 and subset.scope == "local" and signals.change_end > _LOCAL:
        yield f"scope {scores['scope']:g}, but {signals.change_end:.2f} of the picture changes"
