"""Recipes: every setting of a run as one frozen, validated tree. A variant is a `replace` of another. YAML goes both ways.

Each default is written once, in the settings class next to the code that uses it. A phase's digest is part of the names of its
results, so that equal settings find each other's work and different ones never mix.
"""

import difflib
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from curation.actions.detect import ActionSettings
from curation.cameras.settings import CameraSettings
from curation.cameras.words import WordSettings
from curation.captions.consistency import ConsistencySettings
from curation.captions.embeddings import EncoderSettings
from curation.captions.interaction import InteractiveSettings
from curation.errors import InputError
from curation.media.encode import Encoding
from curation.near_duplicates import DuplicateSettings
from curation.partition.chunks import ScanSettings
from curation.partition.cuts import SceneSettings
from curation.partition.optical_flow import FlowSettings
from curation.quality.iqa import IqaSettings
from curation.quality.luminance import LuminanceLimits, QualityLimits
from curation.schema import SCHEMA_VERSION, digest
from curation.vlm import VlmSettings
from curation.vlm.frames import FrameSettings
from curation.yaml_text import load_yaml
from synth.models.base import ModelSettings
from synth.strategies import ProceduralSettings, SynthSettings

# The phases with settings that leave rows of clips.
CLIP_PHASES = ("partition", "score", "annotate", "caption", "relate", "shard")
PHASES = ("scan", *CLIP_PHASES)
# The phases of synthesis: `generate` stores its clips where `partition` stores those of footage, and they continue alike.
SYNTH_PHASES = ("generate", *CLIP_PHASES[1:])
# Which settings decide the results of a phase. Limits of `score` only decide which clips `annotate` is given.
_DECIDE = {
    "generate": ("partition", "synth"),
    "partition": ("partition",),
    "score": ("partition", "score"),
    "annotate": ("partition", "annotate"),
    "caption": ("partition", "annotate", "caption"),
    "relate": ("partition", "annotate", "caption", "relate"),
    "shard": CLIP_PHASES,
}
# Settings of `synth` that decide which requests there are and how often one is tried. Each request is named separately.
_IN_REQUESTS = ("each", "attempts", "seed", "interactions")


@dataclass(frozen=True)
class Partition:
    """One pass over each source: scenes, optical flow, actions, and picture quality."""

    scenes: SceneSettings = field(default_factory=SceneSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    actions: ActionSettings = field(default_factory=ActionSettings)
    iqa: IqaSettings = field(default_factory=IqaSettings)
    # s, length of the chunks in which several workers measure a long source, or up to half as much again: all of a source are
    # equally long. null: never in chunks. It changes no result, only how long one video takes.
    chunk_s: float | None = 300.0
    # GPUs that a worker requests on a cluster, for RAFT and for pyiqa's metrics: 0.25 lets four workers share one. With 0 Ray
    # shows a worker no GPU. A local run uses the GPU of the machine. It changes no setting of the results.
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.chunk_s is not None and not 1 <= self.chunk_s < math.inf:
            raise ValueError(f"chunk_s must be null or at least 1, not {self.chunk_s:g}")
        if not (0 <= self.gpus <= 1 or (self.gpus.is_integer() and self.gpus > 0)):
            raise ValueError(f"gpus must be 0 to 1, or a whole number, not {self.gpus:g}")

    @property
    def scan(self) -> ScanSettings:
        """Return the settings of the pass itself."""
        scenes = self.scenes
        return ScanSettings(self.flow, self.iqa, scenes.detector, scenes.min_content if scenes.detector == "game" else math.inf)


@dataclass(frozen=True)
class Score:
    """Verdicts over scores; may change until shards are planned."""

    luminance: LuminanceLimits = field(default_factory=LuminanceLimits)
    quality: QualityLimits = field(default_factory=QualityLimits)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)


