"""Two experts for two ranges of noise, and the one rule that says whose a noise level is (Wan2.2; paper section 4.2).

sigma is the share of noise, 0 clean to 1, as the model sees it: *after* the shift. The boundary is in that time too. Splitting
the uniform draw before the shift instead moves the boundary from 0.9 to 0.978 (shift 5), a mistake that several trainers made.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Name = Literal["high", "low"]
TIMESTEPS = 1000  # what a backbone calls sigma = 1


@dataclass(frozen=True)
class NoiseSpec:
    """How noise is spread and shared: the shift of the uniform draw, and the sigma from which the high-noise expert works."""

    shift: float = 5.0
    boundary: float = 0.9

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, not {self.shift:g}")
        if not 0 <= self.boundary <= 1:
            raise ValueError(f"boundary is a share of noise, 0 to 1, not {self.boundary:g}")

    def shifted(self, u: Tensor) -> Tensor:
        """What sigma a uniform draw u stands for."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def unshifted(self, sigma: Tensor) -> Tensor:
        """The uniform draw that gives sigma."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    @property
    def high_share(self) -> float:
        """How many of the uniform draws belong to the high-noise expert: 0.357 at shift 5 and boundary 0.9."""
        return 1 - float(self.unshifted(torch.tensor(self.boundary, dtype=torch.float64)))

    def expert_for(self, sigma: Tensor) -> Name:
        """Whose sequences with these sigmas are: those of the frames being denoised, clean context left out.

        ValueError where they are not all one expert's: a pass runs one module, on every rank the same.
        """
        high = (sigma >= self.boundary).flatten()
        if high.numel() == 0 or bool(high.any()) != bool(high.all()):
            raise ValueError(f"sigmas {sigma.flatten().tolist()} lie on both sides of {self.boundary}, or there are none")
        return "high" if bool(high[0]) else "low"

    def draw_expert(self, generator: torch.Generator) -> Name:
        """An expert, as often as uniform draws fall to it. The generator must be the one that all ranks share: ranks that run
        different modules mix their weights without an error (FSDP gathers rows of both).
        """
        return "high" if float(torch.rand((), generator=generator)) < self.high_share else "low"

    def draw_sigma(self, expert: Name, count: int, generator: torch.Generator) -> Tensor:
        """Sigmas [count] inside an expert's range, spread as the shifted uniform is. The generator may be a rank's own."""
        low, high = (1 - self.high_share, 1.0) if expert == "high" else (0.0, 1 - self.high_share)
        sigma = self.shifted(low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64))
        edge = torch.nextafter(torch.tensor(self.boundary), torch.tensor(0.0))
        return sigma.float().clamp(min=self.boundary) if expert == "high" else sigma.float().clamp(max=float(edge))

    def steps(self, high: int, low: int) -> list[float]:
        """Sigmas of a sampler with so many steps an expert, evenly in unshifted time: 2 and 2 of four steps are
        1, 0.9375 | 0.8333, 0.625 at shift 5.
        """
        if min(high, low) < 0 or high + low < 1:
            raise ValueError(f"a sampler needs at least one step, not {high} and {low}")
        total = high + low
        found = [float(self.shifted(torch.tensor(1 - i / total, dtype=torch.float64))) for i in range(total)]
        whose = ["high" if sigma >= self.boundary else "low" for sigma in found]
        if whose != ["high"] * high + ["low"] * low:
            raise ValueError(
                f"of {total} even steps {whose.count('high')} are the high-noise expert's, not {high}; sigmas {found}"
            )
        return found
