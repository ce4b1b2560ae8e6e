"""ViPE, the paper's annotator: the package nvidia-vipe in this process where CUDA is installed too, else the program `vipe`.

ViPE assumes that the optical centre is the middle of the picture, and it knows no HUD. So it gets only the 3-D view, and its
intrinsics are shifted back. Its poses are camera-to-world in roughly metres. No release sets its `ba_residual`, so the checks
use the trajectory itself.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from curation import scratch
from curation.cameras.camera import Camera, CameraFacts
from curation.cameras.checks import apply_checks
from curation.cameras.clip import ClipView
from curation.cameras.path_smoothness import step_ratio, velocity_spike
from curation.cameras.rotation import angle_deg
from curation.cameras.settings import CameraSettings
from curation.errors import BadSource, UnreadableVideo
from curation.media import encode
from curation.media.encode import Encoding
from curation.media.source import probe

# Fine enough that the encoder hides nothing from the tracker. ViPE scales to about 384x512 itself.
_INPUT = Encoding(max_width=1280, max_height=1280, crf=12)
# The program loads ViPE's models for each clip and then does three to five frames a second.
_START_S, _S_PER_FRAME = 300.0, 2.0
# A camera that moves and turns less than this stands still: the estimates wander by as much.
_STILL_M, _STILL_DEG = 0.05, 2.0
# ViPE's frontend initialises once it has eight keyframes. With fewer, all poses are guesses.
_MIN_KEYFRAMES = 8


@dataclass(frozen=True)
class Artifacts:
    """ViPE's output for N frames: pose [N, 4, 4] camera-to-world, intrinsics [N, 4] px, and keyframes if it reports them."""

    pose: np.ndarray
    intrinsics: np.ndarray
    keyframes: np.ndarray | None = None


class BadArtifacts(BadSource):
    """ViPE's output is not what its format requires. The message is the reason that the ledger shows."""


def is_available(settings: CameraSettings) -> bool:
    """Whether ViPE can run here, as a package with CUDA or as a program."""
    return runs_in_process() or shutil.which(settings.vipe_command) is not None


def runs_in_process() -> bool:
    if find_spec("vipe") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def annotate(clip: ClipView, settings: CameraSettings) -> tuple[CameraFacts, Camera | None]:
    """Return a clip's camera by ViPE, or a status that says why there is none.

    `annotate.missing_requirement` says whether ViPE can run.
    """
    try:
        with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
            view = encode.encode(clip.uri, clip.span, clip.viewport, _INPUT)
            path = os.path.join(folder, "clip.mp4")
            with open(path, "wb") as file:
                file.write(view.mp4)
            frames = len(view.times_s)
            artifacts = _run_in_process(path, settings) if runs_in_process() else _run_program(path, frames, settings)
            check_artifacts(artifacts, frames)
    except (UnreadableVideo, BadArtifacts, subprocess.SubprocessError) as error:
        return CameraFacts(f"failed:{_reason(error)}", backend="vipe"), None
    camera = _to_camera(clip, view, artifacts)
    return apply_checks(_facts(camera), settings.checks), camera


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"vipe did not end within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or "").strip().splitlines()
        return f"vipe ended with status {error.returncode}" + (f": {last[-1][:200]}" if last else "")
    return str(error)


def _run_program(path: str, frames: int, settings: CameraSettings) -> Artifacts:
    """Annotate one clip by `vipe infer`, in its own process and environment."""
    out = os.path.join(os.path.dirname(path), "out")
    command = [settings.vipe_command, "infer", path, "-o", out, "-p", settings.vipe_preset]
    limit_s = _START_S + _S_PER_FRAME * frames
    subprocess.run(  # noqa: S603 (the recipe's own program; no shell)
        command, check=True, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL
    )
    return read_artifacts(out, "clip")


def read_artifacts(folder: str, name: str) -> Artifacts:
    """Read the artifacts of one clip: `pose/<name>.npz` and `intrinsics/<name>.npz`, each with `data` and `inds`."""
    pose, pose_frames = _read_array(os.path.join(folder, "pose", f"{name}.npz"))
    intrinsics, intrinsics_frames = _read_array(os.path.join(folder, "intrinsics", f"{name}.npz"))
    for kind, inds in (("poses", pose_frames), ("intrinsics", intrinsics_frames)):
        if not np.array_equal(inds, np.arange(len(inds))):
            raise BadArtifacts(f"vipe left frames out of its {kind}")
    return Artifacts(pose, intrinsics)


def _read_array(path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["data"], float), np.asarray(file["inds"])
    except FileNotFoundError:
        raise BadArtifacts(f"vipe wrote no {'/'.join(path.split(os.sep)[-2:])}") from None
    except Exception as error:
        raise BadArtifacts(f"vipe's {'/'.join(path.split(os.sep)[-2:])} cannot be read: {error}") from error


