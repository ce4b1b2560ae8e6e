"""Interactive or not, and what happens (paper section 3.2 and appendix A): properties, categories and negatives are data.

Interactive video has a state before, an event, a state after. Measured signals say whether something happens; what it is, and
whether it is a change of state or only traffic and weather, takes a model. Both together decide, and the reason is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curation.captions.caption import MEASURED, MOTIONS, Facts, sentences, short
from curation.vlm import Prompt, question_files

# Below this motion (px/frame at 320 wide, camera and objects together) and without flashes the picture stands still.
_STILL_PX = 0.05
_TEXT = {"type": "string", "maxLength": 160}
_EVIDENCE_CHARS = 120


@dataclass(frozen=True)
class InteractiveSettings:
    """min_score: from which measured score on a clip counts as interactive; tuned by `gamecraft bench captions --tune`."""

    min_score: float = 0.55

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be 0 to 1, not {self.min_score:g}")


def definition() -> dict[str, Any]:
    """The definition as data: version, properties, categories (each simple and complex), negatives."""
    return question_files.load("interaction")


@dataclass(frozen=True)
class Interactive:
    """interactive: None where neither measurement nor model can tell. score: 0-1, measured; None where the detector does not
    know the footage. negative: which kind of motion it is instead. source: measured, or the model's name.
    """

    interactive: bool | None
    reason: str
    score: float | None = None
    properties: tuple[str, ...] = ()
    category: str | None = None
    level: str | None = None
    negative: str | None = None
    source: str = MEASURED


def measured(facts: Facts, settings: InteractiveSettings) -> Interactive:
    """What the signals say. They tell that something happens, not what: property and category stay open."""
    if _stands_still(facts):
        return Interactive(False, "nothing moves", 0.0)
    if not facts.happenings_known:
        return Interactive(None, "the detector does not know such footage, and no model was asked")
    score = event_score(facts)
    if score >= settings.min_score:
        at_s = facts.strongest.peak_s if facts.strongest else 0.0
        return Interactive(True, f"something happens at {at_s:.1f} s: {score:.2f} >= {settings.min_score:g}", score)
    camera_only = not facts.happenings and (facts.motion_camera or 0) > (facts.motion_object or 0)
    negative = "motion_without_subject" if camera_only else None
    what = "only the camera moves" if camera_only else "too little happens" if facts.happenings else "no event stands out"
    return Interactive(False, f"{what}: {score:.2f} < {settings.min_score:g}", score, negative=negative)


def event_score(facts: Facts) -> float:
    """How sure it is that something happens, 0-1: of the surest happening, its mean probability over at least half a second."""
    return max((h.energy * min(1.0, (h.end_s - h.start_s) / 0.5) for h in facts.happenings), default=0.0)


def _stands_still(facts: Facts) -> bool:
    if facts.motion_camera is None or facts.motion_object is None:
        return False
    return facts.motion_camera + facts.motion_object < _STILL_PX and not facts.flashes_hz and not facts.happenings


def schema() -> dict[str, Any]:
    """What a model answers about an event: the states before and after, and which part of the definition it meets."""
    data = definition()
    names = list(data["properties"])
    prop = {
        "type": "object",
        "properties": {"holds": {"type": "boolean"}, "evidence": {"type": "string", "maxLength": _EVIDENCE_CHARS}},
        "required": ["holds", "evidence"],
        "additionalProperties": False,
    }
    fields = {
        **change_schema()["properties"],
        "properties": {
            "type": "object",
            "properties": dict.fromkeys(names, prop),
            "required": names,
            "additionalProperties": False,
        },
        "negative": {"enum": [*data["negatives"], "none"]},
        "interactive": {"type": "boolean"},
    }
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def change_schema() -> dict[str, Any]:
    """A change between two states, in the paper's words."""
    fields = {
        **dict.fromkeys(("initial_state", "trigger", "transition", "final_state", "subject"), _TEXT),
        "category": {"enum": [*definition()["categories"], "none"]},
        "level": {"enum": ["simple", "complex", "none"]},
        "caption": {"type": "string", "minLength": 1, "maxLength": 240},
    }
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def clip_prompt(facts: Facts, frames: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    """What happens inside a clip, around its strongest action, and whether it is interactive video."""
    data = definition()
    kinds = {
        name: f"{kind['meaning']} Simple: {kind['simple']}. Complex: {kind['complex']}."
        for name, kind in data["categories"].items()
    }
    lists = {"properties": data["properties"], "negatives": data["negatives"], "categories": kinds}
    given = {name: question_files.bullets(meanings) for name, meanings in lists.items()}
    words = question_files.render("interaction", "inside", facts=sentences(facts), **given)
    return Prompt("interaction", words, schema(), tuple(frames), tuple(labels))


def decided(facts: Facts, answer: Mapping[str, Any], model: str, settings: InteractiveSettings) -> Interactive:
    """Measurement and model together.

    A model's yes needs a property with evidence, no negative, and a picture that moves; its no stands, except against itself.
    """
    holding = tuple(n for n, p in answer["properties"].items() if p["holds"] and p["evidence"].strip())
    negative = _or_none(answer["negative"])
    yes, why = _weighed(facts, answer, holding, negative)
    return Interactive(
        yes,
        why,
        measured(facts, settings).score,
        holding,
        _or_none(answer["category"]),
        _or_none(answer["level"]),
        negative,
        model,
    )


def _weighed(facts: Facts, answer: Mapping[str, Any], holding: Sequence[str], negative: str | None) -> tuple[bool, str]:
    instead = negative and negative.replace("_", " ")
    if not answer["interactive"]:
        return False, f"the model sees {instead or 'no interaction'}"
    if instead:
        return False, f"the model says yes, and also {instead}"
    if not holding:
        return False, "the model says yes without evidence for a property"
    if _stands_still(facts):
        return False, "the model says yes, but nothing moves"
    return True, f"{holding[0].replace('_', ' ')}: {answer['properties'][holding[0]]['evidence'].strip()}"


def _or_none(value: str) -> str | None:
    return None if value == "none" else value


@dataclass(frozen=True)
class Change:
    """An interaction caption: the sentence, and its parts (null where they are not known)."""

    caption: str
    parts: dict[str, Any]
    source: str


CHANGE_PARTS = ("initial_state", "trigger", "transition", "final_state", "subject", "category", "level")


def from_answer(answer: Mapping[str, Any], source: str) -> Change:
    """A model's answer; an empty field or "none" is not known."""
    parts = {name: (None if answer[name] in ("", "none") else answer[name]) for name in CHANGE_PARTS}
    return Change(answer["caption"], parts, source)


def measured_change_inside(facts: Facts) -> Change | None:
    """The strongest happening of a clip in measured terms; None where nothing is known to happen."""
    event = facts.strongest
    if event is None:
        return None
    before, after = (f"the camera {_camera_at(facts, t)}" for t in (event.start_s - 1e-3, event.end_s + 1e-3))
    transition = f"something happens from {event.start_s:.1f} to {event.end_s:.1f} s"
    parts = _parts(initial_state=before, transition=transition, final_state=after)
    return Change(f"While {before}, {transition}; then {after}.", parts, MEASURED)


def _camera_at(facts: Facts, time_s: float) -> str:
    return MOTIONS[next((name for name, start, end in facts.motions if start <= time_s < end), "still")]


def _parts(**known: str | None) -> dict[str, Any]:
    return {name: known.get(name) for name in CHANGE_PARTS}


def measured_change_between(here: Facts, there: Facts, across_cut: bool) -> Change:
    """From one clip to the next in measured terms: what the camera does, how bright it is, what happens."""
    first, last = _camera_at(here, here.length_s - 1e-3), _camera_at(there, 0.0)
    camera = f"the camera {first}" if first == last else f"the camera {first}, then {last}"
    parts = ["after a cut" if across_cut else "", camera, _light_change(here, there), _event_change(here, there)]
    transition = "; ".join(part for part in parts if part)
    words = _parts(initial_state=short(here), transition=transition, final_state=short(there))
    return Change(f"{transition[0].upper()}{transition[1:]}.", words, MEASURED)


def _light_change(here: Facts, there: Facts) -> str:
    if here.luma_mean is None or there.luma_mean is None:
        return ""
    change = there.luma_mean - here.luma_mean
    if abs(change) < 10:
        return ""
    return f"it gets {'brighter' if change > 0 else 'darker'} (mean luminance {here.luma_mean:.0f} to {there.luma_mean:.0f})"


def _event_change(here: Facts, there: Facts) -> str:
    words = {
        (True, True): "things go on happening",
        (True, False): "what was happening ends",
        (False, True): "something begins to happen",
    }
    known = here.happenings_known and there.happenings_known
    return words.get((bool(here.happenings), bool(there.happenings)), "") if known else ""


def between_prompt(
    captions: tuple[str, str], facts: tuple[Facts, Facts], frames: Sequence[bytes], labels: Sequence[str], across_cut: bool
) -> Prompt:
    """From one clip to the next (paper section 3.4: I from t to t+1), by both captions and the frames at the seam."""
    words = question_files.render(
        "interaction",
        "between",
        cut=", with a cut between them" if across_cut else "",
        first_caption=captions[0],
        first_facts=sentences(facts[0]),
        second_caption=captions[1],
        second_facts=sentences(facts[1]),
    )
    return Prompt("between", words, change_schema(), tuple(frames), tuple(labels))
