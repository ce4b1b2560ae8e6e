"""Memory of pictures that goes on from sample to sample.

A sample of 81 frames at 832x480 is 97 MB; finding fresh pages for it can cost the system as much as decoding them full.
"""

import math
import weakref

import numpy as np

_KEPT = 2  # while one is filled another is in use
_free: list[bytearray] = []


def borrowed(shape: tuple[int, ...]) -> np.ndarray:
    """An array uint8 of undefined content; its memory is used again once the last array or tensor on any of it is gone."""
    size = math.prod(shape)
    which = next((i for i, pages in enumerate(_free) if len(pages) == size), None)
    pages = bytearray(size) if which is None else _free.pop(which)
    whole = np.frombuffer(pages, np.uint8)
    weakref.finalize(whole, _come_back, pages).atexit = False
    return whole.reshape(shape)


def _come_back(pages: bytearray) -> None:
    _free.append(pages)
    del _free[:-_KEPT]
