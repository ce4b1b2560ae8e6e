"""Recipes of training: the model, its data and how it is trained, as one frozen tree. A variant is a `replace` of another."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from model.backbone.vae import MASKS
from model.config import BackboneConfig, wan22_i2v_a14b
from model.control.spec import ControlSpec
from model.data.captions import CaptionMix
from model.data.loader import DataSettings
from model.noise import NoiseSpec
from model.parallel.layout import Layout
from model.training.frame_codec import CodecSettings
from model.training.settings import Phase, TrainSettings


@dataclass(frozen=True)
class ModelSpec:
    """What is trained. weights: the diffusers folder of Wan2.2-I2V-A14B, whose experts, codec and text encoder are taken; where
    it is empty, a small world from nothing, with a frame codec of its own and no text. start: a run whose averaged weights it
    goes on from, cameras included (stage 1's, for stage 2). pair: two experts, else one for all noise levels. control_width: of
    the camera encoder. thoughts: a vision-language model (hub or folder) whose hidden states for frame and instruction
    each block reads beside the text; empty: the text alone tells.
    """

    backbone: BackboneConfig = field(default_factory=wan22_i2v_a14b)
    noise: NoiseSpec = field(default_factory=NoiseSpec)
    pair: bool = True
    control_width: int = 192
    weights: str = ""
    start: str = ""
    thoughts: str = ""

    def __post_init__(self) -> None:
        channels = 2 * self.backbone.out_channels + MASKS
        if self.backbone.in_channels != channels:
            raise ValueError(
                f"in_channels must be {channels} (noise {self.backbone.out_channels}, mask {MASKS}, image "
                f"{self.backbone.out_channels}), not {self.backbone.in_channels}"
            )
        if not self.pair and self.noise.boundary:
            raise ValueError(f"one expert works at all noise levels: boundary must be 0, not {self.noise.boundary:g}")


def weights_folder(spec: ModelSpec) -> str:
    """`model.weights`, which must be there (ValueError with how to get it)."""
    if not os.path.isdir(spec.weights):
        raise ValueError(
            f"{spec.weights}: no such folder; model.weights must be a diffusers folder of Wan2.2-I2V-A14B: "
            "hf download Wan-AI/Wan2.2-I2V-A14B-Diffusers --local-dir FOLDER"
        )
    return spec.weights


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what a training run makes. control: how keys and mouse become motion when the world is played or
    evaluated; kept in its checkpoints. Its fps is that of the data, at which the world is played.
    """

    name: str = "gamecraft2"
    model: ModelSpec = field(default_factory=ModelSpec)
    codec: CodecSettings = field(default_factory=CodecSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    layout: Layout = field(default_factory=Layout)
    control: ControlSpec = field(default_factory=ControlSpec)

    def __post_init__(self) -> None:
        if self.train.freeze_camera and not self.model.start:
            raise ValueError(
                "train.freeze_camera needs model.start, the run whose camera encoder is kept: a fresh one says nothing"
            )
        object.__setattr__(self, "control", replace(self.control, fps=self.data.fps))
        if self.data.latents and (not self.model.weights or self.model.thoughts):
            raise ValueError(
                "data.latents needs model.weights, whose codec made them, and no model.thoughts, which see pictures"
            )
        if not self.model.weights and self.codec.channels != self.model.backbone.out_channels:
            raise ValueError(
                f"codec.channels must be out_channels of the backbone, {self.model.backbone.out_channels}, "
                f"not {self.codec.channels}"
            )


def gamecraft2() -> TrainRecipe:
    """The paper's stage 1: both experts of Wan2.2-I2V-A14B, 45, 81, then 149 frames; its weights in the folder named here.

    100,000 steps without context parallel (table 2). How they divide among the three lengths is ours, the paper does not say.
    """
    return TrainRecipe(
        model=ModelSpec(weights="Wan2.2-I2V-A14B-Diffusers"),
        data=DataSettings(origin_way=60.0),
        train=TrainSettings(curriculum=(Phase(45, 40_000), Phase(81, 30_000), Phase(149, 30_000))),
        layout=Layout(context=1, recompute=True),
    )


def gamecraft2_instruct() -> TrainRecipe:
    """The paper's stage 2: on from stage 1, the run `stage1`, with the camera encoder frozen, on footage and synthetic clips.

    20,000 steps (table 2), of 45 and 81 frames: a synthetic clip of 81 frames is the longest that an animator makes, and 149
    frames would leave all of them out. Set shares of footage and synthetic clips in `data.sources`; the paper gives none.
    """
    stage1 = gamecraft2()
    curriculum = Phase(45, 5_000), Phase(81, 15_000)
    return replace(
        stage1,
        name="gamecraft2-instruct",
        model=replace(stage1.model, start="stage1"),
        train=replace(stage1.train, curriculum=curriculum, freeze_camera=True),
    )


def demo() -> TrainRecipe:
    """A world of 64x48 px for an hour or two of one processor core; `docs/demo-world.md` says what it learns."""
    backbone = BackboneConfig(
        num_attention_heads=3,
        attention_head_dim=64,
        num_layers=6,
        ffn_dim=512,
        in_channels=68,
        out_channels=32,
        text_dim=32,
        freq_dim=64,
        patch_size=(1, 1, 1),
    )
    return TrainRecipe(
        name="demo",
        model=ModelSpec(backbone, NoiseSpec(shift=2.0, boundary=0.0), pair=False, control_width=128),
        codec=CodecSettings(),
        data=DataSettings(fps=8.75, size=(64, 48), captions=CaptionMix(none_share=1.0), mirror_share=0.5, reverse_share=0.5),
        train=TrainSettings(
            curriculum=(Phase(5, 2500),),
            batch=16,
            rate=1.5e-3,
            warm_up=50,
            decay_share=0.35,
            average=0.995,
            save_every=200,
            log_every=20,
            watch_every=500,
            watch_clips=32,
            watch_steps=8,
            workers=0,
        ),
        control=ControlSpec(speed=0.5, turn_deg_s=60.0, max_pitch_deg=0.0),
    )


def tiny() -> TrainRecipe:
    """For tests and for trying out a machine: a world of 32x32 px and two experts of a few thousand weights, a dozen steps."""
    small = demo()
    backbone = replace(small.model.backbone, num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48)
    curriculum = (Phase(5, 7), Phase(9, 5))
    return replace(
        small,
        name="tiny",
        model=ModelSpec(backbone, control_width=16),
        codec=replace(small.codec, width=8, fitted=4, steps=20, batch=2),
        data=replace(small.data, fps=10.0, size=(32, 32)),
        train=replace(
            small.train,
            curriculum=curriculum,
            batch=2,
            warm_up=1,
            precision="float32",
            log_every=1,
            watch_every=6,
            watch_clips=2,
            watch_steps=4,
        ),
    )


BUILT_IN: Mapping[str, Callable[[], TrainRecipe]] = {
    "demo": demo,
    "gamecraft2": gamecraft2,
    "gamecraft2-instruct": gamecraft2_instruct,
    "tiny": tiny,
}
