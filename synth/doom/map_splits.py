"""Training recordings for the interaction detector: seeded, from maps that no evaluation uses.

    python -m synth.doom.map_splits FOLDER [--part K/N]

About an hour and a half of play. Recordings differ in style, size, compression, and in whether HUD and weapon are drawn.
Recordings that exist are skipped. `--part` lets several processes share the work.
"""

import argparse
import random
from pathlib import Path

from synth.doom.engine import wads
from synth.doom.record import Recording, record
from synth.doom.wad import map_names

# Maps reserved for evaluation, as are those of the shared recordings. Nothing is trained or tuned on them.
HELD_OUT = frozenset(
    (
        *("E1M1", "E1M2", "E1M3", "E1M5", "E1M6", "E2M2", "E2M6", "E3M4", "E3M7", "E4M5", "E4M8"),
        *("MAP01", "MAP02", "MAP07", "MAP12", "MAP18", "MAP23", "MAP25", "MAP29"),
    )
)
RECORDINGS = 64
_VALIDATION_EVERY = 8  # every eighth recording is for early stopping and thresholds, on separate maps
_MAPS_EACH, _SECONDS, _SPLIT_SEED = 4, 20.0, 20
_STYLES = {"explore": 9, "fight": 4, "camera": 2, "static": 1}
_SIZES = {(640, 480): 5, (640, 360): 4, (320, 240): 2, (800, 600): 1, (1280, 720): 1, (512, 384): 2}


def maps_of(held_out: bool) -> list[tuple[str, str]]:
    """Return (collection, name) of the maps reserved for evaluation, or of all other maps."""
    return [(wad, name) for wad, path in wads().items() for name in map_names(path) if (name in HELD_OUT) == held_out]


def split_maps(rng: random.Random | None = None) -> dict[str, list[tuple[str, str]]]:
    """Return the maps for `train`, `valid` and `test`, which share none."""
    maps = maps_of(held_out=False)
    (rng or random.Random(_SPLIT_SEED)).shuffle(maps)
    return {"valid": maps[: len(maps) // 6], "train": maps[len(maps) // 6 :], "test": maps_of(held_out=True)}


def recordings() -> dict[str, Recording]:
    """Return the settings of every recording by name. Names begin with `train` or `valid`, which share no map."""
    rng = random.Random(_SPLIT_SEED)
    shares = split_maps(rng)
    kinds = ["train" if number % _VALIDATION_EVERY else "valid" for number in range(RECORDINGS)]
    return {f"{kind}{number:02}": _draw_recording(rng, shares[kind], 7000 + number) for number, kind in enumerate(kinds)}


def _draw_recording(rng: random.Random, maps: list[tuple[str, str]], seed: int) -> Recording:
    width, height = rng.choices(list(_SIZES), list(_SIZES.values()))[0]
    style = rng.choices(list(_STYLES), list(_STYLES.values()))[0]
    return Recording(
        [(*place, _SECONDS) for place in rng.sample(maps, _MAPS_EACH)],
        seed=seed,
        width=width,
        height=height,
        style=style,
        hud=rng.random() < 0.65,
        weapon=rng.random() < 0.9,
        monsters=rng.random() < 0.85,
        crf=rng.choice((18, 23, 26, 30, 34, 38)),
        skill=rng.choice((1, 2, 3)),
    )


def main() -> None:
    """Record the recordings that the folder lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="0/1", help="K/N: every Nth recording from the Kth on")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    for number, (name, recording) in enumerate(recordings().items()):
        target = options.folder / f"{name}.mp4"
        if number % parts == part and not target.with_suffix(".jsonl").exists():
            record(target, recording)
            print(name, recording.style, f"{recording.width}x{recording.height}", *recording.maps, flush=True)


if __name__ == "__main__":
    main()
