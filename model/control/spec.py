"""What a player does in a frame, and how it moves the camera.

The spec has a version. It is stored in checkpoints, and compared when one is loaded.
"""

from dataclasses import dataclass
from typing import NamedTuple

VERSION = 1

# Directions of the keys: MOVE_KEYS to the right and forward of where the player looks, LOOK_KEYS turn to the right and upwards.
MOVE_KEYS = {"W": (0.0, 1.0), "S": (0.0, -1.0), "A": (-1.0, 0.0), "D": (1.0, 0.0)}
LOOK_KEYS = {"LEFT": (-1.0, 0.0), "RIGHT": (1.0, 0.0), "UP": (0.0, 1.0), "DOWN": (0.0, -1.0)}
JUMP = "SPACE"
KEYS = frozenset({*MOVE_KEYS, *LOOK_KEYS, JUMP})


class ControlState(NamedTuple):
    """The input of one frame."""

    keys: frozenset[str] = frozenset()  # held down
    mouse_dx: float = 0.0  # mouse counts to the right
    mouse_dy: float = 0.0  # mouse counts down


@dataclass(frozen=True)
class ControlSpec:
    """How input becomes motion. Lengths are in the data set's unit: a player at top speed moves 1 in a second."""

    version: int = VERSION  # version of these settings; another release may read them differently
    fps: float = 16.0  # input frames a second; a training recipe sets it to data.fps
    speed: float = 1.0  # forward and back (W, S), units/s
    sideways: float = 1.0  # speed of A and D, as a multiple of `speed`
    glide_s: float = 0.0  # time constant with which speed follows the keys, an exponential; 0: at once
    turn_deg_s: float = 90.0  # turn rate of the left and right arrows
    look_deg_s: float = 60.0  # pitch rate of the up and down arrows
    mouse_deg: float = 0.1  # rotation per mouse count
    max_pitch_deg: float = 80.0  # how far up and down a player can look; 0 locks the pitch
    jump_speed: float = 0.0  # upward speed at take-off, units/s; 0: Space does nothing
    gravity: float = 0.0  # acceleration of a fall, units/s^2
    normalise_diagonals: bool = True  # two movement keys together move no faster than one

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(
                f"control.version is {self.version}, but this release knows {VERSION} only; use the release that wrote it"
            )
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, not {self.fps:g}")
        for name in ("speed", "sideways", "glide_s", "turn_deg_s", "look_deg_s", "jump_speed", "gravity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name):g}")
        if not 0 <= self.max_pitch_deg < 90:
            raise ValueError(f"max_pitch_deg must be at least 0 and under 90, not {self.max_pitch_deg:g}")
        if self.jump_speed and not self.gravity:
            raise ValueError("jump_speed needs gravity, or a player who jumps never lands")


def checked_keys(keys: frozenset[str]) -> frozenset[str]:
    """Return the keys. ValueError for a key that is not one of KEYS."""
    if unknown := keys - KEYS:
        raise ValueError(f"unknown keys {sorted(unknown)}; known are {', '.join(sorted(KEYS))}")
    return keys
