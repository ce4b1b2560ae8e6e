"""Join weights of the detector of interactions: all networks of both answer together, and either file has half of the vote.

    python -m bench.shipped_weights.join_interactions OLD.npz NEW.npz --into curation/actions/interactions.npz

The distribution of the training set and the confidence's rule are those of the second file.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.machine import describe

_SHARED = ("known.", "confidence.", "votes")


def networks(weights: dict[str, NDArray[np.float64]]) -> list[dict[str, NDArray[np.float64]]]:
    """Return the networks of a file, each with its own convolutions."""
    common = {name: value for name, value in weights.items() if "/" not in name and not name.startswith(_SHARED)}
    count = len({name.partition("/")[0] for name in weights if "/" in name})
    return [
        {**common, **{name.partition("/")[2]: value for name, value in weights.items() if name.startswith(f"{k}/")}}
        for k in range(count)
    ] or [common]


def join(old: dict[str, NDArray[np.float64]], new: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Return the weights of both. Convolutions that the new networks have in common stay so."""
    added, count = networks(old), len(networks(new))
    weights = {name: value for name, value in new.items() if name != "votes"}
    for k, network in enumerate(added, start=count):
        weights |= {f"{k}/{name}": value for name, value in network.items()}
    weights["votes"] = np.array([0.5 / count] * count + [0.5 / len(added)] * len(added), np.float32)
    return weights


def main() -> None:
    """Write the joined weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    print(describe())
    with np.load(options.old) as old, np.load(options.new) as new:
        weights = join(dict(old), dict(new))
    np.savez_compressed(options.into, allow_pickle=False, **weights)


if __name__ == "__main__":
    main()
