"""Footage for the camera benchmark: one kind of motion a take, with the engine's pose of every frame, stored as in a shard.

The engine draws pixels 1.2 times as high as wide. Its view only yaws about the one vertical axis, so a world whose z is
multiplied by 1.2 gives the very pictures of square pixels: that world is the truth here, in map units. The sky is no pinhole's:
it turns with the yaw, but its rows stay where they are.
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
from curation.media.decode import Source
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
_WALK = 8.3  # map units a tic, W held
_STILL_TICS = 70  # friction lets a player glide for so long
_TRIES = 12
_KEY_TURN_DEG = 3.5  # a tic, a turn key held
_TELEPORT = 100  # map units a tic; a player who runs makes 17. It is a cut, where clips end
_WALL_DEPTH = 20  # of the depth buffer, about 165 map units
# A take shows what it is named after: least and most path in map units, least turn in degrees. A lift moves who stands still.
_SHOWS = {
    "mix": (400, math.inf, 90),
    "play": (400, math.inf, 90),
    "keys": (400, math.inf, 90),
    "forward": (250, math.inf, 0),
    "strafe": (250, math.inf, 0),
    "rotation": (0, 4, 45),
    "static": (0, 4, 0),
}


class NoTake(Exception):
    """A place in which no take of a kind could be made."""


class Place(NamedTuple):
    """Where takes are made, and whether HUD and weapon are drawn."""

    wad: str
    level: str
    hud: bool


@dataclass(frozen=True)
class Take:
    """A clip with its truth. pose f8 [N, 4, 4] camera-to-world, OpenCV axes; focal_px of a square-pixel camera; time_s [N].

    pressed f8 [T, 3]: forward less back and right less left as -1 to 1, and degrees of turn to the right, of each tick of the
    game's clock; ticks int [N]: the one that each frame shows. What is pressed in a tick moves the view from it to the next.
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
        """Its length in map units."""
        return float(np.linalg.norm(np.diff(self.pose[:, :3, 3], axis=0), axis=1).sum())


def places(seed: int, count: int, tuning: bool) -> list[Place]:
    """Maps for a seed, each with HUD and weapon off and on; those that nothing was tuned on, or with `tuning` the others."""
    maps = maps_of(held_out=not tuning)
    return [Place(*where, hud) for where in random.Random(seed).sample(maps, count) for hud in (False, True)]


def take(folder: Path, place: Place, kind: str, seed: int, rates: tuple[float, ...] = (35.0, 16.0)) -> list[Take]:
    """One take at each frame rate; what lies in the folder already is not recorded again. Raises `NoTake`."""
    stem = f"{place.wad}-{place.level}-{'hud' if place.hud else 'bare'}-{kind}-{seed}"
    if not (folder / f"{stem}.npz").exists():
        played = _played(place, kind, seed)
        for rate in rates:
            _store(folder / f"{stem}-{rate:g}.mp4", played.pictures, _frames(len(played.pictures), rate), rate)
        np.savez(folder / f"{stem}.npz", states=played.states, pressed=played.pressed)
    with np.load(folder / f"{stem}.npz") as logged:
        states, pressed = logged["states"], logged["pressed"]
    found = []
    for rate in rates:
        which = _frames(len(states), rate)
        times, pose = np.arange(len(which)) / rate, _poses(states)[which]
        focal = WIDTH / 2 / math.tan(math.radians(states[0, 4]) / 2)
        file = folder / f"{stem}-{rate:g}.mp4"
        found.append(Take(f"{stem}-{rate:g}", kind, place, rate, file, pose, times, focal, pressed, which))
    return found


def _poses(states: np.ndarray) -> np.ndarray:
    """Engine states [N, 5] (x, y, z, yaw in degrees, field of view) -> camera-to-world [N, 4, 4] in the square-pixel world."""
    return poses(states[:, :3] * [1, 1, PIXEL_ASPECT], states[:, 3])


def _frames(count: int, rate: float) -> np.ndarray:
    """The frame on screen at each tick of a rate."""
    ticks = np.arange(math.floor(count / FPS * rate)) / rate
    return np.floor(ticks * FPS + 1e-6).astype(int)


class _Played(NamedTuple):
    """A take tick by tick: pictures, engine states [T, 5] as `_poses` reads them, what was pressed [T, 3]."""

    pictures: list[np.ndarray]
    states: np.ndarray
    pressed: np.ndarray


def _played(place: Place, kind: str, seed: int) -> _Played:
    """The first try that shows what it should; `NoTake` where none does."""
    path = wads()[place.wad]
    level = read_level(path, place.level)
    least, most, least_turn = _SHOWS[kind]
    for attempt in range(_TRIES):
        rng = random.Random(f"{seed}/{place.wad}/{place.level}/{kind}/{attempt}")
        with start_game(
            path, place.level, rng.randrange(10**6), 2, False, Screen(WIDTH, HEIGHT, place.hud, place.hud, True)
        ) as game:
            _wander(game, ScriptedPlayer(rng, level, "camera"), rng.randint(40, 240))
            played = _recorded(game, _script(kind, game, level, rng))
        turned = np.abs((np.diff(played.states[:, 3]) + 180) % 360 - 180).sum()
        steps = np.linalg.norm(np.diff(played.states[:, :3], axis=0), axis=1)
        if least <= steps.sum() <= most and turned >= least_turn and steps.max() < _TELEPORT:
            return played
    raise NoTake(f"{place.wad}-{place.level}: no {kind} take in {_TRIES} tries")


