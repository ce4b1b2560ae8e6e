"""Memory for pictures that is reused from sample to sample.

A sample of 81 frames at 832x480 is 97 MB. Allocating fresh pages for it can cost the system as much as decoding into them.
"""

import math
import weakref
from collections import deque

import numpy as np

_MAX_FREE = 2  # one buffer is filled while another is in use
_free: deque[bytearray] = deque(maxlen=_MAX_FREE)  # used at any time and in any thread, so each access is one atomic operation


def borrow_array(shape: tuple[int, ...]) -> np.ndarray:
    """Return a uint8 array of undefined content. Its memory is reused once no array or tensor refers to any of it."""
    pages = _take_pages(math.prod(shape))
    whole = np.frombuffer(pages, np.uint8)
    weakref.finalize(whole, _free.append, pages).atexit = False
    return whole.reshape(shape)


def _take_pages(size: int) -> bytearray:
    for _ in range(_MAX_FREE):
        try:
            pages = _free.popleft()
        except IndexError:
            break
        if len(pages) == size:
            return pages
        _free.append(pages)
    return bytearray(size)