@dataclass(frozen=True)
class Annotate:
    """Cameras of kept clips; may change until shards are planned."""

    camera: CameraSettings = field(default_factory=CameraSettings)
    words: WordSettings = field(default_factory=WordSettings)


@dataclass(frozen=True)
class Caption:
    """Captions of kept clips, by a model or from measurements; may change until shards are planned."""

    vlm: VlmSettings = field(default_factory=VlmSettings)
    frames: FrameSettings = field(default_factory=FrameSettings)
    consistency: ConsistencySettings = field(default_factory=ConsistencySettings)
    interactive: InteractiveSettings = field(default_factory=InteractiveSettings)


@dataclass(frozen=True)
class Relate:
    """How neighbouring clips are compared; may change until shards are planned."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)


@dataclass(frozen=True)
class Shard:
    """How kept clips are stored."""

    clips_per_shard: int = 32  # more: fewer and larger files
    # How many times the clips of the rarest category of interaction (environment, actor, entity) another category may have in
    # shards. Clips beyond that wait for a run that has more of the others. null: no limit.
    max_category_ratio: float | None = None
    encoding: Encoding = field(default_factory=Encoding)

    def __post_init__(self) -> None:
        if self.clips_per_shard < 1:
            raise ValueError(f"clips_per_shard must be at least 1, not {self.clips_per_shard}")
        if self.max_category_ratio is not None and self.max_category_ratio < 1:
            raise ValueError(f"max_category_ratio must be null or at least 1, not {self.max_category_ratio:g}")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run produces."""

    name: str = "laptop"  # for people; decides no result
    partition: Partition = field(default_factory=Partition)
    score: Score = field(default_factory=Score)
    annotate: Annotate = field(default_factory=Annotate)
    caption: Caption = field(default_factory=Caption)
    relate: Relate = field(default_factory=Relate)
    shard: Shard = field(default_factory=Shard)
    synth: SynthSettings = field(default_factory=SynthSettings)

    def digest(self, phase: str) -> str:
        """Return a hash of the settings that decide the results of a phase, and of the schema version."""
        # Computed once: it takes a millisecond, and every source asks for it. It is no field, so recipes stay equal and frozen.
        digests: dict[str, str] = self.__dict__.setdefault("_digests", {})
        if phase not in digests:
            settings = settings_of(self)
            deciding = {name: settings[name] for name in _DECIDE[phase]}
            if phase == "score":  # the units of `score` judge each clip alone
                deciding["score"] = {name: value for name, value in settings["score"].items() if name != "duplicates"}
            if phase == "generate":
                deciding["synth"] = {name: value for name, value in settings["synth"].items() if name not in _IN_REQUESTS}
            digests[phase] = digest(str(SCHEMA_VERSION), json.dumps(deciding, sort_keys=True))
        return digests[phase]


def gamecraft2() -> Recipe:
    """The paper's: 6-s clips at up to 864x480, RAFT flow, MUSIQ, ViPE, Qwen2.5-VL, large shards. It needs a cluster with GPUs.

    Captions come from vLLM engines on a Ray cluster.

    pyiqa and MUSIQ's weights are for non-commercial use only. Without them, or for commercial use, set
    `partition.iqa.backend: embedded` and `score.quality.min_iqa: 0.45`, as in `laptop`; docs/quality.md has the rest.
    """
    laptop_ = laptop()
    flow = replace(laptop_.partition.flow, backend="raft")
    camera = replace(laptop_.annotate.camera, backend="vipe")
    partition = replace(laptop_.partition, flow=flow, iqa=IqaSettings("pyiqa:musiq"), gpus=0.25)
    # 30 on MUSIQ's scale of 100: cautious, and not measured here. `gamecraft inspect OUT --thresholds` shows other limits.
    score = replace(laptop_.score, quality=replace(laptop_.score.quality, min_iqa=0.3))
    annotate = replace(laptop_.annotate, camera=camera)
    caption = replace(laptop_.caption, vlm=VlmSettings("vllm", "Qwen/Qwen2.5-VL-7B-Instruct"))
    relate = Relate(EncoderSettings("sentence-transformers"))
    return replace(
        laptop_,
        name="gamecraft2",
        synth=_by_models(),
        partition=partition,
        score=score,
        annotate=annotate,
        caption=caption,
        relate=relate,
        shard=Shard(clips_per_shard=256),
    )


