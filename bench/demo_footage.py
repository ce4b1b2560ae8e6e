"""Record gameplay for the demo world: every way of moving over many maps, and the same on maps that training never sees.

python -m bench.demo_footage FOLDER records FOLDER/train and FOLDER/held-out, and curates them into FOLDER/train-shards and
FOLDER/held-out-shards. Recordings that exist are kept. Fifty minutes of play on 63 maps take about 25 CPU-minutes.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.machine import describe
from pipelines import recipes, run
from synth.doom.cameras import write_camera_log
from synth.doom.map_splits import maps_of
from synth.doom.record import Recording, record

# A recording has several maps, so that its top moving speed, the unit of its poses, does not depend on any one of them.
_MAPS_A_RECORDING = 4
_RECORDINGS = {"train": 11, "held-out": 7}
_SECONDS = {"train": 48.0, "held-out": 60.0}
_SEED = {"train": 8100, "held-out": 8200}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the recordings that are missing, and curate all."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo_footage", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    print(describe())
    for kind in _SECONDS:
        for number, take in enumerate(takes(kind)):
            video = options.folder / kind / f"{number:02}.mp4"
            if not video.exists():
                write_camera_log(video, record(video, take))
                print(f"recorded {video}", flush=True)
        summary = run.curate([str(options.folder / kind)], str(options.folder / f"{kind}-shards"), recipes.demo())
        print(f"{kind}: {summary.kept} of {summary.clips} clips, {summary.kept_s / 60:.1f} min", flush=True)


def takes(kind: str) -> Iterator[Recording]:
    """Yield recordings on the maps of a kind in seeded order, which starts over where there are too few maps."""
    maps = maps_of(held_out=kind == "held-out")
    random.Random(_SEED[kind]).shuffle(maps)
    maps += maps
    for number in range(_RECORDINGS[kind]):
        yield Recording(
            [(*place, _SECONDS[kind]) for place in maps[number * _MAPS_A_RECORDING : (number + 1) * _MAPS_A_RECORDING]],
            seed=_SEED[kind] + number,
            width=160,
            height=120,
            style="drill",
            hud=False,
            weapon=False,
            monsters=False,
            crf=14,
        )


if __name__ == "__main__":
    main()
