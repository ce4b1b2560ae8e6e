"""Record gameplay with labels in any engine: `record(engine, out, take)` writes a video and its truth file.

    from synth.engines.recorder import record
    from synth.engines.takes import Take
    record("minetest", "play.mp4", Take("build", seed=3, seconds=60))
    record("openarena", "fight.mp4", Take("fight", seed=3, seconds=60, hud=False))

How it looks (field of view, time of day, place, what is in the hand) is drawn from the seed, so that footage varies. Every
engine runs in lockstep: a busy machine changes nothing. Doom has its own recorder, `synth.doom.record`. All truth files read
alike.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from curation.errors import InputError
from synth.engines import minetest_scenes, openarena
from synth.engines.takes import Engine, Take
from synth.engines.truth_file import write_truth

MAX_SEED = 2**31 - 1


def engines() -> dict[str, Engine]:
    """Return the engines by name."""
    return {"minetest": minetest_scenes.ENGINE, "openarena": openarena.ENGINE}


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
    parts = {path: path.with_name(f".part-{os.getpid()}-{path.name}") for path in (out, jsonl)}
    try:
        with encoder(parts[out], take.size, Fraction(game.fps), take.crf) as encode:
            played = game.play(take, encode)
        header = {"engine": engine, "scenario": take.scenario, "seed": take.seed, "hud": take.hud, "hand": take.hand,
                  "third_person": take.third_person, **played.header}  # fmt: skip
        drawn = take.hand or take.third_person
        write_truth(parts[jsonl], header, played.optics, game.fps, played.frames, played.events, played.jumps, drawn)
        jsonl.unlink(missing_ok=True)  # a newer video must not be paired with an older truth file
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


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


@contextlib.contextmanager
def encoder(path: Path, size: tuple[int, int], fps: Fraction, crf: int) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield a function that appends an RGB picture to a video. One thread: it leaves the other cores to the game."""
    options = {"crf": str(crf), "preset": "veryfast", "x264-params": "cpu-independent=1"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = round(2 * fps)
        stream.codec_context.thread_count = 1
        numbers = itertools.count()

        def encode(picture: NDArray[np.uint8]) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = next(numbers), 1 / fps
            container.mux(stream.encode(frame))

        yield encode
        container.mux(stream.encode(None))
