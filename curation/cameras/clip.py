"""A clip as camera estimators see it."""

from typing import NamedTuple

import numpy as np

from curation.media.decode import Span
from curation.media.viewport import Rect


class ClipView(NamedTuple):
    """A clip to annotate: where it is, and what is known of its picture.

    viewport, picture: the 3-D view and what lies inside the bars, px of the source. static: bool [H, W] of any size, covering
    the whole frame: what never moves (HUD, weapon); None where nothing is known. scene: clips of different scenes do not touch.
    """

    uri: str
    span: Span
    viewport: Rect
    picture: Rect
    static: np.ndarray | None = None
    scene: int = 0
