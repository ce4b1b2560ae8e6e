"""Requests: an interaction, an initial frame and a seed.

A frame is identified by a string that is stored in the ledger:

    doom:freedoom2:MAP01      a map of Doom, for the procedural backend
    minetest:v7:3             a world of Minetest: how it is generated, and its seed; also for the procedural backend
    /folder/picture.png       a picture
    clip:<clip_id>@1.25       a moment of a curated clip, in seconds
    paint                     painted by a text-to-image model for the interaction
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from curation.schema import digest
from synth.taxonomy import Interaction

PAINT = "paint"
ENGINES = ("doom", "minetest")
"""The game engines that act interactions out (`synth.procedural`)."""


@dataclass(frozen=True)
class InitialFrame:
    """The frame with which a video begins: its name, and where its pixels are."""

    name: str
    uri: str = ""
    time_s: float = 0.0  # in the video at `uri`
    token: str = ""  # changes if the file changes
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # part of a video's picture to use: x, y, w, h in px

    @property
    def kind(self) -> str:
        """One of doom, minetest, paint, clip and picture."""
        prefix = self.name.partition(":")[0]
        return prefix if prefix in (*ENGINES, "clip", PAINT) else "picture"


@dataclass(frozen=True)
class Request:
    """One interaction from one initial frame."""

    interaction: Interaction
    instruction: str
    frame: InitialFrame
    seed: int  # each attempt derives its own seed from it

    @property
    def id(self) -> str:
        """A digest of what is requested. It depends on the frame's content, not on the place of its file."""
        return digest(repr(self.interaction), self.instruction, self.frame.token or self.frame.name, str(self.seed))

    def seed_of(self, attempt: int) -> int:
        """Return the seed of an attempt, counted from 0. Attempts have different seeds, which are the same in every run."""
        return random.Random(f"{self.id}/{attempt}").randrange(2**31)

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain data. The inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Request":
        """Return the request in its plain data."""
        interaction = data["interaction"] | {"templates": tuple(data["interaction"]["templates"])}
        frame = data["frame"] | {"crop": tuple(data["frame"]["crop"])}
        return cls(Interaction(**interaction), data["instruction"], InitialFrame(**frame), data["seed"])


def draw_requests(
    interactions: Sequence[Interaction], frames: Sequence[InitialFrame], each: int, seed: int
) -> Iterator[Request]:
    """Draw `each` frames for every interaction, without repetition. Engines' places and paint are repeated if too few.

    Draws depend on the seed and the interaction alone, so adding interactions does not change the requests of the others.
    """
    for interaction in interactions:
        rng = random.Random(f"{seed}/{interaction.name}")
        drawn = rng.sample(frames, min(each, len(frames)))
        if frames[0].kind in (*ENGINES, PAINT):
            drawn += rng.choices(frames, k=each - len(drawn))
        for frame in drawn:
            yield Request(interaction, rng.choice(interaction.templates), frame, rng.randrange(2**31))