def check_artifacts(artifacts: Artifacts, frames: int) -> None:
    """Raise BadArtifacts if this is no trajectory of `frames` frames: shapes, numbers, rotations, focal lengths."""
    pose, intrinsics = artifacts.pose, artifacts.intrinsics
    if pose.shape != (frames, 4, 4) or intrinsics.shape != (frames, 4):
        raise BadArtifacts(f"vipe gave {pose.shape} poses and {intrinsics.shape} intrinsics for {frames} frames")
    if not (np.isfinite(pose).all() and np.isfinite(intrinsics).all()):
        raise BadArtifacts("vipe gave numbers that are not finite")
    rotation = pose[:, :3, :3]
    is_orthonormal = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-3
    is_rotation = is_orthonormal and (np.linalg.det(rotation) > 0).all()
    if not is_rotation or not np.allclose(pose[:, 3], [0, 0, 0, 1]):
        raise BadArtifacts("vipe gave poses that are not rigid motions")
    if (intrinsics[:, :2] <= 0).any():
        raise BadArtifacts("vipe gave a focal length that is not positive")
    if artifacts.keyframes is not None and len(artifacts.keyframes) < _MIN_KEYFRAMES:
        raise BadArtifacts(f"vipe found {len(artifacts.keyframes)} keyframes; it needs {_MIN_KEYFRAMES}")


def _to_camera(clip: ClipView, view: encode.EncodedClip, artifacts: Artifacts) -> Camera:
    """Return the camera: poses relative to the first frame, intrinsics in px of the source."""
    source, viewport = probe(clip.uri), clip.viewport
    scale = np.array([viewport.w / view.width, viewport.h / view.height] * 2)
    frames = len(view.times_s)
    return Camera(
        pose=np.linalg.inv(artifacts.pose[0]) @ artifacts.pose,
        intrinsics=artifacts.intrinsics * scale + np.array([0, 0, viewport.x, viewport.y]),
        times_s=view.times_s,
        size=(source.width, source.height),
        viewport=(viewport.x, viewport.y, viewport.w, viewport.h),
        valid=np.ones(frames, bool),
        residual_px=np.full(frames, np.nan, np.float32),
        keyframes=np.arange(0) if artifacts.keyframes is None else artifacts.keyframes,
        scale_source="metric",
    )


def _facts(camera: Camera) -> CameraFacts:
    """Return what a trajectory alone shows. Lengths are ViPE's, roughly metres."""
    step = np.linalg.inv(camera.pose[:-1]) @ camera.pose[1:]
    turns_deg = angle_deg(step[:, :3, :3])
    is_still = float(np.ptp(camera.pose[:, :3, 3], axis=0).max()) < _STILL_M
    return CameraFacts(
        "",
        backend="vipe",
        model=("static" if turns_deg.sum() < _STILL_DEG else "rotation") if is_still else "general",
        focal_px=float(camera.intrinsics[0, 0]),
        focal_source="model",
        focal_share=float(camera.intrinsics[0, 0]) / camera.viewport[2],
        turn_deg=float(turns_deg.sum()),
        max_turn_deg=float(turns_deg.max(initial=0.0)),
        step_ratio=1.0 if is_still else step_ratio(camera.pose),
        velocity_spike=0.0 if is_still else velocity_spike(camera.pose, camera.times_s),
    )


@lru_cache(maxsize=1)
def _pipeline(preset: str) -> Any:
    """Build ViPE's pipeline up to its poses, once per process. It keeps its weights between clips (from 1.2.0 on)."""
    from vipe.config import parse_typed_config
    from vipe.pipeline import make_pipeline

    options = [f"pipeline={preset}", "pipeline.post.depth_align_model=null"]
    no_output = ["pipeline.output.save_artifacts=false", "pipeline.output.save_viz=false"]
    pipeline = make_pipeline(parse_typed_config("default", hydra_args=[*options, *no_output]).pipeline)
    pipeline.return_payload = True
    return pipeline


def _run_in_process(path: str, settings: CameraSettings) -> Artifacts:
    """Annotate one clip by ViPE's own Python interface. We have not run this: it needs a CUDA GPU."""
    from vipe.streams.base import ProcessedVideoStream
    from vipe.streams.raw_mp4_stream import RawMp4Stream

    stream = ProcessedVideoStream(RawMp4Stream(path), []).cache(desc="read")
    result = _pipeline(settings.vipe_preset).run(stream).payload
    pose = result.get_view_trajectory(0).matrix().cpu().numpy()
    intrinsics = np.asarray(result.intrinsics[0].cpu().numpy(), float)
    return Artifacts(np.asarray(pose, float), np.tile(intrinsics, (len(pose), 1)), np.asarray(result.keyframe_ids))
