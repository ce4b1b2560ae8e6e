"""Keys and values of past latents: immutable pages for training, a ring of fixed shapes for inference, with one meaning.

A commit makes a page, denoising only reads. Keys are stored before rotation and rotated for each block, since their positions
count from the start of the window. Pages and ring slots outlive the window by a block, so that the last block can be committed
again with another prompt.

B batch, S tokens (of a latent: `TokenGrid.per_latent`), N heads, H width of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.backbone.attention import KV, AttentionLayout, Past
from model.backbone.dit import Expert
from model.backbone.rope import Rotary, rotary, rotate
from model.causal.spec import CausalSpec
from model.noise import ExpertName
from model.world import World


class Page(NamedTuple):
    """Keys and values of a block: of each expert that has its own, one KV for each layer."""

    latents: range
    kv: Mapping[ExpertName, tuple[KV, ...]]


class History(NamedTuple):
    """What all passes of a block see: positions and mask, and the past by expert and layer."""

    layout: AttentionLayout
    past: Mapping[ExpertName, tuple[Past, ...]]


class Cache(Protocol):
    """The past of a stream."""

    def history(self, block: range, first: int = 0) -> History:
        """Return what a block sees. first: latents before this one are not seen, except the sink."""
        ...

    def with_page(self, page: Page) -> "Cache":
        """Return the cache with a page more, or with a new page for a block that it has already."""
        ...


@dataclass(frozen=True)
class TokenGrid:
    """Rows and columns of a latent's tokens, and where their rotary positions come from."""

    rows: int
    columns: int
    head_dim: int
    positions: int  # of an axis
    device: torch.device

    @classmethod
    def of(cls, expert: Expert, height: int, width: int) -> "TokenGrid":
        """Return the grid of latents with this many rows and columns."""
        config = expert.config
        rows, columns = height // config.patch_size[1], width // config.patch_size[2]
        device = next(expert.parameters()).device
        return cls(rows, columns, config.attention_head_dim, config.rope_max_seq_len, device)

    @property
    def per_latent(self) -> int:
        """Tokens of a latent."""
        return self.rows * self.columns

    def rotary(self, places: list[int]) -> Rotary:
        """Return the rotary positions of the tokens of latents at these places."""
        return rotary(places, self.rows, self.columns, self.head_dim, self.positions, self.device)


def kept_experts(world: World, spec: CausalSpec) -> tuple[ExpertName, ...]:
    """Return the experts whose keys and values are cached."""
    return ("low",) if spec.sharing == "low_noise" or world.high is world.low else ("high", "low")


def read_expert(name: ExpertName, kept: Mapping[ExpertName, object]) -> ExpertName:
    """Return whose keys and values an expert reads."""
    return name if name in kept else "low"


@dataclass(frozen=True)
class PageCache:
    """Immutable pages, for training: gradients flow through them, and recomputation sees the same values again."""

    spec: CausalSpec
    grid: TokenGrid
    pages: tuple[Page, ...] = ()

    def history(self, block: range, first: int = 0) -> History:
        """Return what a block sees. ValueError where pages of visible latents are missing."""
        sink, window = self.spec.visible(block, first)
        seen = {*sink, *window}
        pages = [page for page in self.pages if page.latents.start in seen]
        if sum(len(page.latents) for page in pages) != len(seen):
            raise ValueError(f"pages of {[page.latents for page in pages]} are not the latents {sorted(seen)} of {block}")
        places = self.spec.places(block, first)
        layout = AttentionLayout(self.grid.rotary(places[2]))
        if not pages:
            return History(layout, {})
        past_rotary = self.grid.rotary([*places[0], *places[1]])
        past = {name: _joined([page.kv[name] for page in pages], past_rotary) for name in pages[0].kv}
        return History(layout, past)

    def with_page(self, page: Page) -> "PageCache":
        """Return a cache that has the page, without the pages that no block can see any more."""
        first = page.latents.start - self.spec.window
        sink = self.spec.sink
        kept = (p for p in self.pages if p.latents.start != page.latents.start)
        visible = (p for p in kept if p.latents.start < sink or p.latents.start >= first)
        return replace(self, pages=(*visible, page))