def _by_models() -> SynthSettings:
    """Open models of the kinds that the paper names. A GPU of 80 GB holds one of them at a time."""
    models = ModelSettings(
        painter="Qwen/Qwen-Image",
        editor="Qwen/Qwen-Image-Edit",
        animator="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        between="Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
    )
    return SynthSettings("diffusers", models=models, vlm=VlmSettings("http", "Qwen/Qwen2.5-VL-7B-Instruct"))


def laptop() -> Recipe:
    """The default: as gamecraft2, with small shards, and models only where their weights are present."""
    return Recipe(name="laptop")


def smoke() -> Recipe:
    """Small and quick, for trying out a cluster: 240 lines, the fastest encoder, no cameras, four clips a shard."""
    encoding = Encoding(max_width=432, max_height=240, crf=28, preset="ultrafast")
    flow = FlowSettings(backend="dis", pairs_per_s=5)
    return Recipe(
        name="smoke",
        partition=Partition(flow=flow),
        annotate=Annotate(camera=CameraSettings(backend="none")),
        shard=Shard(clips_per_shard=4, encoding=encoding),
    )


def demo() -> Recipe:
    """For the demo world (`docs/demo-world.md`): tiny clips at 8.75 fps, of footage with an engine's log of its camera."""
    encoding = Encoding(max_width=128, max_height=96, fps=8.75, crf=10, gop=16)
    flow = FlowSettings(backend="dis", pairs_per_s=5)
    return Recipe(name="demo", partition=Partition(flow=flow), shard=Shard(clips_per_shard=256, encoding=encoding))


def engine() -> Recipe:
    """For footage that a game engine records with its camera and events: long clips, nothing judged, nothing asked.

    The recorder makes no cuts and no faults, so clips are divided only at events and where they would be too long.
    """
    scenes = SceneSettings(min_content=765.0, clip_s=10.0, min_clip_s=2.0, slack_s=1.0)  # 765: no frame scores more
    partition = Partition(
        scenes, FlowSettings(backend="dis", pairs_per_s=5), ActionSettings(detector="flow"), IqaSettings(every_s=10.0)
    )
    limits = LuminanceLimits(
        min_mean=0.0,
        max_mean=255.0,
        min_range=0.0,
        max_black_share=1.0,
        max_white_share=1.0,
        max_flashes_hz=100.0,
        max_fade_share=1.0,
    )
    return Recipe(
        name="engine",
        partition=partition,
        score=Score(limits, QualityLimits(min_iqa=None, max_combed=None)),
        relate=Relate(EncoderSettings(backend="none")),
        shard=Shard(clips_per_shard=128, encoding=Encoding(max_width=256, max_height=192, crf=16, gop=18)),
    )


def rehearsal() -> Recipe:
    """For `gamecraft synth`: the game engine acts out interactions; two of five are made to fail, to see what verify does."""
    synth = SynthSettings(each=2, procedural=ProceduralSettings(fail_share=0.4))
    return replace(laptop(), name="rehearsal", synth=synth)


BUILT_IN: Mapping[str, Callable[[], Recipe]] = {
    "demo": demo,
    "engine": engine,
    "gamecraft2": gamecraft2,
    "laptop": laptop,
    "rehearsal": rehearsal,
    "smoke": smoke,
}


