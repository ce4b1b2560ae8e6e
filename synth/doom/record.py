"""Record gameplay: a seeded player walks through real game maps, and each frame is stored with the engine's ground truth.

`record` writes OUT.mp4 (35 frames per second, one per tic of the game) and OUT.jsonl: a header line, one line per frame, a
footer. Frame i of the video is the picture before the action on line i. A change of map or a new life of the player is a true
cut. Equal arguments give equal bytes. `synth.doom.truth` reads the truth file.
"""

import contextlib
import json
import math
import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.errors import InputError
from synth.doom.engine import BUTTONS, VERSION, Screen, resolutions, start_game, wads
from synth.doom.events import EventDetector, EventEntry, MovingSector, Observation
from synth.doom.player import STYLES, Action, ScriptedPlayer
from synth.doom.sight import HALF_HEIGHT, HALF_HEIGHT_ABOVE_HUD
from synth.doom.truth import Truth, read_truth
from synth.doom.wad import map_names, read_level
from synth.recording_files import encoder, staged

FPS = 35  # the tic rate of the game
GOP = 70  # frames; a key frame every two seconds
CUT_EVENTS = frozenset({"level_change", "respawn_cut"})
UNITS = (
    "Doom map units (player height 56, eye 41, ~32 units = 1 m); angle deg counter-clockwise from +X; z up; "
    "CAMERA_FOV = horizontal FOV of a 4:3 view (deg)"
)
PIXEL_ASPECT = "Doom software renderer at 4:3; hfov 90 -> fx = width/2; vertical: use --no-hud so the view fills the frame"
MAX_SEED = 10**6  # the engine takes 32 bits, and each map of a recording has its own of a thousand seeds


@dataclass(frozen=True)
class Recording:
    """What to record, how it is played, and how it is drawn."""

    maps: Sequence[tuple[str, str, float]]  # (collection, map, seconds), played one after the other
    seed: int = 0  # of all random choices
    width: int = 640  # px
    height: int = 480  # px
    style: str = "explore"  # one of `synth.doom.player.STYLES`
    hud: bool = True  # draw the status bar
    weapon: bool = True  # draw the weapon in the player's hands
    monsters: bool = True  # play with monsters
    crf: int = 26  # x264 quality, 0 lossless to 51
    depth_every: int = 0  # store the depth buffer of every n-th frame in OUT_depth.npz; 0: none
    skill: int = 2  # difficulty of the game, 1 to 5


@dataclass(frozen=True)
class RecordedFrame:
    """One tic of a recording."""

    line: dict[str, Any]  # of the truth file
    picture: NDArray[np.uint8]  # [H, W, 3] RGB
    depth: NDArray[np.uint8] | None  # [H, W], if requested for this frame
    note: str | None  # why the map restarted before this frame, if it did


def record(out_mp4: str | Path, recording: Recording) -> Truth:
    """Play and record. The files get their final names only when complete. Raises InputError for bad arguments."""
    out = Path(out_mp4)
    if out.suffix != ".mp4":
        raise InputError(f"the recording must be named *.mp4, not {out.name!r}")
    check_recording(recording)
    out.parent.mkdir(parents=True, exist_ok=True)
    depth = out.with_name(f"{out.stem}_depth.npz") if recording.depth_every > 0 else None
    truth = out.with_suffix(".jsonl")
    with staged([path for path in (out, depth, truth) if path is not None]) as parts:
        _write(recording, RecordingFiles(parts[out], parts[depth] if depth else None, parts[truth]))
    return read_truth(truth)


def check_recording(recording: Recording) -> None:
    """Raise InputError for anything that cannot be recorded; the message lists the valid values."""
    if not recording.maps:
        raise InputError("nothing to record: give at least one map")
    for collection, name, seconds in recording.maps:
        _check_map(collection, name, seconds)
    if recording.style not in STYLES:
        raise InputError(f"unknown style {recording.style!r}; known styles: {', '.join(STYLES)}")
    if (recording.width, recording.height) not in resolutions():
        known = ", ".join(f"{width}x{height}" for width, height in resolutions())
        raise InputError(f"unsupported resolution {recording.width}x{recording.height}; supported: {known}")
    ranges = {"seed": (0, MAX_SEED), "crf": (0, 51), "skill": (1, 5), "depth_every": (0, math.inf)}
    for field, (low, high) in ranges.items():
        value = getattr(recording, field)
        if not low <= value <= high:
            raise InputError(f"{field} must be between {low} and {high}, not {value}")


def _check_map(collection: str, name: str, seconds: float) -> None:
    if collection not in wads():
        raise InputError(f"unknown map collection {collection!r}; known: {', '.join(wads())}")
    known = map_names(wads()[collection])
    if name not in known:
        raise InputError(f"unknown map {name!r} in {collection}; known: {', '.join(known)}")
    if not (math.isfinite(seconds) and round(seconds * FPS) >= 1):
        raise InputError(f"map {name} must be played for at least one frame (1/{FPS} s), not {seconds} s")


