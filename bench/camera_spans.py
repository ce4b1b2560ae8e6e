"""Camera spans compared with the true poses of recordings of game engines: share of valid frames, errors, silent failures.

Give recordings (`REC.mp4` with a truth file `REC.jsonl` next to it). Each is one source, divided at its true cuts into clips of
about six seconds, and its focal length is unknown. An engine that draws pixels higher than wide, as Doom does, is compared in
the world in which they are square; recordings in which it shears its picture to look up cannot be judged.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.machine import describe
from bench.trajectory import MIN_PATH, Errors, errors
from curation.cameras.annotate import annotate
from curation.cameras.camera import PART, Camera, CameraFacts, CameraSpan
from curation.cameras.clip import ClipView
from curation.cameras.settings import CameraSettings, CheckSettings
from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import ViewportAccumulator, find_viewport
from operators.op import limit_threads
from synth.doom.cameras import PIXEL_ASPECT, poses
from synth.doom.truth import read_truth

CLIP_S = 6.0
_MIN_SCENE_S = 2.0
_VIEWPORT_EVERY_S, _VIEWPORT_WIDTH = 0.1, 320
# Errors above which a span is a silent failure: of the path, of the rotation from frame to frame, of the focal length.
MAX_ATE, MAX_RPE_ROT_DEG, MAX_FOCAL_ERROR = 0.01, 0.3, 0.1
_WINDOWS = (33, 81)  # frames of training windows
_WINDOW_FPS = 24


@dataclass(frozen=True)
class Recording:
    """A recording with the true camera of each frame: pose f8 [N, 4, 4] camera-to-world; focal_px; cuts: frames after a cut."""

    file: Path
    fps: float
    focal_px: float
    pose: np.ndarray
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class SpanResult:
    """A span compared with the truth. true_path: in map units. focal_error: signed, as a share."""

    span: CameraSpan
    errors: Errors
    true_path: float
    focal_error: float

    @property
    def faults(self) -> list[str]:
        """Return what is wrong with it; nothing where it is right."""
        checks = {
            "path": self.errors.ate > MAX_ATE,
            "rotation": self.errors.rpe_rot_deg > MAX_RPE_ROT_DEG,
            "focal length": abs(self.focal_error) > MAX_FOCAL_ERROR,
            "invented path": self.span.model == "general" and self.true_path < MIN_PATH,
        }
        return [name for name, wrong in checks.items() if wrong]

    def __str__(self) -> str:
        span = self.span
        errors_shown = f"ATE {self.errors.ate:.2%} rot {self.errors.rpe_rot_deg:.3f} deg"
        shown = f"{span.start}-{span.end} {span.model} {span.scale_group}: {errors_shown}"
        return f"{shown}{' SILENT ' + ', '.join(self.faults) if self.faults else ''}"


def read_recording(file: Path) -> Recording:
    """Read the truth next to a recording."""
    truth = read_truth(file.with_suffix(".jsonl"))
    head, has_optics = truth.header, "fx" in truth.header  # Doom's truth has none: wide pixels, and a view that is never tilted
    position = truth.position * [1, 1, 1.0 if has_optics else PIXEL_ASPECT]
    pose = poses(position, truth.yaw_deg, truth.pitch_deg * has_optics)
    focal_px = head.get("fx", head["width"] / 2)
    return Recording(file, truth.fps, focal_px, pose, truth.cuts)


def clips_of(recording: Recording) -> list[ClipView]:
    """Return a recording as clips of one source, with the view that is detected over all of it."""
    uri = str(recording.file)
    source, watch, due_s = probe(uri), ViewportAccumulator(), 0.0
    scale = source.width / _VIEWPORT_WIDTH
    painter = decode.FrameConverter(source, (_VIEWPORT_WIDTH, round(source.height / scale)), "gray")
    for time_s, frame in decode.decode(uri, purpose="bench"):
        if time_s >= due_s:
            watch.add(painter(frame), counts=time_s > 0)
            due_s += _VIEWPORT_EVERY_S
    detected = find_viewport(watch.sums)
    view, picture = (rect.scaled(scale, scale) for rect in (detected.view, detected.picture))
    edges = [0, *recording.cuts, len(recording.pose)]
    clips = []
    for scene, (first, end) in enumerate(pairwise(edges)):
        count = round((end - first) / recording.fps / CLIP_S) if end - first >= _MIN_SCENE_S * recording.fps else 0
        frames = np.round(np.linspace(first, end, max(count, 1) + 1)).astype(int) if end - first > 0 else np.empty(0, int)
        spans = pairwise(frames.tolist()) if end - first >= _MIN_SCENE_S * recording.fps else ()
        clips += [
            ClipView(uri, Span(a / recording.fps, b / recording.fps), view, picture, detected.static, scene) for a, b in spans
        ]
    return clips


def _true_poses(recording: Recording, clip: ClipView, camera: Camera) -> np.ndarray:
    """Return the true poses [N, 4, 4] of the frames of a clip."""
    at = np.round((clip.span.start_s + camera.times_s) * recording.fps).astype(int)
    return recording.pose[at.clip(0, len(recording.pose) - 1)]


def compare(recording: Recording, clip: ClipView, facts: CameraFacts, camera: Camera) -> list[SpanResult]:
    """Compare the spans of a clip with the truth."""
    truth = _true_poses(recording, clip, camera)
    results = []
    for span in camera.spans if facts.ok else ():
        true = truth[span.start : span.end]
        path = float(np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum())
        focal_error = float(camera.intrinsics[0, 0]) / recording.focal_px - 1
        results.append(SpanResult(span, errors(camera.pose[span.start : span.end], true), path, focal_error))
    return results


@dataclass(frozen=True)
class Result:
    """What the spans of a recording are worth. Frames are those of all of its clips.

    whole: frames of clips that pass as a whole. grouped_ate: the error of the paths of several spans that share a scale.
    windows_s: seconds in training windows inside spans, by their frames. cpu_s: per frame.
    """

    name: str
    clips: int
    frames: int
    valid: int
    whole: int
    spans: tuple[SpanResult, ...]
    grouped_ate: tuple[float, ...]
    windows_s: dict[int, float]
    cpu_s: float
    seconds: float

    @property
    def silent(self) -> int:
        """Spans, and groups of spans that share a scale, that are wrong."""
        return sum(bool(span.faults) for span in self.spans) + sum(ate > MAX_ATE for ate in self.grouped_ate)

    def __str__(self) -> str:
        ates = [100 * span.errors.ate for span in self.spans if np.isfinite(span.errors.ate)]
        rotations = [span.errors.rpe_rot_deg for span in self.spans]
        focal = max((100 * abs(span.focal_error) for span in self.spans), default=np.nan)
        shown = "  ".join(" ".join(_figures(values)) for values in (ates, rotations))
        grouped = f"{len(self.grouped_ate)} {100 * max(self.grouped_ate, default=0.0):.2f}"
        windows = " ".join(f"{seconds / 60:.2f}" for seconds in self.windows_s.values())
        return (
            f"{self.name:24} {self.clips:5}  {self.valid / self.frames:7.1%}  {self.whole / self.frames:7.1%}  "
            f"{len(self.spans):5}  {shown}  {focal:7.2f}  {grouped}  {self.silent:6}  "
            f"{windows} of {self.minutes:.1f}  {self.cpu_s:.4f}"
        )

    @property
    def minutes(self) -> float:
        return self.seconds / 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line per clip and a table of the recordings."""
    parser = argparse.ArgumentParser(prog="python -m bench.camera_spans", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, nargs="+", help="videos with a truth file of the same name next to them")
    parser.add_argument("--until", type=float, default=np.inf, help="leave out clips that end after so many seconds")
    parser.add_argument("--whole", action="store_true", help="believe whole clips only, as before there were spans")
    options = parser.parse_args(arguments)
    print(describe())
    limit_threads(1)  # as for a step of the pipeline
    checks = CheckSettings(min_span_s=1e9 if options.whole else CheckSettings.min_span_s)
    settings = CameraSettings(backend="klt", checks=checks)
    results = [judge(read_recording(file), options.until, settings) for file in options.recordings]
    lengths = " ".join(map(str, _WINDOWS))
    print(
        f"\n{'recording':24} clips  valid %  whole %  spans  ATE %        RPE deg      focal %  shared scale, ATE %  silent  "
        f"minutes in windows of {lengths}  CPU-s"
    )
    print("\n".join(map(str, results)))
    total, minutes = sum(result.frames for result in results), sum(result.minutes for result in results)
    windows = " ".join(f"{sum(r.windows_s[count] for r in results) / 60:.2f}" for count in _WINDOWS)
    print(
        f"all: valid {sum(r.valid for r in results) / total:.1%}, silent {sum(r.silent for r in results)}, minutes in windows "
        f"of {lengths}: {windows} of {minutes:.1f}, CPU-s a frame {sum(r.cpu_s * r.frames for r in results) / total:.4f}"
    )


