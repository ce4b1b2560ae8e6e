"""From clip to clip (paper section 3.4): the interaction caption I(t -> t+1) and the difference of embeddings behind it.

Works on the slim rows of one video, all at once. Neighbours are: same video, next index, both kept, touching in time. Where
there is no neighbour or no encoder the columns are null.
"""

import json
from itertools import pairwise

import numpy as np

from curation.captions import embeddings, interaction
from curation.captions.embeddings import Encoder, EncoderSettings
from curation.captions.interaction import Change
from curation.media.decode import Span
from curation.schema import TOUCHING_S, Row
from curation.vlm import Answer, Prompt, VlmSettings
from curation.vlm.frames import FrameSettings, grab_frames
from operators.captions import asked_of, change_columns, facts_of, view

RELATE_COLUMNS = (
    *("interaction_next", "interaction_caption", "interaction_json", "interaction_source", "interaction_error"),
    *("interaction_delta", "interaction_delta_norm", "action_delta", "action_delta_norm", "delta_encoder"),
)
Pair = tuple[Row, Row]


def relate_clips(rows: list[Row], model: VlmSettings, frames: FrameSettings, encoder: EncoderSettings) -> list[Row]:
    """Each clip with the change to the next one and inside itself. OSError where the model or the encoder cannot be had."""
    rows = sorted(rows, key=lambda row: (row["video_id"], row["index"]))
    pairs = {a["clip_id"]: (a, b) for a, b in pairwise(rows) if neighbours(a, b)}
    asked = (
        asked_of(list(pairs.values()), model, lambda pair: _prompt(pair, frames)) if model.enabled else [Answer()] * len(pairs)
    )
    changes = {clip: _between(pair, answer, model) for (clip, pair), answer in zip(pairs.items(), asked, strict=True)}
    written = [{**row, **changes.get(row["clip_id"], {})} for row in rows]
    phi = embeddings.load(encoder)
    if phi is None:
        return [{**row, "delta_encoder": f"none: {embeddings.missing(encoder)}"} for row in written]
    return _with_deltas(written, pairs, phi, encoder.reads)


def neighbours(a: Row, b: Row) -> bool:
    """Whether b follows a at once."""
    follows = a["video_id"] == b["video_id"] and b["index"] == a["index"] + 1
    return follows and abs(b["start_s"] - a["end_s"]) < TOUCHING_S


def _between(pair: Pair, answer: Answer, model: VlmSettings) -> Row:
    if answer.value is None:
        cut = pair[0]["scene_index"] != pair[1]["scene_index"]
        change: Change = interaction.measured_change_between(facts_of(pair[0]), facts_of(pair[1]), cut)
    else:
        change = interaction.from_answer(answer.value, model.model)
    return {
        **change_columns("interaction", change),
        "interaction_next": pair[1]["clip_id"],
        "interaction_error": answer.error,
    }


def _prompt(pair: Pair, frames: FrameSettings) -> Prompt:
    """First and last frame of both clips; the seam lies between the second and the third."""
    pictures: list[bytes] = []
    labels = []
    for name, row in zip(("First", "Second"), pair, strict=True):
        span = Span(row["start_s"], row["end_s"])
        ends = span.start_s, max(span.start_s, span.end_s - 1e-3)
        pictures += grab_frames(row["source_uri"], span, ends, view(row, frames), frames.width_px)
        labels += [f"{name} clip, first frame:", f"{name} clip, last frame:"]
    captions = pair[0]["caption_long"], pair[1]["caption_long"]
    cut = pair[0]["scene_index"] != pair[1]["scene_index"]
    return interaction.between_prompt(captions, (facts_of(pair[0]), facts_of(pair[1])), pictures, labels, cut)


def _with_deltas(rows: list[Row], pairs: dict[str, Pair], phi: Encoder, reads: str) -> list[Row]:
    """Differences of embeddings: of the captions of neighbours, of the states before and after a clip's strongest action."""
    said = {row["clip_id"]: row[f"caption_{reads}"] for row in rows}
    states = {row["clip_id"]: ends for row in rows if (ends := _states(row))}
    texts = sorted({*said.values(), *(text for ends in states.values() for text in ends)})
    of = dict(zip(texts, phi(texts) if texts else (), strict=True))
    between = {clip: (of[said[clip]], of[said[there["clip_id"]]]) for clip, (_, there) in pairs.items()}
    inside = {clip: (of[before], of[after]) for clip, (before, after) in states.items()}
    return [
        {
            **row,
            **_delta("interaction", between.get(row["clip_id"])),
            **_delta("action", inside.get(row["clip_id"])),
            "delta_encoder": phi.name,
        }
        for row in rows
    ]


def _states(row: Row) -> tuple[str, str] | None:
    """What a clip's strongest action starts from and leads to; None unless both are known."""
    parts = json.loads(row["action_json"]) if row.get("action_json") else {}
    before, after = parts.get("initial_state"), parts.get("final_state")
    return (before, after) if before and after else None


def _delta(prefix: str, ends: tuple[np.ndarray, np.ndarray] | None) -> Row:
    delta, norm = embeddings.difference(*ends) if ends else (None, None)
    return {f"{prefix}_delta": delta, f"{prefix}_delta_norm": norm}
