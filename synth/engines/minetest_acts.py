"""Interactions acted out in Minetest: blocks, doors, torches, weather, blasts and creatures, with the engine's own truth.

A take is recorded by `synth.engines.minetest_scenes`, in lockstep, at 30 pictures a second. The server's mod builds a stage in
a natural landscape. Blocks, doors, torches and what is taken in the hand are acted by keys, the rest by the server. A take
counts only where the client got to know of the interaction, and where it lies in view (`synth.engines.truth_file.view_of`).
Equal takes have equal stages and cameras. Their pictures are not equal, since the server runs in real time.
"""

import functools
import math
import random
import subprocess  # to ask the game for its version
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation.errors import AttemptFailed
from synth.acted import ACT_S, TURN_DEG_S, UNDO_S, FilmedTake, check_take
from synth.engines.lockstep import require
from synth.engines.minetest_game import PACKAGES
from synth.engines.minetest_player import FPS, Act, Acts, Player
from synth.engines.minetest_scenes import Look, play_acts
from synth.engines.recorder import MAX_SEED
from synth.engines.takes import Take
from synth.engines.truth_file import EventSpan, FrameTruth, Optics, view_of

MAPGENS = ("v7", "valleys", "carpathian")
WORLDS = range(1, 9)
"""Seeds of the worlds of each kind that `--frames minetest` names. Any other can be named as well."""

_STAGE_FRAMES = 60  # until the stage is built and drawn
_CLEAR_FRAMES = 120  # more, until weather of the take before has cleared: flakes live for three seconds, and the sky fades
_STILL = 1.0  # by how much the picture may change before the action (mean, 0-255): water and torches move
_FRAME_S = 1 / FPS  # of real time at least: the server does not wait for pictures
_MAX_DIG_FRAMES = 75
_SWITCH_FRAMES = 3  # for which a key is held
_EYE_M = 1.47
_TORCH = "default:torch"

Event = dict[str, Any]
Shows = Callable[[Event], bool]


@dataclass(frozen=True)
class ActScript:
    """How an interaction is acted out, and by what its truth is known."""

    shows: Shows | None = None  # whether an event that the client got to know is the interaction; None: it is in the hand
    key: str | None = None  # that acts it; None: the server acts it
    undo_key: str | None = None
    can_be_undone: bool = True


def _is_message(name: str) -> Shows:
    return lambda event: bool(event["name"] == name)


def _changes(before: Callable[[str], bool], now: Callable[[str], bool]) -> Shows:
    return lambda event: event["name"] == "changed" and before(event["before"]) and now(event["now"])


def _is_air(node: str) -> bool:
    return node == "air"


def _is_door(node: str) -> bool:
    return "doors:door" in node


def _is_torch(node: str) -> bool:
    return _TORCH in node


def _is_block(node: str) -> bool:
    return node != "air" and not _is_torch(node) and not _is_door(node) and "gamecraft_scenes:" not in node


_WEATHER = ActScript(_is_message("weather"))
_APPEARS = ActScript(_is_message("appear"))
SCRIPTS: dict[str, ActScript] = {
    "place_block": ActScript(_changes(_is_air, _is_block), "place"),
    "dig_block": ActScript(_changes(_is_block, _is_air), "dig"),
    "open_door": ActScript(_changes(_is_door, _is_door), "place", "place"),
    "place_torch": ActScript(_changes(_is_air, _is_torch), "place"),
    "take_out_torch": ActScript(None, "2", "1"),
    "take_out_block": ActScript(None, "2", "1"),
    "snow": _WEATHER,
    "rain": _WEATHER,
    "darkness": _WEATHER,
    "explosion": ActScript(_is_message("explosion"), can_be_undone=False),
    "creature": _APPEARS,
    "human": _APPEARS,
}

_OVERHEAD = ("snow", "rain", "darkness")


