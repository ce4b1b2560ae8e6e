"""ViPE, the paper's annotator (nvidia-vipe), in this process where it is installed beside CUDA, else as the program `vipe`.

ViPE takes the centre of the picture for the optical centre and knows no HUD, so it is fed the 3-D view only, and its
intrinsics are shifted back. Its poses are camera-to-world in near metres. Its `ba_residual` is never set by any of its
releases, so what is checked is the trajectory itself.
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
from curation.media import decode, encode
from curation.media.encode import Encoding

# Fine enough that the encoder hides nothing from the tracker; ViPE scales to about 384x512 itself.
_FED = Encoding(max_width=1280, max_height=1280, crf=12)
# ViPE loads its models for each clip (the program) and then does three to five frames a second.
_START_S, _S_A_FRAME = 300.0, 2.0
# A camera that stays within this and turns less than that stands still: its estimates wander by as much.
_STILL_M, _STILL_DEG = 0.05, 2.0
# Its frontend initialises once it has eight keyframes; with fewer all poses are guesses.
_LEAST_KEYFRAMES = 8


@dataclass(frozen=True)
class Artifacts:
    """What ViPE says of N frames: pose [N, 4, 4] camera-to-world, intrinsics [N, 4] px; keyframes where it tells them."""

    pose: np.ndarray
    intrinsics: np.ndarray
    keyframes: np.ndarray | None = None


class BadArtifacts(BadSource):
    """What ViPE left behind is not what its format says; the message is the reason that the ledger shows."""


def available(how: CameraSettings) -> bool:
    """Whether ViPE can be run here: as a package beside CUDA, or as a program."""
    return in_process() or shutil.which(how.vipe_command) is not None


def in_process() -> bool:
    if find_spec("vipe") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def annotate(clip: ClipView, how: CameraSettings) -> tuple[CameraFacts, Camera | None]:
    """A clip's camera by ViPE; a status that says why where it gave none. `annotate.missing` says whether it can be run."""
    try:
        with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
            fed = encode.encode(clip.uri, clip.span, clip.viewport, _FED)
            path = os.path.join(folder, "clip.mp4")
            with open(path, "wb") as file:
                file.write(fed.mp4)
            found = _in_process(path, how) if in_process() else _as_program(path, len(fed.times_s), how)
            check(found, len(fed.times_s))
    except (UnreadableVideo, BadArtifacts, subprocess.SubprocessError) as error:
        return CameraFacts(f"failed:{_reason(error)}", backend="vipe"), None
    camera = _camera(clip, fed, found)
    return apply_checks(_facts(camera), how.checks), camera


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"vipe did not end within {error.timeout:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or "").strip().splitlines()
        return f"vipe ended with status {error.returncode}" + (f": {last[-1][:200]}" if last else "")
    return str(error)


def _as_program(path: str, frames: int, how: CameraSettings) -> Artifacts:
    """One clip by `vipe infer`, in a process and an environment of its own."""
    out = os.path.join(os.path.dirname(path), "out")
    words = [how.vipe_command, "infer", path, "-o", out, "-p", how.vipe_preset]
    limit_s = _START_S + _S_A_FRAME * frames
    subprocess.run(  # noqa: S603 (the recipe's own program; no shell)
        words, check=True, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL
    )
    return read(out, "clip")


def read(folder: str, name: str) -> Artifacts:
    """The artifacts of one clip in ViPE's layout: `pose/<name>.npz` and `intrinsics/<name>.npz`, each `data` and `inds`."""
    pose, frames = _array(os.path.join(folder, "pose", f"{name}.npz"))
    intrinsics, others = _array(os.path.join(folder, "intrinsics", f"{name}.npz"))
    for what, inds in (("poses", frames), ("intrinsics", others)):
        if not np.array_equal(inds, np.arange(len(inds))):
            raise BadArtifacts(f"vipe left frames out of its {what}")
    return Artifacts(pose, intrinsics)


def _array(path: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file["data"], float), np.asarray(file["inds"])
    except FileNotFoundError:
        raise BadArtifacts(f"vipe left no {'/'.join(path.split(os.sep)[-2:])}") from None
    except Exception as error:
        raise BadArtifacts(f"vipe's {'/'.join(path.split(os.sep)[-2:])} cannot be read: {error}") from error


