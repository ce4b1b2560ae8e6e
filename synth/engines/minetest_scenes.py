"""Minetest scenes with labels: building, digging, doors, torches, weather, explosions, creatures, the inventory, plain walks.

`synth.engines.recorder` records them. The game runs in lockstep, the mods `gamecraft_scenes` (server) and `gamecraft_watch`
(client) say what happens, and `synth.engines.minetest_player` plays. The known place of `synth.engines.minetest` is another
recorder.
"""

import contextlib
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed
from synth.engines.lockstep import Game, XInput, require, virtual_display
from synth.engines.minetest_game import PACKAGES
from synth.engines.minetest_player import FPS, SCENARIOS, SCENES, Act, Player
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import EventSpan, FrameTruth, Optics

_MODS = Path(__file__).with_name("minetest_mods")
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
_MAPGENS = ("v7", "v7", "valleys", "carpathian", "fractal")
# How many frames an event shows after its first: the hand's swing, a block that comes up, smoke.
_SHOWN = {"place": 8, "dig": 8, "wield": 10, "door": 8, "torch": 8, "explosion": 36, "weather": 30, "appear": 15, "menu": 4}
_READY_FRAMES, _SETTLE_FRAMES, _SETTLE_S, _STARTS = 6000, 90, 0.03, 4
_PORT_IN_USE = "Failed to bind socket"
_SNAP_M = 0.8  # a step of the camera in one frame, beyond that of the player, that is a jump of the picture

_CONFIGURATION = """\
screen_w = {width}
screen_h = {height}
fov = {fov}
mouse_sensitivity = {sensitivity}
fps_max = 1000
fps_max_unfocused = 1000
vsync = false
enable_sound = false
enable_client_modding = true
enable_mod_channels = true
csm_restriction_flags = 0
csm_restriction_noderange = 16
dedicated_server_step = 0.03
sqlite_synchronous = 0
view_bobbing_amount = {bobbing}
fall_bobbing_amount = 0
camera_smoothing = 0
viewing_range = 60
max_block_send_distance = 5
max_block_generate_distance = 5
max_simultaneous_block_sends_per_client = 200
creative_mode = false
enable_damage = false
enable_tnt = true
server_announce = false
bind_address = 127.0.0.1
enable_minimap = false
enable_shaders = false
enable_clouds = true
enable_3d_clouds = true
show_nametag_backgrounds = false
hud_scaling = {gui_scaling}
gui_scaling = {gui_scaling}
node_highlighting = {highlighting}
autojump = true
safe_dig_and_place = false
time_speed = 0
keymap_camera_mode = KEY_F7
name =
gamecraft_scene = {scene}
gamecraft_at = {at}
gamecraft_seed = {seed}
gamecraft_hud = {hud}
gamecraft_hand = {hand}
gamecraft_time_of_day = {time_of_day}
gamecraft_draw_number = {draw_number}
"""


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

    def __init__(self, game: Game, keys: XInput, world: Path, deg_a_px: float) -> None:
        self.client: dict[str, Any] = {}
        self.client_lines = 0
        self.ready: dict[str, Any] = {}
        self.node: str | None = None
        self._game, self._keys, self._world, self._deg_a_px = game, keys, world, deg_a_px
        self._owed_deg = np.zeros(2)

    def picture(self) -> NDArray[np.uint8]:
        picture = self._game.next_frame()
        self.client_lines = 0
        for line in self._game.take_lines():
            _, mark, text = line.partition(": GAMECRAFT_")
            if mark and text.startswith("FRAME "):
                self.client, self.client_lines = json.loads(text[len("FRAME ") :]), self.client_lines + 1
            elif mark and text.startswith("SERVER "):
                self._note(json.loads(text[len("SERVER ") :]))
        return picture

    def _note(self, line: dict[str, Any]) -> None:
        if line["event"] == "ready":
            self.ready = line
        else:
            self.node = line.get("node")

    def act(self, act: Act) -> tuple[float, float]:
        """Apply the player's action and let the game draw the next frame. Return by how much the mouse turned, degrees."""
        self._owed_deg += (act.turn_deg, act.look_deg)
        steps = np.rint(self._owed_deg / self._deg_a_px).astype(int)  # whole px: what one frame lacks the next one gets
        self._owed_deg -= steps * self._deg_a_px
        self._keys.set(frozenset(_X_KEYS.get(key, key) for key in act.keys), int(steps[0]), int(steps[1]))
        if act.command:
            part = self._world / "commands.part"
            part.write_text(act.command + "\n", encoding="utf-8")
            part.replace(self._world / "commands.txt")
        self._game.advance()
        return float(steps[0] * self._deg_a_px), float(steps[1] * self._deg_a_px)

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
    """Record a take. The camera of a frame comes with the client's next line."""
    look = Look.draw(take)
    width, height = take.size
    optics = Optics(width, height, width / 2 / math.tan(math.radians(look.hfov_deg / 2)))
    frames: list[_Frame] = []
    with _running(take, look, optics) as session:
        player = Player(random.Random(f"{take.seed}/play"), session.ready)
        acts, in_menu, held = SCENARIOS[take.scenario](player), False, False
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
    state.dug = any(event["name"] == "dug" for event in client["events"] or [])


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
        notes={"tic": frame.client["number"], "item": frame.client["item"], "in_menu": frame.in_menu},
    )


