"""A Minetest game in lockstep: its configuration, its world, and what its mods (`minetest_mods`) log about each frame.

The camera is level. The picture shows more ground than sky all the same: it is the lower part of the game's window, so the
optical centre lies above the middle. A turn is then exactly a rotation about the camera's own y axis.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed
from synth.engines.lockstep import Game, XInput, cache_folder, require, virtual_display
from synth.engines.player import KEY_TURN_DEG_S, Act

_MODS = Path(__file__).with_name("minetest_mods")
_MODELS = _MODS / "gamecraft_server" / "models"  # both servers draw the same creature
ReadySession = TypeVar("ReadySession")
PACKAGES = "minetest xvfb libxtst6 libgl1-mesa-dri gcc libc6-dev"
FPS = Fraction(35, 2)

_FX_SHARE = 0.4559  # focal length as a share of the picture's width: 95.3 degrees across
_HORIZON_SHARE = 0.425  # of the picture's height that is above the horizon
_STEPS_A_TURN = 32  # steps of the mouse in a frame of a key turn, so that such a turn is a whole number of steps
MOUSE_STEP_DEG = KEY_TURN_DEG_S / float(FPS) / _STEPS_A_TURN
_X_KEYS = {"up": "w", "down": "s", "left": "a", "right": "d"}
_READY_FRAMES = 6000
_SETTLE_FRAMES, _LOOK_FRAMES, _SETTLE_S = 30, 70, 0.03  # until all is drawn, and how long such a frame lasts in real time
_SAVE_S = 6.0  # of real time, in which the server writes the map to disk several times
# A game draws the port of its own server from the second in which it starts, so that two can draw the same.
_STARTS, _PORT_IN_USE = 4, "Failed to bind socket"
_ANSWER_TIMEOUT_S, _ARRIVAL_S = 5.0, 0.15

# What every game is configured with.
COMMON_CONFIGURATION = """\
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
dedicated_server_step = 0.03
sqlite_synchronous = 0
fall_bobbing_amount = 0
camera_smoothing = 0
max_simultaneous_block_sends_per_client = 200
creative_mode = false
enable_damage = false
server_announce = false
bind_address = 127.0.0.1
enable_minimap = false
enable_shaders = false
show_nametag_backgrounds = false
time_speed = 0
name =
gamecraft_at = {at}
gamecraft_seed = {seed}
gamecraft_time_of_day = {time_of_day}
gamecraft_draw_number = {draw_number}
"""
_CONFIGURATION = (
    COMMON_CONFIGURATION
    + """\
server_map_save_interval = 0.5
view_bobbing_amount = 0
viewing_range = 100
max_block_send_distance = 8
max_block_generate_distance = 8
enable_clouds = false
enable_3d_clouds = false
node_highlighting = none
autojump = false
gamecraft_start = {start}
"""
)


@dataclass(frozen=True)
class Place:
    """A place in a generated world."""

    world_seed: int = 77
    east: int = 540
    north: int = 780
    mapgen: str = "v7"


@dataclass(frozen=True)
class GameSettings:
    """Everything that the game is configured with."""

    place: Place
    width: int = 256  # px, of the picture
    height: int = 192  # px
    fps: Fraction = FPS
    seed: int = 0  # of where the player starts
    time_of_day: float = 0.42  # 0 midnight, 0.5 noon
    draw_number: bool = False  # draw the number of each frame as black and white squares


@dataclass(frozen=True)
class Optics:
    """The game's window and the picture that is cut out of it: its lower part, at the same focal length."""

    width: int  # px
    height: int  # px, of the picture
    window_height: int  # px
    focal_px: float

    @classmethod
    def of(cls, width: int, height: int) -> "Optics":
        hidden = round(height * (1 - 2 * _HORIZON_SHARE))
        return cls(width, height, height + hidden, width * _FX_SHARE)

    @property
    def centre_y(self) -> float:
        """The row of the horizon, px."""
        return self.window_height / 2 - (self.window_height - self.height)

    @property
    def vertical_fov_deg(self) -> float:
        """The vertical field of view of the window."""
        return math.degrees(2 * math.atan(self.window_height / 2 / self.focal_px))

    @property
    def fov_setting(self) -> float:
        """The game's setting `fov`."""
        return fov_setting(self.vertical_fov_deg, self.width / self.window_height)

    @property
    def mouse_sensitivity(self) -> float:
        """The game's setting."""
        return mouse_sensitivity(MOUSE_STEP_DEG, self.vertical_fov_deg)


