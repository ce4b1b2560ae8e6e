"""Neverball with labels: a ball that is seen from behind rolls on a floor that keys tilt, and nothing happens.

`synth.engines.recorder` records it, as footage without hands to judge detectors by that learned from other games. The game runs
in lockstep, and `neverball.c` prints the camera of each frame, relative to the tilted floor, and the ball. The player rolls
about the start, where no coins lie, turns the camera and stands. The engine does not tell what happens: there are no events. A
take whose ball falls off the floor fails.
"""

import contextlib
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed, InputError
from synth.engines.lockstep import Game, XInput, build_library, require, virtual_display
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import FrameTruth, Optics

FPS = 30
PACKAGES = "neverball xvfb libxtst6 libgl1-mesa-dri gcc libc6-dev"
LEVELS = ("easy/easy", "easy/slalom", "easy/corners", "easy/fence", "easy/peasy", "easy/maze", "easy/roundlaby", "easy/bumps")
_CONFIGURATION = """\
fullscreen 0
width {width}
height {height}
reflection 0
vsync 0
sound_volume 0
music_volume 0
view_fov {fov}
camera {camera}
"""
_START_FRAMES, _BEGIN_AT, _FOCUS_EVERY, _READY_FRAMES = 400, 40, 40, 190
_REACH, _FALL = 1.2, 1.0  # units of the game, of which a ball is half a one across
_TRUTH_KEYS = {"Up": "W", "Down": "S", "Left": "A", "Right": "D"}


@dataclass(frozen=True)
class View:
    """What was drawn in a frame. Axes are the game's: x right, y up, z towards the start's viewer."""

    scale: tuple[float, float]  # of the projection: twice the focal length by the picture's width, and by its height
    world: NDArray[np.float64]  # [4, 4], from the game's world to the camera
    floor: NDArray[np.float64]  # [4, 4], the same from the tilted floor
    ball: NDArray[np.float64]  # [3]

    @property
    def eye(self) -> NDArray[np.float64]:
        """The camera's place relative to the floor, [3]: east, north, up."""
        return _north_up(-self.floor[:3, :3].T @ self.floor[:3, 3])

    @property
    def angles_deg(self) -> tuple[float, float, float]:
        """Yaw counter-clockwise from east, pitch upwards, and roll clockwise, relative to the floor."""
        right, ahead = _north_up(self.floor[0, :3]), _north_up(-self.floor[2, :3])
        yaw, pitch = math.atan2(ahead[1], ahead[0]), math.asin(max(-1.0, min(1.0, ahead[2])))
        level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
        roll = math.atan2(-right[2], float(right @ level))
        return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


def read_view(lines: Iterable[str]) -> View | None:
    """Read the first view among the lines that the game printed for a frame."""
    numbers: dict[str, list[float]] = {}
    for line in lines:
        words = line.split()
        if words[:1] in (["GAMECRAFT_VIEW"], ["GAMECRAFT_FLOOR"]) and len(words) == 19 + (words[0] == "GAMECRAFT_FLOOR"):
            numbers.setdefault(words[0], [float(word) for word in words[1:]])
    if len(numbers) < 2:
        return None
    view, floor = numbers["GAMECRAFT_VIEW"], numbers["GAMECRAFT_FLOOR"]
    world, tilted = (np.array(part[-16:]).reshape(4, 4).T for part in (view, floor))
    return View((view[0], view[1]), world, tilted, np.array(floor[:3]))


