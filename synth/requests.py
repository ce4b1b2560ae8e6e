"""What is asked for: an interaction, from an initial frame, with a seed. And where initial frames come from.

A frame is named by a string that goes into the ledger:

    doom:freedoom2:MAP01      a map of the game engine, for the procedural backend
    /folder/picture.png       a picture
    clip:<clip_id>@1.25       a moment of a curated clip
    paint                     painted by a text-to-image model for the interaction
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from curation.schema import digest
from synth.taxonomy import Interaction

PAINT = "paint"


@dataclass(frozen=True)
class Frame:
    """An initial frame: its name, where its pixels are (`uri`, at `time_s` of a video), `token`, which changes with them.

    crop: the part of a video's picture that is taken (x, y, w, h px).
    """

    name: str
    uri: str = ""
    time_s: float = 0.0
    token: str = ""
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def kind(self) -> str:
        """One of doom, paint, clip and picture."""
        word = self.name.partition(":")[0]
        return word if word in ("doom", "clip", PAINT) else "picture"


@dataclass(frozen=True)
class Request:
    """One interaction from one initial frame; `seed` is that of its first attempt."""

    interaction: Interaction
    instruction: str
    frame: Frame
    seed: int

    @property
    def id(self) -> str:
        """Names the request by what is asked for, not by where its frame lies."""
        return digest(repr(self.interaction), self.instruction, self.frame.token or self.frame.name, str(self.seed))

    def seed_of(self, attempt: int) -> int:
        """The seed of an attempt, counted from 0: another one each time, the same in every run."""
        return random.Random(f"{self.id}/{attempt}").randrange(2**31)

    def to_json(self) -> dict[str, Any]:
        """The request as plain data; `request` is the inverse."""
        return asdict(self)


def request(data: dict[str, Any]) -> Request:
    """A request from its plain data."""
    interaction = data["interaction"] | {"templates": tuple(data["interaction"]["templates"])}
    frame = data["frame"] | {"crop": tuple(data["frame"]["crop"])}
    return Request(Interaction(**interaction), data["instruction"], Frame(**frame), data["seed"])


def requests(interactions: Sequence[Interaction], frames: Sequence[Frame], each: int, seed: int) -> Iterator[Request]:
    """Each interaction from `each` frames, drawn without repetition while there are some; engine maps and paint may repeat.

    Draws depend on the seed and the interaction alone, so that more interactions change none of the others' requests.
    """
    for interaction in interactions:
        rng = random.Random(f"{seed}/{interaction.name}")
        drawn = rng.sample(frames, min(each, len(frames)))
        if frames[0].kind in ("doom", PAINT):
            drawn += rng.choices(frames, k=each - len(drawn))
        for frame in drawn:
            yield Request(interaction, rng.choice(interaction.templates), frame, rng.randrange(2**31))
