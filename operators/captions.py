"""Semantic check, standard caption, interactive or not (paper sections 3.2 and 3.4): one question a clip and operator.

Questions of a whole batch go to the model together, so that its batches stay full. A question without a valid answer is that
clip's reason in a column of its own, and measured facts stand in; a model that cannot be reached at all is an OSError, which
leaves the unit to the next run.
"""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from curation import vlm
from curation.captions import caption as captions
from curation.captions import consistency, interaction
from curation.captions.caption import Caption, Facts, Happening
from curation.captions.consistency import Verdicts
from curation.captions.interaction import Change, Interactive, InteractiveSettings
from curation.errors import UnreadableVideo
from curation.media.decode import Span
from curation.media.viewport import Rect
from curation.schema import Row
from curation.vlm import Answer, Prompt, VlmSettings
from curation.vlm.frames import FrameSettings, choose_moments, frame_labels, grab_frames

NO_VLM = "skipped: no VLM is configured"
Item = TypeVar("Item")
Ask = Callable[[Facts, Sequence[bytes], Sequence[str]], Prompt]

CHECK_COLUMNS = ("consistency_status", "consistency_flags", "consistency_json", "reject")
CAPTION_COLUMNS = (
    *("caption_short", "caption_long", "caption_json", "caption_source", "caption_conflicts", "caption_error"),
    "reject",
)
INTERACTIVE_COLUMNS = (
    *("interactive", "interactive_reason", "interactive_score", "interactive_source", "interactive_properties"),
    *("interactive_negative", "interaction_category", "interaction_level"),
    *("action_caption", "action_json", "action_source", "action_error", "reject"),
)
FACT_COLUMNS = (
    *("start_s", "end_s", "action_spans", "action_detector", "luma_mean", "flashes_hz", "motion_camera", "motion_object"),
    "iqa_frozen",
)
FRAME_COLUMNS = ("source_uri", "picture", "viewport")


def facts_of(row: Row) -> Facts:
    """What a row holds of measured facts, times from the clip's start."""
    start_s = row["start_s"]
    spans = row.get("action_spans") or []
    return Facts(
        length_s=row["end_s"] - start_s,
        motions=tuple((s["name"], s["start_s"] - start_s, s["end_s"] - start_s) for s in spans if s["kind"] == "regime"),
        happenings=tuple(
            Happening(s["start_s"] - start_s, s["peak_s"] - start_s, s["end_s"] - start_s, s["energy"])
            for s in spans
            if s["kind"] == "interaction"
        ),
        happenings_known=row.get("action_detector") == "learned",
        luma_mean=row.get("luma_mean"),
        flashes_hz=row.get("flashes_hz"),
        motion_camera=row.get("motion_camera"),
        motion_object=row.get("motion_object"),
        frozen=row.get("iqa_frozen"),
        camera_words=" ".join(w.replace("_", " ") + "," for w in row.get("camera_words") or ()).strip(",") or None,
    )


def check_consistency(rows: list[Row], model: VlmSettings, frames: FrameSettings, rules: Verdicts) -> list[Row]:
    """Ask about menus, overlays, cut-scenes and the like; reject by the recipe's rules. Without a model it says so."""
    if not model.enabled:
        return [{**row, "consistency_status": NO_VLM} for row in rows]
    asked = answers(rows, model, frames, lambda facts, *shown: consistency.prompt(captions.sentences(facts), *shown))
    return [_checked(row, answer, model, rules) for row, answer in zip(rows, asked, strict=True)]


def _checked(row: Row, answer: Answer, model: VlmSettings, rules: Verdicts) -> Row:
    if answer.value is None:
        return {**row, "consistency_status": f"failed: {answer.error}", "reject": _without(answer, "semantic check", model)}
    found = consistency.verdict(answer.value, rules)
    return {
        **row,
        "consistency_status": "checked",
        "consistency_flags": list(found.flags),
        "consistency_json": json.dumps(answer.value, sort_keys=True, ensure_ascii=False),
        "reject": found.reject,
    }


def _without(answer: Answer, what: str, model: VlmSettings) -> str | None:
    return f"no {what}: {answer.error}" if model.on_error == "reject" else None


def write_captions(rows: list[Row], model: VlmSettings, frames: FrameSettings) -> list[Row]:
    """The standard caption, by the model where there is one, held against the measurements; else composed from these."""
    asked = answers(rows, model, frames, captions.prompt) if model.enabled else [Answer()] * len(rows)
    return [_captioned(row, answer, model) for row, answer in zip(rows, asked, strict=True)]


