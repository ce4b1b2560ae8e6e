"""The columns of the ledger, shared by the whole project: a clip is a row of `CLIP`, a source a row of `VIDEO`.

`conform` refuses a column that is not declared here. Each column has a unit, a meaning and the version of the code that
computes it. Parquet stores all three, so a ledger itself says how each of its numbers was made.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 3
PACKED_VERSION = 4
"""Version of an output some of whose units are packed (`pipelines.unit_files`). Its rows are those of version 3.

It is not in the digests of settings, so packing renames no unit. Releases that know no segments refuse such an output.
"""
# Version 2 has no camera_spans, camera_valid_share, camera_parallax, synth_entry, synth_spread and synth_motion.
READABLE_VERSIONS = (2, 3, 4)
# Clips of one source touch if one ends where the next begins. Times are exact, except for rounding when they are stored.
TOUCHING_S = 1e-3

Row = dict[str, Any]

_SPAN = pa.struct(
    [
        ("start_s", pa.float64()),
        ("peak_s", pa.float64()),
        ("end_s", pa.float64()),
        ("energy", pa.float32()),
        ("kind", pa.string()),
        ("name", pa.string()),
    ]
)
CAMERA_SPAN = pa.struct(
    [
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("model", pa.string()),
        ("scale_group", pa.int32()),
        ("scale_to_unit", pa.float64()),
        ("scale_source", pa.string()),
    ]
)
_RECT = pa.struct([("x", pa.int32()), ("y", pa.int32()), ("w", pa.int32()), ("h", pa.int32())])


def _column(
    name: str, type_: pa.DataType, unit: str, meaning: str, version: int = 1, null: bool = True, stored_in: str = "ledger"
) -> pa.Field:
    """Declare a column. `stored_in="sidecar"`: operators pass it on in rows, but a side file stores it, not the ledger."""
    about = {"unit": unit, "meaning": meaning, "version": str(version), "stored_in": stored_in}
    return pa.field(name, type_, nullable=null, metadata=about)


CLIP = pa.schema(
    [
        _column("clip_id", pa.string(), "", "hash of video_id, span and partition settings; contains no dot", null=False),
        _column(
            "video_id",
            pa.string(),
            "",
            "hash of the source's content; of a synthetic video: of its request and settings",
            null=False,
        ),
        _column("source_uri", pa.string(), "", "path or s3:// uri of the source"),
        _column(
            "source_token",
            pa.string(),
            "",
            "version of the source that was measured: size and ETag, or size and modification time in ns",
        ),
        _column("source", pa.string(), "", "curated (from footage) | synthetic"),
        _column("strategy", pa.string(), "", "start_end | first_frame | procedural: how it was synthesised; null: curated"),
        _column("interaction", pa.string(), "", "the requested interaction (synth/interactions.yaml); null: curated"),
        _column("instruction", pa.string(), "", "the instruction, in words; null: curated"),
        _column("index", pa.int32(), "", "number of the clip in the source, from 0, before any clip is dropped"),
        _column("scene_index", pa.int32(), "", "number of the scene in the source, from 0"),
        _column("start_s", pa.float64(), "s", "time of the first frame, counted from the first frame of the source"),
        _column("end_s", pa.float64(), "s", "exclusive end: time of the first frame of the next clip"),
        _column("start_frame", pa.int32(), "frame", "number of the first frame in presentation order, from 0"),
        _column("end_frame", pa.int32(), "frame", "exclusive end: number of the first frame after the clip"),
        _column("fps", pa.float32(), "1/s", "median frame rate of the source"),
        _column("width", pa.int32(), "px", "width of the source, rotated upright"),
        _column("height", pa.int32(), "px", "height of the source, rotated upright"),
        _column(
            "transfer",
            pa.string(),
            "",
            "sdr | pq | hlg: transfer function of the source; HDR (pq, hlg) is mapped to SDR when it is decoded",
        ),
        _column(
            "deinterlaced",
            pa.float32(),
            "0-1",
            "share of frames that are marked interlaced; they are deinterlaced when decoded",
        ),
        _column("combed", pa.float32(), "0-1", "share of sampled frames that look interlaced but are not marked so"),
        _column("picture", _RECT, "px", "the source without letterbox bars; this crop is stored in shards"),
        _column("viewport", _RECT, "px", "the 3-D view: the picture without panels that never change"),
        _column("static_share", pa.float32(), "0-1", "share of the viewport that never changes (HUD, weapon, overlay)"),
        _column(
            "action_spans",
            pa.list_(_SPAN),
            "s",
            "spans: regime (what the player does; energy in px/frame) and interaction (what happens; energy: probability)",
            version=3,
        ),
        _column("action_detector", pa.string(), "", "learned | flow: the detector that found the action spans"),
        _column(
            "action_distance", pa.float32(), "1", "distance of the source to the detector's training set; over 1: unlike it"
        ),
        _column(
            "action_confidence",
            pa.float32(),
            "0-1",
            "probability that the clip's interactions are right, also on games never seen; null: judged by flow alone",
        ),
        _column("action_unknown", pa.string(), "", "why the clip's interactions are unknown, not listed; null: they are known"),
        _column(
            "flow_backend",
            pa.string(),
            "",
            "raft | raft-large | dis: the optical flow from which the motion columns are computed",
        ),
        _column("motion_camera", pa.float32(), "px/frame at 320 wide", "mean flow that the camera explains"),
        _column("motion_object", pa.float32(), "px/frame at 320 wide", "mean flow that the camera does not explain"),
        _column("luma_mean", pa.float32(), "0-255", "mean Rec. 709 luma of the picture"),
        _column("luma_min", pa.float32(), "0-255", "mean luma of the darkest frame"),
        _column("luma_max", pa.float32(), "0-255", "mean luma of the brightest frame"),
        _column("luma_range", pa.float32(), "0-255", "1st to 99th percentile of luma over all pixels"),
        _column("black_share", pa.float32(), "0-1", "share of pixels under 16"),
        _column("white_share", pa.float32(), "0-1", "share of pixels over 239"),
        _column(
            "flashes_hz",
            pa.float32(),
            "1/s",
            "flashes: jumps of luma in most of the picture that revert within half a second",
            version=2,
        ),
        _column("fade_share", pa.float32(), "0-1", "share of the time spent fading to or from a flat picture"),
        _column(
            "iqa",
            pa.float32(),
            "0-1",
            "picture quality, lowered by frozen time and by a coarse VP9 or MPEG-4 quantiser; 1 = clean",
            version=2,
        ),
        _column(
            "iqa_fault",
            pa.string(),
            "",
            "what lowers iqa most: compressed | blurred | noisy | banded | blocky | upscaled | frozen",
        ),
        _column("iqa_frozen", pa.float32(), "0-1", "share of the time in which no part of the picture changes", version=2),
        _column("iqa_backend", pa.string(), "", "embedded | pyiqa:METRIC: the model that gave iqa"),
        _column(
            "duplicate_of_clip",
            pa.string(),
            "",
            "clip_id of the kept clip of another source that this one repeats; null: none known",
        ),
        _column(
            "duplicate_similarity", pa.float32(), "0-1", "share of its motion that clips of that source show in the same order"
        ),
        _column(
            "camera_status",
            pa.string(),
            "",
            "ok | ok_rotation | ok_static | ok_part (right in camera_spans) | suspect | low_texture | failed:why | skipped:why",
            version=2,
        ),
        _column("camera_why", pa.string(), "", "the checks that the camera of the whole clip missed, each with its value"),
        _column(
            "camera_spans",
            pa.list_(CAMERA_SPAN),
            "s",
            "runs of frames with a valid camera, from the clip's start, first and last frame; one scale for each scale_group",
        ),
        _column("camera_valid_share", pa.float32(), "0-1", "share of the frames that are in camera_spans and valid"),
        _column("camera_source", pa.string(), "", "engine | vipe | klt | none: where the poses come from"),
        _column(
            "camera_model", pa.string(), "", "static | rotation | general: the kind of motion that the poses were fitted with"
        ),
        _column("camera_focal_px", pa.float32(), "px", "horizontal focal length, in px of the source"),
        _column(
            "camera_focal_source",
            pa.string(),
            "",
            "clip | pooled | hint | engine | model | none: how the focal length is known",
        ),
        _column(
            "camera_focal_error",
            pa.float32(),
            "1",
            "standard error of an estimated focal length, as a share of it; 0 where it was given",
        ),
        _column("camera_focal_share", pa.float32(), "1", "focal length as a share of the view's width"),
        _column("camera_turn_deg", pa.float32(), "deg", "rotation summed over the clip"),
        _column("camera_max_turn_deg", pa.float32(), "deg/frame", "largest rotation from one frame to the next"),
        _column("camera_step_ratio", pa.float32(), "1", "largest step of the translation over the 90th percentile of steps"),
        _column(
            "camera_velocity_spike",
            pa.float32(),
            "1",
            "largest one-frame change of the level velocity, over the 90th percentile of the speed",
        ),
        _column("camera_tracks", pa.float32(), "1/frame", "tracked corners, mean over the frames"),
        _column("camera_tracks_min", pa.int32(), "1/frame", "tracked corners in the frame that has fewest"),
        _column("camera_track_length", pa.float32(), "frame", "mean length of a track"),
        _column("camera_static_share", pa.float32(), "0-1", "share of the view that was masked as HUD or weapon"),
        _column(
            "camera_rotation_residual_px",
            pa.float32(),
            "px at 640 wide",
            "motion of the tracks that the best pure rotation leaves unexplained",
        ),
        _column("camera_registered", pa.float32(), "0-1", "share of the frames with a pose of their own"),
        _column("camera_points", pa.int32(), "1", "points of the map"),
        _column("camera_inliers_min", pa.int32(), "1/frame", "points that agree with the pose, in the worst frame"),
        _column(
            "camera_inlier_share", pa.float32(), "0-1", "share of the visible mapped points that agree, in the worst frame"
        ),
        _column("camera_residual_px", pa.float32(), "px at 640 wide", "reprojection error, median over the frames' medians"),
        _column(
            "camera_residual_p95_px", pa.float32(), "px at 640 wide", "reprojection error, 95th percentile over the frames"
        ),
        _column(
            "camera_map_disagreement",
            pa.float32(),
            "1",
            "distance to the poses of a second map, as a share of the path; 1: there is no second map",
        ),
        _column(
            "camera_map_disagreement_deg",
            pa.float32(),
            "deg/frame",
            "RMS difference to a second map's rotations from frame to frame",
        ),
        _column(
            "camera_scale_links",
            pa.int32(),
            "1",
            "points that tie the scale before a moment to the scale after it, at the weakest moment",
        ),
        _column(
            "camera_outlier_coverage",
            pa.float32(),
            "0-1",
            "share of tracks that contradict the camera, times the share of the width that they span",
        ),
        _column(
            "camera_vertical_run_s",
            pa.float32(),
            "s",
            "longest straight move up or down, as in front of a rising door that is mistaken for the world",
        ),
        _column(
            "camera_parallax",
            pa.float32(),
            "1",
            "how far the camera gets from its mean position, as a share of the distance to the world",
        ),
        _column("camera_scale_to_unit", pa.float64(), "1", "factor from the poses' translation to the unit of dataset.json"),
        _column("camera_scale_source", pa.string(), "", "engine | metric | speed | linked | none: how that factor is known"),
        _column("camera_words", pa.list_(pa.string()), "", "what the camera does, most frequent first; or static"),
        _column("camera_speed", pa.float32(), "unit/s", "mean speed of the camera; null where the scale is not known"),
        _column("camera_top_speed", pa.float32(), "unit/s", "95th percentile of that speed over the frames"),
        _column("camera_turn_deg_s", pa.float32(), "deg/s", "mean rate of rotation"),
        _column("consistency_status", pa.string(), "", "checked | skipped:why | failed:why: outcome of the semantic check"),
        _column("consistency_flags", pa.list_(pa.string()), "", "criteria that the clip meets (captions/consistency.yaml)"),
        _column("consistency_json", pa.string(), "json", "the answer to each criterion, with its evidence"),
        _column("caption_short", pa.string(), "", "standard caption in one sentence"),
        _column("caption_long", pa.string(), "", "standard caption in several sentences"),
        _column(
            "caption_json",
            pa.string(),
            "json",
            "scene, viewpoint, subject, style, lighting, weather, camera_motion; null: unknown",
        ),
        _column("caption_source", pa.string(), "", "measured (composed from measurements only) | name of the model"),
        _column("caption_conflicts", pa.list_(pa.string()), "", "claims of the caption that contradict the measurements"),
        _column("caption_error", pa.string(), "", "why the model gave no valid caption; null: it gave one, or none was asked"),
        _column("interactive", pa.bool_(), "", "whether it is interactive video by section 3.2 of the paper; null: unknown"),
        _column("interactive_reason", pa.string(), "", "reason for the value of interactive"),
        _column(
            "interactive_score",
            pa.float32(),
            "0-1",
            "confidence of the signals that something happens; null: unfamiliar footage",
        ),
        _column(
            "interactive_source",
            pa.string(),
            "",
            "measured | synthesis | name of the model, whose answer the measurements may overrule",
        ),
        _column(
            "interactive_properties", pa.list_(pa.string()), "", "interactive properties that hold (captions/interaction.yaml)"
        ),
        _column("interactive_negative", pa.string(), "", "the kind of motion that it is, if it is not interactive"),
        _column("interaction_category", pa.string(), "", "environment | actor | entity; null: unknown"),
        _column("interaction_level", pa.string(), "", "simple | complex; null: unknown"),
        _column("action_caption", pa.string(), "", "the change around the clip's strongest action, in one sentence"),
        _column(
            "action_json",
            pa.string(),
            "json",
            "the same change: initial_state, trigger, transition, final_state, subject, category",
        ),
        _column("action_source", pa.string(), "", "measured | name of the model; null: nothing is known to happen"),
        _column("action_error", pa.string(), "", "why the model gave no valid answer about the action"),
        _column("action_delta", pa.list_(pa.float32()), "1", "embedding of final_state minus that of initial_state"),
        _column("action_delta_norm", pa.float32(), "0-2", "Euclidean norm of action_delta"),
        _column("interaction_next", pa.string(), "", "clip_id of the kept clip that follows directly; null: there is none"),
        _column(
            "interaction_caption",
            pa.string(),
            "",
            "the change from this clip to the next, in one sentence; in footage with an engine's log: the last event so far",
        ),
        _column(
            "interaction_json",
            pa.string(),
            "json",
            "the same change: initial_state, trigger, transition, final_state, subject, category",
        ),
        _column("interaction_source", pa.string(), "", "measured | engine: the recording's log of events | name of the model"),
        _column("interaction_error", pa.string(), "", "why the model gave no valid answer about that change"),
        _column(
            "interaction_delta", pa.list_(pa.float32()), "1", "embedding of the next clip's caption minus that of this clip's"
        ),
        _column("interaction_delta_norm", pa.float32(), "0-2", "Euclidean norm of interaction_delta"),
        _column("delta_encoder", pa.string(), "", "name of the text encoder | none:why"),
        _column("synth_attempt", pa.int32(), "", "number of the attempt at the request, from 0"),
        _column("synth_seed", pa.int64(), "", "seed of the attempt"),
        _column(
            "synth_frame",
            pa.string(),
            "",
            "the initial frame: doom:WAD:MAP | minetest:MAPGEN:SEED | a picture | clip:ID@s | paint",
        ),
        _column(
            "synth_models", pa.list_(pa.string()), "", "models, or the engine, that made the video, with versions or revisions"
        ),
        _column("synth_prompt", pa.string(), "json", "the prompts of the models; null: made without a model"),
        _column("synth_truth", pa.string(), "", "what happened, as the game engine recorded it; null: unknown"),
        _column("synth_verdict", pa.string(), "", "accepted | retry (with another seed) | rejected"),
        _column("synth_answer", pa.string(), "json", "the VLM's answer whether it happened; null: no VLM was asked"),
        _column("synth_first_error", pa.float32(), "0-255", "mean difference of the first picture from the initial frame"),
        _column("synth_cuts", pa.int32(), "1", "cuts after which most of the picture stays different"),
        _column("synth_shifted", pa.float32(), "0-1", "share of pictures in which most tiles are shifted against the first"),
        _column(
            "synth_change_peak",
            pa.float32(),
            "0-1",
            "share of the picture that differs from the first, at its largest over 0.5 s",
        ),
        _column("synth_change_brief", pa.float32(), "0-1", "the same, at its largest in one picture"),
        _column("synth_change_end", pa.float32(), "0-1", "the same, at the end"),
        _column("synth_kept", pa.float32(), "0-1", "change that remains at the end, as a share of its peak"),
        _column("synth_hands", pa.float32(), "0-1", "share of the squared change that is where hands are"),
        _column(
            "synth_entry", pa.float32(), "0-1", "share of the change's beginning that is in the lowest fifth of the picture"
        ),
        _column("synth_spread", pa.float32(), "1", "spread of the change over the picture's width; 1: evenly over all of it"),
        _column(
            "synth_motion", pa.float32(), "1", "later change of the changed part between pictures, as a share of the change"
        ),
        _column("synth_light_peak", pa.float32(), "0-255", "largest change of mean luma"),
        _column("synth_light_end", pa.float32(), "0-255", "the same, at the end"),
        _column("synth_onset_s", pa.float32(), "s", "when the change begins"),
        _column("stored_width", pa.int32(), "px", "width of the clip's mp4 in the shard"),
        _column("stored_height", pa.int32(), "px", "height of the clip's mp4 in the shard"),
        _column("stored_frames", pa.int32(), "frame", "frames of the clip's mp4 in the shard"),
        _column("reject", pa.string(), "", "why a rule dropped the clip; null: none did"),
        _column("error", pa.string(), "", "the exception that dropped the clip; null: none did"),
        _column("shard", pa.string(), "", "name of the shard that stores the clip; null: none yet"),
        _column("unit_id", pa.string(), "", "name of the unit that committed this row"),
        _column("initial_png", pa.binary(), "png", "initial frame of a synthetic clip", stored_in="sidecar"),
        _column(
            "static_png",
            pa.binary(),
            "png",
            "mask of the pixels that never change in the source (sidecar/signals)",
            stored_in="sidecar",
        ),
        _column(
            "camera_npz",
            pa.binary(),
            "npz",
            "poses and intrinsics (sidecar/camera and the shard)",
            version=2,
            stored_in="sidecar",
        ),
    ]
)
SIDECAR_COLUMNS = frozenset(field.name for field in CLIP if field.metadata[b"stored_in"] == b"sidecar")

VIDEO = pa.schema(
    [
        _column(
            "video_id",
            pa.string(),
            "",
            "hash of size, first and last MiB and sixteen blocks between, or of all bytes",
            null=False,
        ),
        _column("uri", pa.string(), "", "path or s3:// uri of the source", null=False),
        _column("token", pa.string(), "", "version as listed: size and ETag or modification time; a resumed run compares it"),
        _column("status", pa.string(), "", "ok | unreadable | duplicate | quarantined | error | superseded"),
        _column("reason", pa.string(), "", "why the status is not ok"),
        _column("duplicate_of", pa.string(), "", "uri of the source that has the same recording"),
        _column("duration_s", pa.float64(), "s", "from the first frame to the end of the last, as decoded"),
        _column("gap_s", pa.float64(), "s", "how much of duration_s lies in gaps of over a second without a frame"),
        _column("frames", pa.int32(), "frame", "decoded frames"),
        _column("fps", pa.float32(), "1/s", "median frame rate"),
        _column("width", pa.int32(), "px", "width, rotated upright"),
        _column("height", pa.int32(), "px", "height, rotated upright"),
        _column("codec", pa.string(), "", "video codec"),
        _column("container", pa.string(), "", "container format, as libavformat names it"),
        _column("cuts_s", pa.list_(pa.float64()), "s", "time of the first frame of every scene except the first"),
        _column("note", pa.string(), "", "what a reader should know: damage, gaps in time, fields, HDR, tracks not taken"),
        _column("unit_id", pa.string(), "", "name of the unit that committed this row"),
    ]
)


def columns(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Select these columns of a schema, in the schema's order. KeyError for a column that is not declared."""
    selected = set(names)
    if missing := selected - set(schema.names):
        raise KeyError(f"columns not in the schema: {sorted(missing)}; declare them in curation/schema.py")
    return pa.schema([field for field in schema if field.name in selected])


