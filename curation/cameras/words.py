"""Motion words from a trajectory: what a camera operator would say that the shot does."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera
from curation.cameras.controls import Rates, rates

# Word for the positive and for the negative side of each of `Rates`' axes.
WORDS = {
    "forward": ("dolly_in", "dolly_out"),
    "right": ("truck_right", "truck_left"),
    "up": ("pedestal_up", "pedestal_down"),
    "pan_deg_s": ("pan_right", "pan_left"),
    "tilt_deg_s": ("tilt_up", "tilt_down"),
    "roll_deg_s": ("roll_right", "roll_left"),
}
STATIC = "static"


@dataclass(frozen=True)
class WordSettings:
    """When a motion is worth a word: as fast as this for at least `min_share` of the clip.

    min_speed is a share of the top moving speed; under a sixth a walk's bob and an estimate's noise begin. Turns of less than
    min_turn_deg_s are steering, not looking around; rolls are rare in games and seen at once.
    """

    min_share: float = 0.2
    min_speed: float = 0.15
    min_turn_deg_s: float = 10.0
    min_roll_deg_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.min_share <= 1:
            raise ValueError(f"min_share must be over 0 and at most 1, not {self.min_share:g}")
        for name in ("min_speed", "min_turn_deg_s", "min_roll_deg_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")


class Motion(NamedTuple):
    """What a clip's camera does. words: most of the time first, or "static". speed: mean and top (95th percentile) of the
    translation in the data set's unit a second, null where the scale is not known; turn_deg_s: mean rate of rotation.
    """

    words: list[str]
    speed: float | None
    top_speed: float | None
    turn_deg_s: float


def describe(camera: Camera, how: WordSettings) -> Motion:
    """The words and speeds of a clip's camera."""
    found = rates(camera.pose, camera.times_s)
    scaled = camera.scale_source != "none"
    top = _top_speed(found)
    turn = np.sqrt(found.pan_deg_s**2 + found.tilt_deg_s**2 + found.roll_deg_s**2)
    return Motion(
        words=_words(found, _least_speed(camera, found, how), how),
        speed=float(found.speed.mean()) * camera.scale_to_unit if scaled else None,
        top_speed=top * camera.scale_to_unit if scaled else None,
        turn_deg_s=float(turn.mean()),
    )


def held(camera: Camera, how: WordSettings) -> np.ndarray:
    """int8 [N, 4], -1, 0 or 1 for each of a camera's `controls`: the keys that would be held to move so."""
    found = rates(camera.pose, camera.times_s)
    walks, turns = _least_speed(camera, found, how), how.min_turn_deg_s
    moved = np.stack([found.forward, found.right, found.pan_deg_s, found.tilt_deg_s], axis=1)
    return (np.sign(moved) * (np.abs(moved) > [walks, walks, turns, turns])).astype(np.int8)


def _top_speed(found: Rates) -> float:
    return float(np.percentile(found.speed, 95))


def _least_speed(camera: Camera, found: Rates, how: WordSettings) -> float:
    """Where a motion begins, in the unit of the poses."""
    top = 1 / camera.scale_to_unit if camera.scale_source != "none" else _top_speed(found)
    return max(how.min_speed * top, 1e-9)


def _words(found: Rates, least_speed: float, how: WordSettings) -> list[str]:
    least = {"pan_deg_s": how.min_turn_deg_s, "tilt_deg_s": how.min_turn_deg_s, "roll_deg_s": how.min_roll_deg_s}
    shares = {}
    for axis, words in WORDS.items():
        rate, limit = getattr(found, axis), least.get(axis, least_speed)
        for word, side in zip(words, (rate, -rate), strict=True):
            shares[word] = float((side > limit).mean())
    said = [word for word, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= how.min_share]
    return said or [STATIC]
