"""Synthetic clips (paper section 3.3): make a video, take it whole as a clip, say whether it is what was asked for."""

import json
from collections.abc import Sequence

from curation import storage, vlm
from curation.media import time_gaps
from curation.media.decode import Span
from curation.media.viewport import Rect
from curation.partition.chunks import ScanSettings
from curation.partition.cuts import SceneSettings
from curation.partition.scan import scan
from curation.quality.iqa import aggregate_quality, combed_share
from curation.schema import Row
from curation.vlm.frames import choose_moments, frame_labels, grab_frames
from operators.op import each
from operators.shards import scratch_file
from synth import strategies, verify
from synth.evidence import Evidence, evidence
from synth.media import from_bytes, to_mp4, to_png
from synth.prompts import Refused
from synth.requests import Request, request
from synth.strategies import SynthSettings

EVIDENCE_COLUMNS = tuple(f"synth_{name}" for name in Evidence._fields)
MADE_COLUMNS = (
    "source_uri",
    "strategy",
    "synth_models",
    "synth_prompt",
    "synth_truth",
    "synth_verdict",
    "initial_png",
    "reject",
)
ASKED_COLUMNS = ("source", "interaction", "instruction", "interaction_category", "synth_attempt", "synth_seed", "synth_frame")
WHOLE_COLUMNS = (
    *("index", "scene_index", "start_s", "end_s", "start_frame", "end_frame", "picture", "viewport", "static_share"),
)
# Pictures of a video that the model is shown.
_SHOWN, _SHOWN_WIDTH_PX = 8, 448
_ACTION_S = 1.5
# So much of its end is after the action, however late that begins.
_AFTER_S = 0.5
# When people are shown a picture of a change, from its onset.
_STRIP_S = (0.1, 0.4, 1.2)


@each
def make_video(row: Row, how: SynthSettings) -> Row:
    """Make the video of one attempt; its file waits on this node (`scratch_file`) until the unit's commit stores it.

    A request that cannot be met is rejected; a backend that fails in any way costs the attempt, and its reason is the row's.
    A store or server that cannot be reached is an OSError: no attempt's fault, so the unit is tried again.
    """
    asked = request(row["request"])
    row = {**row, **_asked(asked, row["synth_attempt"])}
    try:
        made = strategies.make(asked, row["synth_seed"], how)
    except OSError:
        raise
    except Refused as error:
        return {**row, "synth_verdict": "rejected", "reject": f"refused: {error}"}
    except Exception as error:
        return {**row, **_tried(f"not made: {type(error).__name__}: {error}", row["synth_attempt"], how)}
    file = scratch_file(row["video_id"])
    with storage.naming(str(file)):
        file.write_bytes(to_mp4(made.pictures, made.fps))
    return {
        **row,
        "source_uri": str(file),
        "strategy": made.strategy,
        "synth_models": list(made.models),
        "synth_prompt": json.dumps(made.prompt, sort_keys=True, ensure_ascii=False) if made.prompt else None,
        "synth_truth": made.truth,
        "initial_png": to_png(made.initial),
    }


def _asked(asked: Request, attempt: int) -> Row:
    return {
        "source": "synthetic",
        "interaction": asked.interaction.name,
        "interaction_category": asked.interaction.category,
        "instruction": asked.instruction,
        "synth_seed": asked.seed_of(attempt),
        "synth_frame": asked.frame.name,
        "index": 0,
        "start_s": 0.0,
        "end_s": 0.0,
    }


def _tried(reason: str, attempt: int, how: SynthSettings) -> Row:
    """The verdict on an attempt that failed for this reason."""
    return {"synth_verdict": "retry" if attempt + 1 < how.attempts else "rejected", "reject": reason}


@each
def take_whole(row: Row, how: ScanSettings) -> Row:
    """The video as one clip: there are no bars or panels in it, and no source around it."""
    signals = scan(row["source_uri"], how)
    frame = Rect(0, 0, row["width"], row["height"])._asdict()
    span = {"start_s": 0.0, "end_s": signals.end_s, "start_frame": 0, "end_frame": len(signals.times_s)}
    return {**row, **span, "index": 0, "scene_index": 0, "picture": frame, "viewport": frame, "static_share": 0.0}


@each
def measure_picture(row: Row, how: ScanSettings) -> Row:
    """How clean the picture looks. That it stands still is no fault here; whether anything happens is for `verify`."""
    signals = scan(row["source_uri"], how)
    fields = {"deinterlaced": float(signals.deinterlaced.mean()), "combed": combed_share(signals.combing)}
    quality = aggregate_quality(signals.iqa_rows, 0.0)._asdict()
    return {**row, **quality, "iqa_frozen": None, "iqa_backend": signals.iqa, **fields}


@each
def verify_video(row: Row, how: SynthSettings, pass_: ScanSettings, scene: SceneSettings) -> Row:
    """Accept, try another seed, or reject, with the reason; a model is asked where no signal speaks against it."""
    asked, signals = request(row["request"]), scan(row["source_uri"], pass_)
    initial = from_bytes(row["initial_png"])
    assert initial is not None, "an initial frame that is no PNG"
    found = evidence(row["source_uri"], signals, initial, scene)
    row = {**row, **{f"synth_{name}": value for name, value in found._asdict().items()}}
    reason = time_gaps.describe_gaps(signals.segments) or verify.judge(found, row, asked.interaction, how.verify)
    if reason is None and how.vlm.enabled:
        answer = _trigger(row, asked, found, how)
        reason = verify.answered(answer) if answer.value or how.vlm.on_error == "reject" else None
        row["synth_answer"] = json.dumps(answer.value or {"error": answer.error}, sort_keys=True, ensure_ascii=False)
    verdict = _tried(reason, row["synth_attempt"], how) if reason else {"synth_verdict": "accepted"}
    return {**row, **verdict}


def _trigger(row: Row, asked: Request, found: Evidence, how: SynthSettings) -> vlm.Answer:
    """The model's answer over frames from before, during and after the change."""
    span = Span(row["start_s"], row["end_s"])
    action = Span(found.onset_s, max(found.onset_s, min(found.onset_s + _ACTION_S, span.end_s - _AFTER_S)))
    shown = choose_moments(span, action, (action.start_s + action.end_s) / 2, _SHOWN)
    pictures = grab_frames(row["source_uri"], span, tuple(m.time_s for m in shown), Rect(**row["picture"]), _SHOWN_WIDTH_PX)
    prompt = verify.trigger_prompt(asked.interaction, asked.instruction, pictures, frame_labels(shown, span.start_s))
    return vlm.ask(vlm.load(how.vlm), [prompt])[0]


def strip(row: Row, pass_: ScanSettings, width_px: int = 320) -> tuple[list[float], Sequence[bytes]]:
    """Times and JPEGs of a clip: its first picture, three as it changes, its last: what people are shown of it."""
    end_s = scan(row["source_uri"], pass_).end_s
    last_s, onset_s = max(0.0, end_s - 0.1), row.get("synth_onset_s") or 0.0
    times_s = sorted(min(time_s, last_s) for time_s in (0.0, *(onset_s + after_s for after_s in _STRIP_S), last_s))
    view = Rect(0, 0, row["width"], row["height"])
    return times_s, grab_frames(row["source_uri"], Span(0.0, end_s), tuple(times_s), view, width_px)