def _joined(kvs: list[tuple[KV, ...]], rotary_SP: Rotary) -> tuple[Past, ...]:
    """Return the past of each layer, given the KV of each page and layer."""
    layers = zip(*kvs, strict=True)
    joined = ((torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)) for parts in layers)
    return tuple(Past(rotate(k, rotary_SP), v) for k, v in joined)


class RingCache:
    """Buffers of fixed shape and address, for inference: compilation and CUDA graphs see the same graph for every block.

    Sink latents have places that are never overwritten. Blocks take turns in the slots behind them; there is one slot more than
    the window needs, so that the last block can be committed again. A mask says which slots a block sees. Behind the slots is
    room for the keys of the pass itself.
    """

    def __init__(self, spec: CausalSpec, grid: TokenGrid, world: World, batch: int = 1) -> None:
        self.spec, self.grid = spec, grid
        self._slots = spec.window // spec.block + 1
        self._capacity = spec.sink + self._slots * spec.block  # latents
        config, tokens = world.high.expert.config, self._capacity * grid.per_latent
        weight = world.high.expert.blocks[0].attn1.to_k.weight
        dtype, heads = weight.dtype, config.num_attention_heads
        stored = batch, tokens, heads, config.attention_head_dim
        read = batch, tokens + spec.block * grid.per_latent, heads, config.attention_head_dim

        def zeros(shape: tuple[int, ...]) -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=grid.device) for _ in range(config.num_layers)]

        names = kept_experts(world, spec)
        self._keys: dict[ExpertName, list[Tensor]] = {name: zeros(stored) for name in names}
        self._past = {name: tuple(map(Past, zeros(read), zeros(read), [True] * config.num_layers)) for name in names}
        self._mask = torch.zeros(1, 1, 1, read[1], dtype=torch.bool, device=grid.device)
        self._latents: list[int | None] = [None] * self._capacity  # the latent in each place

    def _place(self, latent: int) -> int:
        """Return where in the buffers a latent is, in latents."""
        if latent < self.spec.sink:
            return latent
        block, offset = divmod(latent - self.spec.sink, self.spec.block)
        return self.spec.sink + (block % self._slots) * self.spec.block + offset

    @torch.no_grad()
    def history(self, block: range, first: int = 0) -> History:
        """Return what a block sees; valid until the next call. ValueError where visible latents are missing."""
        sink, window = self.spec.visible(block, first)
        places = self.spec.places(block, first)
        layout = AttentionLayout(self.grid.rotary(places[2]))
        if not sink:
            return History(layout, {})
        positions = [0] * self._capacity
        visible = torch.zeros(self._capacity, dtype=torch.bool)
        for latent, position in zip([*sink, *window], [*places[0], *places[1]], strict=True):
            place = self._place(latent)
            if self._latents[place] != latent:
                raise ValueError(f"latent {latent}, which {block} sees, is not in the cache")
            positions[place], visible[place] = position, True
        own = torch.ones(len(block) * self.grid.per_latent, dtype=torch.bool)
        self._mask.copy_(torch.cat([visible.repeat_interleave(self.grid.per_latent), own])[None, None, None])
        table, tokens = self.grid.rotary(positions), self._capacity * self.grid.per_latent
        for name, keys in self._keys.items():
            for key, past in zip(keys, self._past[name], strict=True):
                past.k_BSNH[:, :tokens].copy_(rotate(key, table))
        return History(layout._replace(mask=self._mask), self._past)

    @torch.no_grad()
    def with_page(self, page: Page) -> "RingCache":
        """Write the page into its slot; return this cache."""
        first = self._place(page.latents.start)
        tokens = slice(first * self.grid.per_latent, (first + len(page.latents)) * self.grid.per_latent)
        for name, kvs in page.kv.items():
            for kv, key, past in zip(kvs, self._keys[name], self._past[name], strict=True):
                key[:, tokens].copy_(kv.k_BSNH)
                past.v_BSNH[:, tokens].copy_(kv.v_BSNH)
        self._latents[first : first + len(page.latents)] = page.latents
        return self