def fov_setting(vertical_fov_deg: float, aspect: float) -> float:
    """Return the game's setting `fov` for a field of view. The game widens it for windows that are less wide than 16:10."""
    return vertical_fov_deg / min(max(math.sqrt(1.6 / aspect), 1.0), 1.4)


def mouse_sensitivity(step_deg: float, vertical_fov_deg: float) -> float:
    """Return the game's setting for a step of the mouse. The game multiplies it by a function of the field of view."""
    return step_deg / (math.tan(math.radians(vertical_fov_deg / 2)) * 1.3763818698)


def logged_lines(game: Game) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the mods have logged since the last call: "client" and the line of a frame, or "server" and a line."""
    for line in game.take_lines():
        _, mark, text = line.partition(": GAMECRAFT_")
        for begin, name in (("FRAME ", "client"), ("SERVER ", "server")):
            if mark and text.startswith(begin):
                yield name, json.loads(text[len(begin) :])


def send_command(world: Path, command: str) -> None:
    """Leave a command for the server's mod in the folder of the world."""
    part = world / "commands.part"
    part.write_text(command + "\n", encoding="utf-8")
    part.replace(world / "commands.txt")


class Session:
    """A running game whose place is ready, in lockstep."""

    def __init__(self, game: Game, keys: XInput, world: Path, optics: Optics) -> None:
        self.client: dict[str, Any] = {}  # the newest line of the client's mod
        self.client_lines = 0  # how many it printed for the newest frame: one, if all is well
        self.server: list[dict[str, Any]] = []  # the lines of the server's mod since the frame before
        self.ready: dict[str, Any] = {}  # what the server's mod said about the place
        self._game, self._keys, self._world, self._optics = game, keys, world, optics
        self._turned_deg, self._turned_steps = 0.0, 0

    def picture(self) -> NDArray[np.uint8]:
        """Wait for the next frame. Return its lower part [H, W, 3]; `client` and `server` then hold what the mods logged."""
        picture = self._game.next_frame()
        self.server, self.client_lines = [], 0
        self._read_lines()
        return picture[-self._optics.height :]

    def _read_lines(self) -> None:
        for name, line in logged_lines(self._game):
            if name == "client":
                self.client, self.client_lines = line, self.client_lines + 1
            else:
                self.server.append(line)

    def act(self, act: Act) -> int:
        """Apply the player's action and let the game draw the next frame. Return by how many steps the mouse was moved."""
        self._turned_deg += act.turn_deg  # steps are whole: what one frame lacks the next one gets
        steps = round(self._turned_deg / MOUSE_STEP_DEG) - self._turned_steps
        self._turned_steps += steps
        self._keys.set(frozenset(_X_KEYS[key] for key in act.keys), steps)
        self._game.advance()
        return steps

    def ask(self, name: str) -> None:
        """Ask the server for an event. It acts while the next picture is drawn, and answers after that one."""
        time.sleep(_ARRIVAL_S)  # until the server has made up for the frames so far: its thread lags behind the pictures
        send_command(self._world, name)

    def answer(self) -> bool:
        """Return whether the server acted the event. If not, it needs another view. If so, the next pictures show it."""
        end = time.monotonic() + _ANSWER_TIMEOUT_S
        while not (answers := [line for line in self.server if line["event"] == "command"]):
            if time.monotonic() > end:
                raise AttemptFailed(f"the game did not act an event in {_ANSWER_TIMEOUT_S:g} s")
            time.sleep(0.01)
            self._read_lines()
        time.sleep(_ARRIVAL_S)  # until what the server sends has reached the client
        return bool(answers[-1]["acted"])

    def wait_until_ready(self) -> None:
        """Let the game run until the place is drawn. The player looks around once: what is behind comes last."""
        for number in range(_READY_FRAMES):
            self.picture()
            if number % 40 == 20:
                self._keys.focus()
            self.ready = next((line for line in self.server if line["event"] == "ready"), self.ready)
            if self.ready:
                break
            self._game.advance()
            time.sleep(_SETTLE_S)  # the server and the builders of meshes run in real time
        else:
            raise AttemptFailed("the place was not ready in time")
        self._keys.focus()
        for turn_deg in [0.0] * _SETTLE_FRAMES + [360 / _LOOK_FRAMES] * _LOOK_FRAMES + [0.0] * 3:
            self.act(Act(turn_deg=turn_deg))
            time.sleep(_SETTLE_S)
            self.picture()


@contextlib.contextmanager
def start_game(settings: GameSettings) -> Iterator[Session]:
    """Run the game in a copy of the place's world."""
    with _running(settings, prepared_world(settings.place)) as (session, _):
        yield session