@dataclass(frozen=True)
class MinetestTake:
    """One take: an interaction in a world, and whether and how it fails."""

    mapgen: str
    world_seed: int
    interaction: str
    seed: int = 0  # of all random choices, also of the spot in the world
    kind: str = "true"  # one of `synth.acted.KINDS`
    seconds: float = 5.0
    width: int = 640  # px
    height: int = 480  # px

    def __post_init__(self) -> None:
        for name, names in (("mapgen", MAPGENS), ("interaction", tuple(SCRIPTS))):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} {getattr(self, name)!r} cannot be acted out; known: {', '.join(names)}")
        if not 0 <= self.world_seed <= MAX_SEED:
            raise ValueError(f"the seed of a world must be between 0 and {MAX_SEED}, not {self.world_seed}")
        check_take(self.kind, self.interaction, SCRIPTS[self.interaction].can_be_undone, self.seconds)


@functools.cache
def version() -> str:
    """Return the game's own name and version, such as "minetest 5.6.1". Raises Unavailable where it cannot be recorded."""
    require("Xvfb", PACKAGES)
    said = subprocess.run([require("minetest", PACKAGES), "--version"], capture_output=True, text=True, check=False).stdout
    return " ".join(said.split()[:2]).lower() or "minetest"


def film_takes(takes: Sequence[MinetestTake], done: Callable[[MinetestTake, FilmedTake | AttemptFailed], None]) -> None:
    """Act out takes one after the other, on stages in one spot of the first take's world. All must have its length and size.

    The game is started once, which takes longer than a take. done: called with each take when it is filmed, and with an
    AttemptFailed where the engine does not show in view what was acted. Raises Unavailable where the game is not installed.
    """
    first, look = takes[0], _draw_look(takes[0])
    frames, size = round(first.seconds * FPS), (first.width, first.height)
    shown = [_interaction_shown(take) for take in takes]
    waits = [_STAGE_FRAMES + (_CLEAR_FRAMES if before in _OVERHEAD else 0) for before in (None, *shown[:-1])]
    optics = Optics(*size, first.width / 2 / math.tan(math.radians(look.hfov_deg / 2)))
    pictures: list[np.ndarray] = []
    actors: list[_Actor] = []

    def acts(player: Player) -> Acts:
        for take, name, wait in zip(takes, shown, waits, strict=True):
            actors.append(_Actor(player, take, name, wait))
            yield from actors[-1].acts()

    def keep(picture: np.ndarray) -> None:
        pictures.append(picture.copy())
        if actors and len(pictures) > actors[0].wait + frames:
            finish()

    def finish() -> None:
        actor = actors.pop(0)
        filmed = np.stack(pictures[actor.wait : actor.wait + frames])
        del pictures[: actor.wait + frames]
        try:
            _check_still(filmed)
            happened = _check(actor.log[actor.wait :], actor.take, actor.shown, optics)
        except AttemptFailed as error:
            done(actor.take, error)
        else:
            done(actor.take, FilmedTake(filmed, FPS, happened, f"{look.mapgen} {look.world_seed} at {look.at[0]},{look.at[1]}"))

    seed = random.Random(f"{first.seed}/{first.interaction}/stage").randrange(MAX_SEED)
    play_acts(Take("stage", seed, (sum(waits) + len(takes) * frames) / FPS, size, hud=False), look, acts, keep)
    finish()


def _draw_look(take: MinetestTake) -> Look:
    rng = random.Random(f"{take.seed}/{take.mapgen}/{take.world_seed}/look")
    return Look(
        world_seed=take.world_seed,
        mapgen=take.mapgen,
        at=(rng.randint(-900, 900), rng.randint(-900, 900)),
        hfov_deg=rng.uniform(65, 95),
        time_of_day=0.5,  # each stage sets its own
        bobbing=0.0,
        highlighting="none",
    )


def _interaction_shown(take: MinetestTake) -> str | None:
    if take.kind in ("noop", "teleport"):
        return None
    if take.kind == "wrong":
        rng = random.Random(f"{take.seed}/{take.interaction}/wrong")
        return rng.choice([name for name in SCRIPTS if name != take.interaction])
    return take.interaction


