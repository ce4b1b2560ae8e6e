"""Wan's decoder in parts of the picture: on several ranks for speed, or one after the other for memory. Exact.

The first convolution and the middle of the decoder, whose attention sees the whole picture, are computed whole: they are a few
percent of the work. What follows are convolutions. Each part is computed with a halo of columns on both sides, as wide as what
they see, which is cut off at the end. At the border of the picture there is none, and the padding is that of the whole.

B batch, C latent channels, F frames, T latents, H W px, h w latent rows and columns.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.backbone.stream_decoders import StreamDecoder

_CACHED_FRAMES = 2  # what a causal convolution over three frames remembers


def halo_of(decoder: Any) -> int:
    """Return how many latent columns the decoder's convolutions behind its middle see to each side: 13 of Wan's."""
    reach, scale = 0.0, 1.0
    for block in decoder.up_blocks:
        reach += 2 * len(block.resnets) / scale
        if block.upsamplers is not None:
            scale *= 2
            reach += 1 / scale
    return math.ceil(reach + 1 / scale)


def spans(columns: int, parts: int) -> list[range]:
    """Divide columns into parts of almost equal width. ValueError for more parts than columns."""
    if parts > columns:
        raise ValueError(f"{columns} latent columns do not divide into {parts} parts")
    ends = [round(columns * part / parts) for part in range(parts + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


class SplitWanDecoder(StreamDecoder):
    """The stream of Wan's decoder in parts. The pieces joined are those of `WanStreamDecoder`."""

    def __init__(
        self,
        vae: Any,
        scale: Callable[[Tensor], Tensor],
        parts: int,
        group: dist.ProcessGroup | None = None,
        halo: int | None = None,
    ) -> None:
        """scale: returns normalised latents as the autoencoder reads them.

        group: ranks that each decode one part and gather the others; ValueError where they are not as many as the parts. None:
        this process decodes all parts. halo: in latent columns; None: as wide as needed.
        """
        if group is not None and group.size() != parts:
            raise ValueError(f"{parts} parts need as many ranks, not {group.size()}")
        if any(not hasattr(block, "upsamplers") for block in vae.decoder.up_blocks):
            raise ValueError("only Wan 2.1's decoder is divided: that of Wan 2.2's 5B model has shortcuts around its blocks")
        self._vae, self._scale, self._parts, self._group = vae, scale, parts, group
        self._halo = halo_of(vae.decoder) if halo is None else halo
        head = _causal_convolutions(vae.decoder.conv_in, vae.decoder.mid_block)
        tail = _causal_convolutions(vae.decoder) - head
        own = range(parts) if group is None else [group.rank()]
        self._head: list[Any] = [None] * head
        self._tails: dict[int, list[Any]] = {part: [None] * tail for part in own}

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        # As in `WanStreamDecoder`: a decoding that fails midway leaves nothing behind.
        head, tails = list(self._head), {part: list(tail) for part, tail in self._tails.items()}
        columns = spans(latents_BCThw.shape[-1], self._parts)
        pieces: dict[int, list[Tensor]] = {part: [] for part in tails}
        for latent in self._vae.post_quant_conv(self._scale(latents_BCThw).to(self._vae.dtype)).split(1, 2):
            first = head[0] is None
            middle, index = latent, [0]
            middle = _cached(self._vae.decoder.conv_in, middle, head, index)
            middle = self._vae.decoder.mid_block(middle, feat_cache=head, feat_idx=index)
            for part, tail in tails.items():
                pieces[part].append(self._tail(middle, columns[part], tail, first))
        self._head, self._tails = head, tails
        videos = {part: torch.cat(piece, 2).float().clamp(-1, 1) for part, piece in pieces.items()}
        return torch.cat(self._all_parts(videos, columns), -1)

    def _tail(self, middle: Tensor, own: range, cache: list[Any], first: bool) -> Tensor:
        """Return the frames of a part, from what follows the middle."""
        decoder = self._vae.decoder
        left, right = max(0, own.start - self._halo), min(middle.shape[-1], own.stop + self._halo)
        x, index = middle[..., left:right], [0]
        for block in decoder.up_blocks:
            x = block(x, feat_cache=cache, feat_idx=index, first_chunk=first)
        x = _cached(decoder.conv_out, decoder.nonlinearity(decoder.norm_out(x)), cache, index)
        px = x.shape[-1] // (right - left)
        return x[..., (own.start - left) * px : (own.stop - left) * px]

    def _all_parts(self, videos: dict[int, Tensor], columns: Sequence[range]) -> list[Tensor]:
        """Return the frames of all parts, those of other ranks included."""
        if self._group is None:
            return list(videos.values())
        own = videos[self._group.rank()].contiguous()
        px = own.shape[-1] // len(columns[self._group.rank()])
        # Parts differ by a column where they do not divide; gathered tensors must not.
        widest = px * max(map(len, columns))
        padded = torch.nn.functional.pad(own, (0, widest - own.shape[-1]))
        received = [torch.empty_like(padded) for _ in columns]
        dist.all_gather(received, padded, group=self._group)
        return [each[..., : px * len(span)] for each, span in zip(received, columns, strict=True)]


def _cached(convolution: Any, x: Tensor, cache: list[Any], index: list[int]) -> Tensor:
    """Run a causal convolution after the frames that it remembers, as diffusers' decoder does at its two ends."""
    number = index[0]
    last, kept = cache[number], x[:, :, -_CACHED_FRAMES:].clone()
    if kept.shape[2] < _CACHED_FRAMES and last is not None:
        kept = torch.cat([last[:, :, -1:], kept], 2)
    made: Tensor = convolution(x, last)
    cache[number], index[0] = kept, number + 1
    return made


def _causal_convolutions(*modules: torch.nn.Module) -> int:
    return sum(type(part).__name__ == "WanCausalConv3d" for module in modules for part in module.modules())
