"""Training recipes: the model, its data and how it trains, as one frozen tree. A variant is a `replace` of another."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from curation.errors import InputError
from model.backbone.vae import MASK_CHANNELS
from model.causal.spec import CausalSpec
from model.config import FRAMES_PER_LATENT, BackboneConfig, wan22_i2v_a14b
from model.control.spec import ControlSpec
from model.data.captions import CaptionMix
from model.data.loader import DataSettings
from model.noise import NoiseSpec
from model.parallel.layout import ParallelLayout
from model.sampling import sampler_sigmas
from model.training.frame_codec import CodecSettings
from model.training.settings import DistillationSettings, ObjectiveSettings, TrainPhase, TrainSettings
from model.warp import condition_channels


@dataclass(frozen=True)
class ModelSpec:
    """The model that is trained."""

    # sizes of one expert; with model.weights the sizes stored there are used
    backbone: BackboneConfig = field(default_factory=wan22_i2v_a14b)
    noise: NoiseSpec = field(default_factory=NoiseSpec)  # the noise levels of training, and which expert has which
    two_experts: bool = True  # one expert for high and one for low noise, as in Wan2.2; false: one for all noise levels
    control_width: int = 192  # hidden channels of the camera encoder
    # diffusers folder of Wan2.2-I2V-A14B: experts, codec and text encoder are loaded from it. Empty: a small world with fresh
    # weights, a frame codec trained by the run, and no text
    weights: str = ""
    # weights of TAEHV for Wan 2.1 (`taew2_1.pth`), which decode videos, faster and less well, instead of the decoder of
    # model.weights; empty: that decoder
    tiny_decoder: str = ""
    # folder of a run whose averaged weights, cameras included, this run starts from (stage 1's for stage 2), or of an exported
    # world; demo: the world that ships, where no folder has that name; empty: none
    init_from: str = ""
    # text of a world with fresh weights: none, or words, one token for each word of a prompt
    text: str = "none"
    # vision-language model (hub name or folder) whose hidden states for frame and instruction each block reads next to the
    # text; empty: text only
    vlm_encoder: str = ""

    def __post_init__(self) -> None:
        if self.text not in ("none", "words"):
            raise ValueError(f"text must be none or words, not {self.text!r}")
        if self.tiny_decoder and not self.weights:
            raise ValueError("tiny_decoder decodes latents of the video codec: it needs model.weights")
        if not self.two_experts and self.noise.boundary:
            raise ValueError(f"one expert works at all noise levels: boundary must be 0, not {self.noise.boundary:g}")


def weights_folder(spec: ModelSpec) -> str:
    """Return `model.weights`. InputError, with the command to download it, where the folder does not exist."""
    if not os.path.isdir(spec.weights):
        raise InputError(
            f"{spec.weights}: no such folder; model.weights must be a diffusers folder of Wan2.2-I2V-A14B: "
            "hf download Wan-AI/Wan2.2-I2V-A14B-Diffusers --local-dir FOLDER"
        )
    return spec.weights


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what a training run makes."""

    name: str = "gamecraft2"  # name of the recipe; decides nothing
    model: ModelSpec = field(default_factory=ModelSpec)  # the model, and where its weights come from
    codec: CodecSettings = field(default_factory=CodecSettings)  # the frame codec; unused where model.weights is set
    data: DataSettings = field(default_factory=DataSettings)  # what a sample is, and where samples come from
    train: TrainSettings = field(default_factory=TrainSettings)  # how the run trains
    layout: ParallelLayout = field(default_factory=ParallelLayout)  # how the model uses its devices
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)  # what the run minimises
    # stages 3 and 4; unused with another objective.kind than self_forcing
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    # what a causal model sees and how it generates; stored in checkpoints; unused with objective.kind flow. Its fps is data.fps
    causal: CausalSpec = field(default_factory=CausalSpec)
    # how keys and mouse become motion when the world is played or evaluated; stored in checkpoints. Its fps is always data.fps
    control: ControlSpec = field(default_factory=ControlSpec)

    def __post_init__(self) -> None:
        if self.train.freeze_camera and not self.model.init_from:
            raise ValueError(
                "train.freeze_camera needs model.init_from, the run whose camera encoder is kept: a fresh encoder outputs zeros"
            )
        object.__setattr__(self, "control", replace(self.control, fps=self.data.fps))
        object.__setattr__(self, "causal", replace(self.causal, fps=self.data.fps))
        self._check_channels()
        if self.objective.kind == "consistency" and not self.model.init_from:
            raise ValueError("objective.kind consistency needs model.init_from, the causal run that is distilled")
        self._check_causal()
        if self.objective.kind == "self_forcing":
            self._check_distillation()
        if self.data.latents and (not self.model.weights or self.model.vlm_encoder):
            raise ValueError(
                "data.latents needs model.weights, whose codec made them, and no model.vlm_encoder, which reads pictures"
            )
        if not self.model.weights and self.codec.channels != self.model.backbone.out_channels:
            raise ValueError(
                f"codec.channels must equal out_channels of the backbone, {self.model.backbone.out_channels}, "
                f"not {self.codec.channels}"
            )

    @property
    def is_causal(self) -> bool:
        return self.objective.kind != "flow"

    @property
    def warp_sources(self) -> int:
        """How many turned pictures the input holds; 0: the first-frame condition of Wan2.2."""
        return self.causal.warp_sources if self.is_causal else 0

    def _check_causal(self) -> None:
        latents, block = self.objective.latents, self.causal.block
        if self.is_causal and self.causal.warp and self.model.vlm_encoder:
            raise ValueError("causal.warp has no instructions by a vision-language model yet: leave model.vlm_encoder empty")
        if not self.is_causal or not latents:
            return
        if not self.causal.warp:
            raise ValueError("objective.latents cuts runs out of samples, which needs causal.warp; set it to 0")
        if (latents - 1) % block or latents <= block or any(latents > phase.frames for phase in self.train.curriculum):
            raise ValueError(
                f"objective.latents must be 1 and whole blocks of {block}, and no more than a phase's frames, not {latents}"
            )

    def _check_distillation(self) -> None:
        settings, block, noise = self.distillation, self.causal.block, self.model.noise
        if not self.model.init_from or not settings.teacher:
            raise ValueError(
                "objective.kind self_forcing needs model.init_from, the few-step run that is trained on, and "
                "distillation.teacher, the run of the real score"
            )
        if self.causal.sampler != "consistency" or self.causal.first_steps:
            raise ValueError("self-forcing needs causal.sampler consistency, and no causal.first_steps")
        if self.model.vlm_encoder or self.data.latents:
            raise ValueError("self-forcing reads videos and has no instructions yet: no model.vlm_encoder, no data.latents")
        if settings.window % block:
            raise ValueError(f"distillation.window must be whole blocks of {block} latents, not {settings.window}")
        if self.model.weights and settings.window == block:
            raise ValueError("distillation.window must be two blocks or more: a video codec leaves the first one out")
        if noise.boundary and not settings.min_level < noise.boundary <= settings.max_level:
            raise ValueError(
                f"distillation.min_level and max_level must lie on both sides of the experts' boundary {noise.boundary:g}, not "
                f"{settings.min_level:g} and {settings.max_level:g}"
            )
        per = 1 if not self.model.weights else FRAMES_PER_LATENT
        for phase in self.train.curriculum:
            latents = (phase.frames - 1) // per
            if latents % block or latents < settings.window:
                raise ValueError(
                    f"a phase of {phase.frames} frames has {latents} latents after the first: they must be whole blocks of "
                    f"{block}, and no fewer than distillation.window {settings.window}"
                )

    def _check_channels(self) -> None:
        backbone, sources = self.model.backbone, self.warp_sources
        out = backbone.out_channels
        condition = condition_channels(sources, out) if sources else MASK_CHANNELS + out
        if backbone.in_channels != out + condition:
            parts = f"{sources} turned pictures {condition}" if sources else f"mask {MASK_CHANNELS}, image {out}"
            raise ValueError(f"in_channels must be {out + condition} (noise {out}, {parts}), not {backbone.in_channels}")


