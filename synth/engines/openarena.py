"""OpenArena with labels: shots, changes of weapon, explosions, doors and lifts, in first and third person, and plain walks.

`synth.engines.recorder` records it. The game runs in lockstep, server included, and `idtech3.c` prints the renderer's own
camera and what it draws: a muzzle flash is a shot, the model in the hand the weapon, a model "*12" that moves a door or lift.
In `fight` the camera follows bots that fight each other, and no keys are known. `range` and `walk` are played by keys.
"""

import contextlib
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed
from synth.engines.lockstep import Game, XInput, build_library, require, virtual_display
from synth.engines.openarena_scenes import (
    FPS,
    Scene,
    event_spans,
    is_hidden,
    jumps_of,
    other_spans,
    own_weapons,
    read_scene,
)
from synth.engines.quake_map import read_map
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import UNITS_PER_M, FrameTruth, Optics

PACKAGES = "openarena xvfb libxtst6 libgl1-mesa-dri gcc libc6-dev"
MAPS = (
    *("aggressor", "am_galmevish", "am_lavaarena", "am_mckinleyish2", "am_thornish", "am_underworks2", "ce1m7", "delta"),
    *("dm4ish", "dm6ish", "fan", "hydronex2", "islanddm", "kaos2", "oa_dm1", "oa_dm2", "oa_dm3", "oa_dm4", "oa_dm5", "oa_dm6"),
    *(
        "oa_dm7",
        "oa_minia",
        "oa_pvomit",
        "oa_rpg3dm2",
        "oa_shine",
        "oa_spirit3",
        "oasago2",
        "pul1duel-oa",
        "q3dm6ish",
        "suspended",
    ),
)
_PROGRAM = "/usr/lib/ioquake3/ioquake3"
_DATA = "/usr/lib/openarena/baseoa"
_BOTS = ("sarge", "grism", "kyonshi")
_MAX_DEAD = 0.25  # share of a take
_TRUTH_KEYS = {"w": "W", "s": "S", "a": "A", "d": "D", "space": "JUMP", "mouse1": "FIRE"}
_WORLD_FRAMES, _START_FRAMES, _SETTLE_FRAMES, _FOLLOW_TRIES = 60, 4000, 90, 12
_DEG_A_PX = 0.11

_CONFIGURATION = """\
unbindall
bind w +forward
bind s +back
bind a +moveleft
bind d +moveright
bind SPACE +moveup
bind MOUSE1 +attack
{weapons}
bind F1 "give all"
bind F2 "god"
bind F3 "team s"
{bots}
set com_introplayed 1
set r_mode -1
set r_customwidth {width}
set r_customheight {height}
set r_fullscreen 0
set r_swapInterval 0
set r_primitives 2
set com_maxfps 250
set com_maxfpsUnfocused 250
set com_busywait 1
set s_initsound 0
set sensitivity 5
set cl_mouseAccel 0
set m_pitch 0.022
set m_yaw 0.022
set m_filter 0
set sv_fps 30
set snaps 30
set rate 100000
set sv_pure 0
set vm_game 0
set vm_cgame 0
set vm_ui 0
set g_doWarmup 0
set timelimit 0
set fraglimit 0
set bot_enable 1
set bot_minplayers 0
set bot_nochat 1
set cg_drawFPS 0
set cg_draw2D {hud}
set cg_drawGun {hand}
set cg_thirdPerson {third_person}
set cg_thirdPersonRange {range}
set cg_fov {fov}
set cg_bobup {bob}
set cg_bobpitch {bob}
set cg_bobroll 0
set cg_runpitch 0
set cg_runroll 0
set con_notifytime 0
set r_ignorehwgamma 1
set r_gamma {gamma}
set r_intensity 1.25
set r_mapOverBrightBits 3
set r_overBrightBits 0
set cg_teamChatTime 0
set cg_drawAttacker 0
"""


@dataclass(frozen=True)
class _Act:
    keys: frozenset[str] = frozenset()
    turn_deg: float = 0.0  # to the right
    look_deg: float = 0.0  # down


@dataclass
class _Frame:
    scene: Scene
    act: _Act
    behaviour: str


