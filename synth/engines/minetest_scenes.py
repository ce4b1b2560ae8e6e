"""Minetest scenes with labels: building, digging, doors, torches, weather, explosions, creatures, the inventory, plain walks.

`synth.engines.recorder` records them. The game runs in lockstep, the mods `gamecraft_scenes` (server) and `gamecraft_watch`
(client) say what happens, and `synth.engines.minetest_player` plays. The known place of `synth.engines.minetest` is another
recorder.
"""

import contextlib
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed
from synth.doom.truth import runs
from synth.engines.lockstep import Game, XInput
from synth.engines.minetest_game import (
    COMMON_CONFIGURATION,
    fov_setting,
    logged_lines,
    mouse_sensitivity,
    running_game,
    send_command,
    write_mods,
    write_new_world,
)
from synth.engines.minetest_player import FPS, SCENARIOS, SCENES, Act, Acts, Player
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import OTHER, EventSpan, FrameTruth, Optics

_X_KEYS = {
    "up": "w",
    "down": "s",
    "left": "a",
    "right": "d",
    "jump": "space",
    "dig": "mouse1",
    "place": "mouse3",
    "inventory": "i",
}
_TRUTH_KEYS = {
    "up": "W",
    "down": "S",
    "left": "A",
    "right": "D",
    "jump": "JUMP",
    "sneak": "CROUCH",
    "dig": "FIRE",
    "place": "USE",
}
_MAPGENS = ("v7", "v7", "valleys", "carpathian", "v7")  # fractal ones hang full of water
# How many frames an event shows after its first: the hand's swing, a block that comes up, smoke.
_SHOWN = {"place": 8, "dig": 8, "wield": 10, "door": 8, "torch": 8, "explosion": 36, "weather": 30, "appear": 15, "menu": 4}
_SMOKE, _FLAKES, _CREATURE = 60, 90, 150  # frames in which what has happened, or begins, may still be seen to change
_DARK_LEVEL, _MAX_UNSEEN = 12.0, 0.25  # mean grey level of a dark picture; share of the frames that may be dark, or wet
_READY_FRAMES, _SETTLE_FRAMES, _SETTLE_S = 6000, 90, 0.03
_DEG_A_PX = 0.1  # by how much a px of the mouse turns
_SNAP_M = 0.8  # a step of the camera in one frame, beyond that of the player, that is a jump of the picture

_CONFIGURATION = (
    COMMON_CONFIGURATION
    + """\
csm_restriction_noderange = 16
view_bobbing_amount = {bobbing}
viewing_range = 60
max_block_send_distance = 5
max_block_generate_distance = 5
enable_tnt = true
enable_clouds = true
enable_3d_clouds = true
hud_scaling = {gui_scaling}
gui_scaling = {gui_scaling}
node_highlighting = {highlighting}
autojump = true
safe_dig_and_place = false
keymap_camera_mode = KEY_F7
gamecraft_scene = {scene}
gamecraft_hud = {hud}
gamecraft_hand = {hand}
enable_weather = {changes_clouds}
"""
)


@dataclass(frozen=True)
class Look:
    """How a take is drawn, from its seed."""

    world_seed: int
    mapgen: str
    at: tuple[int, int]
    hfov_deg: float
    time_of_day: float
    bobbing: float
    highlighting: str

    @classmethod
    def draw(cls, take: Take) -> "Look":
        rng = random.Random(f"{take.seed}/look")
        world_seed = int(take.place) if take.place is not None else take.seed
        return cls(
            world_seed=world_seed,
            mapgen=rng.choice(_MAPGENS),
            at=(rng.randint(-600, 600), rng.randint(-600, 600)),
            hfov_deg=rng.uniform(60, 100),
            time_of_day=rng.choice([0.42, 0.5, 0.35, 0.6, 0.74, 0.24, 0.78, rng.random()]),
            bobbing=rng.choice([0.0, 0.0, 1.0]),
            highlighting=rng.choice(["box", "halo", "none"]),
        )


@dataclass
class _Frame:
    """What is known of a frame when it is drawn. Its camera comes with the next one."""

    client: dict[str, Any]
    behaviour: str
    turned_deg: tuple[float, float]
    in_menu: bool
    eye: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, float, float] = (1.0, 0.0, 0.0)


