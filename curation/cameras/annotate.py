"""The front door: clips in, a camera and the facts behind it out, whichever backend looks (paper section 3.4)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from curation.cameras.camera import Camera, Facts
from curation.cameras.scale import scales
from curation.cameras.settings import CameraSettings
from curation.schema import TOUCHING_S
from curation.video import Span
from curation.viewport import Rect

__all__ = ["CameraSettings", "ClipView", "annotate"]


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


def annotate(clips: Sequence[ClipView], how: CameraSettings) -> list[tuple[Facts, Camera | None]]:
    """The cameras of one source's (or one game's) clips, in the order of the source; the focal length is pooled over them.

    A clip that cannot be annotated has a status that says why, and no camera. Raises OSError where a store fails, or
    where the backend is not here: ask `missing` first.
    """
    found = _looked_at(clips, how)
    moving = [camera if facts.status == "ok" and camera and camera.scale_source == "none" else None for facts, camera in found]
    scaled = scales(moving, [_touch(a, b) for a, b in pairwise(clips)])
    return [
        (facts, replace(camera, scale_to_unit=scale, scale_source=source) if moves and camera else camera)
        for (facts, camera), moves, (scale, source) in zip(found, moving, scaled, strict=True)
    ]


def _touch(a: ClipView, b: ClipView) -> bool:
    return a.uri == b.uri and a.scene == b.scene and abs(a.span.end_s - b.span.start_s) < TOUCHING_S


def _looked_at(clips: Sequence[ClipView], how: CameraSettings) -> list[tuple[Facts, Camera | None]]:
    backend = _backend(how)
    if backend == "none":
        return [(Facts("skipped:not asked for"), None) for _ in clips]
    if backend == "vipe":
        from curation.cameras import vipe

        return [vipe.annotate(clip, how) for clip in clips]
    from curation.cameras import klt

    return klt.annotate(clips, how)


def missing(how: CameraSettings) -> str | None:
    """What this machine lacks for the backend that would run, None where nothing."""
    if _backend(how) != "vipe":
        return None
    from curation.cameras import vipe

    if vipe.available(how):
        return None
    return f"neither the package nvidia-vipe beside CUDA nor a program {how.vipe_command!r} is here; klt needs nothing"


def _backend(how: CameraSettings) -> str:
    """`auto` takes ViPE where it can run: its package is there and so is CUDA."""
    if how.backend != "auto":
        return how.backend
    from curation.cameras import vipe

    return "vipe" if vipe.in_process() else "klt"
