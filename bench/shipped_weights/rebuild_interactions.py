"""Rebuild the detector of interactions: record play, train, train with each engine left out, and fit the confidence.

    python -m bench.shipped_weights.rebuild_interactions FOLDER [--first N]

It needs `make engines`. What FOLDER has already is kept, so that it can be stopped and go on: recordings, their measurements,
and the weights without an engine (`without-ENGINE.npz`), which `bench.engines` reports. The shipped weights are replaced.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from bench.machine import describe
from bench.shipped_weights.calibrate_interactions import calibrate
from bench.shipped_weights.train_interactions import build
from curation.actions import learned

ENGINES = ("doom", "minetest", "openarena")


def main() -> None:
    """Record, train and calibrate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, help="how many of the set's takes are recorded; default all")
    options = parser.parse_args()
    print(describe())
    count = [] if options.first is None else ["--first", str(options.first)]
    subprocess.run([sys.executable, "-m", "synth.engines.label_set", options.folder, *count], check=True)
    left_out = {engine: options.folder / f"without-{engine}.npz" for engine in ENGINES}
    for engine, file in left_out.items():
        if not file.exists():
            build([options.folder], file, engine)
    shipped = Path(learned.__file__).with_name("interactions.npz")
    build([options.folder], shipped)
    calibrate([options.folder], left_out, [shipped])


if __name__ == "__main__":
    main()
