"""The command `python -m synth.doom OUT.mp4 --map freedoom2:MAP01:20`: record gameplay and the engine's ground truth."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from curation.errors import GamecraftError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Record what the arguments describe. Return the exit status: 2, with one line on stderr, for bad arguments."""
    options = vars(_parser().parse_args(argv))
    out, (options["width"], options["height"]) = options.pop("out"), options.pop("size")
    try:
        from synth.doom.cameras import write_camera_log
        from synth.doom.record import Recording, record  # imported here, so that --help needs neither engine nor codec

        camera_log = options.pop("camera_log")
        truth = record(out, Recording(**options | {"maps": tuple(options["maps"])}))
        if camera_log:
            write_camera_log(out, truth)
    except GamecraftError as error:
        print(f"synth.doom: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {len(truth)} frames, {len(truth.cuts)} cuts, {len(truth.events)} events")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="synth.doom", description="Record gameplay and the game engine's ground truth.")
    parser.add_argument("out", metavar="OUT.mp4", help="the video; the ground truth is written to OUT.jsonl")
    parser.add_argument(
        "--map",
        dest="maps",
        action="append",
        required=True,
        type=_map,
        metavar="WAD:MAP:SECONDS",
        help="the map to play and for how long, e.g. freedoom2:MAP01:20; repeat the option for a cut to another map",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices; default 0")
    parser.add_argument(
        "--style",
        default="explore",
        help="explore (default), fight, static (never walks), camera (no fights) or drill (moves in every way)",
    )
    parser.add_argument("--size", type=_size, default=(640, 480), metavar="WxH", help="default 640x480")
    parser.add_argument("--crf", type=int, default=26, help="x264 quality, 0 lossless to 51; default 26")
    parser.add_argument("--skill", type=int, default=2, help="difficulty 1 to 5; default 2")
    parser.add_argument("--depth-every", type=int, default=0, metavar="N", help="store the depth of every Nth frame")
    parser.add_argument(
        "--camera-log", action="store_true", help="write the engine's camera poses to OUT.camera.npz, for curation"
    )
    parser.add_argument("--no-hud", dest="hud", action="store_false", help="hide the status bar")
    parser.add_argument("--no-weapon", dest="weapon", action="store_false", help="hide the weapon that the player holds")
    parser.add_argument("--no-monsters", dest="monsters", action="store_false", help="play without monsters")
    return parser


def _map(text: str) -> tuple[str, str, float]:
    try:
        collection, name, seconds = text.split(":")
        return collection, name, float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WAD:MAP:SECONDS, as in freedoom2:MAP01:20") from None


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = text.split("x")
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 640x480") from None


if __name__ == "__main__":
    sys.exit(main())