def check(found: Artifacts, frames: int) -> None:
    """Refuse what is no trajectory of so many frames (BadArtifacts): shapes, numbers, rotations, focal lengths."""
    if found.pose.shape != (frames, 4, 4) or found.intrinsics.shape != (frames, 4):
        raise BadArtifacts(f"vipe gave {found.pose.shape} poses and {found.intrinsics.shape} intrinsics for {frames} frames")
    if not (np.isfinite(found.pose).all() and np.isfinite(found.intrinsics).all()):
        raise BadArtifacts("vipe gave numbers that are not finite")
    rotation = found.pose[:, :3, :3]
    straight = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-3 and (np.linalg.det(rotation) > 0).all()
    if not straight or not np.allclose(found.pose[:, 3], [0, 0, 0, 1]):
        raise BadArtifacts("vipe gave poses that are no rigid motions")
    if (found.intrinsics[:, :2] <= 0).any():
        raise BadArtifacts("vipe gave a focal length that is not positive")
    if found.keyframes is not None and len(found.keyframes) < _LEAST_KEYFRAMES:
        raise BadArtifacts(f"vipe found {len(found.keyframes)} keyframes; it needs {_LEAST_KEYFRAMES}")


def _camera(clip: ClipView, fed: encode.Clip, found: Artifacts) -> Camera:
    """Poses from the first frame on, intrinsics in px of the source."""
    source, view = decode.probe(clip.uri), clip.viewport
    scale = np.array([view.w / fed.width, view.h / fed.height] * 2)
    frames = len(fed.times_s)
    return Camera(
        pose=np.linalg.inv(found.pose[0]) @ found.pose,
        intrinsics=found.intrinsics * scale + np.array([0, 0, view.x, view.y]),
        times_s=fed.times_s,
        size=(source.width, source.height),
        viewport=(view.x, view.y, view.w, view.h),
        valid=np.ones(frames, bool),
        residual_px=np.full(frames, np.nan, np.float32),
        keyframes=np.arange(0) if found.keyframes is None else found.keyframes,
        scale_source="metric",
    )


def _facts(camera: Camera) -> CameraFacts:
    """What can be told of a trajectory alone. Lengths are ViPE's, near metres."""
    step = np.linalg.inv(camera.pose[:-1]) @ camera.pose[1:]
    turned = angle_deg(step[:, :3, :3])
    still = float(np.ptp(camera.pose[:, :3, 3], axis=0).max()) < _STILL_M
    return CameraFacts(
        "",
        backend="vipe",
        model=("static" if turned.sum() < _STILL_DEG else "rotation") if still else "general",
        focal_px=float(camera.intrinsics[0, 0]),
        focal_source="model",
        focal_share=float(camera.intrinsics[0, 0]) / camera.viewport[2],
        turn_deg=float(turned.sum()),
        max_turn_deg=float(turned.max(initial=0.0)),
        step_ratio=1.0 if still else step_ratio(camera.pose),
        velocity_spike=0.0 if still else velocity_spike(camera.pose, camera.times_s),
    )


@lru_cache(maxsize=1)
def _pipeline(preset: str) -> Any:
    """ViPE's pipeline up to its poses, built once a process: it keeps its weights between clips (from 1.2.0 on)."""
    from vipe.config import parse_typed_config
    from vipe.pipeline import make_pipeline

    wanted = [f"pipeline={preset}", "pipeline.post.depth_align_model=null"]
    quiet = ["pipeline.output.save_artifacts=false", "pipeline.output.save_viz=false"]
    built = make_pipeline(parse_typed_config("default", hydra_args=[*wanted, *quiet]).pipeline)
    built.return_payload = True
    return built


def _in_process(path: str, how: CameraSettings) -> Artifacts:
    """One clip by ViPE's own Python interface. Not run by us: it needs a CUDA GPU."""
    from vipe.streams.base import ProcessedVideoStream
    from vipe.streams.raw_mp4_stream import RawMp4Stream

    stream = ProcessedVideoStream(RawMp4Stream(path), []).cache(desc="read")
    found = _pipeline(how.vipe_preset).run(stream).payload
    pose = found.get_view_trajectory(0).matrix().cpu().numpy()
    inner = np.asarray(found.intrinsics[0].cpu().numpy(), float)
    return Artifacts(np.asarray(pose, float), np.tile(inner, (len(pose), 1)), np.asarray(found.keyframe_ids))
