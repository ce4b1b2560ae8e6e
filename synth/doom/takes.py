"""Interactions of the paper's section 3.3 acted out in the game engine: before, transition and after, with truth.

A take stands at a spot of a real map, does nothing for a second, then carries out an interaction by console commands and keys.
The same take can be made to fail in known ways, which is what `verify` is measured against:

    true       the interaction happens and its end state stays
    noop       nothing happens
    wrong      another interaction happens
    vanishing  the interaction happens and is undone before the end
    teleport   the camera jumps to another place instead
    turning    the interaction happens, and the camera turns away meanwhile

Equal takes give equal pictures. The engine draws 35 pictures a second.
"""

import math
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation import scratch
from curation.errors import AttemptFailed
from synth.doom.engine import Game, Screen, running, wads
from synth.doom.player import Action
from synth.doom.props import write_addon
from synth.doom.record import FPS
from synth.doom.spots import Spot, spots
from synth.doom.wad import map_names, read_level

KINDS = ("true", "noop", "wrong", "vanishing", "teleport", "turning")
SKILL = 2
# The engine ignores input in its first tics; what a warp and the lamp stir up settles in a second.
_START_TICS, _SETTLE_TICS = 10, 35
# The action begins a second into the take; what is undone is undone three seconds in.
ACT_S, UNDO_S = 1.0, 3.0
_TRIED_SPOTS = 40
_TURN_DEG = 0.7  # a tic: half a right angle by the end
_UNARMED = ("take Fist", "take Pistol", "take Shotgun")


@dataclass(frozen=True)
class Script:
    """How an interaction is acted out. Commands before the take, at the action and to undo it (none: it passes, or stays for
    good); `keys`: (key, from, to) in tics after the action.
    """

    act: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    keys: tuple[tuple[str, int, int], ...] = ()
    door: bool = False

    @property
    def lasting(self) -> bool:
        return bool(self.undo)


def _held(name: str, *more: str, undo: tuple[str, ...] = (), keys: tuple[tuple[str, int, int], ...] = ()) -> Script:
    return Script((f"give {name}", f"use {name}", *more), (f"take {name}", *undo), _UNARMED, keys)


SCRIPTS: dict[str, Script] = {
    "snow": Script(("summon GcSnow 0",), ("remove GcSnow", "remove GcFlake")),
    "rain": Script(("summon GcRain 0",), ("remove GcRain", "remove GcDrop")),
    "lightning": Script(("summon GcLightning",)),
    "fog": Script(("summon GcFog",), ("summon GcNoFog",)),
    "darkness": Script(("summon GcDark",), ("summon GcNoDark",)),
    "explosion": Script(("remove ExplosiveBarrel", "summon GcBlast"), before=("summon ExplosiveBarrel",)),
    "draw_gun": _held("Pistol"),
    "draw_knife": _held("GcKnife"),
    "take_out_torch": _held("GcTorch", "summon GcTorchlight", undo=("summon GcNoTorchlight",)),
    "draw_and_fire_gun": _held("Shotgun", "give Shell", keys=(("FIRE", 25, 28), ("FIRE", 70, 73))),
    "operate_phone": _held("GcPhone"),
    "open_door": Script(keys=(("USE", 0, 2),), door=True),
    "human": Script(("summon Zombieman",), ("remove Zombieman",)),
    "demon": Script(("summon Demon",), ("remove Demon",)),
}


def kinds_of(interaction: str) -> list[str]:
    """How a take of it may turn out: what cannot be undone does not vanish."""
    return [kind for kind in KINDS if kind != "vanishing" or SCRIPTS[interaction].lasting]


@dataclass(frozen=True)
class Take:
    """One take: an interaction on a map, how it turns out, and everything random by a seed."""

    collection: str
    level: str
    interaction: str
    seed: int = 0
    kind: str = "true"
    seconds: float = 5.0
    width: int = 640
    height: int = 480

    def __post_init__(self) -> None:
        known = {"collection": list(wads()), "interaction": list(SCRIPTS), "kind": list(KINDS)}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} {getattr(self, name)!r} cannot be acted out; known: {', '.join(names)}")
        levels = map_names(wads()[self.collection])
        if self.level not in levels:
            raise ValueError(f"unknown map {self.level!r} in {self.collection}; known: {', '.join(levels)}")
        if self.seconds < UNDO_S + 1:
            raise ValueError(f"a take lasts at least {UNDO_S + 1:g} s, not {self.seconds:g} s")
        if self.kind not in kinds_of(self.interaction):
            raise ValueError(f"{self.interaction} cannot be undone: it has no vanishing take")


