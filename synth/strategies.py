"""How a request becomes a video (paper section 3.3, figure 2).

start_end     the initial frame is edited into the last one, and a video is made that leads from the one to the other
first_frame   a video is made from the initial frame and a prompt alone
procedural    a game engine acts the interaction out: no model, and the truth is known
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from curation.vlm import VlmSettings
from synth.requests import Request
from synth.taxonomy import Interaction
from synth.verify import VerifySettings

BACKENDS = ("procedural",)


class Refused(ValueError):
    """The request cannot be met from this frame, whatever the seed; the message says why."""


@dataclass(frozen=True)
class ProceduralSettings:
    """Takes of the game engine. fail_share: that many of them are made to fail, in ways that are known (`synth.doom.takes`), to
    show what `verify` does about it; they are no data.
    """

    seconds: float = 5.0
    width: int = 640
    height: int = 480
    fail_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fail_share <= 1:
            raise ValueError(f"fail_share must be between 0 and 1, not {self.fail_share:g}")


@dataclass(frozen=True)
class SynthSettings:
    """How interactions are synthesised. backend: procedural. each: initial frames an interaction. attempts: tries at most, with
    other seeds. interactions: a recipe's own. vlm: who analyses frames and says whether it happened; none: prompts are plain,
    and signals alone decide.
    """

    backend: str = "procedural"
    each: int = 4
    attempts: int = 3
    seed: int = 0
    interactions: tuple[Interaction, ...] = ()
    procedural: ProceduralSettings = field(default_factory=ProceduralSettings)
    vlm: VlmSettings = field(default_factory=VlmSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        for name in ("each", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.vlm.backend == "vllm":
            raise ValueError("vlm.backend of synth must be none, http or transformers: its questions depend on what was made")


class Made(NamedTuple):
    """A made video: pictures uint8 [F, H, W, 3] at `fps`, and the initial frame uint8 [H, W, 3] that it begins with.

    `models` names what made it, `prompt` what they were told, `truth` what happened in it where that is known.
    """

    pictures: np.ndarray
    fps: float
    initial: np.ndarray
    strategy: str
    models: tuple[str, ...]
    prompt: Mapping[str, str] | None = None
    truth: str | None = None


def procedural(request: Request, seed: int, how: SynthSettings) -> Made:
    """Act a request out on its map. Refused where the engine has no script for it, or the map no place."""
    from synth.doom.engine import VERSION
    from synth.doom.takes import SCRIPTS, NoPlace, Take, film

    name, settings = request.interaction.name, how.procedural
    if request.frame.kind != "doom":
        raise Refused(f"the procedural backend films maps (--frames doom), not {request.frame.kind} {request.frame.name}")
    if name not in SCRIPTS:
        raise Refused(f"the procedural backend has no script for {name}; it has {', '.join(SCRIPTS)}")
    _, collection, level = request.frame.name.split(":")
    kind = _kind(name, seed, settings.fail_share)
    try:
        filmed = film(Take(collection, level, name, seed, kind, settings.seconds, settings.width, settings.height))
    except NoPlace as error:
        raise Refused(str(error)) from error
    truth = f"{kind}: {filmed.happened or 'nothing'} at {filmed.place}"
    return Made(filmed.pictures, filmed.fps, filmed.pictures[0], "procedural", (f"vizdoom {VERSION}",), truth=truth)


def _kind(name: str, seed: int, fail_share: float) -> str:
    from synth.doom.takes import KINDS, SCRIPTS

    rng = random.Random(f"{seed}/kind")
    failing = [kind for kind in KINDS if kind != "true" and (kind != "vanishing" or SCRIPTS[name].lasting)]
    return rng.choice(failing) if rng.random() < fail_share else "true"


_MAKE: Mapping[str, Callable[[Request, int, SynthSettings], Made]] = {"procedural": procedural}


def make(request: Request, seed: int, how: SynthSettings) -> Made:
    """The video of one attempt, by the backend that the settings name."""
    return _MAKE[how.backend](request, seed, how)
