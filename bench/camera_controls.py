"""Recovered controls compared with the keys that the player held, which the engine's takes log tick by tick.

Keys do not move a view at once. A game of this age adds a key's thrust to a momentum, and friction takes a tenth of that in
each tick. A player who lets go or reverses glides for another third of a second. So directions are compared twice: with the
keys pressed in the same frame, and with the momentum that all keys pressed until then would have, without walls. Turning has
no momentum.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bench.camera_takes import FPS, Take
from curation.cameras.controls import controls

_FRICTION = 0.90625  # what a tick leaves of the momentum (the engine's 0xE800 / 0x10000)
_MIN_SPEED = 0.15  # of the take's true top speed, from which the player counts as moving
_MIN_TURN_DEG_S = 10.0
_SIDES = (("forward", "back"), ("right", "left"), ("turn right", "turn left"))


class Agreement(NamedTuple):
    """Counts of one direction.

    frames: in which it was commanded and the player moved. recovered, true: of these, how many the estimated and the true
    trajectory agree with.
    """

    frames: int
    recovered: int
    true: int

    def __add__(self, other: "Agreement") -> "Agreement":  # type: ignore[override]
        return Agreement(*(a + b for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        if not self.frames:
            return f"{'-':>24}"
        return f"{self.frames:6} {self.recovered / self.frames:7.1%} ({self.true / self.frames:.1%})"


def lines(estimates: Sequence[tuple[Take, np.ndarray]]) -> Iterator[str]:
    """Return a table over takes and their estimated poses [N, 4, 4]."""
    sums = {side: [Agreement(0, 0, 0)] * 2 for sides in _SIDES for side in sides}
    for take, pose in estimates:
        for side, (pressed, momentum) in agreements(take, pose).items():
            sums[side] = [sums[side][0] + pressed, sums[side][1] + momentum]
    yield f"\ncontrols against keys, {len(estimates)} ok takes: frames, share that agrees (and of the engine's own poses)"
    yield f"{'':12} {'as pressed':>24}   {'with momentum':>24}"
    for side, (pressed, momentum) in sums.items():
        yield f"{side:12} {pressed!s:>24}   {momentum!s:>24}"
    for name, sides in (("forward/back", _SIDES[0]), ("left/right", _SIDES[1]), ("turns", _SIDES[2])):
        pressed, momentum = (sums[sides[0]][k] + sums[sides[1]][k] for k in (0, 1))
        yield f"{name:12} {pressed!s:>24}   {momentum!s:>24}"


def agreements(take: Take, pose: np.ndarray) -> dict[str, tuple[Agreement, Agreement]]:
    """Return the agreement of each direction, with the keys as pressed and with their momentum."""
    true, estimated = (controls(p, take.time_s, 1.0)[:-1, :3] for p in (take.pose, pose))
    speed = np.hypot(true[:, 0], true[:, 1])
    moves = speed > _MIN_SPEED * speed.max()
    pressed, momentum = _commands(take)
    by_side = {}
    for axis, sides in enumerate(_SIDES):
        min_command, counts = (_MIN_TURN_DEG_S, True) if axis == 2 else (_MIN_SPEED, moves)
        for side, sign in zip(sides, (1, -1), strict=True):
            now, gliding = (counts & (sign * commanded[:, axis] > min_command) for commanded in (pressed, momentum))
            same = sign * estimated[:, axis] > 0, sign * true[:, axis] > 0
            by_side[side] = _count(now, *same), _count(gliding, *same)
    return by_side


def _count(commanded: np.ndarray, estimated: np.ndarray, true: np.ndarray) -> Agreement:
    return Agreement(int(commanded.sum()), int((commanded & estimated).sum()), int((commanded & true).sum()))


def _commands(take: Take) -> tuple[np.ndarray, np.ndarray]:
    """Return what was commanded in each frame's step, as pressed and with momentum, [N - 1, 3] each.

    The columns are forward and right, as shares of a held key, and turn in deg/s.
    """
    forward, right, turn = take.pressed.T
    heading = np.exp(1j * np.radians(np.cumsum(turn) - turn))  # clockwise, at the tick's beginning
    thrust = (forward + 1j * right) * heading
    momentum = np.zeros(len(thrust), complex)
    for tick in range(len(thrust)):
        momentum[tick] = _FRICTION * (momentum[tick - 1] if tick else 0) + (1 - _FRICTION) * thrust[tick]
    gliding = momentum / heading
    steps = [slice(a, b) for a, b in zip(take.ticks[:-1], take.ticks[1:], strict=True)]
    as_pressed, with_momentum = (
        np.array([[f[s].mean(), r[s].mean(), turn[s].mean() * FPS] for s in steps])
        for f, r in ((forward, right), (gliding.real, gliding.imag))
    )
    return as_pressed, with_momentum