def gamecraft2() -> TrainRecipe:
    """The paper's stage 1: both experts of Wan2.2-I2V-A14B, 45, 81, then 149 frames; `model.weights` names the folder.

    100,000 steps without context parallel (table 2). The paper does not say how they divide among the three lengths; this
    division is ours.
    """
    return TrainRecipe(
        model=ModelSpec(weights="Wan2.2-I2V-A14B-Diffusers"),
        data=DataSettings(max_origin_distance=60.0),
        train=TrainSettings(curriculum=(TrainPhase(45, 40_000), TrainPhase(81, 30_000), TrainPhase(149, 30_000))),
        layout=ParallelLayout(context=1, recompute=True),
    )


def gamecraft2_instruct() -> TrainRecipe:
    """The paper's stage 2: starts from the run `stage1`, with the camera encoder frozen, on footage and synthetic clips.

    20,000 steps (table 2) of 45 and 81 frames. The longest synthetic clip that an animator makes has 81 frames, so a phase of
    149 frames would use none of them. Set the shares of footage and synthetic clips in `data.sources`; the paper gives none.
    """
    stage1 = gamecraft2()
    curriculum = TrainPhase(45, 5_000), TrainPhase(81, 15_000)
    return replace(
        stage1,
        name="gamecraft2-instruct",
        model=replace(stage1.model, init_from="stage1"),
        train=replace(stage1.train, curriculum=curriculum, freeze_camera=True),
    )


