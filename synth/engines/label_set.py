"""Record the footage that the detector of interactions is trained and judged on: one set, in four engines.

    python -m synth.engines.label_set FOLDER [--first N] [--part K/N] [--split test] [--engine minetest]

Takes are balanced by what happens, and a third has nothing happening. Each has a world or maps of its own, drawn from its seed:
those named `test` and `valid` share no world and no map with the others. Nothing is trained on Neverball. Engines take turns,
so that the first takes are balanced as well. Takes that exist are skipped: several processes can share the work.
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

TEST_MAPS, VALID_MAPS = MAPS[::5], MAPS[2::10]
"""Maps of OpenArena on which nothing is trained; on the first, nothing is tuned either."""

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
_NEVERBALL = (("roll", True, False, True),)
_PAINTED = (
    ("mixed", True, True, False),
    ("mixed", False, True, False),
    ("mixed", True, False, False),
    ("walk", True, True, False),
    ("mixed", False, True, False),
    ("mixed", True, True, True),
    ("walk", False, False, False),
)
_SPLITS = ("train", "train", "test", "train", "train", "valid", "train", "train")  # in turn
TAKES = {"minetest": 48, "openarena": 36, "doom": 40, "painted": 240, "neverball": 3}
"""How many takes the set has in each engine."""
SECONDS, PAINTED_SECONDS = 45.0, 12.0
"""How long a take is. Painted ones are short, since each is another game."""
_KINDS = {"minetest": _MINETEST, "openarena": _OPENARENA, "doom": _DOOM, "painted": _PAINTED, "neverball": _NEVERBALL}
_SIZES = ((320, 240), (320, 240), (384, 216), (320, 180))
_SEEDS = {"doom": 40000, "minetest": 41000, "openarena": 42000, "neverball": 43000, "painted": 44000}
_TRIES = 3


def all_takes() -> Iterator[tuple[str, str, Take | doom.Recording]]:
    """Yield the engine, the name and the settings of every take. Engines take turns by their share; Neverball comes last."""
    counts = {engine: 0 for engine in TAKES if engine != "neverball"}
    by_engine = {engine: takes(engine) for engine in TAKES}
    while any(counts[engine] < TAKES[engine] for engine in counts):
        engine = min(counts, key=lambda name: (counts[name] + 1) / TAKES[name])
        counts[engine] += 1
        yield (engine, *next(by_engine[engine]))
    for take in by_engine["neverball"]:
        yield ("neverball", *take)


def takes(engine: str) -> Iterator[tuple[str, Take | doom.Recording]]:
    """Yield the name and the settings of every take of an engine."""
    kinds = _KINDS[engine]
    counts = dict.fromkeys(("train", "valid", "test"), 0)
    for number in range(TAKES[engine]):
        split = "test" if engine == "neverball" else _SPLITS[number % len(_SPLITS)]
        counts[split] += 1
        kind = kinds[(counts[split] - 1) % len(kinds)]
        rng = random.Random(_SEEDS[engine] + number)
        name, seed = f"{engine}-{split}{number:02}-{kind[0]}", _SEEDS[engine] + number
        if engine == "doom":
            yield name, _doom_take(kind, split, seed, rng)
        else:
            place = rng.choice(_openarena_maps(split)) if engine == "openarena" else None
            yield name, _take(kind, place, seed, rng, PAINTED_SECONDS if engine == "painted" else SECONDS)


def _openarena_maps(split: str) -> list[str]:
    shares = {"test": [*TEST_MAPS], "valid": [*VALID_MAPS]}
    return shares.get(split) or [name for name in MAPS if name not in TEST_MAPS and name not in VALID_MAPS]


def _take(kind: tuple[str, bool, bool, bool], place: str | None, seed: int, rng: random.Random, seconds: float) -> Take:
    scenario, hud, hand, third_person = kind
    size, crf = rng.choice(_SIZES), rng.choice((20, 23, 26, 30))
    return Take(scenario, seed, seconds, size, hud, hand, place, third_person, crf=crf)


def _doom_take(kind: tuple[str, bool, bool, bool], split: str, seed: int, rng: random.Random) -> doom.Recording:
    style, hud, weapon, monsters = kind
    maps = rng.sample(map_splits.split_maps()[split], 2)
    return doom.Recording(
        [(*place, SECONDS / 2) for place in maps],
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
    parser.add_argument("--engine", choices=tuple(TAKES), help="record this one only")
    parser.add_argument("--split", default="", help="record train, valid or test only")
    parser.add_argument("--first", type=int, default=None, help="how many of the set's takes count; default all")
    parser.add_argument("--part", default="0/1", help="K/N: every Nth of these takes from the Kth on")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    for engine, name, take in [*itertools.islice(all_takes(), options.first)][part::parts]:
        if options.engine not in (None, engine) or f"-{options.split}" not in name:
            continue
        target = options.folder / f"{name}.mp4"
        if target.with_suffix(".jsonl").exists():
            continue
        began_s = time.monotonic()
        if isinstance(take, doom.Recording):
            doom.record(target, take)
        elif not _recorded(engine, target, take):
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
