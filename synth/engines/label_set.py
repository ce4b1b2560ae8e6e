"""Record the footage that the detector of interactions is trained and judged on, in each engine.

    python -m synth.engines.label_set FOLDER --engine minetest [--part K/N]

Takes are balanced by what happens, and a third has nothing happening. Each has a world or map of its own, drawn from its seed:
those named `test` share no world and no map with the others. Takes that exist are skipped, so several processes can share the
work.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from curation.errors import AttemptFailed
from synth.doom import map_splits
from synth.doom import record as doom
from synth.engines.openarena import MAPS
from synth.engines.recorder import record
from synth.engines.takes import Take

TEST_MAPS = MAPS[::5]
"""Maps of OpenArena on which nothing is trained or tuned."""

# Scenario, HUD, hand, third person. Every third has nothing happening, or hardly anything.
_MINETEST = (
    ("build", True, True, False),
    ("events", False, False, False),
    ("walk", True, True, False),
    ("house", True, True, False),
    ("build", False, False, False),
    ("spin", False, True, False),
    ("events", True, True, False),
    ("house", False, False, False),
    ("walk", False, False, False),
    ("mixed", True, True, False),
    ("build", True, True, True),
    ("jump", True, True, False),
    ("inventory", True, True, False),
    ("events", False, True, True),
    ("walk", False, True, True),
    ("mixed", False, True, False),
)
_OPENARENA = (
    ("fight", True, True, False),
    ("walk", True, True, False),
    ("range", False, True, False),
    ("fight", False, True, True),
    ("range", True, True, False),
    ("walk", False, False, False),
    ("fight", False, True, False),
    ("range", True, True, True),
)
# Style, HUD, weapon, monsters.
_DOOM = (
    ("fight", True, True, True),
    ("camera", True, True, False),
    ("explore", True, True, True),
    ("explore", False, True, False),
    ("fight", False, True, True),
    ("explore", True, True, True),
    ("static", True, True, True),
    ("explore", False, False, False),
)
_SPLITS = ("train", "train", "test", "train", "train", "valid")  # in turn: recordings that stop early are balanced
_TAKES = 60
_SIZES = ((320, 240), (320, 240), (384, 216), (320, 180))
_SEEDS = {"doom": 40000, "minetest": 41000, "openarena": 42000}
_TRIES = 3


def takes(engine: str, seconds: float) -> Iterator[tuple[str, Take | doom.Recording]]:
    """Yield the name and the settings of every take."""
    kinds = {"minetest": _MINETEST, "openarena": _OPENARENA, "doom": _DOOM}[engine]
    counts = dict.fromkeys(("train", "valid", "test"), 0)
    for number in range(_TAKES):
        split = _SPLITS[number % len(_SPLITS)]
        counts[split] += 1
        kind = kinds[(counts[split] - 1) % len(kinds)]
        rng = random.Random(_SEEDS[engine] + number)
        name, seed = f"{engine}-{split}{number:02}-{kind[0]}", _SEEDS[engine] + number
        if engine == "doom":
            yield name, _doom_take(kind, split, seed, seconds, rng)
        else:
            maps = TEST_MAPS if split == "test" else [other for other in MAPS if other not in TEST_MAPS]
            yield name, _take(kind, rng.choice(maps) if engine == "openarena" else None, seed, seconds, rng)


def _take(kind: tuple[str, bool, bool, bool], place: str | None, seed: int, seconds: float, rng: random.Random) -> Take:
    scenario, hud, hand, third_person = kind
    return Take(scenario, seed, seconds, rng.choice(_SIZES), hud, hand, place, third_person, crf=rng.choice((20, 23, 26, 30)))


def _doom_take(kind: tuple[str, bool, bool, bool], split: str, seed: int, seconds: float, rng: random.Random) -> doom.Recording:
    style, hud, weapon, monsters = kind
    maps = rng.sample(map_splits.maps_of(held_out=split == "test"), 2)
    return doom.Recording(
        [(*place, seconds / 2) for place in maps],
        seed,
        320,
        240,
        style,
        hud,
        weapon,
        monsters,
        crf=rng.choice((20, 23, 26, 30)),
    )


def main() -> None:
    """Record the takes that the folder lacks. One that fails is tried again with another seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=tuple(_SEEDS), required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each take; default 60")
    parser.add_argument("--takes", type=int, default=_TAKES, help=f"how many; default {_TAKES}")
    parser.add_argument("--part", default="0/1", help="K/N: every Nth take from the Kth on")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    for name, take in itertools.islice(takes(options.engine, options.seconds), part, options.takes, parts):
        target = options.folder / f"{name}.mp4"
        if target.with_suffix(".jsonl").exists():
            continue
        began_s = time.monotonic()
        if isinstance(take, doom.Recording):
            doom.record(target, take)
        elif not _recorded(options.engine, target, take):
            continue
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)


def _recorded(engine: str, target: Path, take: Take) -> bool:
    """Record a take. Try again with other seeds where it fails, and return whether one succeeded."""
    for again in range(_TRIES):
        try:
            record(engine, target, replace(take, seed=take.seed + 500 * again))
        except AttemptFailed as error:
            print(f"{target.stem}: {error}", flush=True)
        else:
            return True
    return False


if __name__ == "__main__":
    main()