def gamecraft2_causal() -> TrainRecipe:
    """Make stage 2's model causal by teacher forcing: starts from the run `stage2`, each block denoised on true history.

    49 and 85 frames: one latent for the first frame, then blocks of three. Causal-Forcing finds 2,000 steps enough and 5,000 to
    10,000 better.
    """
    stage2 = gamecraft2_instruct()
    curriculum = TrainPhase(49, 6_000), TrainPhase(85, 4_000)
    return replace(
        stage2,
        name="gamecraft2-causal",
        model=replace(stage2.model, init_from="stage2"),
        objective=ObjectiveSettings("teacher_forcing"),
        causal=CausalSpec(sampler="euler", steps=_many_steps(40)),
        train=replace(stage2.train, curriculum=curriculum),
    )


def gamecraft2_consistency() -> TrainRecipe:
    """Distil the run `causal` to four steps, two of each expert, without guidance at play."""
    causal = gamecraft2_causal()
    return replace(
        causal,
        name="gamecraft2-consistency",
        model=replace(causal.model, init_from="causal"),
        objective=replace(causal.objective, kind="consistency", own_history_share=0.3),
        causal=CausalSpec(),
        train=replace(causal.train, curriculum=(TrainPhase(85, 3_000),), ema_decay=0.99),
    )


def gamecraft2_distil() -> TrainRecipe:
    """The paper's stage 3: distribution matching on rollouts of the run `consistency`, scored by stage 2's model `stage2`.

    10,000 steps, four ranks of context parallel (table 2). 2,000 of them train the student. Rollouts have up to 85 frames, and
    all of them are scored.
    """
    student = gamecraft2_consistency()
    return replace(
        student,
        name="gamecraft2-distil",
        model=replace(student.model, init_from="consistency"),
        objective=ObjectiveSettings("self_forcing"),
        distillation=DistillationSettings(teacher="stage2", ema_from=200),
        # Self-Forcing's: pages of past blocks carry no gradient, which would keep every pass of a rollout in memory
        causal=replace(student.causal, context_gradient=False),
        data=replace(student.data, camera_dropout=0.0, max_origin_distance=0.0),
        train=replace(student.train, curriculum=(TrainPhase(85, 10_000),), max_grad_norm=10.0),
        layout=ParallelLayout(context=4, recompute=True),
    )


