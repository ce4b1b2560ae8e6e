"""Settings of a training run. Each default is written here once."""

from dataclasses import dataclass

from model.config import check_frames

PRECISIONS = ("auto", "bfloat16", "float32")
OBJECTIVES = ("flow", "teacher_forcing", "consistency", "self_forcing")


@dataclass(frozen=True)
class TrainPhase:
    """A phase of the curriculum: one clip length for a number of steps (paper: 45, 81, 149 frames)."""

    frames: int  # frames of a training window, 1 + 4k
    steps: int  # optimizer steps of the phase

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if self.steps < 1:
            raise ValueError(f"a phase needs at least one step, not {self.steps}")


@dataclass(frozen=True)
class TrainSettings:
    """How a run trains. The paper gives none of these numbers; the learning rate is Self-Forcing's for fine-tuning Wan."""

    # the phases of the run, in order
    curriculum: tuple[TrainPhase, ...] = (TrainPhase(45, 10_000), TrainPhase(81, 10_000), TrainPhase(149, 10_000))
    batch: int = 1  # samples per rank in one forward and backward pass
    accumulate: int = 1  # passes whose gradients are averaged into one optimizer step
    lr: float = 1e-5  # learning rate of AdamW after the warm-up
    weight_decay: float = 0.01  # weight decay of AdamW
    betas: tuple[float, float] = (0.9, 0.95)  # decay of AdamW's averages of the gradient and of its square
    warmup_steps: int = 100  # steps in which the learning rate rises to `lr`
    lr_decay_share: float = 0.0  # last share of all steps, in which the learning rate falls to zero; 0: it never falls
    max_grad_norm: float = 1.0  # gradients with a larger norm are scaled down to it
    ema_decay: float = (
        0.999  # decay of the averaged weights, which are played and evaluated; a larger value averages over more steps
    )
    freeze_camera: bool = False  # leave the camera encoders as they are (stage 2)
    # what the blocks compute in: bfloat16, float32, or auto, the faster one on the device where the run begins
    precision: str = "auto"
    save_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 3  # how many complete checkpoints stay; older ones are deleted
    log_every: int = 10  # steps between lines of the log
    sample_every: int = 1000  # steps between sample videos, which are also measured for control accuracy; 0: never
    sample_clips: int = 4  # sample videos made each time
    sample_steps: int = 40  # sampler steps of a sample video
    workers: int = 2  # data loader processes per rank; 0: load in the training process
    seed: int = 0  # seed of fresh weights, experts, noise levels and noise; data.seed is separate

    def __post_init__(self) -> None:
        if not self.curriculum:
            raise ValueError("a curriculum needs at least one phase")
        for name in ("batch", "accumulate", "save_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr:g}")
        if not 0 <= self.lr_decay_share <= 1:
            raise ValueError(f"lr_decay_share is a share of the steps, 0 to 1, not {self.lr_decay_share:g}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.curriculum)

    def phase_at(self, step: int) -> tuple[int, TrainPhase]:
        """Return the phase that a step belongs to, with its number. ValueError for a step after the last one."""
        for number, phase in enumerate(self.curriculum):
            if step < phase.steps:
                return number, phase
            step -= phase.steps
        raise ValueError(f"step {step} is after the curriculum's last, {self.steps}")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: a linear rise, then `lr`, then a linear fall to zero at the end."""
        left = (self.steps - step) / (self.lr_decay_share * self.steps) if self.lr_decay_share else 1.0
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup_steps), left)


@dataclass(frozen=True)
class ObjectiveSettings:
    """What a run minimises."""

    # flow: bidirectional flow matching (stages 1 and 2). teacher_forcing: causal flow matching, each block on true history.
    # consistency: distillation to few steps of the causal model that model.init_from names, without rollouts. self_forcing:
    # distribution matching on rollouts of the few-step run that model.init_from names (stages 3 and 4)
    kind: str = "flow"
    latents: int = 0  # latents of a sample that are trained on, at a random place; 0: all of them
    context_noise: float = 0.3  # history gets noise of up to this level, which is an input of the model
    clean_history_share: float = 0.2  # share of samples whose history has no noise
    # share of steps whose history is the model's own prediction, while the aim is the true next frame
    own_history_share: float = 0.0
    own_history_rounds: int = 1  # how often such a history is predicted again from itself, so that errors add up
    # noise of up to this level on the turned frame before (`CausalSpec.warp`), whose last channels shrink as much
    source_noise: float = 0.5
    # part of the noise on history and on turned frames that is equal in all cells and frames of a sample, as the colours of a
    # rollout drift; the first frame and remembered ones have none
    drift: float = 0.0
    # up to so many frames are left out where the text changes, in half of such runs: what a prompt begins comes at once
    skip_at_change: int = 0
    levels: int = 48  # noise levels of consistency distillation
    # of the teacher, away from no text and no camera, or with causal.warp from no text; 1: none, which saves a pass
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in OBJECTIVES:
            raise ValueError(f"kind must be one of {', '.join(OBJECTIVES)}, not {self.kind!r}")
        for name in ("context_noise", "clean_history_share", "own_history_share", "source_noise", "drift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name):g}")
        if self.levels < 2 or self.own_history_rounds < 1 or self.latents < 0 or self.skip_at_change < 0:
            raise ValueError("levels must be at least 2, own_history_rounds at least 1, latents and skip_at_change at least 0")


@dataclass(frozen=True)
class DistillationSettings:
    """How stages 3 and 4 distil (objective.kind self_forcing): distribution matching on the student's own rollouts.

    Three lengths, in latents: `CausalSpec.block` is generated at once, `window` is scored, and a phase's frames are the longest
    rollout. The defaults are Self-Forcing's where it has them; the paper gives no learning rates.
    """

    # folder of the run whose bidirectional model is the real score, and from which the fake score (the critic) starts
    teacher: str = ""
    window: int = 21  # latents that are scored, whole blocks
    # where the window lies: end, the last latents of the rollout (stage 3); uniform, anywhere in it (stage 4, Algorithm 1)
    window_at: str = "end"
    # share of steps in which what precedes the window is ground truth instead of the student's own rollout (stage 4)
    teacher_forcing_share: float = 0.0
    update_ratio: int = 5  # the critic is trained in every step, the student in one of so many
    # learning rates; train.warmup_steps and train.lr_decay_share apply to all four
    lr_high: float = 2e-6  # of the student's expert for high noise
    lr_low: float = 2e-6  # of the student's expert for low noise
    critic_lr_high: float = 4e-7  # of the critic's expert for high noise
    critic_lr_low: float = 4e-7  # of the critic's expert for low noise
    betas: tuple[float, float] = (0.0, 0.999)  # decay of AdamW's averages, of student and critic
    # of the real score, away from no text and no camera, or with causal.warp from no text; 1: none, which saves a pass.
    # Self-Forcing and DMD2 write 3 for what is 4 here
    guidance: float = 4.0
    # noise levels at which the student is scored: all, those of both experts; exit_expert, those of the expert that is trained
    score_levels: str = "all"
    min_level: float = 0.02  # lowest noise level at which a window is scored
    max_level: float = 0.98  # highest noise level at which a window is scored
    critic_lora: int = (
        0  # rank of low-rank changes of the teacher, which are then all that the critic trains; 0: all its weights
    )
    ema_from: int = 0  # updates of the student before its weights are averaged
    # stop criteria, measured over so many steps: a student of too much variance is oversaturated, one of too little flow stands
    measure_every: int = 50
    max_variance_ratio: float = 1.5  # highest variance of the student's latents, as a multiple of that of ground truth
    min_flow_ratio: float = 0.5  # lowest optical flow in the student's videos, as a share of that in ground truth
    stop: bool = False  # end the run at the first measurement that breaks a stop criterion; false: only log it

    def __post_init__(self) -> None:
        for name, choices in (("window_at", ("end", "uniform")), ("score_levels", ("all", "exit_expert"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("window", "update_ratio", "measure_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr_high", "lr_low", "critic_lr_high", "critic_lr_low"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")
        if not 0 <= self.teacher_forcing_share <= 1:
            raise ValueError(f"teacher_forcing_share must be from 0 to 1, not {self.teacher_forcing_share:g}")
        if not 0 <= self.min_level < self.max_level <= 1:
            raise ValueError(
                f"min_level must be under max_level, both from 0 to 1, not {self.min_level:g} and {self.max_level:g}"
            )
        if self.critic_lora < 0 or self.ema_from < 0:
            raise ValueError("critic_lora and ema_from must not be negative")

    def lr(self, expert: str, critic: bool = False) -> float:
        """Return the learning rate of an expert of the student, or of the critic."""
        rate: float = getattr(self, f"{'critic_' if critic else ''}lr_{expert}")
        return rate
