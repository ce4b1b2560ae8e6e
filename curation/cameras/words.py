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
    """When a motion gets a word: if it is fast enough for at least `min_share` of the clip."""

    # Share of the clip for which a motion must last.
    min_share: float = 0.2
    # Speed of a translation, as a share of the top moving speed. Under a sixth, a walk's bob and an estimate's noise begin.
    min_speed: float = 0.15
    # Rate of a pan or tilt in degrees a second. Slower turns are steering, not looking around.
    min_turn_deg_s: float = 10.0
    # Rate of a roll in degrees a second. Rolls are rare in games, and slow ones are visible too.
    min_roll_deg_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.min_share <= 1:
            raise ValueError(f"min_share must be over 0 and at most 1, not {self.min_share:g}")
        for name in ("min_speed", "min_turn_deg_s", "min_roll_deg_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")


class MotionSummary(NamedTuple):
    """What a clip's camera does.

    words: the most frequent first, or "static". speed, top_speed: mean and 95th percentile of the translation in the data set's
    unit a second, None where the scale is not known. turn_deg_s: mean rate of rotation.
    """

    words: list[str]
    speed: float | None
    top_speed: float | None
    turn_deg_s: float


def describe_motion(camera: Camera, settings: WordSettings) -> MotionSummary:
    """Return the words and speeds of a clip's camera.

    Of a camera that is right in part of the clip, the longest span is described. A word must then last for its share of the
    whole clip, and a clip is only called static if it is so in most of its frames.
    """
    longest = max(camera.spans, key=lambda span: span.end - span.start, default=None)
    known = 1.0
    if longest and longest.end - longest.start < len(camera.times_s):
        known = (longest.end - longest.start) / len(camera.times_s)
        camera = camera.cut(longest)
    motion = rates(camera.pose, camera.times_s)
    is_scaled = camera.scale_source != "none"
    top = _top_speed(motion)
    turn = np.sqrt(motion.pan_deg_s**2 + motion.tilt_deg_s**2 + motion.roll_deg_s**2)
    return MotionSummary(
        words=_words(motion, _min_speed(camera, motion, settings), settings, known),
        speed=float(motion.speed.mean()) * camera.scale_to_unit if is_scaled else None,
        top_speed=top * camera.scale_to_unit if is_scaled else None,
        turn_deg_s=float(turn.mean()),
    )


def held_keys(camera: Camera, settings: WordSettings) -> np.ndarray:
    """Return the keys that would be held to move like this: int8 [N, 4], -1, 0 or 1 for each of a camera's `controls`."""
    motion = rates(camera.pose, camera.times_s)
    min_speed, min_turn = _min_speed(camera, motion, settings), settings.min_turn_deg_s
    moved = np.stack([motion.forward, motion.right, motion.pan_deg_s, motion.tilt_deg_s], axis=1)
    return (np.sign(moved) * (np.abs(moved) > [min_speed, min_speed, min_turn, min_turn])).astype(np.int8)


def _top_speed(motion: Rates) -> float:
    return float(np.percentile(motion.speed, 95))


def _min_speed(camera: Camera, motion: Rates, settings: WordSettings) -> float:
    """Return the speed from which a translation counts, in the unit of the poses."""
    top = 1 / camera.scale_to_unit if camera.scale_source != "none" else _top_speed(motion)
    return max(settings.min_speed * top, 1e-9)


def _words(motion: Rates, min_speed: float, settings: WordSettings, known: float) -> list[str]:
    """Return the words of a motion that is known in a share of the clip, the most frequent first."""
    min_turn = {
        "pan_deg_s": settings.min_turn_deg_s,
        "tilt_deg_s": settings.min_turn_deg_s,
        "roll_deg_s": settings.min_roll_deg_s,
    }
    shares = {}
    for axis, words in WORDS.items():
        rate, limit = getattr(motion, axis), min_turn.get(axis, min_speed)
        for word, side in zip(words, (rate, -rate), strict=True):
            shares[word] = known * float((side > limit).mean())
    frequent = [word for word, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= settings.min_share]
    return frequent or ([STATIC] if known >= 1 - settings.min_share else [])