def _write(recording: Recording, files: "RecordingFiles") -> None:
    depths: dict[str, Any] = {}
    cuts, counts = list[int](), Counter[str]()
    with (
        open(files.truth, "w", encoding="utf-8") as log,
        encoder(files.video, (recording.width, recording.height), Fraction(FPS), recording.crf, GOP) as encode,
        contextlib.closing(_play(recording)) as frames,  # stops the engine if the codec fails
    ):
        _log(log, _header(recording))
        for number, frame in enumerate(frames):
            if frame.note:
                _log(log, {"note": frame.note, "before_frame": number})
            _log(log, frame.line)
            encode(frame.picture)
            if frame.depth is not None:
                depths[str(number)] = frame.depth
            names = [event if isinstance(event, str) else event["e"] for event in frame.line["events"]]
            counts.update(names)
            cuts += [number] if CUT_EVENTS.intersection(names) else []
        _log(log, {"footer": True, "frames": number + 1, "true_cuts": cuts, "event_counts": dict(counts)})
    if files.depth is not None:
        np.savez_compressed(files.depth, **depths)


def _play(recording: Recording) -> Generator[RecordedFrame, None, None]:
    """Play all maps one after the other; frame numbers run over all of them."""
    first = 0
    for index, (collection, name, seconds) in enumerate(recording.maps):
        tics = round(seconds * FPS)
        yield from _play_map(recording, index, wads()[collection], name, range(first, first + tics))
        first += tics


def _play_map(recording: Recording, index: int, wad: Path, name: str, frames: range) -> Iterator[RecordedFrame]:
    level = read_level(wad, name)
    rng = random.Random(f"{recording.seed}/{index}/{wad.stem}/{name}")
    half_height = HALF_HEIGHT_ABOVE_HUD if recording.hud else HALF_HEIGHT
    player, detector = ScriptedPlayer(rng, level, recording.style), EventDetector(level, half_height)
    screen = Screen(recording.width, recording.height, recording.hud, recording.weapon, recording.depth_every > 0)
    seed = 1000 * recording.seed + index
    with start_game(wad, name, seed, recording.skill, recording.monsters, screen) as game:
        for number in frames:
            ended = game.restart_if_over()
            if ended:
                player, detector = ScriptedPlayer(rng, level, recording.style), EventDetector(level, half_height)
            cut = ["respawn_cut"] if ended else ["level_change"] if number == frames.start and index else []
            observation = game.observe()
            events = [*cut, *detector.update(observation)]
            action = player.act(observation.view())
            line = _frame_line(
                number, game.tic, f"{wad.stem}:{name}", player.behaviour, action, observation, events, detector.moving()
            )
            wants_depth = recording.depth_every and number % recording.depth_every == 0
            note = f"the map starts again: the player {ended}" if ended else None
            yield RecordedFrame(line, game.picture, game.depth.copy() if wants_depth else None, note)
            game.step(action)


def _frame_line(
    number: int,
    tic: int,
    place: str,
    behaviour: str,
    action: Action,
    observation: Observation,
    events: list[EventEntry],
    moving: list[MovingSector],
) -> dict[str, Any]:
    return {
        "frame": number,
        "t": round(number / FPS, 4),
        "tic": tic,
        "map": place,
        "mode": behaviour,
        "keys": [key for key in BUTTONS if key in action.keys],
        "mouse_dx": action.turn_deg,
        "state": observation.state,
        "enemies": [
            {"name": m.name, "id": m.id, "x": m.x, "y": m.y, "w": m.width, "h": m.height} for m in observation.monsters
        ],
        "n_objects": observation.objects,
        "events": events,
        "moving": moving,
    }


def _header(recording: Recording) -> dict[str, Any]:
    return {
        "header": True,
        "fps": FPS,
        "width": recording.width,
        "height": recording.height,
        "game": f"ViZDoom {VERSION} + Freedoom",
        "seed": recording.seed,
        "maps": [_map_argument(spec) for spec in recording.maps],
        "style": recording.style,
        "units": UNITS,
        "pixel_aspect_note": PIXEL_ASPECT,
        "mouse": "MOUSE_DX = degrees turned in that tic, right positive",
        "argv": arguments(recording),
    }


def arguments(recording: Recording) -> list[str]:
    """Return the options of `python -m synth.doom` that make this recording."""
    maps = [word for spec in recording.maps for word in ("--map", _map_argument(spec))]
    size = f"{recording.width}x{recording.height}"
    numbers = {"seed": recording.seed, "style": recording.style, "size": size, "crf": recording.crf}
    numbers |= {"skill": recording.skill, "depth-every": recording.depth_every}
    switches = [f"--no-{name}" for name in ("hud", "weapon", "monsters") if not getattr(recording, name)]
    return [*maps, *(word for name, value in numbers.items() for word in (f"--{name}", str(value))), *switches]


def _map_argument(spec: tuple[str, str, float]) -> str:
    return f"{spec[0]}:{spec[1]}:{spec[2]:g}"


def _log(file: IO[str], line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")


class RecordingFiles(NamedTuple):
    """The files of a recording."""

    video: Path
    depth: Path | None  # None unless depth was requested
    truth: Path
