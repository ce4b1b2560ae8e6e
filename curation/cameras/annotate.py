"""The front door: clips in, a camera and the facts behind it out, whichever backend looks (paper section 3.4)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from curation.cameras.camera import Camera, CameraFacts
from curation.cameras.clip import ClipView
from curation.cameras.scale import scales
from curation.cameras.settings import CameraSettings
from curation.schema import TOUCHING_S


def annotate(clips: Sequence[ClipView], how: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
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


def _looked_at(clips: Sequence[ClipView], how: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    backend = _backend(how)
    if backend == "none":
        return [(CameraFacts("skipped:not asked for"), None) for _ in clips]
    if backend == "vipe":
        from curation.cameras import vipe

        return [vipe.annotate(clip, how) for clip in clips]
    from curation.cameras.klt import estimate

    return estimate.annotate(clips, how)


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
