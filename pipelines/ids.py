"""Many ids, or other ASCII names, as bytes in arrays: an id of sixteen characters takes a seventh of its memory in a set."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

_AT_ONCE = 1 << 16


def to_array(ids: Sequence[str]) -> np.ndarray:
    """Return ids as bytes, [N], in their order."""
    return np.array([each.encode() for each in ids]) if ids else np.empty(0, "S1")


def column_to_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of ids as bytes, [N], in its order."""
    parts = [to_array(column.slice(first, _AT_ONCE).to_pylist()) for first in range(0, len(column), _AT_ONCE)]
    return np.concatenate(parts) if parts else np.empty(0, "S1")


class IdList:
    """A list of ids or names that are appended one by one."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []
        self._open: list[str] = []

    def append(self, id_: str) -> None:
        self._open.append(id_)
        if len(self._open) == _AT_ONCE:
            self._blocks.append(to_array(self._open))
            self._open = []

    def __getitem__(self, number: int) -> str:
        """Return the id with a number, from 0. IndexError beyond the end."""
        block, at = divmod(number, _AT_ONCE)
        return self._blocks[block][at].decode() if block < len(self._blocks) else self._open[at]


class Ids:
    """A set of ids."""

    def __init__(self, arrays: Iterable[np.ndarray] = ()) -> None:
        """Hold what arrays of bytes hold."""
        some = [array for array in arrays if len(array)]
        self._sorted = np.unique(np.concatenate(some)) if some else np.empty(0, "S1")

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, id_: str) -> bool:
        return bool(self.mask(to_array([id_]))[0])

    def mask(self, ids_N: np.ndarray) -> np.ndarray:
        """Return which of these ids are in the set, bool [N]."""
        if not len(self._sorted):
            return np.zeros(len(ids_N), bool)
        at = np.minimum(np.searchsorted(self._sorted, ids_N), len(self._sorted) - 1)
        found: np.ndarray = self._sorted[at] == ids_N
        return found
