"""How a run trains. Defaults are written here once."""

from dataclasses import dataclass

from model.config import check_frames

PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum: clips of so many frames for so many steps (paper: 45, 81, 149)."""

    frames: int
    steps: int

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if self.steps < 1:
            raise ValueError(f"a phase needs at least one step, not {self.steps}")


@dataclass(frozen=True)
class TrainSettings:
    """batch: samples a rank and pass; accumulate: passes a step. decay_share: the last part of the steps, in which the rate
    falls to zero. freeze_camera: stage 2. most_gradient: the norm that gradients are cut to. average: decay of the weights that
    are played. precision: what the blocks compute in: bfloat16, float32, or auto, the faster on the device that the run begins
    on. save_every, log_every, watch_every: steps. keep: how many checkpoints stay, the newest. When
    watched, `watch_clips` videos are made by so many sampler steps, and measured (0 never). The paper gives none of the
    numbers; rates are Self-Forcing's for fine-tuning Wan.
    """

    curriculum: tuple[Phase, ...] = (Phase(45, 10_000), Phase(81, 10_000), Phase(149, 10_000))
    batch: int = 1
    accumulate: int = 1
    rate: float = 1e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warm_up: int = 100
    decay_share: float = 0.0
    most_gradient: float = 1.0
    average: float = 0.999
    freeze_camera: bool = False
    precision: str = "auto"
    save_every: int = 500
    keep: int = 3
    log_every: int = 10
    watch_every: int = 1000
    watch_clips: int = 4
    watch_steps: int = 40
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.curriculum:
            raise ValueError("a curriculum needs at least one phase")
        for name in ("batch", "accumulate", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, not {self.rate:g}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share is a share of the steps, 0 to 1, not {self.decay_share:g}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.curriculum)

    def phase_at(self, step: int) -> tuple[int, Phase]:
        """The number of the phase that a step belongs to, and the phase."""
        for number, phase in enumerate(self.curriculum):
            if step < phase.steps:
                return number, phase
            step -= phase.steps
        raise ValueError(f"step {step} is behind the curriculum's {self.steps}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: a ramp, the rate, and down to zero at the end."""
        left = (self.steps - step) / (self.decay_share * self.steps) if self.decay_share else 1.0
        return self.rate * min(1.0, (step + 1) / max(1, self.warm_up), left)
