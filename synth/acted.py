"""Takes of interactions that a game engine acts out: the kinds of take, their timing, and what a take is when it is filmed.

In a take nothing happens for a second, then an interaction is acted. The same take can be made to fail in known ways, to
measure `verify`:

    true       the interaction happens and its end state stays
    noop       nothing happens
    wrong      another interaction happens
    vanishing  the interaction happens and is undone before the end
    teleport   the camera jumps to another place instead
    turning    the interaction happens while the camera turns away
"""

from dataclasses import dataclass

import numpy as np

from curation.errors import AttemptFailed

KINDS = ("true", "noop", "wrong", "vanishing", "teleport", "turning")
# The action begins one second into the take. A vanishing take undoes it after three seconds.
ACT_S, UNDO_S = 1.0, 3.0
TURN_DEG_S = 24.5  # how fast the camera of a turning take turns: half a right angle by the end


@dataclass(frozen=True)
class FilmedTake:
    """The pictures of a take and its ground truth."""

    pictures: np.ndarray  # uint8 [F, H, W, 3] RGB
    fps: int
    happened: str | None  # the interaction that happened, if any
    place: str  # map, position and view direction


class NoSpot(AttemptFailed):
    """The map has no spot on which the interaction can be acted out."""


def possible_kinds(can_be_undone: bool) -> list[str]:
    """Return the kinds of take that an interaction can have. One that cannot be undone has no vanishing take."""
    return [kind for kind in KINDS if kind != "vanishing" or can_be_undone]


def check_take(kind: str, interaction: str, can_be_undone: bool, seconds: float) -> None:
    """Raise ValueError for a kind of take that an interaction cannot have, or a take that is too short."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} cannot be acted out; known: {', '.join(KINDS)}")
    if seconds < UNDO_S + 1:
        raise ValueError(f"a take lasts at least {UNDO_S + 1:g} s, not {seconds:g} s")
    if kind not in possible_kinds(can_be_undone):
        raise ValueError(f"{interaction} cannot be undone, so it has no vanishing take")
