"""Keys and values of past latents: immutable pages for training, a ring of fixed addresses for inference, with one meaning.

A commit makes a page, denoising only reads. Keys are stored before rotation and rotated for each block, since their positions
count from the start of the window. Pages and ring slots outlive the window by a block, so that the last block can be committed
again with another prompt.

B batch, S tokens (of a latent: `TokenGrid.per_latent`), N heads, H width of a head.
"""

from collections.abc import Mapping, Sequence
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
    past: Mapping[ExpertName, Sequence[Past]]


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
    """Buffers of fixed address, for inference: compilation and CUDA graphs see the same graph for every block.

    Sink latents have places that are never overwritten. Blocks take turns in the slots behind them. There is one slot more than
    the window needs: that of the block itself, where the passes write their own keys, and where its page is stored. It holds
    the block that has just left the window, so that the last block can be committed again with another prompt until the next
    one is begun.

    While the window fills, passes get the beginning of the buffers, and almost never a mask: kernels are faster without. From
    then on everything is seen, and nothing changes any more (`AttentionLayout.steady`). static: passes get whole buffers from
    the first block on, and a mask while not everything is seen.
    """

    def __init__(self, spec: CausalSpec, grid: TokenGrid, world: World, batch: int = 1, static: bool = False) -> None:
        self.spec, self.grid, self.static = spec, grid, static
        self._slots = spec.window // spec.block + 1
        self._capacity = spec.sink + self._slots * spec.block  # latents
        attention = world.high.expert.blocks[0].attn1
        self._layers, self._dtype = world.high.expert.config.num_layers, attention.to_k.bias.dtype
        self._shape = batch, self._capacity * grid.per_latent, attention.kept_heads, grid.head_dim
        self._latents: list[int | None] = [None] * self._capacity  # the latent in each place
        self._mask = torch.zeros(1, 1, 1, self._shape[1], dtype=torch.bool, device=grid.device)
        self._own = torch.zeros(spec.block * grid.per_latent, dtype=torch.int64, device=grid.device)
        self._rotary = _rotary_room(self._shape[1], grid)
        self._own_rotary = _rotary_room(spec.block * grid.per_latent, grid)
        self._allocate(kept_experts(world, spec))

    def _allocate(self, names: tuple[ExpertName, ...]) -> None:
        """Make the buffers: of keys as they are stored, and of keys and values as passes read them."""
        self._keys = {name: self._zeros() for name in names}
        self._past = {name: list(zip(self._zeros(), self._zeros(), strict=True)) for name in names}

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros(self._shape, dtype=self._dtype, device=self.grid.device) for _ in range(self._layers)]

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
        layout = AttentionLayout(_put(self.grid.rotary(places[2]), self._own_rotary))
        if not sink:
            return History(layout, {})
        positions = [0] * self._capacity
        seen = []
        for latent, position in zip([*sink, *window], [*places[0], *places[1]], strict=True):
            place = self._place(latent)
            if self._latents[place] != latent:
                raise ValueError(f"latent {latent}, which {block} sees, is not in the cache")
            positions[place] = position
            seen.append(place)
        for latent in block:
            place = self._place(latent)
            if self._latents[place] != latent:  # what is there will be overwritten by the passes
                self._latents[place] = None
            seen.append(place)
        end = self._capacity if self.static else max(seen) + 1
        tokens, per = end * self.grid.per_latent, self.grid.per_latent
        if len(seen) < end:
            visible = torch.zeros(end, dtype=torch.bool)
            visible[seen] = True
            self._mask[..., :tokens].copy_(visible.repeat_interleave(per))
            layout = layout._replace(mask=self._mask[..., :tokens])
        elif end == self._capacity:
            layout = layout._replace(steady=True)
        starts = torch.tensor([self._place(latent) * per for latent in block])
        own = self._own[: len(block) * per]
        own.copy_((starts[:, None] + torch.arange(per)).flatten())
        return History(layout, self._read(tokens, _put(self.grid.rotary(positions[:end]), self._rotary), own))

    def _read(self, tokens: int, rotary_SP: Rotary, own_L: Tensor) -> Mapping[ExpertName, Sequence[Past]]:
        """Return the past of each expert and layer, rotated, of the first tokens of the buffers."""
        made = {}
        for name, keys in self._keys.items():
            for key, (rotated, _) in zip(keys, self._past[name], strict=True):
                rotated[:, :tokens].copy_(rotate(key[:, :tokens], rotary_SP))
            made[name] = tuple(Past(k[:, :tokens], v[:, :tokens], own_L) for k, v in self._past[name])
        return made

    @torch.no_grad()
    def with_page(self, page: Page) -> "RingCache":
        """Write the page into its slot; return this cache."""
        first = self._place(page.latents.start)
        tokens = slice(first * self.grid.per_latent, (first + len(page.latents)) * self.grid.per_latent)
        for name, kvs in page.kv.items():
            self._write(name, kvs, tokens)
        self._latents[first : first + len(page.latents)] = page.latents
        return self

    def _write(self, name: ExpertName, kvs: tuple[KV, ...], tokens: slice) -> None:
        for kv, key, (_, value) in zip(kvs, self._keys[name], self._past[name], strict=True):
            key[:, tokens].copy_(kv.k_BSNH)
            value[:, tokens].copy_(kv.v_BSNH)


def _rotary_room(tokens: int, grid: TokenGrid) -> Rotary:
    cos, sin = (torch.zeros(tokens, grid.head_dim // 2, device=grid.device) for _ in range(2))
    return cos, sin


def _put(rotary_LP: Rotary, room: Rotary) -> Rotary:
    """Copy a table to the beginning of a fixed place; return it there."""
    cos, sin = (place[: len(part)].copy_(part) for part, place in zip(rotary_LP, room, strict=True))
    return cos, sin
