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
from synth import initial_frames, prompts
from synth.models.base import KINDS as MODEL_KINDS
from synth.models.base import ModelSettings, Words
from synth.models.load import Models
from synth.prompts import Plan, Refused
from synth.requests import PAINT, Request
from synth.taxonomy import Interaction
from synth.verify import VerifySettings

BACKENDS = ("procedural", *MODEL_KINDS)


@dataclass(frozen=True)
class ProceduralSettings:
    """Takes of the game engine. seconds: 81 frames at 16 fps, which stage 2 trains on, are 5.0625 s.

    fail_share: that many of them are made to fail, in ways that are known (`synth.doom.takes`), to show what `verify` does
    about it; they are no data.
    """

    seconds: float = 5.25
    width: int = 640
    height: int = 480
    fail_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fail_share <= 1:
            raise ValueError(f"fail_share must be between 0 and 1, not {self.fail_share:g}")


@dataclass(frozen=True)
class SynthSettings:
    """How interactions are synthesised.

    backend: procedural, diffusers or http. each: initial frames an interaction. attempts: tries at most, with other seeds.
    interactions: a recipe's own. vlm: who analyses frames and says whether it happened; none: prompts are plain, and signals
    alone decide.
    """

    backend: str = "procedural"
    each: int = 4
    attempts: int = 3
    seed: int = 0
    interactions: tuple[Interaction, ...] = ()
    procedural: ProceduralSettings = field(default_factory=ProceduralSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
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
    from synth.doom.takes import SCRIPTS, InteractionTake, NoSpot, film_take

    name, settings = request.interaction.name, how.procedural
    if request.frame.kind != "doom":
        raise Refused(f"the procedural backend films maps (--frames doom), not {request.frame.kind} {request.frame.name}")
    if name not in SCRIPTS:
        raise Refused(f"the procedural backend has no script for {name}; it has {', '.join(SCRIPTS)}")
    _, collection, level = request.frame.name.split(":")
    kind = _kind(name, seed, settings.fail_share)
    try:
        filmed = film_take(
            InteractionTake(collection, level, name, seed, kind, settings.seconds, settings.width, settings.height)
        )
    except NoSpot as error:
        raise Refused(str(error)) from error
    truth = f"{kind}: {filmed.happened or 'nothing'} at {filmed.place}"
    return Made(filmed.pictures, filmed.fps, filmed.pictures[0], "procedural", (f"vizdoom {VERSION}",), truth=truth)


def _kind(name: str, seed: int, fail_share: float) -> str:
    from synth.doom.takes import possible_kinds

    rng = random.Random(f"{seed}/kind")
    failing = [kind for kind in possible_kinds(name) if kind != "true"]
    return rng.choice(failing) if rng.random() < fail_share else "true"


def modelled(request: Request, seed: int, how: SynthSettings) -> Made:
    """Have models make it, by the strategy that suits. Refused where a model says that it cannot be."""
    models = Models(how.backend, how.models)
    initial, painter = _initial(request, models)
    plan = prompts.plan(initial, request, how.vlm)
    strategy, reason = choose(request.interaction, plan, how.models)
    make = {"start_end": start_end, "first_frame": first_frame}[strategy]
    pictures, names = make(initial, plan, models, seed)
    told = {**plan._asdict(), "strategy": strategy, "reason": reason}
    return Made(pictures, how.models.fps, initial, strategy, (*painter, *names), told)


def choose(wanted: Interaction, plan: Plan, models: ModelSettings) -> tuple[str, str]:
    """The strategy for an interaction, and why: what the plan says, unless the camera is to be free or there is no editor."""
    if wanted.camera == "free":
        return "first_frame", "the camera is free to move"
    if plan.strategy == "start_end" and not models.editor:
        return "first_frame", "no editor is set, so there is no last frame"
    return plan.strategy, plan.reason


def start_end(initial: np.ndarray, plan: Plan, models: Models, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Edit the initial frame into the last one; animate from the one to the other. The video, and what made it."""
    last = models.edit(initial, Words(plan.edit_prompt, plan.negative_prompt), seed)
    pictures = models.animate(initial, last, Words(plan.prompt, plan.negative_prompt), seed)
    return pictures, (models.how.editor, models.animator(True))


def first_frame(initial: np.ndarray, plan: Plan, models: Models, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Animate from the initial frame alone. The video, and what made it."""
    pictures = models.animate(initial, None, Words(plan.prompt, plan.negative_prompt), seed)
    return pictures, (models.animator(False),)


def _initial(request: Request, models: Models) -> tuple[np.ndarray, tuple[str, ...]]:
    """The initial frame at the video's size, and who painted it; a request keeps its painted frame in all of its attempts."""
    if request.frame.kind == PAINT:
        return models.paint(Words(prompts.painted(request.interaction)), request.seed), (models.how.painter,)
    if request.frame.kind == "doom":
        raise Refused(
            f"{models.kind} makes videos from pictures, not from {request.frame.name}: give --frames pictures, or paint"
        )
    try:
        return initial_frames.fitted(initial_frames.pixels(request.frame), models.how.width, models.how.height), ()
    except ValueError as error:
        raise Refused(str(error)) from error


_MAKE: Mapping[str, Callable[[Request, int, SynthSettings], Made]] = {
    "procedural": procedural,
    **dict.fromkeys(MODEL_KINDS, modelled),
}


def make(request: Request, seed: int, how: SynthSettings) -> Made:
    """The video of one attempt, by the backend that the settings name."""
    return _MAKE[how.backend](request, seed, how)