class _Session:
    """A running game whose scene is ready."""

    def __init__(self, game: Game, keys: XInput, world: Path) -> None:
        self.client: dict[str, Any] = {}
        self.client_lines = 0
        self.ready: dict[str, Any] = {}
        self.node: str | None = None
        self._game, self._keys, self._world = game, keys, world
        self._owed_deg = np.zeros(2)

    def picture(self) -> NDArray[np.uint8]:
        picture = self._game.next_frame()
        self.client_lines = 0
        for name, line in logged_lines(self._game):
            if name == "client":
                self.client, self.client_lines = line, self.client_lines + 1
            else:
                self._note(line)
        return picture

    def _note(self, line: dict[str, Any]) -> None:
        if line["event"] == "ready":
            self.ready = line
        else:
            self.node = line.get("node")

    def act(self, act: Act) -> tuple[float, float]:
        """Apply the player's action and let the game draw the next frame. Return by how much the mouse turned, degrees."""
        self._owed_deg += (act.turn_deg, act.look_deg)
        steps = np.rint(self._owed_deg / _DEG_A_PX).astype(int)  # whole px: what one frame lacks the next one gets
        self._owed_deg -= steps * _DEG_A_PX
        self._keys.set(frozenset(_X_KEYS.get(key, key) for key in act.keys), int(steps[0]), int(steps[1]))
        if act.command:
            send_command(self._world, act.command)
        self._game.advance()
        return float(steps[0] * _DEG_A_PX), float(steps[1] * _DEG_A_PX)

    def wait_until_ready(self, third_person: bool) -> None:
        for number in range(_READY_FRAMES):
            self.picture()
            if number % 40 == 20:
                self._keys.focus()
            if self.ready:
                break
            self._game.advance()
            time.sleep(_SETTLE_S)  # the server and the builders of meshes run in real time
        else:
            raise AttemptFailed("the scene was not ready in time")
        self._keys.focus()
        for number in range(_SETTLE_FRAMES):
            self.act(Act(frozenset({"F7"}) if third_person and number in (10, 11) else frozenset()))
            time.sleep(_SETTLE_S / 2)
            self.picture()


def play(take: Take, encode: Callable[[NDArray[np.uint8]], None]) -> Played:
    """Record a take. Raises AttemptFailed where too little of it can be seen: in the dark, or under water."""
    dark: list[bool] = []

    def watch(picture: NDArray[np.uint8]) -> None:
        dark.append(float(picture.mean()) < _DARK_LEVEL)
        encode(picture)

    played = play_acts(take, Look.draw(take), SCENARIOS[take.scenario], watch)
    wet = [bool(frame.notes["in_liquid"]) for frame in played.frames]
    for what, flags in (("dark", dark), ("under water", wet)):
        if np.mean(flags) > _MAX_UNSEEN:
            raise AttemptFailed(f"{np.mean(flags):.0%} of the take is {what}: try another seed")
    return played


def play_acts(take: Take, look: Look, acts_of: Callable[[Player], Acts], encode: Callable[[NDArray[np.uint8]], None]) -> Played:
    """Record what a player does. The camera of a frame comes with the client's next line."""
    width, height = take.size
    optics = Optics(width, height, width / 2 / math.tan(math.radians(look.hfov_deg / 2)))
    frames: list[_Frame] = []
    with _running(take, look, optics) as session:
        player = Player(random.Random(f"{take.seed}/play"), session.ready)
        acts, in_menu, held = acts_of(player), False, False
        session.act(Act())
        for number in range(round(take.seconds * FPS) + 1):
            picture = session.picture()
            if session.client_lines != 1:
                raise AttemptFailed(f"frame {number} came with {session.client_lines} lines of the game's log, not one")
            if frames:  # the camera of the frame before is known only now
                frames[-1].eye, frames[-1].direction = tuple(session.client["eye"]), tuple(session.client["direction"])
            if number == round(take.seconds * FPS):
                break
            encode(picture)
            _look(player, session)
            act = next(acts)
            frames.append(_Frame(session.client, player.behaviour, session.act(act), in_menu))
            pressed = "inventory" in act.keys
            in_menu, held = in_menu != (pressed and not held), pressed
    header = {"game": "Minetest with minetest_game", "fov_of_take_deg": look.hfov_deg, "place": look.world_seed}
    header |= {"mapgen": look.mapgen, "at": look.at, "time_of_day": look.time_of_day, "bobbing": look.bobbing}
    return Played(header, optics, [_frame_truth(frame) for frame in frames], list(_events(frames)), _snaps(frames))


def _look(player: Player, session: _Session) -> None:
    state, client = player.state, session.client
    state.at = np.array(client["position"])
    east, up, north = client["direction"]
    state.yaw_deg, state.pitch_deg = math.degrees(math.atan2(north, east)), math.degrees(math.asin(max(-1.0, min(1.0, up))))
    state.in_liquid, state.node = client["in_liquid"], session.node
    state.item, state.events = client["item"], client["events"] or []
    state.dug = any(event["name"] == "dug" for event in state.events)


def _frame_truth(frame: _Frame) -> FrameTruth:
    east, up, north = frame.eye
    ahead = frame.direction
    return FrameTruth(
        eye_m=(east, north, up),
        yaw_deg=math.degrees(math.atan2(ahead[2], ahead[0])),
        pitch_deg=math.degrees(math.asin(max(-1.0, min(1.0, ahead[1])))),
        keys=tuple(_TRUTH_KEYS[key] for key in frame.client["keys"] or [] if key in _TRUTH_KEYS),
        mouse_deg=frame.turned_deg,
        behaviour=frame.behaviour,
        notes={
            "tic": frame.client["number"],
            "item": frame.client["item"],
            "in_menu": frame.in_menu,
            "in_liquid": frame.client["in_liquid"],
        },
    )


