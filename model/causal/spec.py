"""What a causal model sees and how it generates: stored with a checkpoint, and compared when one is loaded.

Latents are numbered along a stream. Latent 0 is the start image, clean, and a block by itself; then follow blocks of equal
length. A block sees the sink (the first latents), the window (the latents before the block), and itself.

L queries, S keys.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from model.noise import ExpertName, NoiseSpec

VERSION = 1

_CHOICES = {
    "sampler": ("consistency", "euler", "heun"),
    "sharing": ("per_expert", "low_noise"),
    "recache": ("block", "window"),
    "positions": ("window", "stream"),
    "pose_origin": ("stream", "block"),
    "memory": ("none", "keyframes"),
}


@dataclass(frozen=True)
class CausalSpec:
    """How a causal model attends, caches and generates."""

    version: int = VERSION  # version of these settings; another release may read them differently
    block: int = 3  # latents that are generated at once, after latent 0
    sink: int = 1  # first latents of the stream, which are always seen: 1, or 1 and whole blocks
    window: int = 9  # latents before a block that it sees besides the sink; whole blocks
    # noise levels of the steps of a block, falling from 1
    steps: tuple[float, ...] = (1.0, 0.9375, 0.8333, 0.625)
    first_steps: tuple[float, ...] = ()  # noise levels of the first block that is generated; empty: as all others
    # consistency: each step predicts the clean block and adds fresh noise of the next level, as distilled models need.
    # euler and heun follow the velocity, as other models need
    sampler: str = "consistency"
    # whose keys and values an expert reads: per_expert, its own; low_noise, the low-noise expert's, which halves the cache
    sharing: str = "per_expert"
    recache: str = "block"  # what is committed again after a change of prompt: the last block, or the window
    context_noise: float = 0.0  # noise level at which blocks are committed
    # positions of keys: window, counted from the start of the window, without end; stream, counted from the start of the
    # stream, which ends at the backbone's rope_max_seq_len (published models returned to the first frame at latents 132, 201)
    positions: str = "window"
    # camera from which rays are seen: stream, that of the stream's first frame; block, that of the last frame before a block
    pose_origin: str = "stream"
    context_gradient: bool = True  # whether training sends gradients through the keys of past blocks
    # condition on the last frame before a block, turned as the controls say, instead of on the first frame; the prediction
    # starts from it
    warp: bool = False
    # with warp, which second picture is turned: none, that of 17 frames ago; keyframes, the nearest by pose of those kept
    memory: str = "none"
    # noise level that is declared for turned frames of a rollout, which are not exact; nothing is added
    warp_noise: float = 0.1
    fps: float = 16.0  # frames a second of the stream; a training recipe sets it to data.fps

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(
                f"causal.version is {self.version}, but this release knows {VERSION} only; use the one that wrote it"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.block < 1 or self.window < self.block or self.window % self.block:
            raise ValueError(f"window must be whole blocks of {self.block} latents and at least one, not {self.window}")
        if self.sink < 1 or (self.sink - 1) % self.block:
            raise ValueError(f"sink must be 1 and whole blocks of {self.block} latents, not {self.sink}")
        for name in ("steps", "first_steps"):
            steps = getattr(self, name)
            falls = all(0 < after < before for before, after in pairwise(steps))
            if (steps and not (steps[0] == 1 and falls)) or (name == "steps" and not steps):
                raise ValueError(f"{name} must fall from 1 to a last step above 0, not {list(steps)}")
        if not 0 <= self.context_noise < 1:
            raise ValueError(f"context_noise is a noise level, at least 0 and under 1, not {self.context_noise:g}")
        if self.memory != "none" and not self.warp:
            raise ValueError(f"memory {self.memory!r} turns its key frames as the controls say: set warp")

    @property
    def warp_sources(self) -> int:
        """How many turned pictures the model is conditioned on."""
        return 2 if self.warp else 0

    def block_of(self, latent: int) -> range:
        """Return the latents of the block that a latent belongs to."""
        start = (latent - 1) // self.block * self.block + 1
        return range(start, start + self.block) if latent else range(1)

    def blocks(self, latents: int) -> list[range]:
        """Divide the first latents of a stream into blocks. ValueError where the last one is not whole."""
        if latents < 1 or (latents - 1) % self.block:
            raise ValueError(f"{latents} latents are not 1 and whole blocks of {self.block}")
        return [range(1), *(range(i, i + self.block) for i in range(1, latents, self.block))]

    def visible(self, block: range, first: int = 0) -> tuple[list[int], list[int]]:
        """Return the latents of the sink and those of the window that a block sees, in order. The window excludes the sink.

        first: latents before this one are not seen, except the sink.
        """
        sink = range(min(self.sink, block.start))
        return list(sink), list(range(max(len(sink), block.start - self.window, first), block.start))

    def places(self, block: range, first: int = 0) -> tuple[list[int], list[int], list[int]]:
        """Return the rotary positions of sink, window and block.

        Counted from the start of the window, they follow each other without a hole: the distance to the sink stays that of a
        full window.
        """
        sink, window = self.visible(block, first)
        skipped = 0 if self.positions == "stream" else block.start - len(window) - len(sink)
        return sink, [latent - skipped for latent in window], [latent - skipped for latent in block]

    def plan(self, noise: NoiseSpec, first: bool) -> list[tuple[float, ExpertName]]:
        """Return the steps of a block, each with its expert. first: of the first block that is generated."""
        steps = self.first_steps if first and self.first_steps else self.steps
        return [(sigma, noise.expert_for(torch.tensor([sigma]))) for sigma in steps]

    def mask_mod(self, latent_L: Tensor, clean_L: Tensor) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
        """Return the rule by which token q of a sequence sees token k, in the form that flex attention takes.

        latent: number of each token's latent. clean: whether the token belongs to the clean copy, the history; noisy tokens
        are those being denoised. Clean tokens see clean ones; noisy tokens see clean ones of earlier blocks, and noisy ones of
        their block.
        """
        start_L = torch.where(latent_L > 0, (latent_L - 1).div(self.block, rounding_mode="floor") * self.block + 1, 0)
        end_L = torch.where(latent_L > 0, start_L + self.block, 1)

        def sees(_batch: Any, _head: Any, q: Tensor, k: Tensor) -> Tensor:
            latent, start, end = latent_L[k], start_L[q], end_L[q]
            visible = ((latent >= start - self.window) | (latent < self.sink)) & (latent < end)
            in_block = latent >= start
            from_noisy = torch.where(clean_L[k], ~in_block, in_block)
            return visible & torch.where(clean_L[q], clean_L[k], from_noisy)

        return sees

    def distance_cut(self, latents: Sequence[int]) -> list[int]:
        """Return by how much the distance from each latent to the sink is shortened (see `places`)."""
        if self.positions == "stream":
            return [0] * len(latents)
        return [max(0, self.block_of(latent).start - self.window - self.sink) for latent in latents]


def dense_mask(rule: Callable[[Any, Any, Tensor, Tensor], Tensor], queries: Tensor, keys: Tensor) -> Tensor:
    """Evaluate a mask rule for token numbers: bool [L, S]."""
    return rule(0, 0, queries[:, None], keys[None])


def spec_from_plain(plain: Mapping[str, Any]) -> CausalSpec:
    """Return the spec that JSON holds, in which tuples are lists."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return CausalSpec(**values)
