"""Synthetic clips (paper section 3.3): make a video, describe all of it as one clip, verify that it shows the interaction."""

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
from synth.media import decode_picture, to_mp4, to_png
from synth.metrics import VideoMetrics, measure_video
from synth.prompts import Refused
from synth.requests import Request
from synth.strategies import SynthSettings

METRIC_COLUMNS = tuple(f"synth_{name}" for name in VideoMetrics._fields)
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
ATTEMPT_COLUMNS = ("source", "interaction", "instruction", "interaction_category", "synth_attempt", "synth_seed", "synth_frame")
WHOLE_CLIP_COLUMNS = (
    *("index", "scene_index", "start_s", "end_s", "start_frame", "end_frame", "picture", "viewport", "static_share"),
)
# Number and width of the pictures that the VLM sees.
_VLM_FRAMES, _VLM_WIDTH_PX = 8, 448
_ACTION_S = 1.5
# At least this much of the video's end counts as after the action, however late the action begins.
_AFTER_S = 0.5
# Times of the preview's middle pictures, counted from the onset of the change.
_PREVIEW_S = (0.1, 0.4, 1.2)


@each
def make_video(row: Row, settings: SynthSettings) -> Row:
    """Make the video of one attempt. Its file stays on this node (`scratch_file`) until the unit's commit stores it.

    A request that is impossible is rejected. If the backend fails in any other way, the attempt counts, and its row has the
    reason. An OSError means that a store or server cannot be reached: the attempt does not count, and the unit is tried again.
    """
    request = Request.from_json(row["request"])
    row = {**row, **_attempt_columns(request, row["synth_attempt"])}
    try:
        video = strategies.synthesise(request, row["synth_seed"], settings)
    except OSError:
        raise
    except Refused as error:
        return {**row, "synth_verdict": "rejected", "reject": f"refused: {error}"}
    except Exception as error:
        return {**row, **_failed(f"not made: {type(error).__name__}: {error}", row["synth_attempt"], settings)}
    file = scratch_file(row["video_id"])
    with storage.naming(str(file)):
        file.write_bytes(to_mp4(video.pictures, video.fps))
    return {
        **row,
        "source_uri": str(file),
        "strategy": video.strategy,
        "synth_models": list(video.models),
        "synth_prompt": json.dumps(video.prompt, sort_keys=True, ensure_ascii=False) if video.prompt else None,
        "synth_truth": video.truth,
        "initial_png": to_png(video.initial),
    }


def _attempt_columns(request: Request, attempt: int) -> Row:
    return {
        "source": "synthetic",
        "interaction": request.interaction.name,
        "interaction_category": request.interaction.category,
        "instruction": request.instruction,
        "synth_seed": request.seed_of(attempt),
        "synth_frame": request.frame.name,
        "index": 0,
        "start_s": 0.0,
        "end_s": 0.0,
    }


def _failed(reason: str, attempt: int, settings: SynthSettings) -> Row:
    """Return the verdict on an attempt that failed: retry, or rejected after the last one."""
    return {"synth_verdict": "retry" if attempt + 1 < settings.attempts else "rejected", "reject": reason}


@each
def take_whole(row: Row, settings: ScanSettings) -> Row:
    """Describe the whole video as one clip. A made video has no black bars or panels, and is not part of a longer source."""
    signals = scan(row["source_uri"], settings)
    frame = Rect(0, 0, row["width"], row["height"])._asdict()
    span = {"start_s": 0.0, "end_s": signals.end_s, "start_frame": 0, "end_frame": len(signals.times_s)}
    return {**row, **span, "index": 0, "scene_index": 0, "picture": frame, "viewport": frame, "static_share": 0.0}


@each
def measure_picture(row: Row, settings: ScanSettings) -> Row:
    """Measure the picture quality. A still picture is not a fault here; `verify_video` checks that something happens."""
    signals = scan(row["source_uri"], settings)
    fields = {"deinterlaced": float(signals.deinterlaced.mean()), "combed": combed_share(signals.combing)}
    quality = aggregate_quality(signals.iqa_rows, 0.0)._asdict()
    return {**row, **quality, "iqa_frozen": None, "iqa_backend": signals.iqa, **fields}


@each
def verify_video(row: Row, settings: SynthSettings, scan_settings: ScanSettings, scene: SceneSettings) -> Row:
    """Accept the video, retry with another seed, or reject it, with the reason.

    A VLM, if one is configured, is asked only about videos that break no rule.
    """
    request, signals = Request.from_json(row["request"]), scan(row["source_uri"], scan_settings)
    initial = decode_picture(row["initial_png"])
    assert initial is not None, "the initial frame is not a PNG"
    metrics = measure_video(row["source_uri"], signals, initial, scene)
    row = {**row, **{f"synth_{name}": value for name, value in metrics._asdict().items()}}
    reason = time_gaps.describe_gaps(signals.segments) or verify.rejection_reason(
        metrics, row, request.interaction, settings.verify
    )
    if reason is None and settings.vlm.enabled:
        answer = _ask_vlm(row, request, metrics, settings)
        reason = verify.rejection_in_answer(answer) if answer.value or settings.vlm.on_error == "reject" else None
        row["synth_answer"] = json.dumps(answer.value or {"error": answer.error}, sort_keys=True, ensure_ascii=False)
    verdict = _failed(reason, row["synth_attempt"], settings) if reason else {"synth_verdict": "accepted"}
    return {**row, **verdict}


def _ask_vlm(row: Row, request: Request, metrics: VideoMetrics, settings: SynthSettings) -> vlm.Answer:
    """Ask the VLM about frames from before, during and after the change."""
    span, onset_s = Span(row["start_s"], row["end_s"]), metrics.onset_s
    action = Span(onset_s, max(onset_s, min(onset_s + _ACTION_S, span.end_s - _AFTER_S)))
    shown = choose_moments(span, action, (action.start_s + action.end_s) / 2, _VLM_FRAMES)
    pictures = grab_frames(row["source_uri"], span, tuple(m.time_s for m in shown), Rect(**row["picture"]), _VLM_WIDTH_PX)
    prompt = verify.trigger_prompt(request.interaction, request.instruction, pictures, frame_labels(shown, span.start_s))
    return vlm.ask(vlm.load(settings.vlm), [prompt])[0]


def preview_frames(row: Row, scan_settings: ScanSettings, width_px: int = 320) -> tuple[list[float], Sequence[bytes]]:
    """Return times and JPEGs of a clip for the report: its first picture, three as it changes, its last."""
    end_s = scan(row["source_uri"], scan_settings).end_s
    last_s, onset_s = max(0.0, end_s - 0.1), row.get("synth_onset_s") or 0.0
    times_s = sorted(min(time_s, last_s) for time_s in (0.0, *(onset_s + after_s for after_s in _PREVIEW_S), last_s))
    view = Rect(0, 0, row["width"], row["height"])
    return times_s, grab_frames(row["source_uri"], Span(0.0, end_s), tuple(times_s), view, width_px)