# Keys that had another name, by their full path: a recipe that still has one is told the new name.
RENAMED: dict[str, str] = {
    "partition.flow.updates": "partition.flow.raft_updates",
    "partition.scenes.max_explained": "partition.scenes.max_flow_match",
    "partition.scenes.less_if_alike": "partition.scenes.same_layout_penalty",
    "partition.actions.regimes.turn_px_s": "partition.actions.regimes.min_turn_px_s",
    "partition.actions.regimes.look_px_s": "partition.actions.regimes.min_look_px_s",
    "partition.actions.regimes.walk_px_s": "partition.actions.regimes.min_walk_px_s",
    "partition.actions.regimes.strafe_px_s": "partition.actions.regimes.min_strafe_px_s",
    "partition.actions.interactions.start": "partition.actions.interactions.min_peak",
    "partition.actions.interactions.edge": "partition.actions.interactions.min_edge",
    "partition.actions.interactions.bridge_s": "partition.actions.interactions.max_gap_s",
    "relate.encoder.reads": "relate.encoder.caption",
    "annotate.camera.checks.tracks": "annotate.camera.checks.min_tracks",
    "annotate.camera.checks.carried": "annotate.camera.checks.min_track_survival",
    "annotate.camera.checks.static_px": "annotate.camera.checks.max_static_px",
    "annotate.camera.checks.rotation_px": "annotate.camera.checks.max_rotation_residual_px",
    "annotate.camera.checks.rotation_left_px": "annotate.camera.checks.max_joint_rotation_residual_px",
    "annotate.camera.checks.focal_error": "annotate.camera.checks.max_focal_error",
    "annotate.camera.checks.focal_turn_deg": "annotate.camera.checks.min_focal_turn_deg",
    "annotate.camera.checks.focal_range": "annotate.camera.checks.min_focal_share and annotate.camera.checks.max_focal_share",
    "annotate.camera.checks.focal_apart": "annotate.camera.checks.max_focal_disagreement",
    "annotate.camera.checks.reached": "annotate.camera.checks.min_registered",
    "annotate.camera.checks.points": "annotate.camera.checks.min_points",
    "annotate.camera.checks.inliers": "annotate.camera.checks.min_inliers",
    "annotate.camera.checks.inlier_share": "annotate.camera.checks.min_inlier_share",
    "annotate.camera.checks.residual_px": "annotate.camera.checks.max_residual_px",
    "annotate.camera.checks.residual_p95_px": "annotate.camera.checks.max_residual_p95_px",
    "annotate.camera.checks.apart": "annotate.camera.checks.max_map_disagreement",
    "annotate.camera.checks.apart_deg": "annotate.camera.checks.max_map_disagreement_deg",
    "annotate.camera.checks.links": "annotate.camera.checks.min_scale_links",
    "annotate.camera.checks.contradicted": "annotate.camera.checks.max_outlier_coverage",
    "annotate.camera.checks.rise_s": "annotate.camera.checks.max_vertical_run_s",
    "annotate.camera.checks.step_ratio": "annotate.camera.checks.max_step_ratio",
    "annotate.camera.checks.spike": "annotate.camera.checks.max_velocity_spike",
    "annotate.camera.checks.static_share": "annotate.camera.checks.max_static_share",
    "codec.rate": "codec.lr",
    "data.camera_none_share": "data.camera_dropout",
    "data.captions.none_share": "data.captions.dropout",
    "data.origin_way": "data.max_origin_distance",
    "model.pair": "model.two_experts",
    "model.start": "model.init_from",
    "model.thoughts": "model.vlm_encoder",
    "train.average": "train.ema_decay",
    "train.decay_share": "train.lr_decay_share",
    "train.keep": "train.keep_checkpoints",
    "train.most_gradient": "train.max_grad_norm",
    "train.rate": "train.lr",
    "train.warm_up": "train.warmup_steps",
    "train.watch_clips": "train.sample_clips",
    "train.watch_every": "train.sample_every",
    "train.watch_steps": "train.sample_steps",
}


# Sections that tell the two kinds of recipe apart.
_ONLY_IN_TRAINING, _ONLY_IN_CURATION = frozenset({"train", "model", "layout"}), frozenset({"partition", "score", "shard"})


