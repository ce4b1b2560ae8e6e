"""A seeded, scripted player. A behaviour is a small function from the view to keys and a turn; a style is a mix of behaviours.

A behaviour lasts one to a few seconds. The next one is drawn at random, with the weights of the style. Turns are smoothed, as a
hand on a mouse would do. The same seed, map and pictures give the same actions.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from synth.doom.navigate import USE_REACH, distance_behind, offset_right
from synth.doom.wad import Door, Level
from synth.doom.walk import Monster, PlayerView, Walk

STYLES: dict[str, dict[str, int]] = {
    "explore": {"nav": 60, "look": 10, "idle": 6, "strafe": 8, "back": 4, "weapon": 6, "fire": 5, "keyturn": 5},
    "fight": {"nav": 40, "fire": 25, "strafe": 15, "weapon": 12, "look": 8},
    "static": {"idle": 35, "look": 35, "keyturn": 20, "weapon": 6, "fire": 4},
    "camera": {"nav": 30, "look": 15, "idle": 8, "strafe": 22, "back": 12, "keyturn": 13},
    # A quarter of the time each for walking straight ahead, straight back, and turning: what a world model must learn to obey.
    "drill": {"ahead": 44, "back": 44, "nav": 5, "look": 14, "keyturn": 14, "strafe": 12, "idle": 3},
}
FIGHTING_STYLES = frozenset({"explore", "fight"})
INTERRUPTIBLE = frozenset({"nav", "strafe", "back", "idle"})  # a visible monster ends these
START_TICS = 15  # no action: the engine ignores input in the first seven tics of a map, so the logged keys would be wrong
COMBAT_PAUSE_TICS = 150  # between two fights, so that an unreachable monster does not keep the player busy for ever
MIN_MONSTER_AREA_PX = 150  # area of its box; smaller monsters are too far away to matter
MAX_TURN_CHANGE_DEG = 1.2  # largest change of the turn rate from one tic to the next, degrees per tic
WEAPON_KEYS = ("WEAPON1", "WEAPON2", "NEXT_WEAPON")  # fist and pistol, which every player starts with
VIEW_DEG = 90.0  # horizontal field of view


class Action(NamedTuple):
    """What the player does in one tic: keys held, degrees turned by the mouse (positive to the right)."""

    keys: frozenset[str] = frozenset()
    turn_deg: float = 0.0


class Behaviour(NamedTuple):
    """A function that chooses the action of one tic, and how long the behaviour lasts."""

    act: Callable[["ScriptedPlayer", PlayerView], Action]
    tics: tuple[int, int]  # shortest and longest duration


@dataclass
class CurrentBehaviour:
    """The behaviour in progress: its random choices, drawn once when it starts, and how long it has run."""

    name: str
    left_tics: int
    side: int  # -1 left, 1 right
    rate_deg: float  # turn per tic
    weapon_key: str
    runs: bool
    tic: int = 0  # tics since it started


class ScriptedPlayer:
    """Chooses one action per tic, in a style. `behaviour` names the behaviour of the last action."""

    def __init__(self, rng: random.Random, level: Level, style: str) -> None:
        self.walk = Walk(level, rng)
        self.crossing = False
        self._rng, self._style = rng, style
        self._turn_deg = 0.0
        self._combat_pause = START_TICS
        self.current = self._draw("idle", rng.randint(START_TICS, 35))
        self.behaviour = self.current.name

    def start(self, name: str, tics: int | None = None) -> None:
        """Begin a behaviour for a number of tics, or for a random time."""
        self.current = self._draw(name, tics)
        self.crossing = False

    def act(self, view: PlayerView) -> Action:
        """Return the keys and the smoothed turn for this tic."""
        self._choose(view)
        self.current.tic += 1
        self.behaviour = self.current.name  # a behaviour that is started below takes effect in the next tic
        action = BEHAVIOURS[self.behaviour].act(self, view)
        change = _clamp(action.turn_deg - self._turn_deg, MAX_TURN_CHANGE_DEG)
        self._turn_deg = round(self._turn_deg + change, 3)
        if abs(self._turn_deg) < 0.05:
            self._turn_deg = 0.0
        return Action(action.keys, self._turn_deg)

    def _choose(self, view: PlayerView) -> None:
        self.current.left_tics -= 1
        self._combat_pause = max(0, self._combat_pause - 1)
        ready = self._style in FIGHTING_STYLES and self._combat_pause == 0 and self.current.name in INTERRUPTIBLE
        if ready and _largest_monster(view) is not None:
            self._combat_pause = COMBAT_PAUSE_TICS
            self.start("combat")
        if self.current.left_tics <= 0:
            mix = STYLES[self._style]
            self.start(self._rng.choices(list(mix), list(mix.values()))[0])

    def _draw(self, name: str, tics: int | None = None) -> CurrentBehaviour:
        rng = self._rng
        random_tics = rng.randint(*BEHAVIOURS[name].tics)
        return CurrentBehaviour(
            name=name,
            left_tics=random_tics if tics is None else tics,
            side=rng.choice((-1, 1)),
            rate_deg=rng.uniform(1.0, 4.5),
            weapon_key=rng.choice(WEAPON_KEYS),
            runs=rng.random() < 0.25,
        )


def _nav(player: ScriptedPlayer, view: PlayerView) -> Action:
    walk = player.walk
    door = walk.shut_door_ahead(view)
    if door is not None:
        walk.take_door(door)
        player.start("door")
        return Action()
    if not walk.path and not walk.plan(view):
        player.start("look", 30)
        return Action()
    error = view.bearing_deg(walk.waypoint(view))
    if walk.arrived(view):
        walk.path = []
        return Action()
    keys = {"W": abs(error) < 60, "RUN": player.current.runs and abs(error) < 25}
    if walk.collided(view, keys["W"]):
        player.start("unstick")
    return Action(_pressed(keys), -_clamp(0.28 * error, 7))


def _door(player: ScriptedPlayer, view: PlayerView) -> Action:
    """Face the door, press USE until it opens, then walk through."""
    door = player.walk.door
    assert door is not None, "the door behaviour starts with a door"
    if player.crossing or door.sector not in view.shut_sectors:
        player.crossing = True
        return _cross(player, view, door)
    error = view.bearing_deg(door.middle)
    keys = {
        "W": abs(error) < 20 and view.distance(door.middle) > USE_REACH - 10,
        "USE": abs(error) < 15 and player.current.tic % 35 == 20,  # again after a second, if the first press did not reach
    }
    return Action(_pressed(keys | _to_the_middle(door, view)), -_clamp(0.3 * error, 6))


def _cross(player: ScriptedPlayer, view: PlayerView, door: Door) -> Action:
    if distance_behind(door, view.x, view.y) > 40:  # through the frame: plan a new path from here
        player.start("nav")
    ahead = (door.middle[0] - 160 * door.normal[0], door.middle[1] - 160 * door.normal[1])
    error = view.bearing_deg(ahead)
    walks = abs(error) < 45
    if player.walk.collided(view, walks):
        player.start("unstick")
    return Action(_pressed({"W": walks} | _to_the_middle(door, view)), -_clamp(0.2 * error, 4))


def _to_the_middle(door: Door, view: PlayerView) -> dict[str, bool]:
    """Return the side steps towards the middle of a door. A player more than 12 units off it gets stuck at the frame."""
    offset = offset_right(door, view.x, view.y) if abs(view.bearing_deg(door.middle)) < 45 else 0.0
    return {"D": offset > 12, "A": offset < -12}


def _combat(player: ScriptedPlayer, view: PlayerView) -> Action:
    """Aim at the largest monster, fire when it is in the middle of the view, and step aside now and then."""
    current, target = player.current, _largest_monster(view)
    keys = {"D": current.tic // 20 % 4 == 1, "A": current.tic // 20 % 4 == 3}
    if target is None:
        current.left_tics = min(current.left_tics, 8)
        return Action(_pressed(keys))
    offset_deg = ((target.x + target.width / 2) / view.screen_width - 0.5) * VIEW_DEG
    keys["FIRE"] = abs(offset_deg) < 5
    return Action(_pressed(keys), _clamp(0.25 * offset_deg, 6))


def _turn(player: ScriptedPlayer, view: PlayerView) -> Action:
    return Action(turn_deg=player.current.side * player.current.rate_deg)


def _idle(player: ScriptedPlayer, view: PlayerView) -> Action:
    return Action()


def _strafe(player: ScriptedPlayer, view: PlayerView) -> Action:
    current = player.current
    return Action(_pressed({"D": current.side > 0, "A": current.side < 0, "W": current.rate_deg > 3}))


def _back(player: ScriptedPlayer, view: PlayerView) -> Action:
    return Action(frozenset({"S"}))


def _walk_ahead(player: ScriptedPlayer, view: PlayerView) -> Action:
    """Walk straight ahead until something is in the way."""
    if player.walk.collided(view, walking=True):
        player.start("look", 25)
    return Action(_pressed({"W": True, "RUN": player.current.runs}))


def _keyturn(player: ScriptedPlayer, view: PlayerView) -> Action:
    return Action(frozenset({"TURN_RIGHT" if player.current.side > 0 else "TURN_LEFT"}))


def _weapon(player: ScriptedPlayer, view: PlayerView) -> Action:
    """Tap a weapon key, then wait while the weapon comes up."""
    return Action(_pressed({player.current.weapon_key: player.current.tic in (6, 7)}))


def _fire(player: ScriptedPlayer, view: PlayerView) -> Action:
    return Action(frozenset({"FIRE"}))


def _unstick(player: ScriptedPlayer, view: PlayerView) -> Action:
    """Move backwards and sideways out of a corner."""
    current = player.current
    return Action(_pressed({"S": True, "D": current.side > 0, "A": current.side < 0}), 3.0 * current.side)


BEHAVIOURS: dict[str, Behaviour] = {
    "nav": Behaviour(_nav, (105, 280)),
    "door": Behaviour(_door, (140, 140)),  # face, use, a second to open, two to walk through
    "combat": Behaviour(_combat, (35, 80)),
    "look": Behaviour(_turn, (35, 90)),
    "idle": Behaviour(_idle, (35, 90)),
    "strafe": Behaviour(_strafe, (20, 60)),
    "back": Behaviour(_back, (20, 45)),
    "ahead": Behaviour(_walk_ahead, (20, 60)),
    "keyturn": Behaviour(_keyturn, (15, 60)),
    "weapon": Behaviour(_weapon, (28, 45)),
    "fire": Behaviour(_fire, (20, 60)),
    "unstick": Behaviour(_unstick, (18, 26)),
}


def _largest_monster(view: PlayerView) -> Monster | None:
    """Return the largest visible monster; None if all are too small to matter."""
    near = [monster for monster in view.monsters if monster.width * monster.height > MIN_MONSTER_AREA_PX]
    return max(near, key=lambda monster: (monster.width * monster.height, -monster.id), default=None)


def _pressed(keys: dict[str, bool]) -> frozenset[str]:
    return frozenset(name for name, down in keys.items() if down)


def _clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))
