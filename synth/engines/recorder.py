"""Record gameplay with labels in any engine: `record(engine, out, take)` writes a video and its truth file.

    from synth.engines.recorder import record
    from synth.engines.takes import Take
    record("minetest", "play.mp4", Take("build", seed=3, seconds=60))
    record("openarena", "fight.mp4", Take("fight", seed=3, seconds=60, hud=False))

How it looks (field of view, time of day, place, what is in the hand) is drawn from the seed, so that footage varies. Every
engine runs in lockstep: a busy machine changes nothing. Doom has its own recorder, `synth.doom.record`. All truth files read
alike.
"""

from fractions import Fraction
from pathlib import Path

from curation.errors import InputError
from synth.engines import minetest_scenes, neverball, openarena, painted
from synth.engines.takes import Engine, Take
from synth.engines.truth_file import write_truth
from synth.recording_files import encoder, staged

MAX_SEED = 2**31 - 1


def engines() -> dict[str, Engine]:
    """Return the engines by name."""
    return {
        "minetest": minetest_scenes.ENGINE,
        "openarena": openarena.ENGINE,
        "neverball": neverball.ENGINE,
        "painted": painted.ENGINE,
    }


def record(engine: str, out_mp4: str | Path, take: Take) -> None:
    """Play and record. The files get their final names only when complete.

    Raises InputError for bad arguments, Unavailable where the game is not installed, AttemptFailed where this take failed.
    """
    out, known = Path(out_mp4), engines()
    if engine not in known:
        raise InputError(f"unknown engine {engine!r}; known: {', '.join(known)}")
    if out.suffix != ".mp4":
        raise InputError(f"the recording must be named *.mp4, not {out.name!r}")
    game = known[engine]
    _check(take, game)
    out.parent.mkdir(parents=True, exist_ok=True)
    jsonl = out.with_suffix(".jsonl")
    with staged((out, jsonl)) as parts:
        with encoder(parts[out], take.size, Fraction(game.fps), take.crf, round(2 * game.fps)) as encode:
            played = game.play(take, encode)
        header = {"engine": engine, "scenario": take.scenario, "seed": take.seed, "hud": take.hud, "hand": take.hand,
                  "third_person": take.third_person, **played.header}  # fmt: skip
        drawn = take.hand or take.third_person
        write_truth(parts[jsonl], header, played.optics, game.fps, played.frames, played.events, played.jumps, drawn)


def _check(take: Take, game: Engine) -> None:
    if take.scenario not in game.scenarios:
        raise InputError(f"unknown scenario {take.scenario!r}; known: {', '.join(game.scenarios)}")
    width, height = take.size
    if width % 2 or height % 2 or min(width, height) < 64:
        raise InputError(f"the size must be even and at least 64x64, not {width}x{height}")
    if round(take.seconds * game.fps) < 2:
        raise InputError(f"record at least two frames, not {take.seconds} s")
    for name, value, high in (("seed", take.seed, MAX_SEED), ("crf", take.crf, 51)):
        if not 0 <= value <= high:
            raise InputError(f"{name} must be between 0 and {high}, not {value}")
