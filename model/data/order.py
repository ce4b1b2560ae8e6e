"""The order in which windows are trained on: each source's windows once an epoch, sources by their shares, split over ranks.

The order follows from the seed and one integer, the position: the number of samples given to all ranks so far. A run that
resumes with another number of ranks therefore sees exactly the samples that are left.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

# In each block of this many samples every source has its share to within one sample. In a block the sources are shuffled.
_BLOCK = 1000


class WindowSpan(NamedTuple):
    """Windows start to start + length - 1: those of each epoch from `first_epoch` on, until the next span begins."""

    first_epoch: int
    start: int
    length: int


@dataclass(frozen=True)
class SourceSchedule:
    """The windows of one source. share: its fraction of all samples. spans: the windows used from an epoch on."""

    share: float
    spans: tuple[WindowSpan, ...]

    def at(self, ordinal: int) -> tuple[int, int, WindowSpan]:
        """Return epoch, place in the epoch, and span of the source's sample with this number."""
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


def samples_by_source(position: int, shares: Sequence[float], seed: int) -> list[int]:
    """Return how many of the first `position` samples come from each source."""
    before, turns = _block(position // _BLOCK, shares, seed)
    now = np.bincount(turns[: position % _BLOCK], minlength=len(shares))
    return [int(a + b) for a, b in zip(before, now, strict=True)]


def _block(number: int, shares: Sequence[float], seed: int) -> tuple[list[int], np.ndarray]:
    """Return how many samples each source gave before a block, and the source of each sample in the block, [_BLOCK]."""
    before, after = (_divide(_BLOCK * (number + i), shares) for i in (0, 1))
    turns = np.repeat(np.arange(len(shares)), [b - a for a, b in zip(before, after, strict=True)])
    if len(shares) > 1:
        np.random.default_rng([seed, number, len(shares)]).shuffle(turns)
    return before, turns


def _divide(count: int, shares: Sequence[float]) -> list[int]:
    """Divide a count by shares, into whole numbers that never fall as the count grows."""
    counts, rest = [], 1.0
    for share in shares[:-1]:
        counts.append(int(count * min(1.0, share / rest) + 1e-9))
        count, rest = count - counts[-1], rest - share
    return [*counts, count]


@dataclass
class Order(Sampler[tuple[int, int]]):
    """The order of windows for one rank, from a position on.

    `position` counts samples over all ranks and epochs; checkpoints store it. Every rank gets the same number of samples: those
    left over at the end of an epoch are followed by the next epoch.
    """

    schedules: Sequence[SourceSchedule]
    seed: int
    rank: int = 0
    ranks: int = 1
    position: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank must be from 0 to {self.ranks - 1}, not {self.rank}")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (epoch, window) without end."""
        shares = [schedule.share for schedule in self.schedules]
        block, orders = -1, dict[int, tuple[int, np.ndarray]]()
        for position in self._positions():
            if position // _BLOCK != block:
                block = position // _BLOCK
                before, turns = _block(block, shares, self.seed)
                earlier = np.zeros((_BLOCK + 1, len(shares)), int)
                earlier[1:] = np.cumsum(turns[:, None] == np.arange(len(shares)), axis=0)
            source = int(turns[position % _BLOCK])
            epoch, place, span = self.schedules[source].at(before[source] + int(earlier[position % _BLOCK, source]))
            if orders.get(source, (-1,))[0] != epoch:
                orders[source] = epoch, np.random.default_rng([self.seed, epoch, source]).permutation(span.length)
            yield epoch, span.start + int(orders[source][1][place])

    def _positions(self) -> Iterator[int]:
        """Yield the positions of this rank's samples."""
        position = self.position + self.rank
        while True:
            yield position
            position += self.ranks


def source_of(schedules: Sequence[SourceSchedule], number: int) -> tuple[int, WindowSpan]:
    """Return the source that a window belongs to, and its span there."""
    starts = sorted((span.start, source, span) for source, schedule in enumerate(schedules) for span in schedule.spans)
    _, source, span = starts[bisect_right(starts, number, key=lambda item: item[0]) - 1]
    return source, span