def _events(frames: Sequence[_Frame]) -> Iterator[EventSpan]:
    """Find the events in what the client knew of each frame, and when something else may be seen to change.

    A lit charge smoulders until it explodes, smoke stays, who has appeared walks about, and flakes have to fall. Weather is no
    event where the player is under a roof.
    """
    started: int | None = None
    lit: int | None = None  # since when a charge smoulders
    for number, frame in enumerate(frames):
        digs = "dig" in (frame.client["keys"] or [])
        if digs and started is None:
            started = number
        if started is not None and (not digs or number + 1 == len(frames)):
            yield EventSpan("dig", started, number + _SHOWN["dig"])
            started = None
        if number and frame.client["slot"] != frames[number - 1].client["slot"]:
            yield EventSpan("wield", number, number + _SHOWN["wield"], details={"item": frame.client["item"]})
        if number and frame.in_menu != frames[number - 1].in_menu:
            yield EventSpan("menu", number, number + _SHOWN["menu"], details={"opens": frame.in_menu})
        for event in frame.client["events"] or []:
            if (span := _event(number, event)) is None:
                continue
            if span.kind == "weather" and not event.get("open", True):
                yield EventSpan(OTHER, number, number + _FLAKES)
                continue
            yield span
            if event["name"] == "place":
                lit = number
            elif span.kind == "explosion":
                yield EventSpan(OTHER, number if lit is None else lit, span.end + _SMOKE)
                lit = None
            elif span.kind == "weather":
                yield EventSpan(OTHER, span.end, number + _FLAKES)
            elif span.kind == "appear":
                yield EventSpan(OTHER, span.end, number + _CREATURE, span.at_m, 2.0)
    if lit is not None:
        yield EventSpan(OTHER, lit, len(frames))
    wet = [bool(frame.client.get("in_liquid")) for frame in frames]
    for start, end in runs(np.array(wet)):
        yield EventSpan(OTHER, start, end)


def _event(number: int, event: dict[str, Any]) -> EventSpan | None:
    name, pos = event["name"], event.get("pos")
    at_m = (pos[0], pos[2], pos[1]) if pos else None
    if name == "changed":
        before, now = event["before"], event["now"]
        if "doors:door" in before and "doors:door" in now:
            return EventSpan("door", number, number + _SHOWN["door"], at_m, 0.9, {"node": now})
        if "torch" in now:
            return EventSpan("torch", number, number + _SHOWN["torch"], at_m, 0.5)
        return None
    if name == "placed":
        return EventSpan("place", number, number + _SHOWN["place"], details={"node": event["node"]})
    if name in ("explosion", "appear", "weather", "place"):
        return EventSpan(name, number, number + _SHOWN[name], at_m, event.get("radius") or 0.5)
    return None


def _snaps(frames: Sequence[_Frame]) -> list[int]:
    """Return the frames in which the camera jumps though the player does not: a wall no longer hides the player."""
    eyes, places = np.array([frame.eye for frame in frames]), np.array([frame.client["position"] for frame in frames])
    if len(frames) < 2:
        return []
    moved, walked = (np.linalg.norm(np.diff(path, axis=0), axis=1) for path in (eyes, places))
    return [int(number) + 1 for number in np.flatnonzero(moved > walked + _SNAP_M)]


@contextlib.contextmanager
def _running(take: Take, look: Look, optics: Optics) -> Iterator[_Session]:
    vertical_deg = 2 * optics.half_fov_deg[1]
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minetest-", ignore_cleanup_errors=True)))
        folder = home / ".minetest"
        world = folder / "worlds" / "world"
        write_mods(folder, world, "gamecraft_scenes", "gamecraft_watch")
        write_new_world(world, look.mapgen, look.world_seed)
        (folder / "minetest.conf").write_text(
            _CONFIGURATION.format(
                width=optics.width,
                height=optics.height,
                fov=fov_setting(vertical_deg, optics.width / optics.height),
                sensitivity=mouse_sensitivity(_DEG_A_PX, vertical_deg),
                bobbing=look.bobbing,
                gui_scaling=1.0 if take.draw_number else max(0.5, optics.width / 1024),
                highlighting=look.highlighting,
                scene=SCENES.get(take.scenario, "wild"),
                at=f"{look.at[0]},{look.at[1]}",
                seed=take.seed,
                hud=str(take.hud).lower(),
                hand=str(take.hand).lower(),
                changes_clouds=str(take.scenario in SCENARIOS).lower(),  # the game does every 8 s of real time
                time_of_day=look.time_of_day,
                draw_number=str(take.draw_number).lower(),
            )
        )

        def ready(game: Game, keys: XInput) -> _Session:
            session = _Session(game, keys, world)
            session.wait_until_ready(take.third_person)
            return session

        yield stack.enter_context(running_game(home, (optics.width, optics.height), 1 / FPS, ready))


ENGINE = Engine(tuple(SCENARIOS), FPS, play)