def gamecraft2_extend() -> TrainRecipe:
    """The paper's stage 4 (Algorithm 1): rollouts of up to 15 s of the run `distil`, of which a random window is scored.

    3,000 steps, four ranks of context parallel (table 2), on runs of touching clips of more than ten seconds. In half of the
    steps the window follows true history.
    """
    distil = gamecraft2_distil()
    return replace(
        distil,
        name="gamecraft2-extend",
        model=replace(distil.model, init_from="distil"),
        distillation=replace(distil.distillation, window_at="uniform", teacher_forcing_share=0.5),
        data=replace(distil.data, join_clips=True),
        train=replace(distil.train, curriculum=(TrainPhase(241, 3_000),)),
    )


def _many_steps(steps: int, shift: float = 5.0) -> tuple[float, ...]:
    """Return the noise levels of a sampler with many steps."""
    return tuple(round(sigma, 6) for sigma in sampler_sigmas(NoiseSpec(shift), steps)[:-1])


def demo() -> TrainRecipe:
    """A world of 64x48 px that trains in an hour or two on one processor core; `docs/demo-world.md` shows what it learns."""
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
        model=ModelSpec(backbone, NoiseSpec(shift=2.0, boundary=0.0), two_experts=False, control_width=128),
        codec=CodecSettings(),
        data=DataSettings(fps=8.75, size=(64, 48), captions=CaptionMix(dropout=1.0), mirror_share=0.5, reverse_share=0.5),
        train=TrainSettings(
            curriculum=(TrainPhase(5, 2500),),
            batch=16,
            lr=1.5e-3,
            warmup_steps=50,
            lr_decay_share=0.35,
            ema_decay=0.995,
            save_every=200,
            log_every=20,
            sample_every=500,
            sample_clips=32,
            sample_steps=8,
            workers=0,
        ),
        control=ControlSpec(speed=0.5, turn_deg_s=60.0, max_pitch_deg=0.0),
    )


def demo_causal() -> TrainRecipe:
    """A causal world of 128x96 px that is played: one known place, trained from nothing. `docs/demo-world.md` shows it.

    Each frame is a block. It is conditioned on the frame before and on a remembered one, both turned as the controls say.
    """
    channels = 48
    causal = CausalSpec(
        block=1,
        window=4,
        sampler="heun",
        steps=_many_steps(4, _DEMO_SHIFT),
        pose_origin="block",
        warp=True,
        memory="keyframes",
    )
    backbone = BackboneConfig(
        num_attention_heads=3,
        attention_head_dim=64,
        num_layers=6,
        ffn_dim=768,
        in_channels=channels + condition_channels(causal.warp_sources, channels),
        out_channels=channels,
        text_dim=32,
        freq_dim=64,
        patch_size=(1, 1, 1),
        pooled_text=True,
    )
    return TrainRecipe(
        name="demo-causal",
        model=ModelSpec(backbone, NoiseSpec(_DEMO_SHIFT, boundary=0.0), two_experts=False, control_width=64, text="words"),
        codec=CodecSettings(channels=channels, cell_px=16, steps=12_000),
        data=DataSettings(
            fps=17.5,
            size=(128, 96),
            captions=CaptionMix(dropout=0.0, with_standard=False),
            camera_dropout=0.0,
            reverse_share=0.25,
            join_clips=True,
            at_boundaries=12,
        ),
        train=TrainSettings(
            curriculum=(TrainPhase(49, 5_600),),
            batch=8,
            lr=1.5e-3,
            betas=(0.9, 0.95),
            warmup_steps=100,
            lr_decay_share=0.4,
            ema_decay=0.99,
            save_every=100,
            log_every=25,
            sample_every=0,
            workers=0,
        ),
        objective=ObjectiveSettings("teacher_forcing", latents=6, own_history_share=0.3, drift=1.0, skip_at_change=10),
        causal=causal,
        control=ControlSpec(speed=1.0, turn_deg_s=90.0, max_pitch_deg=0.0),
    )


