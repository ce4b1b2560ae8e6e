"""Fit how sure the detector of interactions is of a clip (`curation.actions.confidence`), on engines that it has not seen.

    python -m bench.shipped_weights.calibrate_interactions FOLDER... --left-out doom=a.npz --left-out minetest=b.npz
        --left-out openarena=c.npz --into curation/actions/interactions.npz

Each left-out detector judges the clips of its engine, which it was not trained on. A logistic rule then learns from all these
verdicts when they are right. Recordings named `test` are not read. A left-out detector itself gets the rule that was fitted on
the other engines only, so that what is reported of its engine is tuned on nothing of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.interactions import ClipVerdict, clip_verdicts, load, load_detector, predict
from bench.labelled_ticks import recordings_in
from bench.machine import describe
from bench.measures import auc
from curation.actions.confidence import FEATURES
from curation.captions.interaction import InteractiveSettings

_DECAY, _STEPS, _RATE = 0.3, 4000, 0.05  # of the fit: weights stay small, since clips are few


def fit(
    features_NF: NDArray[np.float64], right_N: NDArray[np.bool_], weight_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Fit a logistic rule whose weights are at most 0: no doubt makes a verdict surer."""
    weight, bias = np.zeros(features_NF.shape[1]), 0.0
    for _ in range(_STEPS):
        error = (1 / (1 + np.exp(-(features_NF @ weight + bias))) - right_N) * weight_N
        weight = np.minimum(weight - _RATE * (features_NF.T @ error + _DECAY * weight / len(right_N)), 0.0)
        bias -= _RATE * error.sum()
    return weight, float(bias)


def fit_verdicts(verdicts: Sequence[ClipVerdict]) -> tuple[NDArray[np.float64], float]:
    """Fit the rule on verdicts. Each engine counts alike, and so do clips with and without an event in it."""
    features = np.array([v.features for v in verdicts])
    groups = [(v.engine, v.true) for v in verdicts]
    counts = {group: groups.count(group) for group in groups}
    weight = np.array([1 / counts[group] for group in groups])
    return fit(features, is_right(verdicts), weight / weight.sum())


def is_right(verdicts: Sequence[ClipVerdict]) -> NDArray[np.bool_]:
    return np.array([(v.score >= InteractiveSettings().min_score) == v.true for v in verdicts])


def calibrate(folders: Sequence[Path], left_out: dict[str, Path], into: Sequence[Path]) -> None:
    """Fit the rule, print how it orders each engine's verdicts when fitted without it, and store it.

    left_out: for each engine the weights that never saw it. into: weights that get the rule.
    """
    judges = {engine: load_detector(file) for engine, file in left_out.items()}
    recordings = [load(path) for path in recordings_in(folders, ("train", "valid"))]
    verdicts = [
        verdict
        for one in recordings
        if one.labels.engine in judges
        for judge in [judges[one.labels.engine]]
        for verdict in clip_verdicts(judge, one, predict(judge, one))
    ]
    for engine, file in left_out.items():
        others, own = ([v for v in verdicts if (v.engine == engine) == same] for same in (False, True))
        rule = fit_verdicts(others)
        confidence = 1 / (1 + np.exp(-(np.array([v.features for v in own]) @ rule[0] + rule[1])))
        right = is_right(own)
        order, said, share = auc(confidence, right), confidence.mean(), right.mean()
        print(f"{engine}, rule of the others: AUC {order:.3f}, says {said:.2f}, right {share:.2f} of {len(right)} clips")
        store(file, *rule)
    weight, bias = fit_verdicts(verdicts)
    print(", ".join(f"{name} {value:.2f}" for name, value in zip(FEATURES, weight, strict=True)), f"bias {bias:.2f}")
    for path in into:
        store(path, weight, bias)


def store(path: Path, weight: NDArray[np.float64], bias: float) -> None:
    """Put a rule into a file of weights."""
    with np.load(path) as data:
        weights = dict(data)
    weights |= {"confidence.weight": weight.astype(np.float32), "confidence.bias": np.float32(bias)}
    np.savez_compressed(path, allow_pickle=False, **weights)


def main() -> None:
    """Read the command line, and fit and store the rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--left-out", action="append", required=True, metavar="ENGINE=FILE")
    parser.add_argument("--into", type=Path, action="append", required=True, help="weights that get the rule")
    options = parser.parse_args()
    print(describe())
    left_out = {name: Path(file) for name, _, file in (word.partition("=") for word in options.left_out)}
    calibrate(options.folders, left_out, options.into)


if __name__ == "__main__":
    main()
