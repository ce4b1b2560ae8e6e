"""The game engine: start one map in VizDoom, read its state and pictures, play one action per tic (1/35 s).

The wheel of VizDoom contains the free Freedoom maps, so nothing else has to be installed or downloaded.
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
from curation.errors import Unavailable
from synth.doom.events import Observation
from synth.doom.player import Action
from synth.doom.walk import Monster

try:
    import vizdoom
except ModuleNotFoundError as missing:
    raise Unavailable('recording needs the game engine VizDoom; install it with: pip install "gamecraft[demo]"') from missing

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
LEFTOVER_FOLDER = Path("_vizdoom")  # an empty folder that the engine leaves in the working directory


class Game:
    """One running map. `observe` and `picture` describe the current tic; `step` plays it."""

    def __init__(self, game: Any) -> None:
        self._game = game
        self._state = game.get_state()

    @property
    def tic(self) -> int:
        """The number of the current tic of the map, counted from 1."""
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
        """Return the engine's variables, rounded to 3 digits, and what is on screen."""
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

    def command(self, command: str) -> None:
        """Send a command to the engine's console (`summon Zombieman`). The next tic carries it out."""
        self._game.send_game_command(command)

    def restart_if_over(self) -> str | None:
        """Restart the map if the player died or left it, and return which of the two; None while the map is running."""
        if not self._game.is_episode_finished():
            return None
        reason = "died" if self._game.is_player_dead() else "map left"
        self._game.new_episode()
        self._state = self._game.get_state()
        return reason


def wads() -> dict[str, Path]:
    """Return the map collections (WAD files) that come with the engine, by name."""
    return {path.stem: path for path in sorted(Path(vizdoom.__file__).parent.glob("freedoom*.wad"))}


def resolutions() -> list[tuple[int, int]]:
    """Return the screen sizes (width, height) that the engine can draw and yuv420p can store: both even."""
    names = [name.removeprefix("RES_") for name in dir(vizdoom.ScreenResolution) if name.startswith("RES_")]
    sizes = [(int(width), int(height)) for width, height in (name.split("X") for name in names)]
    return sorted(size for size in sizes if size[0] % 2 == 0 and size[1] % 2 == 0)


@dataclass(frozen=True)
class Screen:
    """What the engine draws."""

    width: int  # px
    height: int  # px
    hud: bool  # status bar and messages
    weapon: bool  # the weapon in the player's hands
    depth: bool  # also fill the depth buffer


@contextlib.contextmanager
def start_game(
    wad: Path, level: str, seed: int, skill: int, monsters: bool, screen: Screen, addon: Path | None = None
) -> Iterator[Game]:
    """Start a map, with an add-on (pk3) if one is given. Stop the engine on exit, also after an error."""
    existed_before = LEFTOVER_FOLDER.exists()
    game = vizdoom.DoomGame()
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as settings:
        game.set_doom_config_path(
            os.path.join(settings, "engine.ini")
        )  # otherwise the engine writes it to the working directory
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
            if not existed_before:
                _remove_leftover_folder()


def _remove_leftover_folder() -> None:
    """Remove the empty folder that the engine leaves. Try for a second: another recording may still use it."""
    for _ in range(10):
        try:
            LEFTOVER_FOLDER.rmdir()
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
        game.add_game_args("+cl_showsecretmessage 0")  # the switch above does not cover this message
    game.set_render_crosshair(False)
    game.set_render_weapon(screen.weapon)
    game.set_labels_buffer_enabled(True)
    game.set_sectors_info_enabled(True)
    game.set_depth_buffer_enabled(screen.depth)


def _monster(label: Any) -> Monster:
    return Monster(label.object_name, label.object_id, label.x, label.y, label.width, label.height)
