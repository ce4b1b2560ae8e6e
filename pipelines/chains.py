"""The pipeline as lists of operators, in the paper's order. Read this file first.

Each operator states its resources. Neighbours with equal resources become one step, which decodes a clip once.
"""

from dataclasses import replace

from curation.quality.iqa import Quality
from curation.quality.luminance import Luminance
from operators.cameras import FACT_COLUMNS, MOTION_COLUMNS, SCALE_COLUMNS, SPAN_COLUMN, annotate_cameras
from operators.captions import (
    CAPTION_COLUMNS,
    CHECK_COLUMNS,
    FRAME_COLUMNS,
    INTERACTIVE_COLUMNS,
    MEASUREMENT_COLUMNS,
    check_consistency,
    judge_interactive,
    write_captions,
)
from operators.filters import judge_luminance, judge_quality
from operators.op import WHOLE_UNIT, Op, check_chain
from operators.partition import (
    locate_viewport,
    measure_luminance,
    measure_motion,
    measure_quality,
    scan_chunk,
    scan_source,
    split_scenes,
)
from operators.relate import RELATE_COLUMNS, relate_clips
from operators.shards import encode_clip
from operators.synth import (
    ATTEMPT_COLUMNS,
    MADE_COLUMNS,
    METRIC_COLUMNS,
    WHOLE_CLIP_COLUMNS,
    make_video,
    measure_picture,
    take_whole,
    verify_video,
)
from pipelines.recipes import SYNTH_PHASES, Recipe
from pipelines.units import PART_CLIPS

# Reference frames of a 4K decoder and the arrays of one pass need less than this. Without it Ray packs a node until it swaps.
_DECODE_MEMORY = 1 << 30

SOURCE_COLUMNS = ("video_id", "source_uri")
REQUEST_COLUMNS = ("clip_id", "video_id", "request", "synth_attempt")
CHUNK_COLUMNS = (*SOURCE_COLUMNS, "start_s", "end_s")
_MASK_COLUMNS = ("static_png",)  # in a side file of partition; loaded with a unit's rows
_SPAN_COLUMNS = ("clip_id", "source", "index", "scene_index", "start_s", "end_s", "start_frame", "end_frame")
_SOURCE_FACTS = ("fps", "width", "height", "transfer")
_LUMA_COLUMNS = Luminance._fields
_IQA_COLUMNS = Quality._fields
_PICTURE_COLUMNS = (*_IQA_COLUMNS, "iqa_backend", "deinterlaced", "combed")


def scan(recipe: Recipe) -> list[Op]:
    """The measuring half of `partition`, for a chunk of a long source. It leaves no rows."""
    settings = recipe.partition
    args = {"settings": settings.scan}
    return [Op(scan_chunk, reads=CHUNK_COLUMNS, writes=(), args=args, num_gpus=settings.gpus, memory=_DECODE_MEMORY)]


def partition(recipe: Recipe) -> list[Op]:
    """Section 3.4, partition, and every score that needs the whole source. A source in, its clips out, one decode."""
    settings = recipe.partition
    scan_settings = settings.scan
    ops = [
        Op(
            scan_source,
            reads=("source_uri",),
            writes=_SOURCE_FACTS,
            args={"settings": scan_settings},
            memory=_DECODE_MEMORY,
        ),
        Op(
            split_scenes,
            reads=(*SOURCE_COLUMNS, "width", "height"),
            writes=(*_SPAN_COLUMNS, "reject"),
            args={
                "settings": scan_settings,
                "scene": settings.scenes,
                "actions": settings.actions,
                "settings_digest": recipe.digest("partition"),
            },
            memory=_DECODE_MEMORY,
        ),
        Op(
            locate_viewport,
            reads=("source_uri", "width", "height"),
            writes=("picture", "viewport", "static_share"),
            args={"settings": scan_settings},
            memory=_DECODE_MEMORY,
        ),
        Op(
            measure_motion,
            reads=("source_uri", "start_s", "end_s"),
            writes=(
                *("flow_backend", "motion_camera", "motion_object", "action_detector", "action_distance"),
                *("action_confidence", "action_unknown", "action_spans"),
            ),
            args={"settings": scan_settings, "actions": settings.actions},
            memory=_DECODE_MEMORY,
        ),
        Op(
            measure_luminance,
            reads=("source_uri", "start_frame", "end_frame"),
            writes=_LUMA_COLUMNS,
            args={"settings": scan_settings},
            memory=_DECODE_MEMORY,
        ),
        Op(
            measure_quality,
            reads=("source_uri", "start_s", "end_s", "start_frame", "end_frame"),
            writes=_PICTURE_COLUMNS,
            args={"settings": scan_settings},
            memory=_DECODE_MEMORY,
        ),
    ]
    return [replace(op, num_gpus=settings.gpus) for op in ops]


