"""The player of recordings: seeded mixes of walking, turning, strafing, backing and standing still, near the start."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from synth.angles import wrapped_deg

RADIUS_M = 12.0  # beyond it the player turns back
KEY_TURN_DEG_S = 90.0  # the turn rate of a held arrow key at play
_STUCK_FRAMES = 9
_STUCK_M = 0.03  # a frame


@dataclass(frozen=True)
class Act:
    """What the player does for one frame."""

    keys: frozenset[str] = frozenset()  # up, down, left, right, jump
    turn_deg: float = 0.0  # to the right


@dataclass
class View:
    """What the player knows: metres from the middle of the place, and yaw in degrees counter-clockwise from east."""

    east: float = 0.0
    north: float = 0.0
    yaw_deg: float = 0.0


Acts = Iterator[Act]


class Roamer:
    """Plays by generators: each value is one frame, and `view` is then that of the frame before."""

    def __init__(self, rng: random.Random, view: View, fps: float) -> None:
        self.view = view
        self.behaviour = "start"
        self._rng, self._fps = rng, fps

    def roam(self) -> Acts:
        """Play without end."""
        while True:
            yield from self._stretch()

    def amble(self) -> Acts:
        """Play slowly without end: long walks and stops, slow turns. Used where the world shall be seen to change."""
        rng = self._rng
        while True:
            if self._distance() > RADIUS_M * 0.75:
                yield from self._go_home()
            draw = rng.random()
            if draw < 0.35:
                yield from self._or_turn_away(self._hold("walk", rng.uniform(0.4, 1.0), {"up"}))
            elif draw < 0.65:
                yield from self._hold("turn", rng.uniform(0.3, 0.9), (), rng.choice([-1, 1]) * rng.uniform(20, 60))
            elif draw < 0.75:
                yield from self._hold("strafe", rng.uniform(0.3, 0.7), {rng.choice(["left", "right"])})
            elif draw < 0.82:
                yield from self._hold("back", rng.uniform(0.3, 0.7), {"down"})
            else:
                yield from self._hold("still", rng.uniform(0.4, 1.2))

    def look_around(self) -> Acts:
        """Turn by 40 degrees."""
        yield from self._hold("turn", 40 / KEY_TURN_DEG_S, (), KEY_TURN_DEG_S)

    def still(self) -> Acts:
        """Stand still without end."""
        while True:
            yield from self._hold("still", 1.0)

    def linger(self, seconds: float) -> Acts:
        """Stand, with a slow turn to and fro, so that what happens ahead stays in view."""
        rng = self._rng
        left = seconds
        while left > 0:
            part, side = min(left, rng.uniform(0.4, 0.9)), rng.choice([-1, 1])
            rate = rng.choice([0.0, rng.uniform(8, 22)])
            yield from self._hold("linger", part / 2, (), side * rate)
            yield from self._hold("linger", part / 2, (), -side * rate)
            left -= part

    def _stretch(self) -> Acts:
        rng, draw = self._rng, self._rng.random()
        if self._distance() > RADIUS_M:
            yield from self._go_home()
        elif draw < 0.26:
            yield from self._or_turn_away(
                self._hold("walk", rng.uniform(0.6, 2.2), {"up"}, rng.choice([0, 0, rng.uniform(-10, 10)]))
            )
        elif draw < 0.50:
            yield from self._turn()
        elif draw < 0.66:
            yield from self._or_turn_away(self._hold("walk_turn", rng.uniform(0.5, 1.6), {"up"}, self._rate(20, 110)))
        elif draw < 0.74:
            yield from self._or_turn_away(self._hold("back", rng.uniform(0.4, 1.2), {"down"}))
        elif draw < 0.82:
            yield from self._or_turn_away(self._hold("strafe", rng.uniform(0.4, 1.1), {rng.choice(["left", "right"])}))
        elif draw < 0.86:
            sides = rng.choice([("up", "left"), ("up", "right"), ("down", "left"), ("down", "right")])
            yield from self._or_turn_away(self._hold("diagonal", rng.uniform(0.4, 1.0), set(sides)))
        elif draw < 0.91:
            yield from self._hold("still", rng.uniform(0.3, 1.0))
        elif draw < 0.96:
            yield from self._turn_and_return()
        else:
            yield from self._walk_and_return()

    def _turn(self) -> Acts:
        yield from self._hold("turn", self._rng.uniform(0.3, 1.6), (), self._rate(25, 140))

    def _turn_and_return(self) -> Acts:
        """Turn away by some angle, wait, and turn back by the same."""
        rng = self._rng
        rate, seconds = self._rate(40, 120), rng.uniform(0.4, 2.0)
        yield from self._hold("turn_away", seconds, (), rate)
        yield from self._hold("still", rng.uniform(0.1, 0.5))
        yield from self._hold("turn_back", seconds, (), -rate)

    def _walk_and_return(self) -> Acts:
        """Walk out, and come back: backwards, or by turning around."""
        rng, seconds = self._rng, self._rng.uniform(0.6, 1.6)
        out, back = rng.choice([("up", "down"), ("left", "right"), ("right", "left"), ("down", "up")])
        yield from self._or_turn_away(self._hold("walk_out", seconds, {out}))
        if rng.random() < 0.3:
            side = rng.choice([-1, 1])
            yield from self._hold("turn_around", 180 / KEY_TURN_DEG_S, (), side * KEY_TURN_DEG_S)
            yield from self._or_turn_away(self._hold("walk_back", seconds, {out}))
        else:
            yield from self._or_turn_away(self._hold("walk_back", seconds, {back}))

    def _rate(self, low: float, high: float) -> float:
        """Return a turn rate: that of a held key in half of the cases."""
        side = self._rng.choice([-1, 1])
        return side * (KEY_TURN_DEG_S if self._rng.random() < 0.5 else self._rng.uniform(low, high))

    def _go_home(self) -> Acts:
        rng = self._rng
        home_deg = math.degrees(math.atan2(-self.view.north, -self.view.east))
        turn_deg = wrapped_deg(self.view.yaw_deg - home_deg + rng.uniform(-35, 35))
        yield from self._hold("turn", abs(turn_deg) / KEY_TURN_DEG_S, (), math.copysign(KEY_TURN_DEG_S, turn_deg))
        yield from self._or_turn_away(self._hold("walk", rng.uniform(1.2, 2.8), {"up"}, rng.uniform(-12, 12)))

    def _or_turn_away(self, acts: Acts) -> Acts:
        """Play these acts, and stop and turn where the player is held up."""
        before, stuck = (self.view.east, self.view.north), 0
        for act in acts:
            yield act
            moved = math.dist(before, (self.view.east, self.view.north))
            before, stuck = (self.view.east, self.view.north), stuck + 1 if moved < _STUCK_M else 0
            if stuck > _STUCK_FRAMES:
                yield from self._hold("turn", self._rng.uniform(0.8, 1.6), (), self._rng.choice([-1, 1]) * KEY_TURN_DEG_S)
                return

    def _hold(self, behaviour: str, seconds: float, keys: "set[str] | tuple[()]" = (), rate_deg_s: float = 0.0) -> Acts:
        for _ in range(max(1, round(seconds * self._fps))):
            self.behaviour = behaviour
            yield Act(frozenset(keys), rate_deg_s / self._fps)

    def _distance(self) -> float:
        return math.hypot(self.view.east, self.view.north)


PLAYS: dict[str, Callable[[Roamer], Acts]] = {"roam": Roamer.roam, "amble": Roamer.amble, "still": Roamer.still}
