"""Did the interaction happen? (Paper section 3.3, made checkable.) Accept a made video, retry with another seed, or reject it.

Metrics decide first (`synth.metrics`). Then, if a VLM is configured, it is asked the question that belongs to the interaction.
`rejection_reason` and `trigger_prompt` are pure. Each reason names the measured value and its limit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.quality.luminance import LuminanceLimits, QualityLimits, reject_reason
from curation.vlm import Answer, Prompt, question_files
from synth.metrics import VideoMetrics
from synth.taxonomy import Interaction


@dataclass(frozen=True)
class VerifySettings:
    """Limits of `synth.metrics`. Null switches a rule off. Chosen on maps that `gamecraft bench synth` does not report."""

    max_first_error: float | None = 8.0  # mean difference of the first picture from the initial frame, 0-255
    max_cuts: int | None = 0  # cuts after which most of the picture stays different
    max_shifted: float | None = 0.3  # share of pictures that the camera's motion shifts, where the camera should stand still
    min_local: float | None = 0.04  # share of the picture that must change, and may at the end of what passes
    min_global: float | None = 0.3  # the same, for an interaction that changes the whole picture
    max_local: float | None = 0.45  # share of the picture that may change, for an interaction in one place
    min_kept: float | None = 0.15  # share of a lasting change that must remain at the end
    max_kept: float | None = 0.5  # share of a passing change that may remain at the end
    min_hands: float | None = 0.6  # share of a change in the player's hands that must be where hands are
    min_entry: float | None = 0.35  # share of the beginning of a change in the hands that must be at the lower edge
    max_spread: float | None = 0.65  # how far a change in one place may spread over the width; 1 is all of it
    min_motion: float | None = 0.03  # how much a thing that moves by itself must change between pictures
    max_motion: float | None = 0.05  # how much a thing that stands may change between pictures
    min_light: float | None = 3.0  # change of mean luma, 0-255, that counts as brighter or darker
    luminance: LuminanceLimits = field(default_factory=LuminanceLimits)  # limits of the luminance, as for footage
    quality: QualityLimits = field(default_factory=QualityLimits)  # limits of the picture quality, as for footage


def rejection_reason(
    metrics: VideoMetrics, scores: Mapping[str, Any], interaction: Interaction, limits: VerifySettings
) -> str | None:
    """Return why the video does not show the interaction; None if no rule is broken. `scores` are the columns of footage.

    Where the camera may move and did, the place and the extent of the change are not checked.
    """
    return next(_reasons(metrics, scores, interaction, limits), None)


def _reasons(
    metrics: VideoMetrics, scores: Mapping[str, Any], interaction: Interaction, limits: VerifySettings
) -> Iterator[str]:
    yield from _over("not the initial frame: difference", metrics.first_error, limits.max_first_error)
    yield from _over("jumps: cuts", metrics.cuts, limits.max_cuts)
    moved = limits.max_shifted is not None and metrics.shifted > limits.max_shifted
    if moved and interaction.camera == "still":
        yield from _over("the camera moves: share of pictures", metrics.shifted, limits.max_shifted)
    yield from _duration_reasons(metrics, interaction, limits)
    if not moved:
        yield from _extent_reasons(metrics, interaction, limits)
    for rules in (limits.luminance, limits.quality):
        if broken := reject_reason(scores, rules):
            yield broken


def _duration_reasons(metrics: VideoMetrics, interaction: Interaction, limits: VerifySettings) -> Iterator[str]:
    """Check that something changes, and stays or passes as it should."""
    yield from _under("nothing changes: share of the picture", _changed_share(metrics, interaction), limits.min_local)
    if interaction.end == "lasting":
        yield from _under("gone before the end: share of the change kept", metrics.kept, limits.min_kept)
    if interaction.end == "passing":
        yield from _over("does not pass: share of the change kept", metrics.kept, limits.max_kept)
        yield from _over("does not pass: share of the picture", metrics.change_end, limits.min_local)


def _extent_reasons(metrics: VideoMetrics, interaction: Interaction, limits: VerifySettings) -> Iterator[str]:
    """Check that the change has the right extent, place and brightness."""
    share = _changed_share(metrics, interaction)
    if interaction.scope == "global":
        yield from _under("changes only in places: share of the picture", share, limits.min_global)
    if interaction.scope == "local":
        yield from _over(
            "changes everywhere: share of the picture",
            metrics.change_end if interaction.end == "lasting" else share,
            limits.max_local,
        )
        yield from _over("changes across the picture: spread", metrics.spread, limits.max_spread)
    yield from _place_reasons(metrics, interaction, limits)
    if interaction.motion == "moves":
        yield from _under("does not move: change between pictures", metrics.motion, limits.min_motion)
    if interaction.motion == "stands":
        yield from _over("moves: change between pictures", metrics.motion, limits.max_motion)
    if interaction.light:
        light = metrics.light_end if interaction.end == "lasting" else metrics.light_peak
        brighter = light if interaction.light == "brighter" else -light
        yield from _under(f"not {interaction.light}: luma by", brighter, limits.min_light)


def _place_reasons(metrics: VideoMetrics, interaction: Interaction, limits: VerifySettings) -> Iterator[str]:
    """Check that the change is in the hands, or in the scene. What is held comes over the picture's lower edge."""
    if interaction.where == "hands":
        yield from _under("not in the hands: share of the change there", metrics.hands, limits.min_hands)
        yield from _under("not taken in the hand: share of its beginning at the lower edge", metrics.entry, limits.min_entry)
    elif _is_held(metrics, interaction, limits):
        yield f"taken in the hand: share of its beginning at the lower edge {metrics.entry:.3g} >= {limits.min_entry:g}"


