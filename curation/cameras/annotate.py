"""The entry point: cameras of clips, with the facts behind them, by the chosen backend (paper section 3.4)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from curation.cameras.camera import Camera, CameraFacts
from curation.cameras.clip import ClipView
from curation.cameras.scale import scales
from curation.cameras.settings import CameraSettings
from curation.schema import TOUCHING_S


def annotate(clips: Sequence[ClipView], settings: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    """Estimate the cameras of one source's (or one game's) clips, in the order of the source.

    The focal length is pooled over them. A clip that cannot be annotated has a status that says why, and no camera. Raises
    OSError where a store fails or the backend is not installed: check `missing_requirement` first.
    """
    results = _run_backend(clips, settings)
    unscaled = [
        camera if facts.status == "ok" and camera and camera.scale_source == "none" else None for facts, camera in results
    ]
    scaled = scales(unscaled, [_are_adjacent(a, b) for a, b in pairwise(clips)])
    return [
        (facts, replace(camera, scale_to_unit=scale, scale_source=source) if needs_scale and camera else camera)
        for (facts, camera), needs_scale, (scale, source) in zip(results, unscaled, scaled, strict=True)
    ]


def _are_adjacent(a: ClipView, b: ClipView) -> bool:
    return a.uri == b.uri and a.scene == b.scene and abs(a.span.end_s - b.span.start_s) < TOUCHING_S


def _run_backend(clips: Sequence[ClipView], settings: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    backend = _resolve_backend(settings)
    if backend == "none":
        return [(CameraFacts("skipped:the backend is none"), None) for _ in clips]
    if backend == "vipe":
        from curation.cameras import vipe

        return [vipe.annotate(clip, settings) for clip in clips]
    from curation.cameras.klt import estimate

    return estimate.annotate(clips, settings)


def missing_requirement(settings: CameraSettings) -> str | None:
    """Return what this machine lacks for the backend that would run; None if it can run."""
    if _resolve_backend(settings) != "vipe":
        return None
    from curation.cameras import vipe

    if vipe.is_available(settings):
        return None
    return (
        f"ViPE needs the package nvidia-vipe and CUDA, or the program {settings.vipe_command!r}, and neither is here; "
        "install one of them, or choose the backend klt, which needs neither"
    )


def _resolve_backend(settings: CameraSettings) -> str:
    """Return the backend to run. `auto` takes ViPE where its package and CUDA are installed."""
    if settings.backend != "auto":
        return settings.backend
    from curation.cameras import vipe

    return "vipe" if vipe.runs_in_process() else "klt"
