"""Make the cases of `gamecraft eval --suite control` with worlds that are played, from held-out recordings of their place.

python -m bench.world_cases NAME=WORLD... --takes TAKE.mp4... --out FOLDER. A take has its engine's camera in TAKE.camera.npz.
There are two kinds of case. `take`: a take from its first frame under its cameras. `return`: a second of a take, and
the same cameras in reverse. Its real video is the take's frames there and back. FOLDER/NAME is what `gamecraft eval` reads.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.machine import describe
from bench.play import roll
from curation.cameras.camera import Camera, from_npz, to_npz
from model.backbone.vae import to_signed, to_uint8
from model.evaluation.cases import Case, write_cases
from model.evaluation.videos import read_video
from model.play.video import Mp4Writer
from model.world_files import LoadedWorld, find_world, load_world

_STEPS = 18  # of a way there: a second
_MIN_TURN_DEG, _MIN_WAY = 8.0, 0.2  # a way counts if the camera turns or moves by as much; moves are in the unit of poses


class CameraPath(NamedTuple):
    """A path that a world is to follow: its name, the real pictures uint8 [F, H, W, 3], and their camera."""

    name: str
    pictures: np.ndarray
    camera: Camera


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a folder for each world, and one with the real videos."""
    parser = argparse.ArgumentParser(prog="python -m bench.world_cases", description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="+", metavar="NAME=WORLD")
    parser.add_argument("--takes", nargs="+", required=True, help="recordings, each with TAKE.camera.npz")
    parser.add_argument("--out", type=Path, default=Path("world-cases"))
    parser.add_argument("--seconds", type=float, default=59.0, help="how much of a take is followed; default 59")
    parser.add_argument("--returns", type=int, default=8, help="ways there and back from each take; default 8")
    options = parser.parse_args(arguments)
    print(describe())
    worlds = {name: load_world(find_world(folder)) for name, _, folder in (word.partition("=") for word in options.worlds)}
    first = next(iter(worlds.values()))
    paths = [path for take in options.takes for path in read_paths(take, first, options.seconds, options.returns)]
    for path in paths:
        _write(options.out / "real" / f"{path.name}.mp4", path.pictures, first.file.causal.fps)
        (options.out / "real" / f"{path.name}.npz").write_bytes(to_npz(path.camera))
    for name, loaded in worlds.items():
        _make(name, loaded, paths, options.out)


def read_paths(take: str, world: LoadedWorld, seconds: float, returns: int) -> Iterator[CameraPath]:
    """Yield the whole of a take, and ways there and back spread over it, at a world's size and rate."""
    fps, size = world.file.causal.fps, (world.file.size[0], world.file.size[1])
    video = read_video(take, fps, size)
    recorded = from_npz(Path(take).with_suffix(".camera.npz").read_bytes())
    pose = recorded.at_times(np.minimum(video.times_s, recorded.times_s[-1])).pose.copy()
    pose[:, :3, 3] *= recorded.scale_to_unit
    scale = np.array([size[0] / recorded.size[0], size[1] / recorded.size[1]] * 2)
    frames, name = min(len(video.rgb), 1 + round(seconds * fps)), Path(take).stem
    order = np.arange(frames)
    yield CameraPath(f"take-{name}", video.rgb[order], _camera(pose[order], recorded.intrinsics[0] * scale, fps, size))
    kept = 0
    for start in range(0, frames - _STEPS, _STEPS):
        if kept < returns and _moves(pose[start : start + _STEPS + 1]):
            kept += 1
            order = np.concatenate([np.arange(start, start + _STEPS + 1), np.arange(start + _STEPS - 1, start - 1, -1)])
            camera = _camera(pose[order], recorded.intrinsics[0] * scale, fps, size)
            yield CameraPath(f"return-{name}-{start:04d}", video.rgb[order], camera)


def _moves(pose_F44: np.ndarray) -> bool:
    step = np.linalg.inv(pose_F44[0]) @ pose_F44[-1]
    yaw = abs(float(np.degrees(np.arctan2(step[0, 2], step[2, 2]))))
    return yaw > _MIN_TURN_DEG or float(np.linalg.norm(step[:3, 3])) > _MIN_WAY


def _camera(pose_F44: np.ndarray, intrinsics_4: np.ndarray, fps: float, size: tuple[int, int]) -> Camera:
    count = len(pose_F44)
    camera = Camera(
        pose=np.linalg.inv(pose_F44[0]) @ pose_F44,
        intrinsics=np.tile(intrinsics_4, (count, 1)),
        times_s=np.arange(count) / fps,
        size=size,
        viewport=(0, 0, *size),
        valid=np.ones(count, bool),
        residual_px=np.zeros(count, np.float32),
        keyframes=np.arange(0),
        scale_source="engine",
    )
    return camera.whole_span("general")


def _make(name: str, loaded: LoadedWorld, paths: Sequence[CameraPath], out: Path) -> None:
    """Roll a world out along the paths, those of equal length together, and list its videos."""
    fps = loaded.file.causal.fps
    cases: list[Case] = []
    for length in sorted({len(path.pictures) for path in paths}):
        group = [path for path in paths if len(path.pictures) == length]
        first = to_signed(torch.from_numpy(np.stack([p.pictures[0] for p in group])).permute(0, 3, 1, 2))
        pose = torch.from_numpy(np.stack([p.camera.pose for p in group])).float()
        intrinsics = torch.from_numpy(np.stack([p.camera.intrinsics[0] for p in group])).float()
        videos = to_uint8(roll(loaded, first, intrinsics, pose).permute(0, 2, 3, 4, 1)).numpy()
        for path, video in zip(group, videos, strict=True):
            target, real = out / name / f"{path.name}.mp4", out / "real" / path.name
            _write(target, video, fps)
            cases.append(Case(path.name, str(target), camera=f"{real}.npz", real=f"{real}.mp4"))
        write_cases(str(out / name), [_absolute(case) for case in cases])
        print(f"{name}: {len(group)} videos of {length} frames", flush=True)


def _absolute(case: Case) -> Case:
    video, camera, real = (str(Path(path).resolve()) for path in (case.video, case.camera, case.real))
    return replace(case, video=video, camera=camera, real=real)


def _write(path: Path, pictures: np.ndarray, fps: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Mp4Writer(fps)
    writer.add(np.ascontiguousarray(pictures))
    path.write_bytes(writer.finish())


if __name__ == "__main__":
    main()
