"""Two experts for two ranges of noise, and the one rule for which expert a noise level belongs to (Wan2.2; paper section 4.2).

sigma is the share of noise as the model sees it, *after* the shift: 0 is clean, 1 is pure noise. The boundary is a sigma too.
Several trainers split the uniform draw before the shift instead. That mistake moves the boundary from 0.9 to 0.978 (shift 5).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ExpertName = Literal["high", "low"]
TIMESTEPS = 1000  # the backbone's time at sigma = 1


@dataclass(frozen=True)
class NoiseSpec:
    """How noise levels are distributed, and divided between the experts."""

    shift: float = 5.0  # shift of uniform draws; a larger value trains more on high noise, 1 is uniform
    boundary: float = 0.9  # the high-noise expert works from this sigma upwards, the low-noise expert below it

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, not {self.shift:g}")
        if not 0 <= self.boundary <= 1:
            raise ValueError(f"boundary is a share of noise, 0 to 1, not {self.boundary:g}")

    def to_sigma(self, u: Tensor) -> Tensor:
        """Return the sigma of a uniform draw u."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def from_sigma(self, sigma: Tensor) -> Tensor:
        """Return the uniform draw that gives sigma."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    @property
    def high_share(self) -> float:
        """Share of uniform draws that belong to the high-noise expert: 0.357 at shift 5 and boundary 0.9."""
        return 1 - float(self.from_sigma(torch.tensor(self.boundary, dtype=torch.float64)))

    def expert_for(self, sigma: Tensor) -> ExpertName:
        """Return the expert for these noise levels. Pass only frames being denoised, not clean context frames.

        ValueError where they do not all belong to one expert: a forward pass runs one module, the same on every rank.
        """
        high = (sigma >= self.boundary).flatten()
        if high.numel() == 0 or bool(high.any()) != bool(high.all()):
            raise ValueError(f"sigmas {sigma.flatten().tolist()} lie on both sides of {self.boundary}, or there are none")
        return "high" if bool(high[0]) else "low"

    def draw_expert(self, generator: torch.Generator) -> ExpertName:
        """Draw an expert, each as often as uniform draws fall into its range.

        Pass a generator that is equal on all ranks. Ranks that run different modules mix their weights without an error, since
        FSDP gathers rows of both.
        """
        return "high" if float(torch.rand((), generator=generator)) < self.high_share else "low"

    def draw_sigma(self, expert: ExpertName, count: int, generator: torch.Generator) -> Tensor:
        """Draw sigmas [count] in an expert's range, distributed as the shifted uniform. Ranks may use different generators."""
        low, high = (1 - self.high_share, 1.0) if expert == "high" else (0.0, 1 - self.high_share)
        sigma = self.to_sigma(low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64))
        below = torch.nextafter(torch.tensor(self.boundary), torch.tensor(0.0))
        return sigma.float().clamp(min=self.boundary) if expert == "high" else sigma.float().clamp(max=float(below))


def seeded_generator(seed: int, *key: object) -> torch.Generator:
    """Return a generator that depends on the seed and the key only, not on who draws from it or when.

    It is on the CPU, so that all devices draw the same.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *key))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_noise(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Draw noise for a batch, on the CPU, from one generator or from one for each sample."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator)
    return torch.stack([torch.randn(tuple(shape[1:]), generator=each) for each in generator])