@dataclass(frozen=True)
class Filmed:
    """Pictures uint8 [F, H, W, 3] RGB at `fps`, and the truth: which interaction happened, if any, and where."""

    pictures: np.ndarray
    fps: int
    happened: str | None
    place: str


class NoPlace(AttemptFailed):
    """The map has no spot on which the interaction can be acted out."""


def film(take: Take) -> Filmed:
    """Act out a take. NoPlace where the map has no spot for it."""
    rng = random.Random(f"{take.seed}/{take.collection}/{take.level}/{take.interaction}")
    happens = _happens(take, rng)
    screen = Screen(take.width, take.height, hud=False, weapon=True, depth=False)
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        addon = Path(folder) / "props.pk3"
        write_addon(addon)
        with running(wads()[take.collection], take.level, take.seed % 2**31, SKILL, False, screen, addon) as game:
            _wait(game, _START_TICS)
            spot, elsewhere = _places(game, take, rng)
            frames = list(_acted(game, take, happens, elsewhere))
    return Filmed(np.stack(frames), FPS, happens, f"{take.level} {spot.x:.0f},{spot.y:.0f} {spot.yaw_deg % 360:.0f} deg")


def _happens(take: Take, rng: random.Random) -> str | None:
    if take.kind in ("noop", "teleport"):
        return None
    if take.kind == "wrong":
        return rng.choice([name for name, script in SCRIPTS.items() if name != take.interaction and not script.door])
    return take.interaction


def _places(game: Game, take: Take, rng: random.Random) -> tuple[Spot, Spot]:
    """Stand at the spot of the take; a teleport needs a second one, which the player has been to."""
    level, script = read_level(wads()[take.collection], take.level), SCRIPTS[take.interaction]
    game.command("notarget")
    game.command("god")
    game.command("summon GcLamp")
    found = spots(level, game.observe(), rng, script.door)
    elsewhere = _first_good(game, spots(level, game.observe(), rng, False), take) if take.kind == "teleport" else None
    spot = _first_good(game, found, take)
    for command in script.before:
        game.command(command)
    _wait(game, _SETTLE_TICS)
    return spot, elsewhere or spot


def _first_good(game: Game, found: Iterator[Spot], take: Take) -> Spot:
    for _, spot in zip(range(_TRIED_SPOTS), found, strict=False):
        if _stands(game, spot):
            return spot
    raise NoPlace(f"{take.collection}:{take.level} has no place for {take.interaction}")


def _stands(game: Game, spot: Spot) -> bool:
    """Go there and look; False where the player ended up elsewhere, falls or is hurt."""
    _go(game, spot)
    before = game.observe().state
    _wait(game, _SETTLE_TICS)
    after = game.observe().state
    arrived = math.dist((spot.x, spot.y), (after["POSITION_X"], after["POSITION_Y"])) < 4
    still = abs(after["POSITION_Z"] - before["POSITION_Z"]) < 1
    return arrived and still and after["HEALTH"] >= before["HEALTH"]


def _go(game: Game, spot: Spot) -> None:
    game.command(f"warp {spot.x:.0f} {spot.y:.0f}")
    _wait(game, 2)
    turn = (game.observe().state["ANGLE"] - spot.yaw_deg + 180) % 360 - 180
    game.step(Action(turn_deg=turn))


def _acted(game: Game, take: Take, happens: str | None, elsewhere: Spot) -> Iterator[np.ndarray]:
    script = SCRIPTS[happens] if happens else Script()
    if take.kind == "wrong":
        for command in script.before:
            game.command(command)
        _wait(game, _SETTLE_TICS)
    act, undo = round(ACT_S * FPS), round(UNDO_S * FPS)
    for tic in range(round(take.seconds * FPS)):
        yield game.picture.copy()
        keys = {key for key, start, end in script.keys if start <= tic - act < end}
        if tic == act:
            _command(game, script.act)
            if take.kind == "teleport":
                game.command(f"warp {elsewhere.x:.0f} {elsewhere.y:.0f}")
        if take.kind == "vanishing" and tic == undo:
            _command(game, script.undo)
        turns = take.kind == "turning" and act <= tic < undo
        game.step(Action(frozenset(keys), _TURN_DEG if turns else 0.0))


def _command(game: Game, commands: tuple[str, ...]) -> None:
    for command in commands:
        game.command(command)


def _wait(game: Game, tics: int) -> None:
    for _ in range(tics):
        game.step(Action())