def _captioned(row: Row, answer: Answer, model: VlmSettings) -> Row:
    facts = facts_of(row)
    caption = captions.measured(facts) if answer.value is None else captions.from_answer(answer.value, model.model)
    row = {**row, **_caption_columns(caption), "caption_error": answer.error}
    row["caption_conflicts"] = captions.conflicts(caption.structured, facts)
    return row | ({"reject": _without(answer, "caption", model)} if answer.error else {})


def _caption_columns(caption: Caption) -> Row:
    return {
        "caption_short": caption.short,
        "caption_long": caption.long,
        "caption_json": json.dumps(caption.structured, sort_keys=True, ensure_ascii=False),
        "caption_source": caption.source,
    }


def judge_interactive(rows: list[Row], model: VlmSettings, frames: FrameSettings, limits: InteractiveSettings) -> list[Row]:
    """Whether a clip is interactive video, what kind, and the change around its strongest action."""
    asked = answers(rows, model, frames, interaction.clip_prompt) if model.enabled else [Answer()] * len(rows)
    return [_judged(row, answer, model, limits) for row, answer in zip(rows, asked, strict=True)]


def _judged(row: Row, answer: Answer, model: VlmSettings, limits: InteractiveSettings) -> Row:
    facts = facts_of(row)
    if answer.value is None:
        found, change = _without_model(row, facts, limits)
    else:
        found = interaction.decided(facts, answer.value, model.model, limits)
        change = interaction.from_answer(answer.value, model.model)
    row = {**row, **_interactive_columns(found), **change_columns("action", change), "action_error": answer.error}
    return row | ({"reject": _without(answer, "interaction", model)} if answer.error else {})


def _without_model(row: Row, facts: Facts, limits: InteractiveSettings) -> tuple[Interactive, Change | None]:
    """What is measured; of a clip that was made for an interaction, and verified, what it was made for."""
    if row.get("source") != "synthetic":
        return interaction.measured(facts, limits), interaction.measured_change_inside(facts)
    found = Interactive(
        True, f"made and verified: {row['instruction']}", source="synthesis", category=row["interaction_category"]
    )
    parts = dict.fromkeys(interaction.CHANGE_PARTS) | {"trigger": row["instruction"], "category": row["interaction_category"]}
    return found, Change(f"{row['instruction'][:1].upper()}{row['instruction'][1:]}.", parts, "synthesis")


def _interactive_columns(found: Interactive) -> Row:
    return {
        "interactive": found.interactive,
        "interactive_reason": found.reason,
        "interactive_score": found.score,
        "interactive_source": found.source,
        "interactive_properties": list(found.properties),
        "interactive_negative": found.negative,
        "interaction_category": found.category,
        "interaction_level": found.level,
    }


def change_columns(prefix: str, change: Change | None) -> Row:
    """A change under `<prefix>_caption`, `_json` and `_source`; null where there is none."""
    return {
        f"{prefix}_caption": change and change.caption,
        f"{prefix}_json": change and json.dumps(change.parts, sort_keys=True, ensure_ascii=False),
        f"{prefix}_source": change and change.source,
    }


def answers(rows: Sequence[Row], model: VlmSettings, frames: FrameSettings, make: Ask) -> list[Answer]:
    """One answer a row, by the frames around its strongest action."""
    return asked_of(rows, model, lambda row: make(facts_of(row), *shown(row, frames)))


def asked_of(items: Sequence[Item], model: VlmSettings, make: Callable[[Item], Prompt]) -> list[Answer]:
    """One answer an item, all asked together; one whose frames cannot be read has that as its reason."""
    prompts: dict[int, Prompt] = {}
    found = [Answer() for _ in items]
    for number, item in enumerate(items):
        try:
            prompts[number] = make(item)
        except UnreadableVideo as error:
            found[number] = Answer(error=f"no frames: {error}")
    for number, answer in zip(prompts, vlm.ask(vlm.load(model), list(prompts.values())), strict=True):
        found[number] = answer
    return found


def shown(row: Row, frames: FrameSettings) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """The frames of a clip that a model sees, with their labels: around its strongest action."""
    facts, start_s = facts_of(row), row["start_s"]
    span, event = Span(start_s, row["end_s"]), facts.strongest
    action = Span(start_s + event.start_s, start_s + event.end_s) if event else None
    chosen = choose_moments(span, action, start_s + event.peak_s if event else None, frames.count)
    pictures = grab_frames(row["source_uri"], span, tuple(m.time_s for m in chosen), view(row, frames), frames.width_px)
    return pictures, frame_labels(chosen, start_s)


def view(row: Row, frames: FrameSettings) -> Rect:
    """The part of the source that is shown: the picture without bars, or the 3-D view without the HUD's panels."""
    return Rect(**row["viewport" if frames.hud == "crop" else "picture"])
