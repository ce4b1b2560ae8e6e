"""Relate each clip to the next (paper section 3.4): the interaction caption I(t -> t+1) and the difference of embeddings.

It works on the slim rows of one video, all at once. Two clips are neighbours if they are of the same video, have successive
indices, are both kept, and touch in time. Without a neighbour or without an encoder the columns are null.
"""

import json
from itertools import pairwise

import numpy as np

from curation.captions import embedding_cache, embeddings, engine_events, interaction
from curation.captions.embeddings import Encoder, EncoderSettings
from curation.captions.interaction import Change
from curation.media.decode import Span
from curation.schema import TOUCHING_S, Row
from curation.vlm import Answer, Prompt, VlmSettings
from curation.vlm.frames import FrameSettings, grab_frames
from operators.captions import ask_about, change_columns, measurements_of, visible_rect

RELATE_COLUMNS = (
    *("interaction_next", "interaction_caption", "interaction_json", "interaction_source", "interaction_error"),
    *(
        "interaction_category",
        "interaction_delta",
        "interaction_delta_norm",
        "action_delta",
        "action_delta_norm",
        "delta_encoder",
    ),
)
Pair = tuple[Row, Row]


def relate_clips(rows: list[Row], model: VlmSettings, frames: FrameSettings, encoder: EncoderSettings) -> list[Row]:
    """Add to each clip the change to the next clip and the change inside it.

    Clips of a recording with an engine's log of events have the caption of the event that has begun, and none before the first.

    Raise OSError if the model or the encoder is not available.
    """
    rows = sorted(rows, key=lambda row: (row["video_id"], row["index"]))
    pairs = {a["clip_id"]: (a, b) for a, b in pairwise(rows) if are_neighbours(a, b)}
    answers = (
        ask_about(list(pairs.values()), model, lambda pair: _prompt(pair, frames)) if model.enabled else [Answer()] * len(pairs)
    )
    changes = {clip: _change_between(pair, answer, model) for (clip, pair), answer in zip(pairs.items(), answers, strict=True)}
    rows = [{**row, **changes.get(row["clip_id"], {}), **_logged_change(row)} for row in rows]
    encode = embeddings.load_encoder(encoder)
    if encode is None:
        return [{**row, "delta_encoder": f"none: {embeddings.missing_reason(encoder)}"} for row in rows]
    return _with_deltas(rows, pairs, encode, f"caption_{encoder.caption}")


def are_neighbours(a: Row, b: Row) -> bool:
    """Whether clip b follows clip a without a gap."""
    follows = a["video_id"] == b["video_id"] and b["index"] == a["index"] + 1
    return follows and abs(b["start_s"] - a["end_s"]) < TOUCHING_S


def _change_between(pair: Pair, answer: Answer, model: VlmSettings) -> Row:
    """Return the columns of the change from a clip to the next: a model's answer, or else the measurements."""
    if answer.value is None:
        cut = pair[0]["scene_index"] != pair[1]["scene_index"]
        change: Change = interaction.measured_change_between(measurements_of(pair[0]), measurements_of(pair[1]), cut)
    else:
        change = interaction.change_from_answer(answer.value, model.model)
    return {
        **change_columns("interaction", change),
        "interaction_next": pair[1]["clip_id"],
        "interaction_error": answer.error,
    }


def _logged_change(row: Row) -> Row:
    """Return the columns of the change that the engine's log of events has for a clip; empty if there is no log."""
    events = engine_events.read_log(row["source_uri"])
    if events is None:
        return {}
    event = engine_events.event_at(events, row["start_s"])
    return {
        "interaction_caption": event and event.caption,
        "interaction_json": None,
        "interaction_source": engine_events.SOURCE,
        "interaction_error": None,
        "interaction_category": event and event.category,
    }


def _prompt(pair: Pair, frames: FrameSettings) -> Prompt:
    """Return the question about two clips, with the first and the last frame of each."""
    pictures: list[bytes] = []
    labels = []
    for name, row in zip(("First", "Second"), pair, strict=True):
        span = Span(row["start_s"], row["end_s"])
        ends = span.start_s, max(span.start_s, span.end_s - 1e-3)
        pictures += grab_frames(row["source_uri"], span, ends, visible_rect(row, frames), frames.width_px)
        labels += [f"{name} clip, first frame:", f"{name} clip, last frame:"]
    captions = pair[0]["caption_long"], pair[1]["caption_long"]
    cut = pair[0]["scene_index"] != pair[1]["scene_index"]
    return interaction.between_prompt(captions, (measurements_of(pair[0]), measurements_of(pair[1])), pictures, labels, cut)


def _with_deltas(rows: list[Row], pairs: dict[str, Pair], encode: Encoder, caption_column: str) -> list[Row]:
    """Add differences of embeddings: between the captions of neighbours, and between the states around a clip's action."""
    captions = {row["clip_id"]: row[caption_column] for row in rows}
    states = {row["clip_id"]: ends for row in rows if (ends := _states(row))}
    texts = sorted({*captions.values(), *(text for ends in states.values() for text in ends)})
    vectors = dict(zip(texts, embedding_cache.encode(encode, texts, rows[0]["video_id"]) if texts else (), strict=True))
    between = {clip: (vectors[captions[clip]], vectors[captions[after["clip_id"]]]) for clip, (_, after) in pairs.items()}
    inside = {clip: (vectors[before], vectors[after]) for clip, (before, after) in states.items()}
    return [
        {
            **row,
            **_delta("interaction", between.get(row["clip_id"])),
            **_delta("action", inside.get(row["clip_id"])),
            "delta_encoder": encode.name,
        }
        for row in rows
    ]


def _states(row: Row) -> tuple[str, str] | None:
    """Return the states before and after a clip's strongest action, or None unless both are known."""
    parts = json.loads(row["action_json"]) if row.get("action_json") else {}
    before, after = parts.get("initial_state"), parts.get("final_state")
    return (before, after) if before and after else None


def _delta(prefix: str, ends: tuple[np.ndarray, np.ndarray] | None) -> Row:
    delta, norm = embeddings.difference(*ends) if ends else (None, None)
    return {f"{prefix}_delta": delta, f"{prefix}_delta_norm": norm}
