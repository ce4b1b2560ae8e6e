"""The game itself: starts one map in VizDoom, tells what is to be seen, takes one action a tic.

The wheel of VizDoom carries the free Freedoom maps, so nothing else has to be installed or downloaded.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation import scratch
from synth.doom.events import Observation
from synth.doom.player import Action
from synth.doom.walk import Monster

try:
    import vizdoom
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        'recording needs the game engine VizDoom; install it with: pip install "gamecraft[demo]"', name="vizdoom"
    ) from missing

BUTTONS = {
    "W": "MOVE_FORWARD",
    "S": "MOVE_BACKWARD",
    "A": "MOVE_LEFT",
    "D": "MOVE_RIGHT",
    "TURN_LEFT": "TURN_LEFT",
    "TURN_RIGHT": "TURN_RIGHT",
    "RUN": "SPEED",
    "FIRE": "ATTACK",
    "USE": "USE",
    "WEAPON1": "SELECT_WEAPON1",
    "WEAPON2": "SELECT_WEAPON2",
    "NEXT_WEAPON": "SELECT_NEXT_WEAPON",
}
MOUSE = "TURN_LEFT_RIGHT_DELTA"
VARIABLES = (
    *("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE", "PITCH", "ROLL", "VELOCITY_X", "VELOCITY_Y", "VELOCITY_Z"),
    *("HEALTH", "ARMOR", "SELECTED_WEAPON", "SELECTED_WEAPON_AMMO", "ATTACK_READY", "ON_GROUND"),
    *("KILLCOUNT", "ITEMCOUNT", "SECRETCOUNT", "CAMERA_POSITION_X", "CAMERA_POSITION_Y", "CAMERA_POSITION_Z"),
    *("CAMERA_ANGLE", "CAMERA_PITCH", "CAMERA_ROLL", "CAMERA_FOV", "DEAD"),
)
MONSTERS = frozenset(
    (
        *("Zombieman", "ShotgunGuy", "ChaingunGuy", "WolfensteinSS", "DoomImp", "Demon", "Spectre", "LostSoul"),
        *("Cacodemon", "PainElemental", "HellKnight", "BaronOfHell", "Revenant", "Fatso", "Arachnotron", "Archvile"),
        *("Cyberdemon", "SpiderMastermind"),
    )
)
VERSION: str = vizdoom.__version__
LITTER = Path("_vizdoom")  # an empty folder that the engine leaves in the working directory


class Game:
    """One running map. `observe` and `picture` describe the current tic, `step` plays it."""

    def __init__(self, game: Any) -> None:
        self._game = game
        self._state = game.get_state()

    @property
    def tic(self) -> int:
        """Tics since the map began, counted from 1."""
        return int(self._game.get_episode_time())

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The screen, [height, width, 3] RGB."""
        return np.asarray(self._state.screen_buffer)

    @property
    def depth(self) -> NDArray[np.uint8]:
        """The engine's depth buffer, [height, width]; larger is farther, clipped at 255."""
        return np.asarray(self._state.depth_buffer)

    def observe(self) -> Observation:
        """The engine's variables, rounded to 3 digits, and what is on screen."""
        state = self._state
        labels = [label for label in state.labels if label.object_name != "DoomPlayer"]
        return Observation(
            state={name: round(value, 3) for name, value in zip(VARIABLES, state.game_variables.tolist(), strict=True)},
            monsters=tuple(_monster(label) for label in labels if label.object_name in MONSTERS),
            heights=tuple((round(s.floor_height, 1), round(s.ceiling_height, 1)) for s in state.sectors),
            objects=len(labels),
            screen_width=state.screen_buffer.shape[1],
        )

    def step(self, action: Action) -> None:
        """Play one tic (1/35 s)."""
        self._game.make_action([float(key in action.keys) for key in BUTTONS] + [action.turn_deg], 1)
        self._state = self._game.get_state()

    def command(self, words: str) -> None:
        """A command of the engine's console (`summon Zombieman`), which the next tic carries out."""
        self._game.send_game_command(words)

    def restart_if_over(self) -> str | None:
        """Begin the map anew when the player died or left it, and say which; None while it goes on."""
        if not self._game.is_episode_finished():
            return None
        reason = "died" if self._game.is_player_dead() else "map left"
        self._game.new_episode()
        self._state = self._game.get_state()
        return reason


def wads() -> dict[str, Path]:
    """The map collections that come with the engine, by name."""
    return {path.stem: path for path in sorted(Path(vizdoom.__file__).parent.glob("freedoom*.wad"))}


def resolutions() -> list[tuple[int, int]]:
    """The screen sizes (width, height) that the engine draws and yuv420p can hold: both sides even."""
    names = [name.removeprefix("RES_") for name in dir(vizdoom.ScreenResolution) if name.startswith("RES_")]
    sizes = [(int(width), int(height)) for width, height in (name.split("X") for name in names)]
    return sorted(size for size in sizes if size[0] % 2 == 0 and size[1] % 2 == 0)


@dataclass(frozen=True)
class Screen:
    """What the engine draws: size in pixels, status bar and messages, the weapon in hand, a depth buffer."""

    width: int
    height: int
    hud: bool
    weapon: bool
    depth: bool


@contextlib.contextmanager
def running(
    wad: Path, level: str, seed: int, skill: int, monsters: bool, screen: Screen, addon: Path | None = None
) -> Iterator[Game]:
    """Start a map, with an add-on (pk3) where one is given, and stop the engine afterwards, whatever happens."""
    littered = LITTER.exists()
    game = vizdoom.DoomGame()
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as settings:
        game.set_doom_config_path(os.path.join(settings, "engine.ini"))  # else it lands in the working directory
        _set_map(game, wad, level, seed, skill)
        _set_screen(game, screen)
        if not monsters:
            game.add_game_args("-nomonsters")
        if addon:
            game.add_game_args(f"-file {addon}")
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in [*BUTTONS.values(), MOUSE]])
        game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in VARIABLES])
        try:
            game.init()
            yield Game(game)
        finally:
            game.close()
            if not littered:
                _tidy_up()


def _tidy_up() -> None:
    """Remove what the engine leaves, once it has let go of it; another recording may hold it for longer."""
    for _ in range(10):
        try:
            LITTER.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return


def _set_map(game: Any, wad: Path, level: str, seed: int, skill: int) -> None:
    game.set_doom_game_path(str(wad))
    game.set_doom_scenario_path(str(wad))
    game.set_doom_map(level)
    game.set_doom_skill(skill)
    game.set_seed(seed)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_sound_enabled(False)


def _set_screen(game: Any, screen: Screen) -> None:
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{screen.width}X{screen.height}"))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_render_hud(screen.hud)
    game.set_render_messages(screen.hud)
    if not screen.hud:
        game.add_game_args("+cl_showsecretmessage 0")  # not a message to the switch above
    game.set_render_crosshair(False)
    game.set_render_weapon(screen.weapon)
    game.set_labels_buffer_enabled(True)
    game.set_sectors_info_enabled(True)
    game.set_depth_buffer_enabled(screen.depth)


def _monster(label: Any) -> Monster:
    return Monster(label.object_name, label.object_id, label.x, label.y, label.width, label.height)
