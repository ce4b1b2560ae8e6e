"""In which order windows are trained on: each source's windows once an epoch, sources by their shares, split over ranks.

All of it follows from the seed and one integer, the position: how many samples all ranks have been given. So a run that resumes
with another number of ranks sees exactly what is left.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

# Samples in which each source has its share to less than one sample. Within them the sources are shuffled.
_BLOCK = 1000


class Span(NamedTuple):
    """Windows start to start + length - 1 make up each epoch from `first_epoch` on, until the next span begins."""

    first_epoch: int
    start: int
    length: int


@dataclass(frozen=True)
class Stock:
    """The windows of one source. share: its fraction of all samples. spans: the windows used from an epoch on."""

    share: float
    spans: tuple[Span, ...]

    def at(self, ordinal: int) -> tuple[int, int, Span]:
        """Epoch, place in the epoch, and span of the source's sample with this number."""
        for span, after in zip(self.spans, self.spans[1:], strict=False):
            in_span = (after.first_epoch - span.first_epoch) * span.length
            if ordinal < in_span:
                break
            ordinal -= in_span
        else:
            span = self.spans[-1]
        epoch, place = divmod(ordinal, span.length)
        return span.first_epoch + epoch, place, span

    def next_epoch(self, ordinal: int) -> int:
        """Return the first epoch that has not begun before this sample."""
        epoch, place, _ = self.at(ordinal)
        return epoch + (place > 0)


def taken(position: int, shares: Sequence[float], seed: int) -> list[int]:
    """How many of the first `position` samples each source gives."""
    before, turns = _block(position // _BLOCK, shares, seed)
    now = np.bincount(turns[: position % _BLOCK], minlength=len(shares))
    return [int(a + b) for a, b in zip(before, now, strict=True)]


def _block(number: int, shares: Sequence[float], seed: int) -> tuple[list[int], np.ndarray]:
    """What each source gave before a block, and whose turn it is in the block, [_BLOCK]."""
    before, after = (_divided(_BLOCK * (number + i), shares) for i in (0, 1))
    turns = np.repeat(np.arange(len(shares)), [b - a for a, b in zip(before, after, strict=True)])
    if len(shares) > 1:
        np.random.default_rng([seed, number, len(shares)]).shuffle(turns)
    return before, turns


def _divided(count: int, shares: Sequence[float]) -> list[int]:
    """So many samples by shares, in whole numbers that never fall as the count grows."""
    found, rest = [], 1.0
    for share in shares[:-1]:
        found.append(int(count * min(1.0, share / rest) + 1e-9))
        count, rest = count - found[-1], rest - share
    return [*found, count]


@dataclass
class Order(Sampler[tuple[int, int]]):
    """The order of windows for one rank, from a position on. `position` counts samples over all ranks and epochs; it is what a
    checkpoint keeps. Every rank gets as many samples: what is left over at an epoch's end goes to the next.
    """

    stocks: Sequence[Stock]
    seed: int
    rank: int = 0
    ranks: int = 1
    position: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank must be from 0 to {self.ranks - 1}, not {self.rank}")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Without end: (epoch, window)."""
        shares = [stock.share for stock in self.stocks]
        block, orders = -1, dict[int, tuple[int, np.ndarray]]()
        for place in self._places():
            if place // _BLOCK != block:
                block = place // _BLOCK
                before, turns = _block(block, shares, self.seed)
                earlier = np.zeros((_BLOCK + 1, len(shares)), int)
                earlier[1:] = np.cumsum(turns[:, None] == np.arange(len(shares)), axis=0)
            source = int(turns[place % _BLOCK])
            epoch, number, span = self.stocks[source].at(before[source] + int(earlier[place % _BLOCK, source]))
            if orders.get(source, (-1,))[0] != epoch:
                orders[source] = epoch, np.random.default_rng([self.seed, epoch, source]).permutation(span.length)
            yield epoch, span.start + int(orders[source][1][number])

    def _places(self) -> Iterator[int]:
        place = self.position + self.rank
        while True:
            yield place
            place += self.ranks


def source_of(stocks: Sequence[Stock], number: int) -> tuple[int, Span]:
    """Which source a window belongs to, and its span there."""
    starts = sorted((span.start, source, span) for source, stock in enumerate(stocks) for span in stock.spans)
    _, source, span = starts[bisect_right(starts, number, key=lambda item: item[0]) - 1]
    return source, span