def _north_up(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([vector[0], -vector[2], vector[1]])


@dataclass(frozen=True)
class _Frame:
    view: View
    keys: frozenset[str]
    behaviour: str


class Player:
    """Plays by keys, by generators as `synth.engines.minetest_player.Player` does. Each value is the keys of a frame."""

    def __init__(self, rng: random.Random, view: View) -> None:
        self.view, self.behaviour = view, "start"
        self._rng, self._home = rng, view.ball
        self._before = view.ball

    def roll(self) -> Iterator[frozenset[str]]:
        """Roll to places near the start, turn the camera, and stand."""
        rng = self._rng
        while True:
            angle, distance = rng.uniform(0, 2 * math.pi), _REACH * math.sqrt(rng.random())
            target = self._home + distance * np.array([math.cos(angle), 0, math.sin(angle)])
            yield from self._behave("roll", self._roll_to(target, rng.uniform(0.8, 2.5)))
            if rng.random() < 0.5:
                keys = {rng.choice("sd"), *rng.choice([(), (), ("Shift_L",)])}
                yield from self._behave("turn", self._roll_to(target, rng.uniform(0.2, 1.0), keys))
            if rng.random() < 0.5:
                yield from self._behave("stand", self._roll_to(target, rng.uniform(0.4, 1.6)))

    def _roll_to(self, target: NDArray[np.float64], seconds: float, keys: Iterable[str] = ()) -> Iterator[frozenset[str]]:
        """Tilt the floor towards a place, against the ball's speed. The keys tilt it relative to the camera."""
        for _ in range(round(seconds * FPS)):
            speed = (self.view.ball - self._before) * FPS
            self._before = self.view.ball
            wanted = 1.2 * (target - self.view.ball) - 1.1 * speed
            right, ahead = self.view.world[0, :3] @ wanted, -self.view.world[2, [0, 2]] @ wanted[[0, 2]]
            pressed = {name for name, on in _tilts(float(right), float(ahead)).items() if on}
            yield frozenset({*keys, *pressed})

    def _behave(self, name: str, keys: Iterator[frozenset[str]]) -> Iterator[frozenset[str]]:
        for held in keys:
            self.behaviour = name
            yield held


def _tilts(right: float, ahead: float, least: float = 0.35) -> dict[str, bool]:
    return {"Right": right > least, "Left": right < -least, "Up": ahead > least, "Down": ahead < -least}


SCENARIOS: dict[str, Callable[[Player], Iterator[frozenset[str]]]] = {"roll": Player.roll}


def play(take: Take, encode: Callable[[NDArray[np.uint8]], None]) -> Played:
    """Record a take. Raises InputError for what the game has not: a hand, a first person, a picture without panels."""
    if take.hand or not take.third_person or not take.hud:
        raise InputError("Neverball is seen from behind, has no hand, and always draws its panels: third_person, no hand, hud")
    rng = random.Random(f"{take.seed}/look")
    level, fov, camera = take.place or rng.choice(LEVELS), round(rng.uniform(45, 75)), rng.choice([0, 0, 1, 2])
    settings = {"width": take.size[0], "height": take.size[1], "fov": fov, "camera": camera}
    frames: list[_Frame] = []
    with _running(level, take.size, _CONFIGURATION.format(**settings)) as (game, keys):
        view = _start(game, keys)
        player, start = Player(random.Random(f"{take.seed}/play"), view), view.ball
        acts = SCENARIOS[take.scenario](player)
        for number in range(round(take.seconds * FPS)):
            picture = game.next_frame()
            seen = read_view(game.take_lines())
            if seen is None:
                raise AttemptFailed(f"frame {number} came without a camera")
            if start[1] - seen.ball[1] > _FALL:
                raise AttemptFailed(f"the ball fell off the floor in frame {number}")
            encode(picture)
            player.view = seen
            held = next(acts)
            frames.append(_Frame(seen, held, player.behaviour))
            keys.set(held)
            game.advance()
    optics = Optics(*take.size, frames[0].view.scale[0] * take.size[0] / 2)
    header: dict[str, Any] = {"game": "Neverball", "place": level, "view": camera, "keys_known": True, "events_known": False}
    header["camera_note"] = "relative to the tilted floor; roll_deg is the camera's roll; lengths in the game's units"
    return Played(header, optics, [_frame_truth(frame) for frame in frames], [], [])


def _start(game: Game, keys: XInput) -> View:
    """Begin the level, and wait until the ball may roll."""
    view: View | None = None
    for number in range(_START_FRAMES):
        game.next_frame()
        view = read_view(game.take_lines()) or view
        if number % _FOCUS_EVERY == _FOCUS_EVERY // 2:
            keys.focus()
        keys.set(frozenset({"Return"} if number in (_BEGIN_AT, _BEGIN_AT + 1) else ()))
        game.advance()
        if number >= _BEGIN_AT + _READY_FRAMES and view is not None:
            return view
    raise AttemptFailed("the game drew no level")


def _frame_truth(frame: _Frame) -> FrameTruth:
    east, north, up = frame.view.eye
    yaw, pitch, roll = frame.view.angles_deg
    return FrameTruth(
        eye_m=(float(east), float(north), float(up)),
        yaw_deg=yaw,
        pitch_deg=pitch,
        keys=tuple(sorted(_TRUTH_KEYS[key] for key in frame.keys if key in _TRUTH_KEYS)),
        behaviour=frame.behaviour,
        notes={"roll_deg": round(roll, 4), "ball": [round(float(value), 4) for value in _north_up(frame.view.ball)]},
    )


@contextlib.contextmanager
def _running(level: str, size: tuple[int, int], configuration: str) -> Iterator[tuple[Game, XInput]]:
    command = [require("neverball", PACKAGES), "-l", f"map-{level}.sol"]
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neverball-", ignore_cleanup_errors=True)))
        (home / ".neverball").mkdir()
        (home / ".neverball" / "neverballrc").write_text(configuration)
        display = stack.enter_context(virtual_display(max(640, size[0]), max(480, size[1])))
        environment: dict[str, Any] = {"HOME": str(home), "DISPLAY": display, "LP_NUM_THREADS": "1", "SDL_AUDIODRIVER": "dummy"}
        keys = stack.enter_context(contextlib.closing(XInput(display)))
        library = build_library(Path(__file__).with_name("neverball.c"))
        yield stack.enter_context(Game(command, environment, 1 / FPS, [library])), keys


ENGINE = Engine(tuple(SCENARIOS), FPS, play)