@dataclass(frozen=True)
class _Known:
    """What the client knew of a frame."""

    events: tuple[Event, ...]
    item: str
    view: FrameTruth


@dataclass
class _Actor:
    """Plays a take: waits until the stage is built, acts, undoes, turns."""

    player: Player
    take: MinetestTake
    shown: str | None
    wait: int  # frames until the stage is ready
    log: list[_Known] = field(default_factory=list)

    def acts(self) -> Acts:
        """Yield what the player does in each frame, and note what the client knows of it."""
        staged = self.shown or self.take.interaction
        plan = self._played(SCRIPTS[self.shown] if self.shown else ActScript())
        for number in range(self.wait):
            self._note()
            first = number < _SWITCH_FRAMES  # the first slot, whatever the take before has left in the hand
            yield Act(frozenset({"1"} if first else ()), command=f"stage_{staged}" if number == 0 else None)
            time.sleep(_FRAME_S)
        began_s = time.monotonic()
        for act in plan:
            self._note()
            yield act
            now_s = time.monotonic()
            time.sleep(max(0.0, began_s + _FRAME_S - now_s))
            began_s = time.monotonic()

    def _note(self) -> None:
        state = self.player.state
        east, up, north = (float(value) for value in state.eye)
        view = FrameTruth((east, north, up), state.yaw_deg, state.pitch_deg)
        self.log.append(_Known(tuple(state.events), state.item, view))

    def _played(self, script: ActScript) -> Iterator[Act]:
        take, shown = self.take, self.shown
        act, undo, dug = round(ACT_S * FPS), round(UNDO_S * FPS), False
        for number in range(round(take.seconds * FPS)):
            keys, command = set[str](), None
            dug = dug or (number > act and self.player.state.dug)
            held = _MAX_DIG_FRAMES if script.key == "dig" else _SWITCH_FRAMES
            if script.key and act <= number < act + held and not (script.key == "dig" and dug):
                keys.add(script.key)
            if number == act:
                command = "jump" if take.kind == "teleport" else f"act_{shown}" if shown and not script.key else None
            if take.kind == "vanishing" and script.undo_key and undo <= number < undo + _SWITCH_FRAMES:
                keys.add(script.undo_key)
            elif take.kind == "vanishing" and number == undo:
                command = f"undo_{shown}"
            turns = take.kind == "turning" and act <= number < undo
            yield Act(frozenset(keys), TURN_DEG_S / FPS if turns else 0.0, command=command)


def _check_still(pictures_FHW3: np.ndarray) -> None:
    """Raise AttemptFailed if something happens before the action."""
    before = pictures_FHW3[round(ACT_S * FPS) - 2].astype(np.float32)
    if (change := float(np.abs(before - pictures_FHW3[0]).mean())) > _STILL:
        raise AttemptFailed(f"the stage was not still before the action: the picture changed by {change:.1f}")


def _check(log: list[_Known], take: MinetestTake, shown: str | None, optics: Optics) -> str | None:
    """Return the interaction that the engine shows in view. Raises AttemptFailed where it is not the one that was acted."""
    act, undo = round(ACT_S * FPS), round(UNDO_S * FPS)
    if shown is None:
        return None
    during = log[act : undo if take.kind == "vanishing" else len(log)]
    if SCRIPTS[shown].shows is None:
        happened = log[act].item != during[-1].item and (during[-1].item == _TORCH) == (shown == "take_out_torch")
    else:
        happened = any(_is_in_view(event, known, shown, optics) for known in during for event in known.events)
    if not happened:
        raise AttemptFailed(f"the engine does not show {shown} in view")
    return shown


def _is_in_view(event: Event, known: _Known, shown: str, optics: Optics) -> bool:
    shows = SCRIPTS[shown].shows
    if shows is None or not shows(event):
        return False
    if not (pos := event.get("pos")):
        return True  # all over the picture
    east, up, north = pos
    span = EventSpan(shown, 0, 1, (east, north, up), event.get("radius") or 0.5)
    return view_of(span, known.view, optics)[2]
