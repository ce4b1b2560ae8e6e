"""How a run trains. Defaults are written here once."""

from dataclasses import dataclass

from model.config import check_frames


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
    """batch: samples a rank and pass; accumulate: passes a step. freeze_camera: stage 2. most_gradient: the norm that gradients
    are cut to. average: decay of the weights that are played. save_every: steps. The paper gives none of the numbers; rates are
    Self-Forcing's for fine-tuning Wan.
    """

    curriculum: tuple[Phase, ...] = (Phase(45, 10_000), Phase(81, 10_000), Phase(149, 10_000))
    batch: int = 1
    accumulate: int = 1
    rate: float = 1e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warm_up: int = 100
    most_gradient: float = 1.0
    average: float = 0.999
    freeze_camera: bool = False
    save_every: int = 500
    log_every: int = 10
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.curriculum:
            raise ValueError("a curriculum needs at least one phase")
        for name in ("batch", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.rate <= 0:
            raise ValueError(f"rate must be positive, not {self.rate:g}")

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
