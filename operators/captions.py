"""Semantic check, standard caption, interactive or not (paper sections 3.2 and 3.4): one question for each clip and operator.

The questions of a whole batch of clips go to the model together, so that its own batches stay full. If a question has no valid
answer, the reason goes into an error column of the clip, and measurements replace the answer. If the model cannot be reached at
all, an OSError leaves the unit to the next run.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from curation import vlm
from curation.captions import caption as captions
from curation.captions import consistency, interaction
from curation.captions.caption import ClipMeasurements, MeasuredEvent, StandardCaption
from curation.captions.consistency import ConsistencySettings
from curation.captions.interaction import Change, InteractiveSettings, InteractiveVerdict
from curation.errors import UnreadableVideo
from curation.media.decode import Span
from curation.media.viewport import Rect
from curation.schema import Row
from curation.vlm import Answer, Prompt, VideoForm, VlmSettings
from curation.vlm.frames import FrameSettings, choose_moments, frame_labels, grab_frames, video_label, video_times

NO_VLM = "skipped: no VLM is configured"
Item = TypeVar("Item")
PromptMaker = Callable[[ClipMeasurements, Sequence[bytes], Sequence[str]], Prompt]

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
MEASUREMENT_COLUMNS = (
    *("start_s", "end_s", "action_spans", "action_detector", "action_unknown", "luma_mean", "flashes_hz"),
    *("motion_camera", "motion_object", "iqa_frozen"),
)
FRAME_COLUMNS = ("source_uri", "picture", "viewport")


def measurements_of(row: Row) -> ClipMeasurements:
    """Return the measurements in a row, with times from the clip's start."""
    start_s = row["start_s"]
    spans = row.get("action_spans") or []
    return ClipMeasurements(
        length_s=row["end_s"] - start_s,
        motions=tuple((s["name"], s["start_s"] - start_s, s["end_s"] - start_s) for s in spans if s["kind"] == "regime"),
        events=tuple(
            MeasuredEvent(s["start_s"] - start_s, s["peak_s"] - start_s, s["end_s"] - start_s, s["energy"], s["name"])
            for s in spans
            if s["kind"] == "interaction"
        ),
        events_known=row.get("action_detector") == "learned" and row.get("action_unknown") is None,
        events_unknown=row.get("action_unknown"),
        luma_mean=row.get("luma_mean"),
        flashes_hz=row.get("flashes_hz"),
        motion_camera=row.get("motion_camera"),
        motion_object=row.get("motion_object"),
        frozen=row.get("iqa_frozen"),
        camera_words=" ".join(w.replace("_", " ") + "," for w in row.get("camera_words") or ()).strip(",") or None,
    )


def check_consistency(rows: list[Row], model: VlmSettings, frames: FrameSettings, rules: ConsistencySettings) -> list[Row]:
    """Ask about menus, overlays, cut-scenes and the like, and reject by the recipe's rules.

    Without a model, only `consistency_status` says that the check was skipped.
    """
    if not model.enabled:
        return [{**row, "consistency_status": NO_VLM} for row in rows]
    answers = ask_about_rows(rows, model, frames, _consistency_prompt)
    return [_with_consistency(row, answer, model, rules) for row, answer in zip(rows, answers, strict=True)]