def judge(recording: Recording, until_s: float, settings: CameraSettings) -> Result:
    """Annotate a recording, print its clips, and compare them with the truth."""
    clips = [clip for clip in clips_of(recording) if clip.span.end_s <= until_s + 0.1]
    before_s = time.process_time()
    cameras = annotate(clips, settings)
    cpu_s = time.process_time() - before_s
    spans: list[SpanResult] = []
    grouped: list[float] = []
    length_s = sum(clip.span.end_s - clip.span.start_s for clip in clips)
    frames, valid, whole = round(length_s * recording.fps), 0, 0
    windows_s = dict.fromkeys(_WINDOWS, 0.0)
    for clip, (facts, camera) in zip(clips, cameras, strict=True):
        compared = compare(recording, clip, facts, camera) if camera else []
        together = compare_groups(recording, clip, facts, camera) if camera else []
        print(
            f"{recording.file.stem:24} {clip.span.start_s:6.1f} s {facts.status} {facts.why or ''}",
            *compared,
            *(f"spans {', '.join(map(str, group))} share a scale: ATE {ate:.2%}" for group, ate in together),
            sep="\n    ",
            flush=True,
        )
        spans += compared
        grouped += [ate for _, ate in together]
        if camera is not None and facts.ok:
            valid += int(camera.valid.sum())
            whole += len(camera.valid) if facts.status != PART else 0
        for count in _WINDOWS:
            window_s = count / _WINDOW_FPS
            in_spans = (int((r.span.end - r.span.start) / recording.fps / window_s + 1e-6) for r in compared)
            windows_s[count] += sum(in_spans) * window_s
    return Result(
        recording.file.stem,
        len(clips),
        frames,
        valid,
        whole,
        tuple(spans),
        tuple(grouped),
        windows_s,
        cpu_s / max(frames, 1),
        length_s,
    )


def compare_groups(
    recording: Recording, clip: ClipView, facts: CameraFacts, camera: Camera
) -> list[tuple[tuple[int, ...], float]]:
    """Return the numbers of the spans that share a scale, and the error of their paths as one, as a share of it."""
    truth = _true_poses(recording, clip, camera)
    groups: dict[int, list[int]] = {}
    for number, span in enumerate(camera.spans if facts.ok else ()):
        if span.model == "general":
            groups.setdefault(span.scale_group, []).append(number)
    results = []
    for members in groups.values():
        which = np.concatenate([np.arange(camera.spans[k].start, camera.spans[k].end) for k in members])
        if len(members) > 1:
            results.append((tuple(members), errors(camera.pose[which], truth[which]).ate))
    return results


def _figures(values: Sequence[float]) -> Iterator[str]:
    """Yield the median and the largest value."""
    yield from (f"{value:.3f}" for value in (np.median(values), max(values))) if values else ("-", "-")


if __name__ == "__main__":
    main()