class Player:
    """Plays by keys, by generators as `synth.engines.minetest_player.Player` does."""

    def __init__(self, rng: random.Random) -> None:
        self.scene: Scene
        self.behaviour = "start"
        self._rng = rng

    def range(self) -> Iterator[_Act]:
        """Walk, shoot, and change weapons."""
        rng = self._rng
        while True:
            yield from self._stroll(rng.uniform(0.8, 2.5))
            draw = rng.random()
            if draw < 0.35:
                yield from self._hold("shoot", rng.uniform(0.2, 1.4), {"mouse1"})
                yield from self._hold("stand", rng.uniform(0.3, 1.0))
            elif draw < 0.6:
                yield from self._hold("weapon", 2 / FPS, {rng.choice("2345678")})
                yield from self._hold("weapon", rng.uniform(0.8, 1.4))
                yield from self._hold("shoot", rng.uniform(0.2, 0.9), {"mouse1"})
                yield from self._hold("stand", 0.5)
            else:
                yield from self._move()

    def walk(self) -> Iterator[_Act]:
        """Walk, turn, look up and down, strafe, jump and stand. Nothing happens."""
        while True:
            yield from self._stroll(self._rng.uniform(0.8, 3))
            yield from self._move()

    def _move(self) -> Iterator[_Act]:
        rng, draw = self._rng, self._rng.random()
        if draw < 0.4:
            turn_deg, rate = rng.choice([-1, 1]) * rng.uniform(30, 140), rng.uniform(60, 220)
            yield from self._hold("turn", abs(turn_deg) / rate, (), math.copysign(rate, turn_deg))
        elif draw < 0.55:
            pitch_deg, rate = rng.uniform(-40, 40), rng.uniform(40, 140)
            way = self.scene.pitch_deg - pitch_deg
            yield from self._hold("look", abs(way) / rate, (), 0.0, math.copysign(rate, way))
            yield from self._hold("stand", rng.uniform(0.1, 0.6))
        elif draw < 0.75:
            yield from self._hold("strafe", rng.uniform(0.5, 1.4), {rng.choice("ad")})
        elif draw < 0.85:
            yield from self._hold("back", rng.uniform(0.5, 1.1), {"s"})
        elif draw < 0.92:
            yield from self._hold("jump", rng.uniform(0.6, 1.5), {"w", "space"})
        else:
            yield from self._hold("stand", rng.uniform(0.4, 1.4))

    def _stroll(self, seconds: float) -> Iterator[_Act]:
        """Walk with a level view. Where a wall holds the player up, turn away at once: who hugs walls shows nothing."""
        rng, before, stuck, drift = self._rng, self.scene.eye, 0, self._rng.uniform(-8, 8)
        for _ in range(round(seconds * FPS)):
            stuck = stuck + 1 if np.linalg.norm((self.scene.eye - before)[:2]) < 4.0 else 0
            before = self.scene.eye
            self.behaviour = "walk"
            yield _Act(frozenset({"w"}), drift / FPS, self.scene.pitch_deg * 2 / FPS)
            if stuck > 6:
                turn_deg, rate = rng.choice([-1, 1]) * rng.uniform(80, 170), rng.uniform(100, 240)
                yield from self._hold("turn", abs(turn_deg) / rate, (), math.copysign(rate, turn_deg))
                return

    def _hold(
        self, behaviour: str, seconds: float, keys: Iterable[str] = (), turn_deg_s: float = 0.0, look_deg_s: float = 0.0
    ) -> Iterator[_Act]:
        for _ in range(max(1, round(seconds * FPS))):
            self.behaviour = behaviour
            yield _Act(frozenset(keys), turn_deg_s / FPS, look_deg_s / FPS)

    def watch(self) -> Iterator[_Act]:
        """Do nothing: a bot plays."""
        while True:
            yield from self._hold("watch", 1.0)


SCENARIOS: dict[str, Callable[[Player], Iterator[_Act]]] = {"fight": Player.watch, "range": Player.range, "walk": Player.walk}


@dataclass
class _Session:
    game: Game
    keys: XInput
    scene: Scene | None = None
    owed_deg: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def picture(self) -> NDArray[np.uint8]:
        picture = self.game.next_frame()
        self.scene = read_scene(self.game.take_lines())
        return picture

    def act(self, act: _Act) -> tuple[float, float]:
        self.owed_deg += (act.turn_deg, act.look_deg)
        steps = np.rint(self.owed_deg / _DEG_A_PX).astype(int)
        self.owed_deg -= steps * _DEG_A_PX
        self.keys.set(act.keys, int(steps[0]), int(steps[1]))
        self.game.advance()
        return float(steps[0] * _DEG_A_PX), float(steps[1] * _DEG_A_PX)

    def skip(self, frames: int, keys: Iterable[str] = ()) -> None:
        for _ in range(frames):
            self.picture()
            self.act(_Act(frozenset(keys)))

    def tap(self, key: str) -> None:
        self.skip(2, {key})
        self.skip(4)

    def wait_for_world(self) -> None:
        drawn = 0
        for number in range(_START_FRAMES):
            self.picture()
            if number % 40 == 3:
                self.keys.focus()
            drawn += self.scene is not None
            self.game.advance()
            if drawn > _WORLD_FRAMES:
                self.keys.focus()
                return
        raise AttemptFailed("the game drew no world")

    def follow(self, third_person: bool) -> None:
        """Become a spectator and follow a bot."""
        self.skip(_SETTLE_FRAMES)
        self.tap("F3")
        self.skip(_SETTLE_FRAMES)
        for _ in range(_FOLLOW_TRIES):
            self.tap("mouse1")
            self.skip(10)
            if self.scene is not None and own_weapons(self.scene, third_person):
                return
        raise AttemptFailed("the camera follows no bot; try another seed")


