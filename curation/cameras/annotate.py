"""The entry point: cameras of clips, with the facts behind them, by the chosen backend (paper section 3.4)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from curation.cameras.camera import Camera, CameraFacts, CameraSpan
from curation.cameras.clip import ClipView
from curation.cameras.scale import scales
from curation.cameras.settings import CameraSettings
from curation.schema import TOUCHING_S


def annotate(clips: Sequence[ClipView], settings: CameraSettings) -> list[tuple[CameraFacts, Camera | None]]:
    """Estimate the cameras of one source's (or one game's) clips, in the order of the source.

    The focal length is pooled over them. A clip that cannot be annotated has a status that says why, and no camera. Raises
    OSError where a store fails or the backend is not installed: check `missing_requirement` first.
    """
    results = [_in_one_span(*result) for result in _run_backend(clips, settings)]
    return list(zip([facts for facts, _ in results], _with_scales([camera for _, camera in results], clips), strict=True))


class _Path(NamedTuple):
    """The spans of a clip that share a scale: the number of the clip, their scale group, and the spans."""

    clip: int
    group: int
    spans: list[CameraSpan]


def _with_scales(cameras: Sequence[Camera | None], clips: Sequence[ClipView]) -> list[Camera | None]:
    """Return the cameras with their translations scaled to one unit, where structure from motion left that open."""
    paths = [path for k, camera in enumerate(cameras) if camera and camera.scale_source == "none" for path in _paths(k, camera)]
    parts = [[_camera(cameras, path).cut(span) for span in path.spans] for path in paths]
    scaled = scales(parts, [_touch(a, b, cameras, clips) for a, b in pairwise(paths)])
    known = {(path.clip, path.group): scale for path, scale in zip(paths, scaled, strict=True)}
    return [camera and _scaled(k, camera, known) for k, camera in enumerate(cameras)]


def _paths(clip: int, camera: Camera) -> list[_Path]:
    """Return the scale groups of a clip that translate, in the order of their first spans."""
    moving = [span for span in camera.spans if span.model == "general"]
    groups = dict.fromkeys(span.scale_group for span in moving)
    return [_Path(clip, group, [span for span in moving if span.scale_group == group]) for group in groups]


def _camera(cameras: Sequence[Camera | None], path: _Path) -> Camera:
    camera = cameras[path.clip]
    assert camera is not None, "only clips with a camera have paths"
    return camera


def _touch(a: _Path, b: _Path, cameras: Sequence[Camera | None], clips: Sequence[ClipView]) -> bool:
    """Whether a path goes on to the end of its clip, and the next one from the beginning of the clip that touches it."""
    reaches_ends = a.spans[-1].end == len(_camera(cameras, a).times_s) and b.spans[0].start == 0
    return reaches_ends and b.clip == a.clip + 1 and _are_adjacent(clips[a.clip], clips[b.clip])


def _scaled(clip: int, camera: Camera, known: dict[tuple[int, int], tuple[float, str]]) -> Camera:
    """Return a camera with the scales of its paths. Its own scale is that of its longest span that has one."""
    spans = tuple(
        span._replace(scale_to_unit=known[key][0], scale_source=known[key][1])
        if span.model == "general" and (key := (clip, span.scale_group)) in known
        else span
        for span in camera.spans
    )
    moving = [span for span in spans if span.model == "general"]
    if camera.scale_source != "none" or not moving:
        return camera
    longest = max(moving, key=lambda span: span.end - span.start)
    return replace(camera, spans=spans, scale_to_unit=longest.scale_to_unit, scale_source=longest.scale_source)


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


def _in_one_span(facts: CameraFacts, camera: Camera | None) -> tuple[CameraFacts, Camera | None]:
    """Return the camera of a clip that passed with all of its frames in one span, if its backend knows no spans."""
    if camera is None or camera.spans or not facts.ok:
        return facts, camera
    return facts._replace(valid_share=1.0), camera.whole_span(facts.model or "general")


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
