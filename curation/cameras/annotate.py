"""The front door: clips in, a camera and the facts behind it out, whichever backend looks (paper section 3.4)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera, Facts
from curation.cameras.settings import CameraSettings
from curation.video import Span
from curation.viewport import Rect

__all__ = ["CameraSettings", "ClipView", "annotate"]


class ClipView(NamedTuple):
    """A clip to annotate: where it is, and what is known of its picture.

    viewport, picture: the 3-D view and what lies inside the bars, px of the source. static: bool [H, W] of any size, covering
    the whole frame: what never moves (HUD, weapon); None where nothing is known.
    """

    uri: str
    span: Span
    viewport: Rect
    picture: Rect
    static: np.ndarray | None = None


def annotate(clips: Sequence[ClipView], how: CameraSettings) -> list[tuple[Facts, Camera | None]]:
    """The cameras of one source's (or one game's) clips, in the order of the source; the focal length is pooled over them.

    A clip that cannot be annotated has a status that says why, and no camera. Raises OSError where a store fails, and
    ModuleNotFoundError where the backend is not installed.
    """
    backend = _backend(how)
    if backend == "none":
        return [(Facts("skipped:not asked for"), None) for _ in clips]
    if backend == "vipe":
        from curation.cameras import vipe

        return [vipe.annotate(clip, how) for clip in clips]
    from curation.cameras import klt_glomap

    return klt_glomap.annotate(clips, how)


def missing(how: CameraSettings) -> str | None:
    """What this machine lacks for the backend that would run, None where nothing."""
    needs = {"klt_glomap": "pycolmap", "vipe": "vipe"}.get(_backend(how))
    if needs is None or find_spec(needs) is not None:
        return None
    return f"{needs} is not installed (pip install 'gamecraft[camera]')"


def _backend(how: CameraSettings) -> str:
    if how.backend != "auto":
        return how.backend
    return "klt_glomap"
