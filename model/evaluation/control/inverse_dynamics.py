"""Inverse dynamics: read the controls back from a video, by a small model that is fitted on an engine's footage.

Ridge regression from the mean flow in the cells of a grid to the camera's motion in a step. It is small on purpose: its errors
on held-out real frames are its ceiling, and are reported next to every result.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from model.evaluation.general.metric import Metric

METRIC = Metric(
    "Recovered controls",
    "share of steps",
    "up",
    "Share of steps whose recovered rate (turn, look, ahead, side) has the sign of the control, where the control is not zero.",
    "GameWorld Score recovers keys and mouse with a model trained on Minecraft; ours is fitted on any engine's footage.",
)
ROWS, COLUMNS = 6, 8
RATES = ("turn", "look", "ahead", "side")
_RIDGE = 1.0
# A control counts as not zero beyond this share of its typical size in the fitted footage.
_MIN_SHARE = 0.25


class InverseDynamics(NamedTuple):
    """Weights [1 + 2 ROWS COLUMNS, 4], and the typical size (root mean square) of each rate in the footage it is fitted on."""

    weights: np.ndarray
    typical: np.ndarray


def step_rates(pose_F44: np.ndarray) -> np.ndarray:
    """Return the motion of each step, [F - 1, 4]: degrees to the right, degrees up, distance ahead, distance to the right."""
    steps = np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]
    turn = np.degrees(np.arctan2(steps[:, 0, 2], steps[:, 2, 2]))
    look = np.degrees(np.arcsin(np.clip(-steps[:, 1, 2], -1, 1)))
    return np.stack([turn, look, steps[:, 2, 3], steps[:, 0, 3]], 1)


def flow_features(flows: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean flow in the cells of a grid, as percents of the width, with a constant: [N, 1 + 2 ROWS COLUMNS]."""
    rows = []
    for flow in flows:
        cells = cv2.resize(np.ascontiguousarray(flow, np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)
        rows.append(np.concatenate([[1.0], 100 * cells.reshape(-1) / flow.shape[1]]))
    return np.array(rows)


def fit(features_NC: np.ndarray, rates_N4: np.ndarray) -> InverseDynamics:
    """Fit the model. ValueError for fewer steps than a rate has weights."""
    if len(features_NC) < features_NC.shape[1]:
        raise ValueError(f"{features_NC.shape[1]} weights need at least as many steps, not {len(features_NC)}")
    typical = np.sqrt((rates_N4**2).mean(0))
    scaled = rates_N4 / np.maximum(typical, 1e-9)
    penalty = _RIDGE * np.eye(features_NC.shape[1])
    penalty[0, 0] = 0
    weights = np.linalg.solve(features_NC.T @ features_NC + penalty, features_NC.T @ scaled)
    return InverseDynamics(weights * np.maximum(typical, 1e-9), typical)


def predict(model: InverseDynamics, features_NC: np.ndarray) -> np.ndarray:
    """Return the recovered motion of each step, [N, 4], in the units of `step_rates`."""
    return features_NC @ model.weights


def recovered(model: InverseDynamics, features_NC: np.ndarray, rates_N4: np.ndarray) -> dict[str, tuple[float, int]]:
    """Return for each rate the share of steps with the right sign, and how many steps count; rates without one are left out."""
    predicted, table = predict(model, features_NC), {}
    for index, name in enumerate(RATES):
        counts = np.abs(rates_N4[:, index]) > _MIN_SHARE * max(float(model.typical[index]), 1e-9)
        if counts.any():
            right = np.sign(predicted[counts, index]) == np.sign(rates_N4[counts, index])
            table[name] = float(right.mean()), int(counts.sum())
    return table


def save(model: InverseDynamics, path: str) -> None:
    """Write the model as .npz."""
    np.savez(path, **model._asdict())


def load(path: str) -> InverseDynamics:
    """Read a model that `save` wrote."""
    with np.load(path) as arrays:
        return InverseDynamics(*(arrays[name] for name in InverseDynamics._fields))


def sign_accuracy(tables: Sequence[dict[str, tuple[float, int]]]) -> dict[str, float]:
    """Return the mean share over videos for each rate, each step at equal weight."""
    joined: dict[str, list[tuple[float, int]]] = {}
    for table in tables:
        for name, value in table.items():
            joined.setdefault(name, []).append(value)
    return {name: sum(s * n for s, n in rows) / sum(n for _, n in rows) for name, rows in joined.items()}
