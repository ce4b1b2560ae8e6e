"""Memory of pictures that goes on from sample to sample.

A sample of 81 frames at 832x480 is 97 MB; finding fresh pages for it can cost the system as much as decoding them full.
"""

import math
import weakref
from collections import deque

import numpy as np

_KEPT = 2  # while one is filled another is in use
_free: deque[bytearray] = deque(maxlen=_KEPT)  # memory comes back at any time and in any thread: one step each way


def borrowed(shape: tuple[int, ...]) -> np.ndarray:
    """An array uint8 of undefined content; its memory is used again once the last array or tensor on any of it is gone."""
    pages = _taken(math.prod(shape))
    whole = np.frombuffer(pages, np.uint8)
    weakref.finalize(whole, _free.append, pages).atexit = False
    return whole.reshape(shape)


def _taken(size: int) -> bytearray:
    for _ in range(_KEPT):
        try:
            pages = _free.popleft()
        except IndexError:
            break
        if len(pages) == size:
            return pages
        _free.append(pages)
    return bytearray(size)