def _events(frames: Sequence[_Frame]) -> Iterator[EventSpan]:
    """Find the events in what the client knew of each frame."""
    started: int | None = None
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
            if (span := _event(number, event)) is not None:
                yield span


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
    command = [require("minetest", PACKAGES), "--go", "--worldname", "world"]
    vertical_deg = 2 * optics.half_fov_deg[1]
    widened = min(max(math.sqrt(1.6 / (optics.width / optics.height)), 1.0), 1.4)  # as the game does below 16:10
    deg_a_px = 0.1
    sensitivity = deg_a_px / (math.tan(math.radians(vertical_deg / 2)) * 1.3763818698)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minetest-", ignore_cleanup_errors=True)))
        folder = home / ".minetest"
        world = folder / "worlds" / "world"
        shutil.copytree(_MODS / "gamecraft_scenes", world / "worldmods" / "gamecraft_scenes")
        shutil.copytree(_MODS / "gamecraft_watch", folder / "clientmods" / "gamecraft_watch")
        (folder / "clientmods" / "mods.conf").write_text("load_mod_gamecraft_watch = true\n")
        backends = "".join(f"{name}backend = sqlite3\n" for name in ("", "player_", "auth_", "mod_storage_"))
        (world / "world.mt").write_text(f"gameid = minetest_game\n{backends}")
        seed = f"mg_name = {look.mapgen}\nseed = {look.world_seed}\n[end_of_params]\n"
        (world / "map_meta.txt").write_text(seed)
        (folder / "minetest.conf").write_text(
            _CONFIGURATION.format(
                width=optics.width,
                height=optics.height,
                fov=vertical_deg / widened,
                sensitivity=sensitivity,
                bobbing=look.bobbing,
                gui_scaling=1.0 if take.draw_number else max(0.5, optics.width / 1024),
                highlighting=look.highlighting,
                scene=SCENES.get(take.scenario, "wild"),
                at=f"{look.at[0]},{look.at[1]}",
                seed=take.seed,
                hud=str(take.hud).lower(),
                hand=str(take.hand).lower(),
                time_of_day=look.time_of_day,
                draw_number=str(take.draw_number).lower(),
            )
        )
        display = stack.enter_context(virtual_display(max(640, optics.width), max(480, optics.height)))
        environment = {"HOME": str(home), "DISPLAY": display, "LP_NUM_THREADS": "1"}
        keys = stack.enter_context(contextlib.closing(XInput(display)))
        for attempt in range(_STARTS):
            try:
                with contextlib.ExitStack() as started:
                    game = started.enter_context(Game(command, environment, 1 / FPS))
                    session = _Session(game, keys, world, deg_a_px)
                    session.wait_until_ready(take.third_person)
                    stack.push(started.pop_all())
                break
            except AttemptFailed as error:
                if _PORT_IN_USE not in str(error) or attempt + 1 == _STARTS:
                    raise
                time.sleep(1.1)
        yield session


ENGINE = Engine(tuple(SCENARIOS), FPS, play)