def _wander(game: Game, player: ScriptedPlayer, tics: int) -> None:
    player.start("nav", tics)
    for _ in range(tics):
        game.restart_if_over()
        game.step(player.act(game.observe().view()))
    for _ in range(_STILL_TICS):
        game.step(Action())


def _recorded(game: Game, script: "Script") -> _Played:
    pictures, states, pressed = [], [], []
    for tic in range(round(SECONDS * FPS)):
        state = game.observe().state
        names = ("CAMERA_POSITION_X", "CAMERA_POSITION_Y", "CAMERA_POSITION_Z", "CAMERA_ANGLE", "CAMERA_FOV")
        states.append([state[name] for name in names])
        pictures.append(game.picture.copy())
        action = script(tic)
        pressed.append(_pressed_axes(action))
        game.step(action)
    return _Played(pictures, np.array(states), np.array(pressed))


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
    _face_the_open(game)
    scripts = {"forward": lambda: _forward(rng), "strafe": lambda: _strafe(game, rng), "keys": lambda: _keys(game, rng)}
    return scripts.get(kind, lambda: _mix(game, rng))()


def _face_the_open(game: Game, steps: int = 24) -> None:
    """Turn to where the view is deepest."""
    depths = []
    for _ in range(steps):
        depths.append(_depth(game, 0.5))
        game.step(Action(turn_deg=360 / steps))
    for _ in range(int(np.argmax(depths))):
        game.step(Action(turn_deg=360 / steps))


def _depth(game: Game, across: float) -> float:
    """The median of the depth buffer about the middle row and a column."""
    height, width = game.depth.shape
    column = int(across * width)
    return float(np.median(game.depth[int(0.4 * height) : int(0.55 * height), column - width // 16 : column + width // 16]))


def _pressed(tic: int, share: float) -> bool:
    """A key tapped so often that it is down for a share of the time: a slower walk."""
    return math.floor((tic + 1) * share) > math.floor(tic * share)


def _forward(rng: random.Random) -> Script:
    share = rng.uniform(0.25, 0.45)
    return lambda tic: Action(frozenset({"W"} if _pressed(tic, share) else ()))


def _strafe(game: Game, rng: random.Random) -> Script:
    """Sideways, back again after two seconds or where a wall is in the way."""
    share, side, since, before = rng.uniform(0.3, 0.5), rng.choice("AD"), 0, (math.inf, math.inf)

    def script(tic: int) -> Action:
        nonlocal side, since, before
        state = game.observe().state
        here = state["POSITION_X"], state["POSITION_Y"]
        since += 1
        if since > 70 or (since > 15 and math.dist(here, before) < 0.3):
            side, since = ("A" if side == "D" else "D"), 0
        before = here
        return Action(frozenset({side} if _pressed(tic, share) else ()))

    return script


def _keys(game: Game, rng: random.Random) -> Script:
    """Every key in turn, held for half a second to one and a half, alone and together; before a wall it turns away."""
    left, keys, turn = 0, frozenset[str](), 0.0

    def script(_: int) -> Action:
        nonlocal left, keys, turn
        if left == 0:
            left = rng.randint(18, 52)
            keys = frozenset({rng.choice("WWS "), rng.choice("AD  ")} - {" "})
            turn = rng.choice((-1, 0, 0, 1)) * rng.uniform(1.0, 3.5)
        left -= 1
        if "W" in keys and _depth(game, 0.5) < _WALL_DEPTH:
            return Action(keys - {"W"}, 3.0 if turn >= 0 else -3.0)
        return Action(keys, turn)

    return script


def _mix(game: Game, rng: random.Random) -> Script:
    """A walk with swinging steps aside and turns, that turns away before it meets a wall."""
    share, phase, amplitude, away = rng.uniform(0.5, 0.75), rng.uniform(0, 6.28), rng.uniform(1.5, 2.5), 0

    def script(tic: int) -> Action:
        nonlocal away
        turn = amplitude * math.sin(2 * math.pi * tic / 70 + phase)
        if min(_depth(game, across) for across in (0.35, 0.5, 0.65)) < _WALL_DEPTH:
            away = away or (1 if _depth(game, 0.8) > _depth(game, 0.2) else -1)
            turn = 3.5 * away
        else:
            away = 0
        aside, walks = math.sin(2 * math.pi * tic / 90), share if not away else share / 2
        keys = {"W": _pressed(tic, walks), "D": aside > 0 and _pressed(tic, 0.3), "A": aside < 0 and _pressed(tic, 0.3)}
        return Action(frozenset(key for key, down in keys.items() if down), turn)

    return script


def _store(file: Path, pictures: list[np.ndarray], which: np.ndarray, rate: float) -> None:
    clock = Fraction(1, 90_000)
    source = Source(str(file), WIDTH, HEIGHT, rate, None, "rawvideo", "mp4", clock, 0, 0, False, 1.0, True)
    mp4, _ = encode.store(_coded(pictures, which, rate, clock), (WIDTH, HEIGHT), source.fps, encode.Encoding())
    file.write_bytes(mp4)


def _coded(pictures: list[np.ndarray], which: np.ndarray, rate: float, clock: Fraction) -> Iterator[av.VideoFrame]:
    for number, index in enumerate(which):
        frame = av.VideoFrame.from_ndarray(pictures[index], format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = round(number / rate / clock), clock
        yield frame