def prepared_world(place: Place) -> Path:
    """Return the folder of a world in which the place is built. It is generated at first use and cached."""
    content = (_MODS / "gamecraft_server" / "place.lua").read_bytes()
    name = hashlib.sha256(json.dumps(asdict(place)).encode() + content).hexdigest()[:12]
    folder = cache_folder() / f"minetest-{name}"
    if folder.exists():
        return folder
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    with _running(GameSettings(place), None) as (session, world):
        end = time.monotonic() + _SAVE_S
        while time.monotonic() < end:
            session.act(Act())
            session.picture()
            time.sleep(_SETTLE_S)
        shutil.copytree(world, part, ignore=shutil.ignore_patterns("worldmods", "players*", "auth*"))
    with contextlib.suppress(OSError):  # another process was faster
        part.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _running(settings: GameSettings, prepared: Path | None) -> Iterator[tuple[Session, Path]]:
    """Run the game in a copy of a prepared world, or in a new one. Yield it and the folder of its world."""
    optics = Optics.of(settings.width, settings.height)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minetest-", ignore_cleanup_errors=True)))
        world = _write_files(home / ".minetest", settings, optics, prepared)

        def ready(game: Game, keys: XInput) -> Session:
            session = Session(game, keys, world, optics)
            session.wait_until_ready()
            return session

        window = optics.width, optics.window_height
        yield stack.enter_context(running_game(home, window, float(1 / settings.fps), ready)), world


@contextlib.contextmanager
def running_game(
    home: Path, window: tuple[int, int], frame_s: float, ready: Callable[[Game, XInput], ReadySession]
) -> Iterator[ReadySession]:
    """Run the game whose files lie in a home folder, on a display of its own, and yield the session that `ready` returns.

    window: width and height, px. frame_s: of the game's time. The game is started again where its port is taken.
    """
    command = [require("minetest", PACKAGES), "--go", "--worldname", "world"]
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(virtual_display(max(640, window[0]), max(480, window[1])))
        environment = {"HOME": str(home), "DISPLAY": display, "LP_NUM_THREADS": "1"}
        keys = stack.enter_context(contextlib.closing(XInput(display)))
        for attempt in range(_STARTS):
            try:
                with contextlib.ExitStack() as started:
                    game = started.enter_context(Game(command, environment, frame_s))
                    session = ready(game, keys)
                    stack.push(started.pop_all())
                break
            except AttemptFailed as error:
                if _PORT_IN_USE not in str(error) or attempt + 1 == _STARTS:
                    raise
                time.sleep(1.1)
        yield session


def write_mods(folder: Path, world: Path, server: str, client: str) -> None:
    """Copy both mods to the game's folder, and switch the client's on."""
    shutil.copytree(_MODS / server, world / "worldmods" / server)
    shutil.copytree(_MODELS, world / "worldmods" / server / "models", dirs_exist_ok=True)
    shutil.copytree(_MODS / client, folder / "clientmods" / client)
    (folder / "clientmods" / "mods.conf").write_text(f"load_mod_{client} = true\n")


def write_new_world(world: Path, mapgen: str, seed: int) -> None:
    """Say of what kind a world is that the game has still to generate."""
    backends = "".join(f"{name}backend = sqlite3\n" for name in ("", "player_", "auth_", "mod_storage_"))
    (world / "world.mt").write_text(f"gameid = minetest_game\n{backends}")
    (world / "map_meta.txt").write_text(f"mg_name = {mapgen}\nseed = {seed}\n[end_of_params]\n")


def _write_files(folder: Path, settings: GameSettings, optics: Optics, prepared: Path | None) -> Path:
    """Write the game's configuration, mods and world to its folder. Return the world's folder."""
    world = folder / "worlds" / "world"
    if prepared is not None:
        shutil.copytree(prepared, world)
    write_mods(folder, world, "gamecraft_server", "gamecraft_client")
    (folder / "minetest.conf").write_text(
        _CONFIGURATION.format(
            width=optics.width,
            height=optics.window_height,
            fov=optics.fov_setting,
            sensitivity=optics.mouse_sensitivity,
            at=f"{settings.place.east},{settings.place.north}",
            start=",".join(f"{value:.3f}" for value in _start(settings.seed)),
            seed=settings.seed,
            time_of_day=settings.time_of_day,
            draw_number=str(settings.draw_number).lower(),
        )
    )
    if prepared is None:
        write_new_world(world, settings.place.mapgen, settings.place.world_seed)
    return world


def _start(seed: int) -> tuple[float, float, float]:
    """Return where a player starts: metres east and north of the middle, and degrees."""
    rng = random.Random(f"{seed}/start")
    angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 6)
    return distance * math.cos(angle), distance * math.sin(angle), rng.uniform(0, 360)