def demo_consistency() -> TrainRecipe:
    """Distil the run `demo-causal` to two steps, which two processor cores play faster than the world's time passes."""
    causal = demo_causal()
    return replace(
        causal,
        name="demo-consistency",
        model=replace(causal.model, init_from="demo-causal"),
        objective=replace(causal.objective, kind="consistency", levels=24, guidance=1.5, own_history_share=0.3),
        causal=replace(causal.causal, sampler="consistency", steps=(1.0, 0.5)),
        train=replace(causal.train, curriculum=(TrainPhase(49, 110),), warmup_steps=10, lr=3e-4, ema_decay=0.99),
    )


def demo_teacher() -> TrainRecipe:
    """Make the run `demo-causal` see eight frames at once: the real score of `demo-distil`."""
    causal, window = demo_causal(), _DEMO_WINDOW
    return replace(
        causal,
        name="demo-teacher",
        model=replace(causal.model, init_from="demo-causal"),
        objective=replace(
            causal.objective, latents=1 + window, own_history_share=0.0, context_noise=0.0, source_noise=0.1, drift=0.0
        ),
        causal=replace(causal.causal, block=window, window=window, memory="none"),
        train=replace(causal.train, curriculum=(TrainPhase(49, 600),), batch=4, lr=5e-4, warmup_steps=30),
    )


def demo_distil() -> TrainRecipe:
    """Stage 3 of the played world: distribution matching on rollouts of up to a second of the run `demo-consistency`."""
    student = demo_consistency()
    return replace(
        student,
        name="demo-distil",
        model=replace(student.model, init_from="demo-consistency"),
        objective=ObjectiveSettings("self_forcing"),
        distillation=DistillationSettings(
            teacher="demo-teacher",
            window=_DEMO_WINDOW,
            update_ratio=2,
            lr_high=2e-5,
            lr_low=2e-5,
            critic_lr_high=4e-5,
            critic_lr_low=4e-5,
            guidance=1.0,
        ),
        causal=replace(student.causal, context_gradient=False),
        train=replace(student.train, curriculum=(TrainPhase(17, 400),), batch=2, warmup_steps=10),
    )


def demo_extend() -> TrainRecipe:
    """Stage 4 of the played world: rollouts of up to 2.8 s of the run `demo-distil`, of which a random window is scored."""
    distil = demo_distil()
    return replace(
        distil,
        name="demo-extend",
        model=replace(distil.model, init_from="demo-distil"),
        distillation=replace(distil.distillation, window_at="uniform", teacher_forcing_share=0.5),
        train=replace(distil.train, curriculum=(TrainPhase(49, 300),)),
    )


# Latents that the scores of the demo's stages 3 and 4 see at once, after the frame before them.
_DEMO_WINDOW = 8
# Of the noise levels of the demo: below the 5 of large pictures, whose noise hides less of them.
_DEMO_SHIFT = 1.5


def tiny() -> TrainRecipe:
    """For tests and for trying out a machine: 32x32 px, two experts of a few thousand weights, a dozen steps."""
    small = demo()
    backbone = replace(small.model.backbone, num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48)
    curriculum = (TrainPhase(5, 7), TrainPhase(9, 5))
    return replace(
        small,
        name="tiny",
        model=ModelSpec(backbone, control_width=16),
        codec=replace(small.codec, width=8, pictures=20, steps=20, batch=4),
        data=replace(small.data, fps=10.0, size=(32, 32)),
        train=replace(
            small.train,
            curriculum=curriculum,
            batch=2,
            warmup_steps=1,
            precision="float32",
            log_every=1,
            sample_every=6,
            sample_clips=2,
            sample_steps=4,
        ),
    )


BUILT_IN: Mapping[str, Callable[[], TrainRecipe]] = {
    "demo": demo,
    "demo-causal": demo_causal,
    "demo-consistency": demo_consistency,
    "demo-distil": demo_distil,
    "demo-extend": demo_extend,
    "demo-teacher": demo_teacher,
    "gamecraft2": gamecraft2,
    "gamecraft2-causal": gamecraft2_causal,
    "gamecraft2-consistency": gamecraft2_consistency,
    "gamecraft2-distil": gamecraft2_distil,
    "gamecraft2-extend": gamecraft2_extend,
    "gamecraft2-instruct": gamecraft2_instruct,
    "tiny": tiny,
}
