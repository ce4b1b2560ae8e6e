"""Fit the model that reads controls back from videos, on an engine's footage, and measure its ceiling on held-out footage.

python -m bench.inverse_dynamics TRAIN... --held-out OUT... --save FILE.npz. The arguments are outputs of `gamecraft curate`
with the engine's cameras. `gamecraft eval --suite control` takes the file as its setting `inverse_dynamics`.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from bench.machine import describe
from curation.partition.optical_flow import DisFlow, FramePair
from model.data.captions import CaptionMix
from model.data.loader import DataSettings, Windows
from model.evaluation.control import inverse_dynamics
from model.evaluation.control.inverse_dynamics import RATES
from model.evaluation.tables import Column, Row, Table, to_markdown


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ceiling, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", nargs="+", help="outputs of gamecraft curate to fit on")
    parser.add_argument("--held-out", nargs="+", required=True, help="outputs that it is measured on")
    parser.add_argument("--save", default="inverse-dynamics.npz")
    parser.add_argument("--windows", type=int, default=200, help="windows of two seconds from each set; default 200")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--fps", type=float, default=16.0)
    options = parser.parse_args(arguments)
    print(describe())
    size = options.width, options.height
    fitted, held_out = (steps(each, options.windows, size, options.fps) for each in (options.train, options.held_out))
    model = inverse_dynamics.fit(*fitted)
    inverse_dynamics.save(model, options.save)
    print(to_markdown(ceiling(model, {"fitted": fitted, "held out": held_out})))


def steps(outputs: Sequence[str], count: int, size: tuple[int, int], fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return flow features [N, C] and true motion [N, 4] of the steps of some windows."""
    parts = list(_windows(outputs, count, size, fps))
    return np.concatenate([features for features, _ in parts]), np.concatenate([rates for _, rates in parts])


def _windows(outputs: Sequence[str], count: int, size: tuple[int, int], fps: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    frames = 1 + 4 * round(2 * fps / 4)
    data = DataSettings(frames=frames, fps=fps, size=size, captions=CaptionMix(dropout=1.0), camera_dropout=0.0)
    windows, flow = Windows(outputs, data), DisFlow()
    for number in np.random.default_rng(0).permutation(len(windows))[:count].tolist():
        sample = windows[0, number]
        video = np.ascontiguousarray(sample["video"].permute(1, 2, 3, 0).numpy())
        flows = flow([FramePair(a, b) for a, b in pairwise(video)])
        pose = sample["pose"].double().numpy()
        yield inverse_dynamics.flow_features(flows), inverse_dynamics.step_rates(pose)


def ceiling(model: inverse_dynamics.InverseDynamics, sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> Table:
    """Return the share of steps with the right sign, by rate, on each set."""
    rows = []
    for name, (features, rates) in sets.items():
        table = inverse_dynamics.recovered(model, features, rates)
        rows.append(Row(name, [*(table[rate][0] if rate in table else None for rate in RATES), len(rates)]))
    return Table("Controls read back from real frames", [*(Column(rate, "up") for rate in RATES), Column("Steps")], rows)


if __name__ == "__main__":
    main()
