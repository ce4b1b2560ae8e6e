"""Interactions of the paper's section 3.3, acted out in VizDoom: before, transition and after, with ground truth.

In a take the player stands at a spot of a real map, does nothing for a second, then carries out an interaction by console
commands and keys, or fails to (`synth.acted`). Equal takes give equal pictures. The engine draws 35 pictures per second.
"""

import math
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation import scratch
from synth.acted import ACT_S, TURN_DEG_S, UNDO_S, FilmedTake, NoSpot, check_take
from synth.angles import wrapped_deg
from synth.doom.engine import Game, Screen, start_game, wads
from synth.doom.player import Action
from synth.doom.props import write_addon
from synth.doom.record import FPS
from synth.doom.spots import Spot, find_spots
from synth.doom.wad import map_names, read_level

SKILL = 2
# The engine ignores input in its first tics. The effects of a warp and of the lamp are over after a second.
_START_TICS, _SETTLE_TICS = 10, 35
_MAX_SPOTS = 40
_UNARMED = ("take Fist", "take Pistol", "take Shotgun")


@dataclass(frozen=True)
class InteractionScript:
    """How an interaction is acted out."""

    act: tuple[str, ...] = ()  # console commands at the action
    undo: tuple[str, ...] = ()  # commands that undo it; none: it passes by itself, or cannot be undone
    before: tuple[str, ...] = ()  # commands before the take
    keys: tuple[tuple[str, int, int], ...] = ()  # (key, from, to) in tics after the action
    door: bool = False  # the take needs a shut door in front of the player

    @property
    def can_be_undone(self) -> bool:
        return bool(self.undo)


def _hold(name: str, *more: str, undo: tuple[str, ...] = (), keys: tuple[tuple[str, int, int], ...] = ()) -> InteractionScript:
    return InteractionScript((f"give {name}", f"use {name}", *more), (f"take {name}", *undo), _UNARMED, keys)


SCRIPTS: dict[str, InteractionScript] = {
    "snow": InteractionScript(("summon GcSnow 0",), ("remove GcSnow", "remove GcFlake")),
    "rain": InteractionScript(("summon GcRain 0",), ("remove GcRain", "remove GcDrop")),
    "lightning": InteractionScript(("summon GcLightning",)),
    "fog": InteractionScript(("summon GcFog",), ("summon GcNoFog",)),
    "darkness": InteractionScript(("summon GcDark",), ("summon GcNoDark",)),
    "explosion": InteractionScript(("remove ExplosiveBarrel", "summon GcBlast"), before=("summon ExplosiveBarrel",)),
    "draw_gun": _hold("Pistol"),
    "draw_knife": _hold("GcKnife"),
    "take_out_torch": _hold("GcTorch", "summon GcTorchlight", undo=("summon GcNoTorchlight",)),
    "draw_and_fire_gun": _hold("Shotgun", "give Shell", keys=(("FIRE", 25, 28), ("FIRE", 70, 73))),
    "operate_phone": _hold("GcPhone"),
    "open_door": InteractionScript(keys=(("USE", 0, 2),), door=True),
    "human": InteractionScript(("summon Zombieman",), ("remove Zombieman",)),
    "demon": InteractionScript(("summon Demon",), ("remove Demon",)),
}


@dataclass(frozen=True)
class InteractionTake:
    """One take: an interaction on a map, and whether and how it fails."""

    collection: str  # of maps: the name of a WAD file
    level: str
    interaction: str
    seed: int = 0  # of all random choices
    kind: str = "true"  # one of KINDS
    seconds: float = 5.0
    width: int = 640  # px
    height: int = 480  # px

    def __post_init__(self) -> None:
        known = {"collection": list(wads()), "interaction": list(SCRIPTS)}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} {getattr(self, name)!r} cannot be acted out; known: {', '.join(names)}")
        levels = map_names(wads()[self.collection])
        if self.level not in levels:
            raise ValueError(f"unknown map {self.level!r} in {self.collection}; known: {', '.join(levels)}")
        check_take(self.kind, self.interaction, SCRIPTS[self.interaction].can_be_undone, self.seconds)