def generate(recipe: Recipe) -> list[Op]:
    """Section 3.3: a request in; a video out, measured like footage and verified. One attempt."""
    settings, scan_settings = recipe.synth, recipe.partition.scan
    ops = [
        Op(make_video, reads=REQUEST_COLUMNS, writes=(*ATTEMPT_COLUMNS, *MADE_COLUMNS), args={"settings": settings}),
        Op(scan_source, reads=("source_uri",), writes=_SOURCE_FACTS, args={"settings": scan_settings}),
        Op(take_whole, reads=("source_uri", "width", "height"), writes=WHOLE_CLIP_COLUMNS, args={"settings": scan_settings}),
        *(op for op in partition(recipe) if op.fn in (measure_motion, measure_luminance)),
        Op(measure_picture, reads=("source_uri",), writes=_PICTURE_COLUMNS, args={"settings": scan_settings}),
        Op(
            verify_video,
            reads=("source_uri", "request", "initial_png", "strategy", *_LUMA_COLUMNS, *_IQA_COLUMNS),
            writes=(*METRIC_COLUMNS, "synth_verdict", "synth_answer", "reject"),
            args={"settings": settings, "scan_settings": scan_settings, "scene": recipe.partition.scenes},
        ),
    ]
    gpus = max(recipe.partition.gpus, int(settings.backend == "diffusers" and settings.models.device != "cpu"))
    return [replace(op, memory=_DECODE_MEMORY, num_gpus=gpus) for op in ops]


def score(recipe: Recipe) -> list[Op]:
    """Section 3.4, filtering: verdicts over the scores."""
    return [
        Op(judge_luminance, reads=_LUMA_COLUMNS, writes=("reject",), args={"limits": recipe.score.luminance}),
        Op(judge_quality, reads=("iqa", "iqa_fault", "combed"), writes=("reject",), args={"limits": recipe.score.quality}),
    ]


def annotate(recipe: Recipe) -> list[Op]:
    """Section 3.4, annotation, of kept clips."""
    settings = recipe.annotate
    return [
        Op(
            annotate_cameras,
            reads=("source_uri", "scene_index", "start_s", "end_s", "width", "height", "viewport", "picture", *_MASK_COLUMNS),
            writes=(*FACT_COLUMNS, *SCALE_COLUMNS, *MOTION_COLUMNS, SPAN_COLUMN, "camera_npz"),
            args={"settings": settings.camera, "words": settings.words},
            batch=PART_CLIPS,  # a focal length is pooled over a batch
            num_gpus=1 if settings.camera.backend == "vipe" else 0,
            memory=_DECODE_MEMORY,
        )
    ]


def caption(recipe: Recipe) -> list[Op]:
    """Section 3.4, semantic check and standard captions, and section 3.2, interactive or not, of the annotated clips."""
    settings = recipe.caption
    asked = {"model": settings.vlm, "frames": settings.frames}
    reads = (*MEASUREMENT_COLUMNS, *FRAME_COLUMNS)
    return [
        Op(
            check_consistency,
            reads=reads,
            writes=CHECK_COLUMNS,
            args={**asked, "rules": settings.consistency},
            batch=PART_CLIPS,
            memory=_DECODE_MEMORY,
        ),
        Op(write_captions, reads=reads, writes=CAPTION_COLUMNS, args=asked, batch=PART_CLIPS, memory=_DECODE_MEMORY),
        Op(
            judge_interactive,
            reads=("source", *reads),
            writes=INTERACTIVE_COLUMNS,
            args={**asked, "limits": settings.interactive},
            batch=PART_CLIPS,
            memory=_DECODE_MEMORY,
        ),
    ]


def relate(recipe: Recipe) -> list[Op]:
    """Section 3.4, interaction captions, from all kept clips of one video at once."""
    settings = recipe.caption
    return [
        Op(
            relate_clips,
            reads=(
                "clip_id",
                "video_id",
                "index",
                "scene_index",
                "caption_short",
                "caption_long",
                "action_json",
                *MEASUREMENT_COLUMNS,
                *FRAME_COLUMNS,
            ),
            writes=RELATE_COLUMNS,
            args={"model": settings.vlm, "frames": settings.frames, "encoder": recipe.relate.encoder},
            batch=WHOLE_UNIT,
            memory=_DECODE_MEMORY,
        )
    ]


def shard(recipe: Recipe) -> list[Op]:
    """Encode kept clips to mp4, with one decode and one encode each."""
    return [
        Op(
            encode_clip,
            reads=("source_uri", "clip_id", "start_s", "end_s", "picture", "camera_npz"),
            writes=("camera_npz", "stored_width", "stored_height", "stored_frames"),
            args={"encoding": recipe.shard.encoding},
            memory=_DECODE_MEMORY,
        )
    ]


def curate(recipe: Recipe) -> dict[str, list[Op]]:
    """Return all phases by name, checked: every column that an operator reads was written before it."""
    phases = {
        "partition": partition(recipe),
        "score": score(recipe),
        "annotate": annotate(recipe),
        "caption": caption(recipe),
        "relate": relate(recipe),
        "shard": shard(recipe),
    }
    check_chain([op for chain in phases.values() for op in chain], (*SOURCE_COLUMNS, *_MASK_COLUMNS))
    before = {"scan": scan(recipe)}
    check_chain(before["scan"], CHUNK_COLUMNS)
    return before | phases


def synthesise(recipe: Recipe) -> dict[str, list[Op]]:
    """Return all phases with `generate` in the place of `partition`, checked likewise."""
    phases = {"generate": generate(recipe)} | {name: ops for name, ops in curate(recipe).items() if name in SYNTH_PHASES}
    check_chain([op for chain in phases.values() for op in chain], (*REQUEST_COLUMNS, *_MASK_COLUMNS))
    return phases
