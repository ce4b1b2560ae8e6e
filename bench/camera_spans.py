"""Camera spans compared with the true poses of recordings of game engines: share of valid frames, errors, silent failures.

Give recordings (`REC.mp4` with a truth file `REC.jsonl` next to it). Each is one source, divided at its true cuts into clips of
about six seconds, and its focal length is unknown. An engine that draws pixels higher than wide, as Doom does, is compared in
the world in which they are square; recordings in which it shears its picture to look up cannot be judged.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.machine import describe
from bench.trajectory import MIN_PATH, Errors, errors
from curation.cameras.annotate import annotate
from curation.cameras.camera import Camera, CameraFacts, CameraSpan
from curation.cameras.clip import ClipView
from curation.cameras.settings import CameraSettings
from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import ViewportAccumulator, find_viewport
from operators.op import limit_threads
from synth.doom.cameras import PIXEL_ASPECT

CLIP_S = 6.0
_MIN_SCENE_S = 2.0
_VIEWPORT_EVERY_S, _VIEWPORT_WIDTH = 0.1, 320
# Errors above which a span is a silent failure: of the path, of the rotation from frame to frame, of the focal length.
MAX_ATE, MAX_RPE_ROT_DEG, MAX_FOCAL_ERROR = 0.01, 0.3, 0.1
_WINDOWS_S = (45 / 24, 81 / 24)  # of training: 45 and 81 frames at 24 a second


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
    lines = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
    head, states = lines[0], [line["state"] for line in lines if "frame" in line]
    aspect = 1.0 if "fx" in head else PIXEL_ASPECT
    position = np.array([[state[f"CAMERA_POSITION_{axis}"] for axis in "XYZ"] for state in states]) * [1, 1, aspect]
    pitch = np.radians([state.get("CAMERA_PITCH", 0.0) for state in states]) * ("fx" in head)
    pose = _poses(position, np.radians([state["CAMERA_ANGLE"] for state in states]), pitch)
    focal_px = head.get("fx", head["width"] / 2)
    return Recording(file, head["fps"], focal_px, pose, tuple(lines[-1].get("true_cuts", ())))


def _poses(position_N3: np.ndarray, yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Return poses [N, 4, 4], OpenCV axes, of a view without roll. Angles in radians, yaw counter-clockwise, pitch up."""
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], 1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros(len(yaw))], 1)
    pose = np.tile(np.eye(4), (len(yaw), 1, 1))
    pose[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], 2)
    pose[:, :3, 3] = position_N3
    return pose


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


def compare(recording: Recording, clip: ClipView, facts: CameraFacts, camera: Camera) -> list[SpanResult]:
    """Compare the spans of a clip with the truth."""
    at = np.round((clip.span.start_s + camera.times_s) * recording.fps).astype(int)
    truth = recording.pose[at.clip(0, len(recording.pose) - 1)]
    results = []
    for span in camera.spans if facts.ok else ():
        true = truth[span.start : span.end]
        path = float(np.linalg.norm(np.diff(true[:, :3, 3], axis=0), axis=1).sum())
        focal_error = float(camera.intrinsics[0, 0]) / recording.focal_px - 1
        results.append(SpanResult(span, errors(camera.pose[span.start : span.end], true), path, focal_error))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line per clip and a table of the recordings."""
    parser = argparse.ArgumentParser(prog="python -m bench.camera_spans", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, nargs="+", help="videos with a truth file of the same name next to them")
    parser.add_argument("--until", type=float, default=np.inf, help="leave out clips that end after so many seconds")
    options = parser.parse_args(arguments)
    print(describe())
    limit_threads(1)  # as for a step of the pipeline
    rows = [_row(read_recording(file), options.until) for file in options.recordings]
    print(f"\n{'recording':24} clips  valid %  whole %  spans  ATE %        RPE deg      focal %  silent  windows h  CPU-s")
    print("\n".join(rows))


def _row(recording: Recording, until_s: float) -> str:
    """Annotate a recording, print its clips, and return its line of the table."""
    clips = [clip for clip in clips_of(recording) if clip.span.end_s <= until_s + 0.1]
    before_s = time.process_time()
    cameras = annotate(clips, CameraSettings(backend="klt"))
    cpu_s = time.process_time() - before_s
    results: list[SpanResult] = []
    frames, valid, whole = sum(round((clip.span.end_s - clip.span.start_s) * recording.fps) for clip in clips), 0, 0
    seconds = {length_s: [0.0, 0.0] for length_s in _WINDOWS_S}
    for clip, (facts, camera) in zip(clips, cameras, strict=True):
        compared = compare(recording, clip, facts, camera) if camera else []
        print(
            f"{recording.file.stem:24} {clip.span.start_s:6.1f} s {facts.status} {facts.why or ''}",
            *compared,
            sep="\n    ",
            flush=True,
        )
        results += compared
        valid += sum(result.span.end - result.span.start for result in compared)
        is_whole = facts.ok and len(compared) == 1 and facts.valid_share == 1
        whole += compared[0].span.end if is_whole else 0
        for length_s, (in_whole, in_spans) in seconds.items():
            fits = sum(int((r.span.end - r.span.start) / recording.fps / length_s + 1e-6) for r in compared) * length_s
            seconds[length_s] = [in_whole + fits * is_whole, in_spans + fits]
    silent = sum(bool(result.faults) for result in results)
    ates = [100 * result.errors.ate for result in results if np.isfinite(result.errors.ate)]
    rotations = [result.errors.rpe_rot_deg for result in results]
    focals = [100 * abs(result.focal_error) for result in results]
    shown = "  ".join(" ".join(_figures(values)) for values in (ates, rotations))
    hours = " ".join(f"{in_whole / 60:.2f}>{in_spans / 60:.2f}" for in_whole, in_spans in seconds.values())
    return (
        f"{recording.file.stem:24} {len(clips):5}  {valid / frames:7.1%}  {whole / frames:7.1%}  {len(results):5}  {shown}  "
        f"{max(focals, default=np.nan):7.2f}  {silent:6}  {hours} min  {cpu_s / frames:.4f}"
    )


def _figures(values: Sequence[float]) -> Iterator[str]:
    """Yield the median and the largest value."""
    yield from (f"{value:.3f}" for value in (np.median(values), max(values))) if values else ("-", "-")


if __name__ == "__main__":
    main()
