"""A seeded player: each behaviour is a small function from what is seen to keys and a turn; a style is a mix of them.

Behaviours last a second or a few and are drawn at random by the weights of the style. Turning is smoothed as a hand
smooths it. The same seed, map and pictures give the same actions.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from synth.doom.navigate import USE_REACH, depth_behind, sideways
from synth.doom.wad import Door, Level
from synth.doom.walk import Monster, View, Walk

STYLES: dict[str, dict[str, int]] = {
    "explore": {"nav": 60, "look": 10, "idle": 6, "strafe": 8, "back": 4, "weapon": 6, "fire": 5, "keyturn": 5},
    "fight": {"nav": 40, "fire": 25, "strafe": 15, "weapon": 12, "look": 8},
    "static": {"idle": 35, "look": 35, "keyturn": 20, "weapon": 6, "fire": 4},
    "camera": {"nav": 30, "look": 15, "idle": 8, "strafe": 22, "back": 12, "keyturn": 13},
    # By time a quarter each walks straight ahead, walks straight back, and turns: what a world must learn to obey.
    "drill": {"ahead": 44, "back": 44, "nav": 5, "look": 14, "keyturn": 14, "strafe": 12, "idle": 3},
}
FIGHTING_STYLES = frozenset({"explore", "fight"})
INTERRUPTIBLE = frozenset({"nav", "strafe", "back", "idle"})  # a monster in sight ends these
START_TICS = 15  # without action: the engine ignores input in the first seven tics of a map, the truth would lie
COMBAT_PAUSE_TICS = 150  # between two fights, so that a monster out of reach does not hold the player for ever
SMALLEST_MONSTER_PX = 150  # box area; smaller ones are too far away to matter
TURN_JERK_DEG = 1.2  # largest change of the turn from one tic to the next, degrees
WEAPON_KEYS = ("WEAPON1", "WEAPON2", "NEXT_WEAPON")  # fist, pistol: what every player starts with
VIEW_DEG = 90.0  # horizontal field of view


class Action(NamedTuple):
    """What the player does in one tic: keys held, degrees turned by the mouse (positive to the right)."""

    keys: frozenset[str] = frozenset()
    turn_deg: float = 0.0


class Behaviour(NamedTuple):
    """A function that chooses the action of one tic, and the shortest and longest time it lasts."""

    act: Callable[["Player", View], Action]
    tics: tuple[int, int]


@dataclass
class Mood:
    """What is drawn once when a behaviour starts, and how long it has run."""

    name: str
    left_tics: int
    side: int  # -1 left, 1 right
    rate_deg: float
    weapon_key: str
    runs: bool
    tic: int = 0


class Player:
    """Chooses one action a tic, in a style, from a random generator. `behaviour` names what the last action was for."""

    def __init__(self, rng: random.Random, level: Level, style: str) -> None:
        self.walk = Walk(level, rng)
        self.crossing = False
        self._rng, self._style = rng, style
        self._turn_deg = 0.0
        self._combat_pause = START_TICS
        self.mood = self._draw("idle", rng.randint(START_TICS, 35))
        self.behaviour = self.mood.name

    def start(self, name: str, tics: int | None = None) -> None:
        """Begin a behaviour, for a number of tics or a random time."""
        self.mood = self._draw(name, tics)
        self.crossing = False

    def act(self, view: View) -> Action:
        """The keys and the smoothed turn for this tic."""
        self._choose(view)
        self.mood.tic += 1
        self.behaviour = self.mood.name  # what it starts now, it does from the next tic on
        wanted = BEHAVIOURS[self.behaviour].act(self, view)
        change = _clamp(wanted.turn_deg - self._turn_deg, TURN_JERK_DEG)
        self._turn_deg = round(self._turn_deg + change, 3)
        if abs(self._turn_deg) < 0.05:
            self._turn_deg = 0.0
        return Action(wanted.keys, self._turn_deg)

    def _choose(self, view: View) -> None:
        self.mood.left_tics -= 1
        self._combat_pause = max(0, self._combat_pause - 1)
        ready = self._style in FIGHTING_STYLES and self._combat_pause == 0 and self.mood.name in INTERRUPTIBLE
        if ready and _target(view) is not None:
            self._combat_pause = COMBAT_PAUSE_TICS
            self.start("combat")
        if self.mood.left_tics <= 0:
            mix = STYLES[self._style]
            self.start(self._rng.choices(list(mix), list(mix.values()))[0])

    def _draw(self, name: str, tics: int | None = None) -> Mood:
        rng = self._rng
        lasting = rng.randint(*BEHAVIOURS[name].tics)
        return Mood(
            name=name,
            left_tics=lasting if tics is None else tics,
            side=rng.choice((-1, 1)),
            rate_deg=rng.uniform(1.0, 4.5),
            weapon_key=rng.choice(WEAPON_KEYS),
            runs=rng.random() < 0.25,
        )


def _nav(player: Player, view: View) -> Action:
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
    keys = {"W": abs(error) < 60, "RUN": player.mood.runs and abs(error) < 25}
    if walk.collided(view, keys["W"]):
        player.start("unstick")
    return Action(_held(keys), -_clamp(0.28 * error, 7))


def _door(player: Player, view: View) -> Action:
    """Face the door, press USE until it opens, then walk through."""
    door = player.walk.door
    assert door is not None, "the door behaviour starts with a door"
    if player.crossing or door.sector not in view.shut_sectors:
        player.crossing = True
        return _cross(player, view, door)
    error = view.bearing_deg(door.middle)
    keys = {
        "W": abs(error) < 20 and view.distance(door.middle) > USE_REACH - 10,
        "USE": abs(error) < 15 and player.mood.tic % 35 == 20,  # again after a second, should the first not reach
    }
    return Action(_held(keys | _to_the_middle(door, view)), -_clamp(0.3 * error, 6))


def _cross(player: Player, view: View, door: Door) -> Action:
    if depth_behind(door, view.x, view.y) > 40:  # through the frame; what lies behind is seen when planning anew
        player.start("nav")
    ahead = (door.middle[0] - 160 * door.normal[0], door.middle[1] - 160 * door.normal[1])
    error = view.bearing_deg(ahead)
    walks = abs(error) < 45
    if player.walk.collided(view, walks):
        player.start("unstick")
    return Action(_held({"W": walks} | _to_the_middle(door, view)), -_clamp(0.2 * error, 4))


def _to_the_middle(door: Door, view: View) -> dict[str, bool]:
    """Side steps in front of a door: whoever is off its middle by more than 12 units catches the frame."""
    offset = sideways(door, view.x, view.y) if abs(view.bearing_deg(door.middle)) < 45 else 0.0
    return {"D": offset > 12, "A": offset < -12}


def _combat(player: Player, view: View) -> Action:
    """Aim at the largest monster, fire when it is in the middle, step aside now and then."""
    mood, target = player.mood, _target(view)
    keys = {"D": mood.tic // 20 % 4 == 1, "A": mood.tic // 20 % 4 == 3}
    if target is None:
        mood.left_tics = min(mood.left_tics, 8)
        return Action(_held(keys))
    offset_deg = ((target.x + target.width / 2) / view.screen_width - 0.5) * VIEW_DEG
    keys["FIRE"] = abs(offset_deg) < 5
    return Action(_held(keys), _clamp(0.25 * offset_deg, 6))


def _look(player: Player, view: View) -> Action:
    return Action(turn_deg=player.mood.side * player.mood.rate_deg)


def _idle(player: Player, view: View) -> Action:
    return Action()


def _strafe(player: Player, view: View) -> Action:
    mood = player.mood
    return Action(_held({"D": mood.side > 0, "A": mood.side < 0, "W": mood.rate_deg > 3}))


def _back(player: Player, view: View) -> Action:
    return Action(frozenset({"S"}))


def _ahead(player: Player, view: View) -> Action:
    """Straight on, until something is in the way."""
    if player.walk.collided(view, walking=True):
        player.start("look", 25)
    return Action(_held({"W": True, "RUN": player.mood.runs}))


def _keyturn(player: Player, view: View) -> Action:
    return Action(frozenset({"TURN_RIGHT" if player.mood.side > 0 else "TURN_LEFT"}))


def _weapon(player: Player, view: View) -> Action:
    """Tap a weapon key, then watch the weapon come up."""
    return Action(_held({player.mood.weapon_key: player.mood.tic in (6, 7)}))


def _fire(player: Player, view: View) -> Action:
    return Action(frozenset({"FIRE"}))


def _unstick(player: Player, view: View) -> Action:
    """Wriggle backwards and sideways out of a corner."""
    mood = player.mood
    return Action(_held({"S": True, "D": mood.side > 0, "A": mood.side < 0}), 3.0 * mood.side)


BEHAVIOURS: dict[str, Behaviour] = {
    "nav": Behaviour(_nav, (105, 280)),
    "door": Behaviour(_door, (140, 140)),  # face, use, a second to open, two to walk through
    "combat": Behaviour(_combat, (35, 80)),
    "look": Behaviour(_look, (35, 90)),
    "idle": Behaviour(_idle, (35, 90)),
    "strafe": Behaviour(_strafe, (20, 60)),
    "back": Behaviour(_back, (20, 45)),
    "ahead": Behaviour(_ahead, (20, 60)),
    "keyturn": Behaviour(_keyturn, (15, 60)),
    "weapon": Behaviour(_weapon, (28, 45)),
    "fire": Behaviour(_fire, (20, 60)),
    "unstick": Behaviour(_unstick, (18, 26)),
}


def _target(view: View) -> Monster | None:
    """The largest monster in sight, None when all are tiny."""
    near = [monster for monster in view.monsters if monster.width * monster.height > SMALLEST_MONSTER_PX]
    return max(near, key=lambda monster: (monster.width * monster.height, -monster.id), default=None)


def _held(keys: dict[str, bool]) -> frozenset[str]:
    return frozenset(name for name, down in keys.items() if down)


def _clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))
