"""How a request becomes a video (paper section 3.3, figure 2).

start_end     edit the initial frame into the last one, and animate from the one to the other
first_frame   animate from the initial frame and a prompt alone
procedural    a game engine acts the interaction out: no model, and the truth is known
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from curation.vlm import VlmSettings
from synth import initial_frames, procedural, prompts
from synth.acted import NoSpot
from synth.models.base import MODEL_BACKENDS, ModelSettings, PromptPair
from synth.models.load import Models
from synth.procedural import Shot
from synth.prompts import Plan, Refused
from synth.requests import ENGINES, PAINT, Request
from synth.taxonomy import Interaction
from synth.verify import VerifySettings

BACKENDS = ("procedural", *MODEL_BACKENDS)


@dataclass(frozen=True)
class ProceduralSettings:
    """Takes of a game engine."""

    seconds: float = 5.25  # length of a take, s; the 81 frames at 16 fps that stage 2 trains on are 5.0625 s
    width: int = 640  # width of the picture, px
    height: int = 480  # height of the picture, px
    # Share of the takes that are made to fail in known ways (`synth.acted`), to show how `verify` treats them. They are
    # not training data.
    fail_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.fail_share <= 1:
            raise ValueError(f"fail_share must be between 0 and 1, not {self.fail_share:g}")


@dataclass(frozen=True)
class SynthSettings:
    """How interactions are synthesised."""

    backend: str = "procedural"  # procedural, diffusers or http
    each: int = 4  # initial frames per interaction
    attempts: int = 3  # largest number of attempts at a request, each with another seed
    seed: int = 0  # seed of the random choice of frames and instructions
    interactions: tuple[Interaction, ...] = ()  # interactions that a recipe adds to the built-in ones
    procedural: ProceduralSettings = field(default_factory=ProceduralSettings)  # for the backend procedural
    models: ModelSettings = field(default_factory=ModelSettings)  # for the backends diffusers and http
    # The VLM that analyses frames and says whether the interaction happened. Without one prompts are plain, and metrics alone
    # decide.
    vlm: VlmSettings = field(default_factory=VlmSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)  # limits for accepting a video

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        for name in ("each", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.vlm.backend == "vllm":
            raise ValueError("vlm.backend of synth must be none, http or transformers: its questions depend on what was made")


class SynthVideo(NamedTuple):
    """A made video."""

    pictures: np.ndarray  # uint8 [F, H, W, 3]
    fps: float
    initial: np.ndarray  # the initial frame, uint8 [H, W, 3]
    strategy: str
    models: tuple[str, ...]  # the models, or the engine, that made it
    prompt: Mapping[str, str] | None = None  # the prompts of the models
    truth: str | None = None  # what happened in it, if that is known


def make_procedural(request: Request, seed: int, settings: SynthSettings) -> SynthVideo:
    """Act a request out in its place. Raises Refused if the engine has no script for it, or the place no suitable spot."""
    name, takes, place = request.interaction.name, settings.procedural, request.frame.name
    if request.frame.kind not in ENGINES:
        raise Refused(
            f"the procedural backend films engines' places (--frames {' or '.join(ENGINES)}), not {request.frame.kind} {place}"
        )
    engine = procedural.engine(request.frame.kind)
    if name not in engine.interactions():
        raise Refused(f"{request.frame.kind} has no script for {name}; it has {', '.join(engine.interactions())}")
    kind = _draw_kind(engine.possible_kinds(name), seed, takes.fail_share)
    try:
        take = engine.film(Shot(place, name, seed, kind, takes.seconds, takes.width, takes.height))
    except NoSpot as error:
        raise Refused(str(error)) from error
    truth = f"{kind}: {take.happened or 'nothing'} at {take.place}"
    return SynthVideo(take.pictures, take.fps, take.pictures[0], "procedural", (engine.version(),), truth=truth)


def _draw_kind(possible_kinds: Sequence[str], seed: int, fail_share: float) -> str:
    rng = random.Random(f"{seed}/kind")
    failing = [kind for kind in possible_kinds if kind != "true"]
    return rng.choice(failing) if rng.random() < fail_share else "true"


def make_with_models(request: Request, seed: int, settings: SynthSettings) -> SynthVideo:
    """Make the video with models, by the strategy that suits. Raises Refused if a model says that it is impossible."""
    models = Models(settings.backend, settings.models)
    initial, painter = _initial_frame(request, models)
    plan = prompts.make_plan(initial, request, settings.vlm)
    strategy, reason = choose_strategy(request.interaction, plan, settings.models)
    make = {"start_end": make_start_end, "first_frame": make_first_frame}[strategy]
    pictures, names = make(initial, plan, models, seed)
    prompt = {**plan._asdict(), "strategy": strategy, "reason": reason}
    return SynthVideo(pictures, settings.models.fps, initial, strategy, (*painter, *names), prompt)


def choose_strategy(interaction: Interaction, plan: Plan, models: ModelSettings) -> tuple[str, str]:
    """Return the strategy for an interaction, and the reason: the plan's, unless the camera may move or no editor is set."""
    if interaction.camera == "free":
        return "first_frame", "the camera is free to move"
    if plan.strategy == "start_end" and not models.editor:
        return "first_frame", "no editor is set, so there is no last frame"
    return plan.strategy, plan.reason


def make_start_end(initial: np.ndarray, plan: Plan, models: Models, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Edit the initial frame into the last one, and animate between them. Return the video and the models' names."""
    last = models.edit(initial, PromptPair(plan.edit_prompt, plan.negative_prompt), seed)
    pictures = models.animate(initial, last, PromptPair(plan.prompt, plan.negative_prompt), seed)
    return pictures, (models.settings.editor, models.animator(True))


def make_first_frame(initial: np.ndarray, plan: Plan, models: Models, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Animate from the initial frame alone. Return the video and the model's name."""
    pictures = models.animate(initial, None, PromptPair(plan.prompt, plan.negative_prompt), seed)
    return pictures, (models.animator(False),)


def _initial_frame(request: Request, models: Models) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the initial frame at the video's size, and the painter's name if it was painted.

    A painted frame depends on the seed of the request, so it is the same in all attempts.
    """
    if request.frame.kind == PAINT:
        painted = models.paint(PromptPair(prompts.paint_prompt(request.interaction)), request.seed)
        return painted, (models.settings.painter,)
    if request.frame.kind in ENGINES:
        raise Refused(
            f"{models.backend} makes videos from pictures, not from {request.frame.name}: give --frames pictures, or paint"
        )
    try:
        picture = initial_frames.read_pixels(request.frame)
        return initial_frames.crop_and_resize(picture, models.settings.width, models.settings.height), ()
    except ValueError as error:
        raise Refused(str(error)) from error


_MAKERS: Mapping[str, Callable[[Request, int, SynthSettings], SynthVideo]] = {
    "procedural": make_procedural,
    **dict.fromkeys(MODEL_BACKENDS, make_with_models),
}


def synthesise(request: Request, seed: int, settings: SynthSettings) -> SynthVideo:
    """Make the video of one attempt with the backend in the settings."""
    return _MAKERS[settings.backend](request, seed, settings)