def film_take(take: InteractionTake) -> FilmedTake:
    """Act out a take. Raises NoSpot if the map has no spot for it."""
    rng = random.Random(f"{take.seed}/{take.collection}/{take.level}/{take.interaction}")
    shown = _interaction_shown(take, rng)
    screen = Screen(take.width, take.height, hud=False, weapon=True, depth=False)
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        addon = Path(folder) / "props.pk3"
        write_addon(addon)
        with start_game(wads()[take.collection], take.level, take.seed % 2**31, SKILL, False, screen, addon) as game:
            _wait(game, _START_TICS)
            spot, elsewhere = _choose_spots(game, take, rng)
            frames = list(_act_out(game, take, shown, elsewhere))
    return FilmedTake(np.stack(frames), FPS, shown, f"{take.level} {spot.x:.0f},{spot.y:.0f} {spot.yaw_deg % 360:.0f} deg")


def _interaction_shown(take: InteractionTake, rng: random.Random) -> str | None:
    if take.kind in ("noop", "teleport"):
        return None
    if take.kind == "wrong":
        return rng.choice([name for name, script in SCRIPTS.items() if name != take.interaction and not script.door])
    return take.interaction


def _choose_spots(game: Game, take: InteractionTake, rng: random.Random) -> tuple[Spot, Spot]:
    """Choose the spot of the take and go there. A teleport also needs a second spot, at which the player has stood."""
    level, script = read_level(wads()[take.collection], take.level), SCRIPTS[take.interaction]
    game.command("notarget")
    game.command("god")
    game.command("summon GcLamp")
    candidates = find_spots(level, game.observe(), rng, script.door)
    elsewhere = _first_usable(game, find_spots(level, game.observe(), rng, False), take) if take.kind == "teleport" else None
    spot = _first_usable(game, candidates, take)
    _run_commands(game, script.before)
    _wait(game, _SETTLE_TICS)
    return spot, elsewhere or spot


def _first_usable(game: Game, candidates: Iterator[Spot], take: InteractionTake) -> Spot:
    for _, spot in zip(range(_MAX_SPOTS), candidates, strict=False):
        if _try_spot(game, spot):
            return spot
    raise NoSpot(f"{take.collection}:{take.level} has no place for {take.interaction}")


def _try_spot(game: Game, spot: Spot) -> bool:
    """Move the player to a spot. False if they end up elsewhere, fall or are hurt."""
    _warp(game, spot)
    before = game.observe().state
    _wait(game, _SETTLE_TICS)
    after = game.observe().state
    arrived = math.dist((spot.x, spot.y), (after["POSITION_X"], after["POSITION_Y"])) < 4
    still = abs(after["POSITION_Z"] - before["POSITION_Z"]) < 1
    return arrived and still and after["HEALTH"] >= before["HEALTH"]


def _warp(game: Game, spot: Spot) -> None:
    game.command(f"warp {spot.x:.0f} {spot.y:.0f}")
    _wait(game, 2)
    turn = wrapped_deg(game.observe().state["ANGLE"] - spot.yaw_deg)
    game.step(Action(turn_deg=turn))


def _act_out(game: Game, take: InteractionTake, shown: str | None, elsewhere: Spot) -> Iterator[np.ndarray]:
    script = SCRIPTS[shown] if shown else InteractionScript()
    if take.kind == "wrong":
        _run_commands(game, script.before)
        _wait(game, _SETTLE_TICS)
    act, undo = round(ACT_S * FPS), round(UNDO_S * FPS)
    for tic in range(round(take.seconds * FPS)):
        yield game.picture.copy()
        keys = {key for key, start, end in script.keys if start <= tic - act < end}
        if tic == act:
            _run_commands(game, script.act)
            if take.kind == "teleport":
                game.command(f"warp {elsewhere.x:.0f} {elsewhere.y:.0f}")
        if take.kind == "vanishing" and tic == undo:
            _run_commands(game, script.undo)
        turns = take.kind == "turning" and act <= tic < undo
        game.step(Action(frozenset(keys), TURN_DEG_S / FPS if turns else 0.0))


def _run_commands(game: Game, commands: tuple[str, ...]) -> None:
    for command in commands:
        game.command(command)


def _wait(game: Game, tics: int) -> None:
    for _ in range(tics):
        game.step(Action())
