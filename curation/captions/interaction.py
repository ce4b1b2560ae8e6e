"""Is a clip interactive video, and what happens in it (paper section 3.2 and appendix A)? The definition is a YAML file.

Interactive video has a state before, an event, and a state after. Measurements tell whether something happens, and of which
kind where the detector knows it. Only a model can tell what it is in words, and whether it changes a state or is only traffic
and weather. Both decide together, and the reason is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curation.actions.spans import certainty
from curation.captions.caption import MEASURED, MOTIONS, ClipMeasurements, MeasuredEvent, describe, describe_briefly
from curation.vlm import Prompt, question_files

# Below this motion (px/frame at 320 px wide, camera and objects together) and without flashes or events the picture is still.
_STILL_PX = 0.05
# The category of interaction.yaml of each kind of event that the detector names.
CATEGORIES = {
    **dict.fromkeys(("door", "shot", "wield", "place", "dig", "torch"), "actor"),
    **dict.fromkeys(("explosion", "weather"), "environment"),
    "appear": "entity",
}
_TEXT = {"type": "string", "maxLength": 160}
_EVIDENCE_CHARS = 120


@dataclass(frozen=True)
class InteractiveSettings:
    """When the measurements alone call a clip interactive."""

    # Score (0-1) from which a clip counts as interactive; larger values accept fewer clips. `gamecraft bench captions --tune`
    # shows what other values give.
    min_score: float = 0.45
    # Score (0-1) from which a clip is left unknown instead of not interactive. On games that the detector was not trained on,
    # four in five of the clips whose event is missed have a score between the two.
    min_unknown_score: float = 0.15

    def __post_init__(self) -> None:
        for name in ("min_score", "min_unknown_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, not {getattr(self, name):g}")


def definition() -> dict[str, Any]:
    """Return the definition: version, properties, categories (each simple and complex), negatives."""
    return question_files.load("interaction")


@dataclass(frozen=True)
class InteractiveVerdict:
    """Whether a clip is interactive video, and why.

    interactive: None if neither the measurements nor a model can tell. score: 0-1, measured; None if the detector was not
    trained on such footage. negative: the kind of motion that it is instead. source: "measured", or the model's name.
    """

    interactive: bool | None
    reason: str
    score: float | None = None
    properties: tuple[str, ...] = ()
    category: str | None = None
    level: str | None = None
    negative: str | None = None
    source: str = MEASURED


def judge_by_measurements(clip: ClipMeasurements, settings: InteractiveSettings) -> InteractiveVerdict:
    """Judge a clip by its measurements. They tell that something happens, perhaps of which kind; properties stay empty."""
    if _is_still(clip):
        return InteractiveVerdict(False, "nothing moves", 0.0)
    if not clip.events_known:
        reason = clip.events_unknown or "the detector does not know such footage"
        return InteractiveVerdict(None, f"{reason}, and no model was asked")
    score = event_score(clip)
    if score >= settings.min_score:
        event = _surest(clip.events)
        reason = f"{event.words} at {event.peak_s:.1f} s: {score:.2f} >= {settings.min_score:g}"
        return InteractiveVerdict(True, reason, score, category=CATEGORIES.get(event.kind))
    if score >= settings.min_unknown_score:
        return InteractiveVerdict(None, f"perhaps something happens: {score:.2f} < {settings.min_score:g}", score)
    camera_only = not clip.events and (clip.motion_camera or 0) > (clip.motion_object or 0)
    negative = "motion_without_subject" if camera_only else None
    what = "only the camera moves" if camera_only else "too little happens" if clip.events else "no event stands out"
    return InteractiveVerdict(False, f"{what}: {score:.2f} < {settings.min_score:g}", score, negative=negative)


def event_score(clip: ClipMeasurements) -> float:
    """Return the confidence that something happens, 0-1: of the surest event, its mean probability over at least 0.5 s."""
    return max(map(_event_confidence, clip.events), default=0.0)


def _event_confidence(event: MeasuredEvent) -> float:
    return certainty(event.energy, event.end_s - event.start_s)


def _surest(events: Sequence[MeasuredEvent]) -> MeasuredEvent:
    return max(events, key=_event_confidence)


def _is_still(clip: ClipMeasurements) -> bool:
    if clip.motion_camera is None or clip.motion_object is None:
        return False
    return clip.motion_camera + clip.motion_object < _STILL_PX and not clip.flashes_hz and not clip.events


def answer_schema() -> dict[str, Any]:
    """Return the schema of an answer about a clip: the states before and after, and the parts of the definition that hold."""
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
    """Return the schema of a change between two states, in the paper's words."""
    fields = {
        **dict.fromkeys(("initial_state", "trigger", "transition", "final_state", "subject"), _TEXT),
        "category": {"enum": [*definition()["categories"], "none"]},
        "level": {"enum": ["simple", "complex", "none"]},
        "caption": {"type": "string", "minLength": 1, "maxLength": 240},
    }
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def clip_prompt(clip: ClipMeasurements, frames: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    """Return the question what happens inside a clip, around its strongest action, and whether it is interactive video."""
    data = definition()
    kinds = {
        name: f"{kind['meaning']} Simple: {kind['simple']}. Complex: {kind['complex']}."
        for name, kind in data["categories"].items()
    }
    meanings = {"properties": data["properties"], "negatives": data["negatives"], "categories": kinds}
    lists = {name: question_files.bullets(part) for name, part in meanings.items()}
    text = question_files.render("interaction", "inside", facts=describe(clip), **lists)
    return Prompt("interaction", text, answer_schema(), tuple(frames), tuple(labels))


def judge_by_model(
    clip: ClipMeasurements, answer: Mapping[str, Any], model: str, settings: InteractiveSettings
) -> InteractiveVerdict:
    """Judge a clip by a model's answer and the measurements.

    A yes of the model needs a property with evidence, no negative, and a picture that moves. A no is final.
    """
    properties = tuple(n for n, p in answer["properties"].items() if p["holds"] and p["evidence"].strip())
    negative = _none_if_none(answer["negative"])
    interactive, reason = _weigh_answer(clip, answer, properties, negative)
    return InteractiveVerdict(
        interactive,
        reason,
        judge_by_measurements(clip, settings).score,
        properties,
        _none_if_none(answer["category"]),
        _none_if_none(answer["level"]),
        negative,
        model,
    )


def _weigh_answer(
    clip: ClipMeasurements, answer: Mapping[str, Any], properties: Sequence[str], negative: str | None
) -> tuple[bool, str]:
    """Return whether a clip is interactive, and the reason."""
    instead = negative and negative.replace("_", " ")
    if not answer["interactive"]:
        return False, f"the model sees {instead or 'no interaction'}"
    if instead:
        return False, f"the model says yes, and also {instead}"
    if not properties:
        return False, "the model says yes without evidence for a property"
    if _is_still(clip):
        return False, "the model says yes, but nothing moves"
    return True, f"{properties[0].replace('_', ' ')}: {answer['properties'][properties[0]]['evidence'].strip()}"


def _none_if_none(value: str) -> str | None:
    return None if value == "none" else value


@dataclass(frozen=True)
class Change:
    """An interaction caption: the sentence, and its parts (None where unknown)."""

    caption: str
    parts: dict[str, Any]
    source: str


CHANGE_PARTS = ("initial_state", "trigger", "transition", "final_state", "subject", "category", "level")


def change_from_answer(answer: Mapping[str, Any], source: str) -> Change:
    """Turn a model's answer into a change. An empty field or "none" means unknown."""
    parts = {name: (None if answer[name] in ("", "none") else answer[name]) for name in CHANGE_PARTS}
    return Change(answer["caption"], parts, source)


def measured_change_inside(clip: ClipMeasurements) -> Change | None:
    """Describe the strongest event of a clip by its measurements. Return None if no event is known."""
    event = clip.strongest
    if event is None:
        return None
    before, after = (f"the camera {_camera_at(clip, t)}" for t in (event.start_s - 1e-3, event.end_s + 1e-3))
    transition = f"{event.words} from {event.start_s:.1f} to {event.end_s:.1f} s"
    category = CATEGORIES.get(event.kind)
    parts = _parts(initial_state=before, transition=transition, final_state=after, category=category)
    return Change(f"While {before}, {transition}; then {after}.", parts, MEASURED)


def _camera_at(clip: ClipMeasurements, time_s: float) -> str:
    return MOTIONS[next((name for name, start, end in clip.motions if start <= time_s < end), "still")]


def _parts(**known: str | None) -> dict[str, Any]:
    return {name: known.get(name) for name in CHANGE_PARTS}


def measured_change_between(first: ClipMeasurements, second: ClipMeasurements, across_cut: bool) -> Change:
    """Describe the change from one clip to the next by measurements: camera motion, brightness, events."""
    before, after = _camera_at(first, first.length_s - 1e-3), _camera_at(second, 0.0)
    camera = f"the camera {before}" if before == after else f"the camera {before}, then {after}"
    changes = ["after a cut" if across_cut else "", camera, _light_change(first, second), _event_change(first, second)]
    transition = "; ".join(change for change in changes if change)
    parts = _parts(initial_state=describe_briefly(first), transition=transition, final_state=describe_briefly(second))
    return Change(f"{transition[0].upper()}{transition[1:]}.", parts, MEASURED)


def _light_change(first: ClipMeasurements, second: ClipMeasurements) -> str:
    if first.luma_mean is None or second.luma_mean is None:
        return ""
    change = second.luma_mean - first.luma_mean
    if abs(change) < 10:
        return ""
    return f"it gets {'brighter' if change > 0 else 'darker'} (mean luminance {first.luma_mean:.0f} to {second.luma_mean:.0f})"


def _event_change(first: ClipMeasurements, second: ClipMeasurements) -> str:
    words = {
        (True, True): "things go on happening",
        (True, False): "what was happening ends",
        (False, True): "something begins to happen",
    }
    known = first.events_known and second.events_known
    return words.get((bool(first.events), bool(second.events)), "") if known else ""


def between_prompt(
    captions: tuple[str, str],
    clips: tuple[ClipMeasurements, ClipMeasurements],
    frames: Sequence[bytes],
    labels: Sequence[str],
    across_cut: bool,
) -> Prompt:
    """Return the question what changes from one clip to the next (paper section 3.4: I from t to t+1)."""
    text = question_files.render(
        "interaction",
        "between",
        cut=", with a cut between them" if across_cut else "",
        first_caption=captions[0],
        first_facts=describe(clips[0]),
        second_caption=captions[1],
        second_facts=describe(clips[1]),
    )
    return Prompt("between", text, change_schema(), tuple(frames), tuple(labels))
