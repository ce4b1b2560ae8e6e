"""What a player does in a frame, and how a world answers: versioned, stored in checkpoints, compared when one is loaded."""

from dataclasses import dataclass
from typing import NamedTuple

VERSION = 1

# Directions of the keys: right and forward of where the player looks, turns to the right and upwards.
MOVES = {"W": (0.0, 1.0), "S": (0.0, -1.0), "A": (-1.0, 0.0), "D": (1.0, 0.0)}
LOOKS = {"LEFT": (-1.0, 0.0), "RIGHT": (1.0, 0.0), "UP": (0.0, 1.0), "DOWN": (0.0, -1.0)}
JUMP = "SPACE"
KEYS = frozenset({*MOVES, *LOOKS, JUMP})


class ControlState(NamedTuple):
    """One frame's input: keys held down; how far the mouse went, to the right and down, in counts."""

    keys: frozenset[str] = frozenset()
    mouse_dx: float = 0.0
    mouse_dy: float = 0.0


@dataclass(frozen=True)
class ControlSpec:
    """How input becomes motion. Lengths are in the data set's unit: what the player moves in a second at top speed is 1.

    speed: at which W moves, units/s; sideways: what A and D do of it. glide_s: how fast speed follows the keys (time constant
    of an exponential; 0: at once). turn_deg_s, look_deg_s: at which the arrows turn. mouse_deg: a count of the mouse.
    max_pitch_deg: how far up and down one can look; 0 locks it. jump_speed, gravity: units/s and units/s^2; 0 makes Space do
    nothing. normalise_diagonals: whether two keys move no faster than one.
    """

    version: int = VERSION
    fps: float = 16.0
    speed: float = 1.0
    sideways: float = 1.0
    glide_s: float = 0.0
    turn_deg_s: float = 90.0
    look_deg_s: float = 60.0
    mouse_deg: float = 0.1
    max_pitch_deg: float = 80.0
    jump_speed: float = 0.0
    gravity: float = 0.0
    normalise_diagonals: bool = True

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"a ControlSpec of version {self.version}; this release knows {VERSION}: use the one that made it")
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, not {self.fps:g}")
        for name in ("speed", "sideways", "glide_s", "turn_deg_s", "look_deg_s", "jump_speed", "gravity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name):g}")
        if not 0 <= self.max_pitch_deg < 90:
            raise ValueError(f"max_pitch_deg must be at least 0 and under 90, not {self.max_pitch_deg:g}")
        if self.jump_speed and not self.gravity:
            raise ValueError("jump_speed needs gravity, or a player who jumps never lands")


def known_keys(keys: frozenset[str]) -> frozenset[str]:
    """The keys themselves; ValueError for one that has no meaning here."""
    if unknown := keys - KEYS:
        raise ValueError(f"unknown keys {sorted(unknown)}; known are {', '.join(sorted(KEYS))}")
    return keys
