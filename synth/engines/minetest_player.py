"""The player of Minetest recordings with labels: builds, digs, opens doors, sets torches, looks into the inventory, walks.

Behaviours are generators. Each value is what the player does for one frame, and `state` is then that of the newest frame.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.angles import wrapped_deg

FPS = 30
_REACH_DEG, _STUCK_M = 1.0, 0.03


@dataclass(frozen=True)
class Act:
    """What the player does for one frame."""

    keys: frozenset[str] = frozenset()  # up, down, left, right, jump, dig, place, inventory, 1 to 8
    turn_deg: float = 0.0  # to the right
    look_deg: float = 0.0  # down
    command: str | None = None  # of the server's mod


Acts = Iterator[Act]


@dataclass
class State:
    """What the player knows of the newest frame."""

    at: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # m: east, up, north, as the game has them
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    in_liquid: bool = False
    node: str | None = None  # the block that the player points at
    dug: bool = False  # a block was dug since the frame before
    item: str = ""  # what is in the hand
    events: Sequence[dict[str, Any]] = ()  # what the client did or got to know since the frame before

    @property
    def eye(self) -> NDArray[np.float64]:
        return self.at + np.array([0, 1.47, 0])


class Player:
    """Plays one scenario after the other from a seed."""

    def __init__(self, rng: random.Random, ready: dict[str, Any]) -> None:
        self.state, self.behaviour = State(), "start"
        self._rng, self._ready = rng, ready

    # What scenarios are made of

    def _wait(self, seconds: float, keys: Iterable[str] = ()) -> Acts:
        for _ in range(max(1, round(seconds * FPS))):
            yield Act(frozenset(keys))

    def _towards(self, yaw: float | None, pitch: float | None, speed: float, keys: Iterable[str] = ()) -> Act:
        """Turn towards a direction, at most at a speed (deg/s)."""
        top = speed / FPS
        turn = 0.0 if yaw is None else max(-top, min(top, -wrapped_deg(yaw - self.state.yaw_deg) * 0.6))
        look = 0.0 if pitch is None else max(-top, min(top, -(pitch - self.state.pitch_deg) * 0.5))
        return Act(frozenset(keys), turn, look)

    def _turn(self, yaw: float, pitch: float | None = None, speed: float = 150.0, limit: float = 4.0) -> Acts:
        for _ in range(round(limit * FPS)):
            level = pitch is None or abs(pitch - self.state.pitch_deg) < 1.5
            if abs(wrapped_deg(yaw - self.state.yaw_deg)) < _REACH_DEG and level:
                return
            yield self._towards(yaw, pitch, speed)

    def _aim(self, spot: Iterable[float]) -> tuple[float, float]:
        away = np.array([*spot]) - self.state.eye
        return math.degrees(math.atan2(away[2], away[0])), math.degrees(math.atan2(away[1], math.hypot(away[0], away[2])))

    def _look_at(self, spot: Iterable[float], speed: float = 130.0) -> Acts:
        spot = [*spot]
        for _ in range(3 * FPS):
            yaw, pitch = self._aim(spot)
            if abs(wrapped_deg(yaw - self.state.yaw_deg)) < _REACH_DEG and abs(pitch - self.state.pitch_deg) < _REACH_DEG:
                return
            yield self._towards(yaw, pitch, speed)

    def _stroll(
        self, seconds: float, yaw: float, wander: float = 8.0, pitch: float = -3.0, keys: Iterable[str] = ("up",)
    ) -> Acts:
        """Walk with gentle steering. Jump where held up, and turn away where that does not help."""
        before, stuck = self.state.at, 0
        for number in range(round(seconds * FPS)):
            stuck = stuck + 1 if np.linalg.norm((self.state.at - before)[[0, 2]]) < _STUCK_M else 0
            before = self.state.at
            if stuck > 30:
                yield from self._turn(self.state.yaw_deg + self._rng.choice([-110, 110, 180]), pitch, 170)
                return
            jump = {"jump"} if stuck > 8 or self.state.in_liquid else set[str]()
            yield self._towards(yaw + wander * math.sin(number / 25), pitch, 60, {*keys, *jump})

    def _go_to(self, x: float, z: float, near: float = 0.35, limit: float = 6.0) -> Acts:
        for _ in range(round(limit * FPS)):
            away = np.array([x, z]) - self.state.at[[0, 2]]
            if np.hypot(*away) < near:
                return
            yaw = math.degrees(math.atan2(away[1], away[0]))
            yield self._towards(yaw, -4, 140, {"up"} if abs(wrapped_deg(yaw - self.state.yaw_deg)) < 25 else ())

    def _press(self, key: str, frames: int = 3) -> Acts:
        yield from (Act(frozenset({key})) for _ in range(frames))
        yield from self._wait(0.25)

    def _place(self) -> Acts:
        yield from (Act(frozenset({"place"})) for _ in range(3))
        yield from self._wait(self._rng.uniform(0.25, 0.9))

    def _dig(self, limit: float = 3.0) -> Acts:
        for _ in range(round(limit * FPS)):
            yield Act(frozenset({"dig"}))
            if self.state.dug:
                break
        yield from self._wait(self._rng.uniform(0.15, 0.6))

    def _home_yaw(self, near: float) -> float | None:
        """Return the direction of the scene's middle where it is far away."""
        at = self._ready["at"]
        away = at[0] - self.state.at[0], at[2] - self.state.at[2]
        return math.degrees(math.atan2(away[1], away[0])) if math.hypot(*away) > near else None

    # Scenarios

    def walk(self) -> Acts:
        """Walk, turn, strafe, back and stand, with the view level or tilted. Nothing happens."""
        rng, yaw = self._rng, self.state.yaw_deg
        while True:
            yield from self._behave("walk", self._stroll(rng.uniform(1, 4), yaw, rng.uniform(0, 15), rng.uniform(-15, 6)))
            yield from self._behave("stand", self._wait(rng.uniform(0.2, 1.5)))
            yaw, draw = self.state.yaw_deg, rng.random()
            if draw < 0.5:
                yaw += rng.choice([-1, 1]) * rng.uniform(35, 130)
                yield from self._behave("turn", self._turn(yaw, rng.uniform(-12, 4), rng.uniform(50, 220)))
            elif draw < 0.65:
                yield from self._behave("look", self._turn(yaw, rng.uniform(-55, 40), rng.uniform(40, 140)))
            elif draw < 0.85:
                yield from self._behave(
                    "strafe", self._stroll(rng.uniform(0.7, 2), yaw, 0, -3, (rng.choice(["left", "right"]),))
                )
            else:
                yield from self._behave("back", self._stroll(rng.uniform(0.7, 1.6), yaw, 0, -3, ("down",)))

    def jump(self) -> Acts:
        """Walk and jump. Nothing happens."""
        rng = self._rng
        while True:
            keys = {rng.choice(["up", "up", "up", "left", "right", "down"]), "jump"}
            yield from self._behave("jump", self._stroll(rng.uniform(0.5, 2.5), self.state.yaw_deg, 5, -3, keys))
            yield from self._behave("turn", self._turn(self.state.yaw_deg + rng.uniform(-120, 120), rng.uniform(-20, 10), 140))
            yield from self._behave("walk", self._stroll(rng.uniform(0.5, 2), self.state.yaw_deg))

    def spin(self) -> Acts:
        """Turn fast and for long, standing or walking. Nothing happens."""
        rng = self._rng
        while True:
            rate, keys = rng.choice([-1, 1]) * rng.uniform(90, 400), rng.choice([(), (), ("up",), ("left",), ("jump",)])
            for _ in range(round(rng.uniform(0.4, 2.5) * FPS)):
                self.behaviour = "spin"
                yield Act(frozenset(keys), rate / FPS, -(rng.uniform(-3, 3) + self.state.pitch_deg * 0.05) / FPS)
            yield from self._behave("stand", self._wait(rng.uniform(0.1, 0.8)))
            yield from self._behave("walk", self._stroll(rng.uniform(0.4, 1.5), self.state.yaw_deg))

    def build(self) -> Acts:
        """Place blocks, dig them, change what is in the hand, and walk between."""
        rng, ground = self._rng, self._ready["ground"]
        while True:
            base = round(self.state.yaw_deg / 90) * 90 + rng.uniform(-15, 15)
            yield from self._behave("choose", self._press(rng.choice("457")))
            ahead = self.state.at + 2.6 * np.array([math.cos(math.radians(base)), 0, math.sin(math.radians(base))])
            x, z = round(ahead[0]), round(ahead[2])
            side = round(math.cos(math.radians(base + 90))), round(math.sin(math.radians(base + 90)))
            height = rng.choice([1, 1, 2, 3])
            spots = [(x + k * side[0], ground + j, z + k * side[1]) for k in (0, 1, -1) for j in range(height)]
            for spot in spots:
                yield from self._behave("aim", self._look_at((spot[0], spot[1] + 0.5, spot[2]), rng.uniform(60, 180)))
                yield from self._behave("place", self._place())
            yield from self._behave("choose", self._press(rng.choice("111213")))
            for spot in rng.sample(spots, min(len(spots), rng.randint(1, 4))):
                yield from self._behave("aim", self._look_at((spot[0], spot[1] + 1.0, spot[2]), rng.uniform(60, 180)))
                if self.state.node is not None:
                    yield from self._behave("dig", self._dig())
            if rng.random() < 0.4:  # dig the ground before the feet
                yield from self._behave(
                    "aim", self._turn(self.state.yaw_deg + rng.uniform(-40, 40), rng.uniform(-70, -40), 120)
                )
                for _ in range(rng.randint(1, 3)):
                    yield from self._behave("dig", self._dig())
            yield from self._move_on(7)

    def _move_on(self, near: float) -> Acts:
        rng = self._rng
        home = self._home_yaw(near)
        yaw = home if home is not None else self.state.yaw_deg + rng.choice([-1, 1]) * rng.uniform(60, 150)
        yield from self._behave("turn", self._turn(yaw, -8, rng.uniform(80, 180)))
        yield from self._behave("walk", self._stroll(rng.uniform(0.6, 2.4), yaw, 4, -8))
        yield from self._behave("stand", self._wait(rng.uniform(0.2, 1.0)))

    def house(self) -> Acts:
        """Go from room to room through doors that are opened and closed, and set torches on the walls."""
        rng, (ox, oy, oz) = self._rng, self._ready["origin"]
        rooms = {0: (4, 4), 1: (12, 4), 3: (12, 12), 2: (4, 12)}
        ring, doors, here = [0, 1, 3, 2], {(0, 1): 0, (1, 3): 1, (3, 2): 2, (2, 0): 3}, 0
        while True:
            room, after = ring[here], ring[(here + 1) % 4]
            if rng.random() < 0.7:
                yield from self._behave("choose", self._press("6"))
                for _ in range(rng.randint(1, 2)):
                    yield from self._set_torch(ox + rooms[room][0], oy, oz + rooms[room][1])
            door = self._ready["doors"][doors[(room, after)]]
            way = np.subtract(rooms[after], rooms[room]) / 8
            yield from self._behave("walk", self._go_to(door[0] - 1.9 * way[0], door[2] - 1.9 * way[1], 0.4))
            for _ in range(rng.choice([1, 1, 1, 3, 3])):  # opened; or opened, closed and opened
                yield from self._behave("aim", self._look_at((door[0], door[1] + 0.6, door[2])))
                if self.state.node and "door" in self.state.node:
                    yield from self._behave("door", self._place())
            yield from self._behave("walk", self._go_to(door[0] + 1.9 * way[0], door[2] + 1.9 * way[1], 0.4, 4))
            if rng.random() < 0.7:
                yield from self._behave("aim", self._look_at((door[0], door[1] + 0.6, door[2]), 170))
                if self.state.node and "door" in self.state.node:
                    yield from self._behave("door", self._place())
            yield from self._behave("walk", self._go_to(ox + rooms[after][0], oz + rooms[after][1], 0.8, 3))
            if rng.random() < 0.4:
                yield from self._behave(
                    "look", self._turn(self.state.yaw_deg + rng.uniform(-90, 90), rng.uniform(-30, 25), 110)
                )
            yield from self._behave("stand", self._wait(rng.uniform(0.2, 0.9)))
            here = (here + 1) % 4

    def _set_torch(self, cx: float, y: float, cz: float) -> Acts:
        rng = self._rng
        corner = rng.choice([(-4, -2.5), (2.5, -4), (-2.5, 4), (4, 2.5), (4, -2.5), (-4, 2.5)])
        wall = cx + corner[0] * 0.87, y + rng.uniform(0.8, 2.2), cz + corner[1] * 0.87
        yaw, _ = self._aim(wall)
        yield from self._behave("turn", self._turn(yaw, -3, rng.uniform(80, 160)))
        stand = np.array(wall) - 2.2 * np.array([math.cos(math.radians(yaw)), 0, math.sin(math.radians(yaw))])
        yield from self._behave("walk", self._go_to(stand[0], stand[2], 0.5, 2.5))
        yield from self._behave("aim", self._look_at(wall))
        yield from self._behave("torch", self._place())

    def events(self) -> Acts:
        """Walk, stand and turn, while weather changes, charges explode and people appear."""
        rng, snowing = self._rng, False
        while True:
            draw = rng.random()
            if draw < 0.35:
                yield from self._happens("fuse", rng.uniform(0.4, 1.5))
                yield from self._happens("explosion", rng.uniform(1.4, 2.5))
            elif draw < 0.6:
                yield from self._happens("creature", rng.uniform(1.5, 4))
            elif draw < 0.9:
                yield from self._happens("clear" if snowing else rng.choice(["snow", "rain"]), rng.uniform(2, 3.5))
                snowing = not snowing
            else:
                yield from self._happens("night", rng.uniform(1.5, 3))
                yield from self._happens("day", rng.uniform(1.5, 3))
            yield from self._stretch(rng.uniform(2, 5))

    def _happens(self, command: str, seconds: float) -> Acts:
        """Command an event and stand, turn slowly, or walk while it happens."""
        rng = self._rng
        self.behaviour = command
        yield Act(command=command)
        draw = rng.random()
        if draw < 0.5:
            yield from self._behave(command, self._wait(seconds))
        elif draw < 0.75:
            yield from self._behave(
                command, self._turn(self.state.yaw_deg + rng.uniform(-25, 25), -4, rng.uniform(10, 40), seconds)
            )
        else:
            yield from self._behave(command, self._stroll(seconds, self.state.yaw_deg, 5, -4))

    def _stretch(self, seconds: float) -> Acts:
        """Walk, turn and stand for a while."""
        rng = self._rng
        yield from self._behave("walk", self._stroll(rng.uniform(0.3, 0.7) * seconds, self.state.yaw_deg, 6, -4))
        if rng.random() < 0.6:
            home = self._home_yaw(25)
            yaw = home if home is not None else self.state.yaw_deg + rng.choice([-1, 1]) * rng.uniform(20, 110)
            yield from self._behave("turn", self._turn(yaw, rng.uniform(-12, 2), rng.uniform(60, 180)))
        yield from self._behave("stand", self._wait(rng.uniform(0.2, 1.2)))

    def inventory(self) -> Acts:
        """Look into the inventory now and then, change what is in the hand, and walk between."""
        rng = self._rng
        while True:
            yield from self._stretch(rng.uniform(1.5, 4))
            if rng.random() < 0.7:
                yield from self._behave("inventory", self._press("inventory"))
                yield from self._behave("inventory", self._wait(rng.uniform(0.6, 2.5)))
                yield from self._behave("inventory", self._press("inventory"))
                yield from self._behave("stand", self._wait(rng.uniform(0.3, 0.8)))
            else:
                yield from self._behave("choose", self._press(rng.choice("12345678")))
                yield from self._behave("stand", self._wait(rng.uniform(0.2, 0.8)))

    def mixed(self) -> Acts:
        """Play a few seconds of everything that is possible in the open."""
        parts = [self.build, self.events, self.walk, self.jump, self.inventory]
        while True:
            part, frames = self._rng.choice(parts)(), round(self._rng.uniform(5, 14) * FPS)
            for act in part:
                frames -= 1
                yield act
                # An inventory that is open is closed before anything else is played.
                if frames <= 0 and self.behaviour not in ("inventory", "place", "dig"):
                    break

    def _behave(self, name: str, acts: Acts) -> Acts:
        for act in acts:
            self.behaviour = name
            yield act


SCENARIOS: dict[str, Callable[[Player], Acts]] = {
    name: getattr(Player, name) for name in ("walk", "jump", "spin", "build", "house", "events", "inventory", "mixed")
}
SCENES = {"house": "house", "build": "yard", "mixed": "yard"}
"""What is built for a scenario; the others are played in the wild."""