def play(take: Take, encode: Callable[[NDArray[np.uint8]], None]) -> Played:
    """Record a take."""
    rng = random.Random(f"{take.seed}/look")
    name, fov_deg, gamma = take.place or rng.choice(MAPS), rng.uniform(70, 100), rng.uniform(1.3, 2.2)
    bob, distance = rng.choice([0, 0, 0.002]), rng.uniform(70, 130)
    bots = rng.choice([2, 3]) if take.scenario == "fight" else rng.choice([0, 2]) if take.scenario == "range" else 0
    settings = {
        "width": take.size[0],
        "height": take.size[1],
        "hud": int(take.hud),
        "hand": int(take.hand),
        "third_person": int(take.third_person),
        "range": distance,
        "fov": fov_deg,
        "gamma": gamma,
        "bob": bob,
        "weapons": "\n".join(f'bind {number} "weapon {number}"' for number in range(1, 9)),
        "bots": "\n".join(f'bind F{5 + number} "addbot {bot} 3"' for number, bot in enumerate(_BOTS)),
    }
    frames: list[_Frame] = []
    with _running(take, name, _CONFIGURATION.format(**settings)) as session:
        session.wait_for_world()
        for key in ("F2", "F1", *(f"F{5 + number}" for number in range(bots))):
            session.tap(key)
        if take.scenario == "fight":
            session.follow(take.third_person)
        session.skip(_SETTLE_FRAMES)
        player = Player(random.Random(f"{take.seed}/play"))
        acts, unarmed = SCENARIOS[take.scenario](player), 0
        for number in range(round(take.seconds * FPS)):
            picture = session.picture()
            if session.scene is None:
                if not frames:
                    raise AttemptFailed(f"frame {number} came without a camera")
                session.scene = frames[-1].scene  # a scoreboard alone: the picture stands still
            encode(picture)
            player.scene = session.scene
            act = next(acts)
            unarmed = 0 if own_weapons(session.scene, take.third_person) else unarmed + 1
            if take.scenario != "fight" and (take.hand or take.third_person) and unarmed > FPS:
                act, player.behaviour = _Act(frozenset({"mouse1"} if unarmed % 10 < 2 else ())), "dead"  # live again
            frames.append(_Frame(session.scene, act, player.behaviour))
            session.act(act)
    optics = Optics(*take.size, take.size[0] / 2 / math.tan(math.radians(frames[0].scene.fov_deg[0] / 2)))
    header = {"game": "OpenArena", "place": name, "bots": bots, "gamma": gamma, "keys_known": take.scenario != "fight"}
    scenes = [frame.scene for frame in frames]
    jumps = jumps_of(scenes)
    dead = sum(frame.behaviour == "dead" for frame in frames) / len(frames)
    if dead > _MAX_DEAD:
        raise AttemptFailed(f"the player lies dead for {dead:.0%} of the take: try another seed")
    quake_map = read_map(name, Path(_DATA))
    truths = [_frame_truth(frame) for frame in frames]
    seen = (event for event in event_spans(scenes, jumps, take, quake_map.movers) if not is_hidden(event, scenes, quake_map))
    events = [*seen, *other_spans(scenes, jumps, take, quake_map, truths, optics)]
    return Played(header, optics, truths, events, jumps)


def _frame_truth(frame: _Frame) -> FrameTruth:
    east, north, up = frame.scene.eye / UNITS_PER_M
    return FrameTruth(
        eye_m=(float(east), float(north), float(up)),
        yaw_deg=frame.scene.yaw_deg,
        pitch_deg=frame.scene.pitch_deg,
        keys=tuple(sorted(_TRUTH_KEYS[key] for key in frame.act.keys if key in _TRUTH_KEYS)),
        mouse_deg=(frame.act.turn_deg, frame.act.look_deg),
        behaviour=frame.behaviour,
        notes={"fov_deg": round(frame.scene.fov_deg[0], 3)},
    )


@contextlib.contextmanager
def _running(take: Take, name: str, configuration: str) -> Iterator[_Session]:
    require("openarena", PACKAGES)
    program = _PROGRAM if Path(_PROGRAM).exists() else require("ioquake3", PACKAGES)
    base = {"com_basegame": "baseoa", "fs_basepath": str(Path(_DATA).parent), "com_homepath": ".openarena", "cl_motd": 0}
    base |= {"com_legacyprotocol": 71, "com_protocol": 71, "net_enabled": 0}
    command = [program, *(str(word) for pair in base.items() for word in ("+set", *pair)), "+devmap", name]
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openarena-", ignore_cleanup_errors=True)))
        folder = home / ".openarena" / "baseoa"
        folder.mkdir(parents=True)
        for file in ("autoexec.cfg", "q3config.cfg"):
            (folder / file).write_text(configuration)
        width, height = take.size
        display = stack.enter_context(virtual_display(max(640, width), max(480, height)))
        environment: dict[str, Any] = {"HOME": str(home), "DISPLAY": display, "LP_NUM_THREADS": "1", "SDL_AUDIODRIVER": "dummy"}
        keys = stack.enter_context(contextlib.closing(XInput(display)))
        library = build_library(Path(__file__).with_name("idtech3.c"))
        game = stack.enter_context(Game(command, environment, 1 / FPS, [library]))
        yield _Session(game, keys)


ENGINE = Engine(tuple(SCENARIOS), FPS, play)
