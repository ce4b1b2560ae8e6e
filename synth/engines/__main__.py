"""The commands that record gameplay with ground truth.

python -m synth.engines minetest OUT.mp4 --scenario roam --seconds 60           the known place
python -m synth.engines take OUT.mp4 --engine openarena --scenario fight        scenes with labels, in any engine
"""

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from curation.errors import GamecraftError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Record what the arguments describe. Return the exit status: 2, with one line on stderr, for bad arguments."""
    options = vars(_parser().parse_args(argv))
    if options.pop("game") == "take":
        return _record_take(options)
    out, (options["width"], options["height"]) = options.pop("out"), options.pop("size")
    try:
        from synth.engines.minetest import Recording, record  # imported here, so that --help needs no codec
        from synth.engines.minetest_game import Place

        east, north = options.pop("at")
        place = Place(options.pop("world_seed"), east, north)
        truth = record(out, Recording(place, **options))
    except GamecraftError as error:
        print(f"synth.engines: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {len(truth)} frames, {len(truth.events)} events")
    return 0


def _record_take(options: dict[str, Any]) -> int:
    out, engine = options.pop("out"), options.pop("engine")
    options |= {"hud": not options.pop("no_hud"), "hand": not options.pop("no_hand")}
    try:
        from synth.engines.labels import read_labels
        from synth.engines.recorder import record
        from synth.engines.takes import Take

        record(engine, out, Take(**options))
        labels = read_labels(Path(out).with_suffix(".jsonl"))
    except GamecraftError as error:
        print(f"synth.engines: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {len(labels.event)} frames, {len(labels.spans)} events in view")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="synth.engines", description="Record gameplay and the game engine's ground truth.")
    games = parser.add_subparsers(dest="game", required=True, parser_class=_Parser)
    minetest = games.add_parser("minetest", help="one outdoor place in Minetest")
    add = minetest.add_argument
    add("out", metavar="OUT.mp4", help="the video; the truth goes to OUT.jsonl, the camera to OUT.camera.npz")
    add("--scenario", default="roam", help="roam (default), amble (slowly) or still")
    add("--seconds", type=float, default=60.0, help="default 60")
    add("--event", default=None, help="snow, night, torch, block, creature or explosion, acted after 3 to 5 seconds")
    add("--seed", type=int, default=0, help="seed of all random choices; default 0")
    add("--world-seed", type=int, default=77, help="seed of the generated world; default 77")
    add("--at", type=_pair(","), default=(540, 780), metavar="X,Z", help="the middle of the place; default 540,780")
    add("--size", type=_pair("x"), default=(256, 192), metavar="WxH", help="default 256x192")
    add("--fps", type=Fraction, default=Fraction(35, 2), help="default 17.5")
    add("--time-of-day", type=float, default=0.42, help="0 midnight, 0.5 noon; default 0.42")
    add("--crf", type=int, default=18, help="x264 quality, 0 lossless to 51; default 18")
    add("--draw-number", action="store_true", help="draw each frame's number as black and white squares")
    take = games.add_parser("take", help="scenes with labels: what happens in view, and how the player moves")
    add = take.add_argument
    add("out", metavar="OUT.mp4", help="the video; the truth goes to OUT.jsonl")
    add("--engine", default="minetest", help="minetest (default), openarena, neverball or painted")
    add("--scenario", required=True, help="what is played; a wrong name lists the engine's")
    add("--seconds", type=float, default=60.0, help="default 60")
    add("--seed", type=int, default=0, help="seed of all random choices, also of how it looks; default 0")
    add("--size", type=_pair("x"), default=(320, 240), metavar="WxH", help="default 320x240")
    add("--no-hud", action="store_true", help="draw no panels")
    add("--no-hand", action="store_true", help="draw nothing in the hand")
    add("--place", default=None, help="a world seed of Minetest, a map of OpenArena; default: drawn from the seed")
    add("--third-person", action="store_true", help="show the player from behind")
    add("--crf", type=int, default=24, help="x264 quality, 0 lossless to 51; default 24")
    add("--draw-number", action="store_true", help="draw each frame's number as black and white squares (minetest)")
    return parser


class _pair:  # noqa: N801
    """Reads two whole numbers."""

    def __init__(self, separator: str) -> None:
        self._separator = separator

    def __call__(self, text: str) -> tuple[int, int]:
        try:
            first, second = text.split(self._separator)
            return int(first), int(second)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers with {self._separator!r} between") from None


if __name__ == "__main__":
    sys.exit(main())