def load(name_or_path: str, built_in: Mapping[str, Callable[[], Any]] = BUILT_IN, kind: type[Any] = Recipe) -> Any:
    """Return a built-in recipe by name, or one from a YAML file. InputError says what is wrong and where.

    What a curation file leaves out is as in `laptop`. A training file should begin as the output of `recipe show NAME --train`.

    built_in, kind: the built-in recipes and their class, for curation by default.
    """
    if name_or_path in built_in:
        return built_in[name_or_path]()
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(f"{name_or_path}: neither a recipe file nor one of {', '.join(sorted(built_in))}")
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a recipe must be UTF-8 text ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(data, dict) and kind is Recipe and _ONLY_IN_TRAINING & data.keys():
        raise InputError(f"{path}: is a training recipe, for `gamecraft train`")
    if isinstance(data, dict) and kind is not Recipe and _ONLY_IN_CURATION & data.keys():
        raise InputError(f"{path}: is a curation recipe, for `gamecraft curate`")
    try:
        return from_mapping(kind, {"name": path.stem, **data} if isinstance(data, dict) else data)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def from_mapping(kind: type[Any], data: Any, where: str = "") -> Any:
    """Build a settings tree from plain data. Absent keys keep their defaults. ValueError names key, value and remedy."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or 'a recipe'} must be a mapping of settings, not {data!r}")
    known = get_type_hints(kind)
    for key in data:
        if key not in known:
            if new := RENAMED.get(_path(where, key)):
                raise ValueError(f"{_path(where, key)} is called {new} now; rename it in the recipe")
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"unknown key {_path(where, key)}; {hint}")
    values = {key: _value(known[key], value, _path(where, key)) for key, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where or 'recipe'}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return from_mapping(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _values(get_args(kind), value, where)
    allowed = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed and int not in allowed:
        return float(value)
    if type(value) not in allowed:
        names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
        raise ValueError(f"{where} must be {names}, not {value!r}")
    return value


def _values(kinds: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    """Read a setting of several values, a list in YAML: one for each kind, or any number of the kind before `...`."""
    if kinds[-1] is Ellipsis and isinstance(value, list):
        kinds = [kinds[0]] * len(value)
    if not isinstance(value, list) or len(value) != len(kinds):
        raise ValueError(f"{where} must be a list of {len(kinds)}, not {value!r}")
    return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _path(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str = "") -> list[str]:
    """List the settings in which two recipes (as plain data) differ: "partition.scenes.clip_s: 6.0, now 5.0"."""
    lines = []
    for item in dict.fromkeys([*theirs, *ours]):
        a, b = ours.get(item), theirs.get(item)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, _path(where, item))
        elif a != b:
            lines.append(f"{_path(where, item)}: {a}, now {b}")
    return lines


# Settings that are younger than outputs which should continue. At their defaults results are as before, so they are left out.
_LATER = (
    *("partition.flow.raft", "caption.frames.form", "caption.frames.fps", "caption.frames.total_pixels"),
    *("relate.encoder.revision", "score.duplicates", "partition.scenes.transnet"),
)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data, without what decides no result: its name, the chunk length, where a model runs."""
    # As dataset.json gives it back: lists for tuples.
    settings, defaults = (json.loads(json.dumps(asdict(each))) for each in (recipe, Recipe()))
    del settings["name"], settings["partition"]["chunk_s"], settings["partition"]["gpus"]
    for phase in ("caption", "synth"):
        del settings[phase]["vlm"]["server"], settings[phase]["vlm"]["engine"]
    del settings["synth"]["models"]["server"], settings["synth"]["models"]["timeout_s"], settings["synth"]["models"]["offload"]
    for name in _LATER:
        *sections, key = name.split(".")
        section, default = settings, defaults
        for each in sections:
            section, default = section[each], default[each]
        if section[key] == default[key]:
            del section[key]
    return settings
