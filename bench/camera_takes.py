"""Footage for the camera benchmark: one kind of motion per take, with the engine's pose of every frame, stored as in a shard.

The engine draws pixels 1.2 times as high as wide. Its view only yaws about the vertical axis, so a world whose z is multiplied
by 1.2 gives the same pictures with square pixels. That world is the truth here, in map units. The sky is not drawn by a pinhole
camera: it turns with the yaw, but its rows stay where they are.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from curation.media import encode
from curation.media.source import Source
from synth.angles import wrapped_deg
from synth.doom.cameras import PIXEL_ASPECT, poses
from synth.doom.engine import Game, Screen, start_game, wads
from synth.doom.map_splits import maps_of
from synth.doom.player import Action, ScriptedPlayer
from synth.doom.wad import Level, read_level

KINDS = ("mix", "play", "keys", "forward", "strafe", "rotation", "static")
FPS = 35  # the game's own clock
SECONDS = 6.0
WIDTH, HEIGHT = 640, 480
BAR_ROWS = 77  # of 480: the status bar; the view is re-centred in the rest
_STILL_TICS = 70  # friction lets a player glide for this long
_TRIES = 12
_KEY_TURN_DEG = 3.5  # per tic, with a turn key held
_TELEPORT = 100  # map units per tic; a player who runs makes 17. A teleport is a cut, where clips end
_WALL_DEPTH = 20  # of the depth buffer, about 165 map units
# Shortest and longest path in map units and smallest turn in degrees of each kind. A lift moves a player who stands still.
_REQUIRED = {
    "mix": (400, math.inf, 90),
    "play": (400, math.inf, 90),
    "keys": (400, math.inf, 90),
    "forward": (250, math.inf, 0),
    "strafe": (250, math.inf, 0),
    "rotation": (0, 4, 45),
    "static": (0, 4, 0),
}


class NoTake(Exception):
    """No take of a kind could be made in a place."""


class Place(NamedTuple):
    """Where takes are recorded, and whether HUD and weapon are drawn."""

    wad: str
    level: str
    hud: bool


@dataclass(frozen=True)
class Take:
    """A clip with its true camera.

    pose f8 [N, 4, 4] camera-to-world, OpenCV axes; focal_px of a square-pixel camera; time_s [N]. pressed f8 [T, 3]: forward
    minus back and right minus left as -1 to 1, and degrees of turn to the right, in each tick of the game's clock. ticks int
    [N]: the tick that each frame shows. What is pressed in a tick moves the view from that tick to the next.
    """

    name: str
    kind: str
    place: Place
    fps: float
    file: Path
    pose: np.ndarray
    time_s: np.ndarray
    focal_px: float
    pressed: np.ndarray
    ticks: np.ndarray

    @property
    def path(self) -> float:
        """Length of the path in map units."""
        return float(np.linalg.norm(np.diff(self.pose[:, :3, 3], axis=0), axis=1).sum())


def places(seed: int, count: int, tuning: bool) -> list[Place]:
    """Return maps for a seed, each with HUD and weapon off and on: held-out maps, or those that limits were tuned on."""
    maps = maps_of(held_out=not tuning)
    return [Place(*where, hud) for where in random.Random(seed).sample(maps, count) for hud in (False, True)]


def record(folder: Path, place: Place, kind: str, seed: int, rates: tuple[float, ...] = (35.0, 16.0)) -> list[Take]:
    """Return one take at each frame rate. A take that is already in the folder is not recorded again. Raises `NoTake`."""
    stem = f"{place.wad}-{place.level}-{'hud' if place.hud else 'bare'}-{kind}-{seed}"
    if not (folder / f"{stem}.npz").exists():
        recording = _record(place, kind, seed)
        for rate in rates:
            _store(folder / f"{stem}-{rate:g}.mp4", recording.pictures, _frames(len(recording.pictures), rate), rate)
        np.savez(folder / f"{stem}.npz", states=recording.states, pressed=recording.pressed)
    with np.load(folder / f"{stem}.npz") as logged:
        states, pressed = logged["states"], logged["pressed"]
    takes = []
    for rate in rates:
        which = _frames(len(states), rate)
        times, pose = np.arange(len(which)) / rate, _poses(states)[which]
        focal = WIDTH / 2 / math.tan(math.radians(states[0, 4]) / 2)
        file = folder / f"{stem}-{rate:g}.mp4"
        takes.append(Take(f"{stem}-{rate:g}", kind, place, rate, file, pose, times, focal, pressed, which))
    return takes


def _poses(states: np.ndarray) -> np.ndarray:
    """Convert engine states [N, 5] (x, y, z, yaw and field of view in degrees) to poses [N, 4, 4] in the square-pixel world."""
    return poses(states[:, :3] * [1, 1, PIXEL_ASPECT], states[:, 3])


def _frames(count: int, rate: float) -> np.ndarray:
    """Return the frame on screen at each tick of a rate."""
    ticks = np.arange(math.floor(count / FPS * rate)) / rate
    return np.floor(ticks * FPS + 1e-6).astype(int)


class _Recording(NamedTuple):
    """A take tick by tick: pictures, engine states [T, 5] as `_poses` reads them, pressed keys and turn [T, 3]."""

    pictures: list[np.ndarray]
    states: np.ndarray
    pressed: np.ndarray


def _record(place: Place, kind: str, seed: int) -> _Recording:
    """Return the first try with the required path and turn. Raises `NoTake` if there is none."""
    path = wads()[place.wad]
    level = read_level(path, place.level)
    min_path, max_path, min_turn = _REQUIRED[kind]
    for attempt in range(_TRIES):
        rng = random.Random(f"{seed}/{place.wad}/{place.level}/{kind}/{attempt}")
        with start_game(
            path, place.level, rng.randrange(10**6), 2, False, Screen(WIDTH, HEIGHT, place.hud, place.hud, True)
        ) as game:
            _wander(game, ScriptedPlayer(rng, level, "camera"), rng.randint(40, 240))
            recording = _play(game, _script(kind, game, level, rng))
        turned = np.abs(wrapped_deg(np.diff(recording.states[:, 3]))).sum()
        steps = np.linalg.norm(np.diff(recording.states[:, :3], axis=0), axis=1)
        if min_path <= steps.sum() <= max_path and turned >= min_turn and steps.max() < _TELEPORT:
            return recording
    raise NoTake(f"{place.wad}-{place.level}: no {kind} take in {_TRIES} tries")


def _wander(game: Game, player: ScriptedPlayer, tics: int) -> None:
    player.start("nav", tics)
    for _ in range(tics):
        game.restart_if_over()
        game.step(player.act(game.observe().view()))
    for _ in range(_STILL_TICS):
        game.step(Action())


def _play(game: Game, script: "Script") -> _Recording:
    pictures, states, pressed = [], [], []
    for tic in range(round(SECONDS * FPS)):
        state = game.observe().state
        names = ("CAMERA_POSITION_X", "CAMERA_POSITION_Y", "CAMERA_POSITION_Z", "CAMERA_ANGLE", "CAMERA_FOV")
        states.append([state[name] for name in names])
        pictures.append(game.picture.copy())
        action = script(tic)
        pressed.append(_pressed_axes(action))
        game.step(action)
    return _Recording(pictures, np.array(states), np.array(pressed))


def _pressed_axes(action: Action) -> tuple[float, float, float]:
    down = {key: float(key in action.keys) for key in ("W", "S", "A", "D", "TURN_LEFT", "TURN_RIGHT")}
    turn = action.turn_deg + _KEY_TURN_DEG * (down["TURN_RIGHT"] - down["TURN_LEFT"])
    return down["W"] - down["S"], down["D"] - down["A"], turn


Script = Callable[[int], Action]


def _script(kind: str, game: Game, level: Level, rng: random.Random) -> Script:
    if kind == "static":
        return lambda _: Action()
    if kind == "rotation":
        speed, period = rng.uniform(1.0, 2.5), rng.uniform(120, 300)
        return lambda tic: Action(turn_deg=speed * math.sin(2 * math.pi * tic / period))
    if kind == "play":
        player = ScriptedPlayer(rng, level, "camera")
        player.start("nav")
        return lambda _: player.act(game.observe().view())
    _face_open_space(game)
    scripts = {"forward": lambda: _forward(rng), "strafe": lambda: _strafe(game, rng), "keys": lambda: _keys(game, rng)}
    return scripts.get(kind, lambda: _mix(game, rng))()


def _face_open_space(game: Game, steps: int = 24) -> None:
    """Turn to the direction with the deepest view."""
    depths = []
    for _ in range(steps):
        depths.append(_depth(game, 0.5))
        game.step(Action(turn_deg=360 / steps))
    for _ in range(int(np.argmax(depths))):
        game.step(Action(turn_deg=360 / steps))


def _depth(game: Game, across: float) -> float:
    """Return the median of the depth buffer around the middle row and a column."""
    height, width = game.depth.shape
    column = int(across * width)
    return float(np.median(game.depth[int(0.4 * height) : int(0.55 * height), column - width // 16 : column + width // 16]))


def _is_tapped(tic: int, share: float) -> bool:
    """Whether a key is down in a tic, if it is tapped so that it is down for a share of the time: a slower walk."""
    return math.floor((tic + 1) * share) > math.floor(tic * share)


def _forward(rng: random.Random) -> Script:
    share = rng.uniform(0.25, 0.45)
    return lambda tic: Action(frozenset({"W"} if _is_tapped(tic, share) else ()))


def _strafe(game: Game, rng: random.Random) -> Script:
    """Walk sideways, and back again after two seconds or at a wall."""
    share, side, tics_since, before = rng.uniform(0.3, 0.5), rng.choice("AD"), 0, (math.inf, math.inf)

    def script(tic: int) -> Action:
        nonlocal side, tics_since, before
        state = game.observe().state
        position = state["POSITION_X"], state["POSITION_Y"]
        tics_since += 1
        if tics_since > 70 or (tics_since > 15 and math.dist(position, before) < 0.3):
            side, tics_since = ("A" if side == "D" else "D"), 0
        before = position
        return Action(frozenset({side} if _is_tapped(tic, share) else ()))

    return script


def _keys(game: Game, rng: random.Random) -> Script:
    """Hold every key in turn for half a second to one and a half, alone and together. In front of a wall, turn away."""
    tics_left, keys, turn = 0, frozenset[str](), 0.0

    def script(_: int) -> Action:
        nonlocal tics_left, keys, turn
        if tics_left == 0:
            tics_left = rng.randint(18, 52)
            keys = frozenset({rng.choice("WWS "), rng.choice("AD  ")} - {" "})
            turn = rng.choice((-1, 0, 0, 1)) * rng.uniform(1.0, 3.5)
        tics_left -= 1
        if "W" in keys and _depth(game, 0.5) < _WALL_DEPTH:
            return Action(keys - {"W"}, 3.0 if turn >= 0 else -3.0)
        return Action(keys, turn)

    return script


def _mix(game: Game, rng: random.Random) -> Script:
    """Walk with sideways steps and turns that swing, and turn away before a wall."""
    share, phase, amplitude, away = rng.uniform(0.5, 0.75), rng.uniform(0, 6.28), rng.uniform(1.5, 2.5), 0

    def script(tic: int) -> Action:
        nonlocal away
        turn = amplitude * math.sin(2 * math.pi * tic / 70 + phase)
        if min(_depth(game, across) for across in (0.35, 0.5, 0.65)) < _WALL_DEPTH:
            away = away or (1 if _depth(game, 0.8) > _depth(game, 0.2) else -1)
            turn = 3.5 * away
        else:
            away = 0
        sideways, walk_share = math.sin(2 * math.pi * tic / 90), share if not away else share / 2
        keys = {
            "W": _is_tapped(tic, walk_share),
            "D": sideways > 0 and _is_tapped(tic, 0.3),
            "A": sideways < 0 and _is_tapped(tic, 0.3),
        }
        return Action(frozenset(key for key, down in keys.items() if down), turn)

    return script


def _store(file: Path, pictures: list[np.ndarray], which: np.ndarray, rate: float) -> None:
    clock = Fraction(1, 90_000)
    source = Source(str(file), WIDTH, HEIGHT, rate, None, "rawvideo", "mp4", clock, 0, 0, False, 1.0, True)
    mp4, _ = encode.encode_frames(_to_frames(pictures, which, rate, clock), (WIDTH, HEIGHT), source.fps, encode.Encoding())
    file.write_bytes(mp4)


def _to_frames(pictures: list[np.ndarray], which: np.ndarray, rate: float, clock: Fraction) -> Iterator[av.VideoFrame]:
    for number, index in enumerate(which):
        frame = av.VideoFrame.from_ndarray(pictures[index], format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = round(number / rate / clock), clock
        yield frame