def _is_held(metrics: VideoMetrics, interaction: Interaction, limits: VerifySettings) -> bool:
    """Whether something was taken in the hand. A change of the whole picture may begin below too, but it spreads."""
    spreads = limits.max_spread is not None and metrics.spread > limits.max_spread
    if interaction.scope == "global" and spreads:
        return False
    return _reaches(metrics.hands, limits.min_hands) and _reaches(metrics.entry, limits.min_entry)


def _reaches(value: float, limit: float | None) -> bool:
    return limit is not None and value >= limit


def _changed_share(metrics: VideoMetrics, interaction: Interaction) -> float:
    """Return the share of the picture that changes. Where the change need not stay, a moment is enough."""
    return metrics.change_peak if interaction.end == "lasting" else metrics.change_brief


def _over(words: str, value: float, limit: float | None) -> Iterator[str]:
    if limit is not None and value > limit:
        yield f"{words} {value:.3g} > {limit:g}"


def _under(words: str, value: float, limit: float | None) -> Iterator[str]:
    if limit is not None and value < limit:
        yield f"{words} {value:.3g} < {limit:g}"


def trigger_prompt(interaction: Interaction, instruction: str, frames: tuple[bytes, ...], labels: tuple[str, ...]) -> Prompt:
    """Ask whether the interaction was triggered, over frames from before, during and after it (the paper's trigger rate)."""
    fields = {"instruction": instruction, "end_state": interaction.end_sentence, "asked": interaction.question}
    text = question_files.render("synth:questions", "trigger", **fields)
    return Prompt("trigger", text, question_files.load("synth:questions")["trigger_schema"], frames, labels)


def rejection_in_answer(answer: Answer) -> str | None:
    """Return why the model's answer rejects the video; None if it says that the interaction happened."""
    if answer.value is None:
        return f"no answer whether it happened: {answer.error}"
    if not answer.value["happened"]:
        return f"the model sees no such interaction: {answer.value['evidence']}"
    if not answer.value["end_state_holds"]:
        return f"the model sees another end: {answer.value['evidence']}"
    return None
