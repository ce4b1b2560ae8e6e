"""Did the interaction happen? (Paper section 3.3, made checkable.) Accept a made video, try again with another seed, or reject.

By signals alone (`evidence`), then, where a model is configured, by the question that belongs to the interaction. `judge` and
`trigger_prompt` are pure; each reason names what was measured and its limit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.quality.luminance import LuminanceLimits, QualityLimits, reject_reason
from curation.vlm import Answer, Prompt, question_files
from synth.evidence import Evidence
from synth.taxonomy import Interaction


@dataclass(frozen=True)
class VerifySettings:
    """Limits of `synth.evidence`; null switches a rule off. Chosen on maps that `gamecraft bench synth` does not report.

    max_first_error: of the first picture against the initial frame, 0-255. max_shifted: where the camera is to be still.
    min_local, min_global, max_local: shares of the picture that change. min_kept, max_kept: what is left at the end of a change
    that stays, and of one that passes. min_hands: share of a change in the hands that lies there. min_light: change of mean
    luma that counts as brighter or darker. luminance, quality: as for footage.
    """

    max_first_error: float | None = 8.0
    max_cuts: int | None = 0
    max_shifted: float | None = 0.3
    min_local: float | None = 0.04
    min_global: float | None = 0.3
    max_local: float | None = 0.45
    min_kept: float | None = 0.15
    max_kept: float | None = 0.5
    min_hands: float | None = 0.6
    min_light: float | None = 2.0
    luminance: LuminanceLimits = field(default_factory=LuminanceLimits)
    quality: QualityLimits = field(default_factory=QualityLimits)


def judge(found: Evidence, scores: Mapping[str, Any], wanted: Interaction, limits: VerifySettings) -> str | None:
    """Why the video is not what was asked for, null where nothing speaks against it; `scores`: the columns of footage.

    Where the camera is free and did move, nothing is said about where the pictures differ.
    """
    return next(_reasons(found, scores, wanted, limits), None)


def _reasons(found: Evidence, scores: Mapping[str, Any], wanted: Interaction, limits: VerifySettings) -> Iterator[str]:
    yield from _over("not the initial frame: difference", found.first_error, limits.max_first_error)
    yield from _over("jumps: cuts", found.cuts, limits.max_cuts)
    moved = limits.max_shifted is not None and found.shifted > limits.max_shifted
    if moved and wanted.camera == "still":
        yield from _over("the camera moves: share of pictures", found.shifted, limits.max_shifted)
    yield from _of_the_course(found, wanted, limits)
    if not moved:
        yield from _of_the_place(found, wanted, limits)
    for rules in (limits.luminance, limits.quality):
        if broken := reject_reason(scores, rules):
            yield broken


def _of_the_course(found: Evidence, wanted: Interaction, limits: VerifySettings) -> Iterator[str]:
    """Something changes, and stays or passes as it should."""
    yield from _under("nothing changes: share of the picture", _share(found, wanted), limits.min_local)
    if wanted.end == "lasting":
        yield from _under("gone before the end: share of the change kept", found.kept, limits.min_kept)
    if wanted.end == "passing":
        yield from _over("does not pass: share of the change kept", found.kept, limits.max_kept)


def _of_the_place(found: Evidence, wanted: Interaction, limits: VerifySettings) -> Iterator[str]:
    """The change is as large as it should be, where it should be, and as light."""
    share = _share(found, wanted)
    if wanted.scope == "global":
        yield from _under("changes only in places: share of the picture", share, limits.min_global)
    if wanted.scope == "local":
        yield from _over(
            "changes everywhere: share of the picture", found.change_end if wanted.end == "lasting" else share, limits.max_local
        )
    if wanted.where == "hands":
        yield from _under("not in the hands: share of the change there", found.hands, limits.min_hands)
    if wanted.light:
        light = found.light_end if wanted.end == "lasting" else found.light_peak
        yield from _under(f"not {wanted.light}: luma by", light if wanted.light == "brighter" else -light, limits.min_light)


def _share(found: Evidence, wanted: Interaction) -> float:
    """The share of the picture that changes: for a moment is enough where nothing needs to stay."""
    return found.change_peak if wanted.end == "lasting" else found.change_brief


def _over(words: str, value: float, limit: float | None) -> Iterator[str]:
    if limit is not None and value > limit:
        yield f"{words} {value:.3g} > {limit:g}"


def _under(words: str, value: float, limit: float | None) -> Iterator[str]:
    if limit is not None and value < limit:
        yield f"{words} {value:.3g} < {limit:g}"


def trigger_prompt(wanted: Interaction, instruction: str, frames: tuple[bytes, ...], labels: tuple[str, ...]) -> Prompt:
    """Was the interaction triggered? Asked over frames from before, during and after it (the paper's trigger rate)."""
    told = {"instruction": instruction, "end_state": wanted.described, "asked": wanted.question}
    asked = question_files.render("synth:questions", "trigger", **told)
    return Prompt("trigger", asked, question_files.load("synth:questions")["trigger_schema"], frames, labels)


def answered(answer: Answer) -> str | None:
    """Why the model's answer speaks against the video; null where it says that the interaction happened."""
    if answer.value is None:
        return f"no answer whether it happened: {answer.error}"
    if not answer.value["happened"]:
        return f"the model sees no such interaction: {answer.value['evidence']}"
    if not answer.value["end_state_holds"]:
        return f"the model sees another end: {answer.value['evidence']}"
    return None