def conform(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Turn rows into an Arrow table of exactly this schema. Absent columns become null.

    KeyError for a column or field that is not declared, ValueError for a value that does not fit. Arrow alone would silently
    drop unknown struct fields, turn 3.5 into the integer 3, and turn a missing key of a column that is not nullable into null.
    """
    for row in rows:
        _check_row(row, schema)
    try:
        return pa.Table.from_pylist([_to_python(row) for row in rows], schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"a row does not fit the schema: {error}") from error


def _check_row(row: Mapping[str, Any], schema: pa.Schema) -> None:
    if extra := set(row) - set(schema.names):
        raise KeyError(f"columns not in the schema: {sorted(extra)}; declare them in curation/schema.py")
    for field in schema:
        value = row.get(field.name)
        if value is None:
            if not field.nullable:
                raise ValueError(f"{field.name} must not be null (row {dict(list(row.items())[:4])})")
            continue
        _check_value(field.name, value, field.type)


def _check_value(name: str, value: Any, type_: pa.DataType) -> None:
    if pa.types.is_integer(type_) and (isinstance(value, bool) or value != int(value)):
        raise ValueError(f"{name} is an integer column, not {value!r}")
    if pa.types.is_floating(type_) and isinstance(value, bool):
        raise ValueError(f"{name} is a number column, not {value!r}")
    if pa.types.is_list(type_):
        for item in value:
            _check_value(f"{name}[]", item, type_.value_type)
    if pa.types.is_struct(type_):
        known = {type_.field(i).name: type_.field(i).type for i in range(type_.num_fields)}
        if extra := set(value) - set(known):
            raise KeyError(f"{name} has no field {sorted(extra)}")
        for key, item in value.items():
            if item is not None:
                _check_value(f"{name}.{key}", item, known[key])


def _to_python(value: Any) -> Any:
    """Turn NumPy scalars and arrays into Python values. Arrow refuses some of them inside nested columns."""
    if isinstance(value, Mapping):
        return {key: _to_python(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_python(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def clip_id(video_id: str, start_s: float, end_s: float, settings: str) -> str:
    """Identify a clip by its content: the source, the span to the microsecond, and the partition settings' digest."""
    return digest(video_id, f"{start_s:.6f}", f"{end_s:.6f}", settings)


def is_dropped(row: Mapping[str, Any]) -> bool:
    """Whether a clip is dropped: a rule rejected it, or an operator failed on it."""
    return bool(row.get("reject") or row.get("error"))


def digest(*parts: str) -> str:
    """Return sixteen hex digits of SHA-256 over the parts. They contain no dot, since WebDataset cuts keys at the first."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
