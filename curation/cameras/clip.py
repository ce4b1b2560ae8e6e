"""A clip as camera estimators see it."""

from typing import NamedTuple

import numpy as np

from curation.media.decode import Span
from curation.media.viewport import Rect


class ClipView(NamedTuple):
    """A clip to annotate: where it is, and what is known about its picture.

    viewport: the 3-D view. picture: the area inside the letterbox bars. Both are in px of the source. static: bool [H, W] of
    any size, covering the whole frame: pixels that never move (HUD, weapon); None where that is unknown. scene: its number in
    the source; clips of different scenes are not adjacent.
    """

    uri: str
    span: Span
    viewport: Rect
    picture: Rect
    static: np.ndarray | None = None
    scene: int = 0
