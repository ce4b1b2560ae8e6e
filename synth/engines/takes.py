"""What a recording with labels is asked for, and what an engine gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.engines.truth_file import EventSpan, FrameTruth, Optics


@dataclass(frozen=True)
class Take:
    """What to record."""

    scenario: str  # one of the engine's
    seed: int = 0  # of all random choices, also of how it looks
    seconds: float = 60.0
    size: tuple[int, int] = (320, 240)  # px
    hud: bool = True  # draw the game's panels
    hand: bool = True  # draw what is in the player's hand
    place: str | None = None  # a world seed of Minetest, a map of OpenArena; None: drawn from the seed
    third_person: bool = False
    crf: int = 24  # x264 quality, 0 lossless to 51
    draw_number: bool = False  # draw the number of each frame as black and white squares (Minetest)


@dataclass
class Played:
    """What an engine has recorded: all that the truth file says."""

    header: dict[str, Any]
    optics: Optics
    frames: list[FrameTruth] = field(default_factory=list)
    events: list[EventSpan] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)  # frames whose picture does not continue the one before


Play = Callable[[Take, Callable[[NDArray[np.uint8]], None]], Played]


@dataclass(frozen=True)
class Engine:
    """A game that can be recorded."""

    scenarios: Sequence[str]
    fps: int
    play: Play  # records a take, and gives each picture to the encoder