def _consistency_prompt(clip: ClipMeasurements, pictures: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    return consistency.consistency_prompt(captions.describe(clip), pictures, labels)


def _with_consistency(row: Row, answer: Answer, model: VlmSettings, rules: ConsistencySettings) -> Row:
    if answer.value is None:
        return {**row, "consistency_status": f"failed: {answer.error}", "reject": _rejection(answer, "semantic check", model)}
    verdict = consistency.judge(answer.value, rules)
    return {
        **row,
        "consistency_status": "checked",
        "consistency_flags": list(verdict.flags),
        "consistency_json": json.dumps(answer.value, sort_keys=True, ensure_ascii=False),
        "reject": verdict.reject,
    }


def _rejection(answer: Answer, subject: str, model: VlmSettings) -> str | None:
    """Return the reject reason of a clip without an answer, or None if such clips are kept."""
    return f"no {subject}: {answer.error}" if model.on_error == "reject" else None


def write_captions(rows: list[Row], model: VlmSettings, frames: FrameSettings) -> list[Row]:
    """Write the standard caption: a model's, checked against the measurements, or composed from these if there is no model."""
    answers = ask_about_rows(rows, model, frames, captions.caption_prompt) if model.enabled else [Answer()] * len(rows)
    return [_with_caption(row, answer, model) for row, answer in zip(rows, answers, strict=True)]


def _with_caption(row: Row, answer: Answer, model: VlmSettings) -> Row:
    clip = measurements_of(row)
    if answer.value is None:
        caption = captions.compose_caption(clip)
    else:
        caption = captions.caption_from_answer(answer.value, model.model)
    row = {**row, **_caption_columns(caption), "caption_error": answer.error}
    row["caption_conflicts"] = captions.find_conflicts(caption.structured, clip)
    return row | ({"reject": _rejection(answer, "caption", model)} if answer.error else {})


def _caption_columns(caption: StandardCaption) -> Row:
    return {
        "caption_short": caption.short,
        "caption_long": caption.long,
        "caption_json": json.dumps(caption.structured, sort_keys=True, ensure_ascii=False),
        "caption_source": caption.source,
    }


def judge_interactive(rows: list[Row], model: VlmSettings, frames: FrameSettings, limits: InteractiveSettings) -> list[Row]:
    """Judge whether a clip is interactive video and of what kind, and describe the change around its strongest action."""
    answers = ask_about_rows(rows, model, frames, interaction.clip_prompt) if model.enabled else [Answer()] * len(rows)
    return [_with_interaction(row, answer, model, limits) for row, answer in zip(rows, answers, strict=True)]


def _with_interaction(row: Row, answer: Answer, model: VlmSettings, limits: InteractiveSettings) -> Row:
    clip = measurements_of(row)
    if answer.value is None:
        verdict, change = _judge_without_model(row, clip, limits)
    else:
        verdict = interaction.judge_by_model(clip, answer.value, model.model, limits)
        change = interaction.change_from_answer(answer.value, model.model)
    row = {**row, **_interactive_columns(verdict), **change_columns("action", change), "action_error": answer.error}
    return row | ({"reject": _rejection(answer, "interaction", model)} if answer.error else {})


def _judge_without_model(
    row: Row, clip: ClipMeasurements, limits: InteractiveSettings
) -> tuple[InteractiveVerdict, Change | None]:
    """Judge by the measurements. A synthetic clip has passed verification, so its instruction is the answer."""
    if row.get("source") != "synthetic":
        return interaction.judge_by_measurements(clip, limits), interaction.measured_change_inside(clip)
    verdict = InteractiveVerdict(
        True, f"made and verified: {row['instruction']}", source="synthesis", category=row["interaction_category"]
    )
    parts = dict.fromkeys(interaction.CHANGE_PARTS) | {"trigger": row["instruction"], "category": row["interaction_category"]}
    return verdict, Change(f"{row['instruction'][:1].upper()}{row['instruction'][1:]}.", parts, "synthesis")


def _interactive_columns(verdict: InteractiveVerdict) -> Row:
    return {
        "interactive": verdict.interactive,
        "interactive_reason": verdict.reason,
        "interactive_score": verdict.score,
        "interactive_source": verdict.source,
        "interactive_properties": list(verdict.properties),
        "interactive_negative": verdict.negative,
        "interaction_category": verdict.category,
        "interaction_level": verdict.level,
    }


def change_columns(prefix: str, change: Change | None) -> Row:
    """Return a change as the columns `<prefix>_caption`, `_json` and `_source`, all None if there is no change."""
    return {
        f"{prefix}_caption": change and change.caption,
        f"{prefix}_json": change and json.dumps(change.parts, sort_keys=True, ensure_ascii=False),
        f"{prefix}_source": change and change.source,
    }


def ask_about_rows(rows: Sequence[Row], model: VlmSettings, frames: FrameSettings, make_prompt: PromptMaker) -> list[Answer]:
    """Return one answer for each row, from the frames around the strongest action of its clip."""

    def prompt_of(row: Row) -> Prompt:
        prompt = make_prompt(measurements_of(row), *clip_frames(row, frames))
        if frames.form == "images":
            return prompt
        return replace(prompt, video=VideoForm(len(prompt.frames) / (row["end_s"] - row["start_s"]), frames.total_pixels))

    return ask_about(rows, model, prompt_of)


def ask_about(items: Sequence[Item], model: VlmSettings, make_prompt: Callable[[Item], Prompt]) -> list[Answer]:
    """Return one answer for each item; all questions are asked together. Unreadable frames are the error of their item."""
    prompts: dict[int, Prompt] = {}
    answers = [Answer() for _ in items]
    for number, item in enumerate(items):
        try:
            prompts[number] = make_prompt(item)
        except UnreadableVideo as error:
            answers[number] = Answer(error=f"no frames: {error}")
    for number, answer in zip(prompts, vlm.ask(vlm.load(model), list(prompts.values())), strict=True):
        answers[number] = answer
    return answers


def clip_frames(row: Row, frames: FrameSettings) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return the frames of a clip for a model, and their labels.

    Images are around the clip's strongest action and have a label each. Frames of a video are evenly spaced and have one label.
    """
    start_s = row["start_s"]
    span, event = Span(start_s, row["end_s"]), measurements_of(row).strongest
    action = Span(start_s + event.start_s, start_s + event.end_s) if event else None
    if frames.form == "video":
        even_s = video_times(span, frames.fps)
        pictures = grab_frames(row["source_uri"], span, even_s, visible_rect(row, frames), frames.width_px)
        return pictures, (video_label(even_s, span, action),)
    moments = choose_moments(span, action, start_s + event.peak_s if event else None, frames.count)
    times_s = tuple(moment.time_s for moment in moments)
    pictures = grab_frames(row["source_uri"], span, times_s, visible_rect(row, frames), frames.width_px)
    return pictures, frame_labels(moments, start_s)


def visible_rect(row: Row, frames: FrameSettings) -> Rect:
    """Return the part of the source that a model gets: the picture without bars, or the 3-D view without the HUD's panels."""
    return Rect(**row["viewport" if frames.hud == "crop" else "picture"])
