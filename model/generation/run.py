"""Make the videos of InterBench, or of scripts of keys, into a folder that `gamecraft eval` reads. Run again, it resumes."""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from curation import storage
from curation.cameras.camera import Camera, to_npz
from curation.errors import InputError
from model.control.spec import ControlState
from model.control.trajectory import integrate
from model.evaluation.cases import CASES_FILE, Case, read_cases, write_cases
from model.evaluation.interbench import suite
from model.generation.baselines import FRAMES, BaselineModel
from model.play.engine import Engine, Start
from model.play.keys import parse_keys
from model.play.video import Mp4Writer


class Maker(Protocol):
    """Makes a video uint8 [F, H, W, 3] of `fps` frames a second from a first frame, a prompt, a seed and controls."""

    fps: float

    def make(self, picture_HW3: np.ndarray, prompt: str, seed: int, controls: Sequence[ControlState]) -> np.ndarray: ...


class WorldMaker:
    """One of our worlds: an engine of `gamecraft play`. frames: of a video without controls, rounded up to whole blocks."""

    def __init__(self, engine: Engine, frames: int = FRAMES) -> None:
        self.engine, self.fps, self._frames = engine, engine.info.fps, frames

    def make(self, picture_HW3: np.ndarray, prompt: str, seed: int, controls: Sequence[ControlState]) -> np.ndarray:
        """Return the first frame and one frame for each control."""
        states = list(controls) or [ControlState()] * (self._frames - 1)
        count, length = len(states), self.engine.info.block_frames
        states += [ControlState()] * (-count % length)
        session, first = self.engine.start(Start(picture_HW3, prompt, seed))
        parts = [first.frames]
        for at in range(0, len(states), length):
            parts.append(session.generate(states[at : at + length]).frames)
            session.commit()
        return np.concatenate(parts)[: 1 + count]


class BaselineMaker:
    """A model of the paper's comparison. It knows no keys."""

    def __init__(self, model: BaselineModel) -> None:
        self._model, self.fps = model, model.baseline.fps

    def make(self, picture_HW3: np.ndarray, prompt: str, seed: int, controls: Sequence[ControlState]) -> np.ndarray:
        """Return 93 frames of 832 x 448 px. InputError for controls."""
        if controls:
            raise InputError(f"{self._model.baseline.name} follows no keys; only a world of ours does")
        return self._model(picture_HW3, prompt, seed)


class Wanted(NamedTuple):
    """A video that is to be made."""

    name: str
    subset: str
    image: str
    picture: str  # path
    base_prompt: str
    interaction_prompt: str
    seed: int
    keys: str = ""


@dataclass(frozen=True)
class CameraOf:
    """What is needed to write the camera that controls ask for. intrinsics: fx, fy, cx, cy in px of `size`."""

    intrinsics: tuple[float, ...]
    size: tuple[int, ...]


def wanted_of_suite(images: str, only: Sequence[str] = (), limit: int = 0, seeds: int = 1) -> Iterator[Wanted]:
    """Yield the videos of InterBench for a user's images. limit: images of each subset; 0: all."""
    scenes, doors = suite.read_images(images)
    counts: dict[str, int] = {}
    for case in suite.cases(scenes, doors, only):
        counts[case.subset.name] = counts.get(case.subset.name, 0) + 1
        if limit and counts[case.subset.name] > limit:
            continue
        for number in range(seeds):
            name = case.name if seeds == 1 else f"{case.name}-{number}"
            image = case.image
            yield Wanted(
                name,
                case.subset.name,
                image.id,
                image.uri,
                image.base_prompt,
                case.subset.interaction,
                seed_of(case.name, number),
            )


def wanted_of_keys(images: str, scripts: Sequence[str]) -> Iterator[Wanted]:
    """Yield a video of each script of keys from each image."""
    scenes, doors = suite.read_images(images)
    for number, script in enumerate(scripts):
        parse_keys(script)
        for image in [*scenes, *doors]:
            yield Wanted(
                f"keys{number}/{image.id}", "", image.id, image.uri, image.base_prompt, "", seed_of(image.id, 0), script
            )


def seed_of(name: str, number: int) -> int:
    """Return the seed of a case: the same for every model, so that runs are paired."""
    return zlib.crc32(f"{name}/{number}".encode()) % 2**31


def generate(
    maker: Maker, wanted: Sequence[Wanted], out: str, camera: CameraOf | None = None, log: Callable[[str], None] = print
) -> int:
    """Make the videos that a folder lacks, and list all of them in its cases.jsonl. Return how many were made.

    camera: of a world, to write what keys ask for next to each video.
    """
    out = storage.normal(out)
    known = {case.name: case for case in _known(out)}
    made = 0
    for one in wanted:
        if one.name in known:
            continue
        picture = cv2.imread(one.picture, cv2.IMREAD_COLOR)
        if picture is None:
            raise InputError(f"{one.picture}: not a picture that OpenCV reads")
        controls = parse_keys(one.keys) if one.keys else []
        began = time.perf_counter()
        prompt = suite.full_prompt(one.base_prompt, one.interaction_prompt)
        video = maker.make(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), prompt, one.seed, controls)
        seconds = time.perf_counter() - began
        uri = storage.join(out, f"{one.name}.mp4")
        storage.put(uri, _mp4(video, maker.fps))
        about = {"subset": one.subset, "image": one.image, "base_prompt": one.base_prompt, "keys": one.keys}
        case = Case(one.name, uri, interaction_prompt=one.interaction_prompt, seed=one.seed, seconds=seconds, **about)
        if controls and camera:
            where = storage.join(out, f"{one.name}.npz")
            storage.put(where, _camera_file(maker, controls, camera, video.shape[1:3]))
            case = Case(**{**asdict(case), "camera": where})
        known[one.name] = case
        write_cases(out, known.values())
        made += 1
        log(f"{one.name}: {len(video)} frames in {seconds:.1f} s")
    return made


def _known(out: str) -> list[Case]:
    return read_cases(out) if storage.exists(storage.join(out, CASES_FILE)) else []


def _mp4(video_FHW3: np.ndarray, fps: float) -> bytes:
    writer = Mp4Writer(fps)
    writer.add(video_FHW3)
    return writer.finish()


def _camera_file(maker: Maker, controls: Sequence[ControlState], camera: CameraOf, shape: tuple[int, int]) -> bytes:
    """Return the camera that the controls ask for, as a `camera.npz`."""
    assert isinstance(maker, WorldMaker), "only a world follows keys"
    pose = integrate(controls, maker.engine.info.control)
    count, (height, width) = len(pose), shape
    scale = np.array([width / camera.size[0], height / camera.size[1]] * 2)
    asked = Camera(
        pose=pose,
        intrinsics=np.tile(np.array(camera.intrinsics) * scale, (count, 1)),
        times_s=np.arange(count) / maker.fps,
        size=(width, height),
        viewport=(0, 0, width, height),
        valid=np.ones(count, bool),
        residual_px=np.full(count, np.nan, np.float32),
        keyframes=np.arange(0),
        scale_source="engine",
    )
    return to_npz(asked.whole_span("general"))


def describe(out: str, model: str, environment: object) -> None:
    """Write generation.json: which model made the folder's videos, and where."""
    storage.put(
        storage.join(storage.normal(out), "generation.json"), json.dumps({"model": model, "environment": environment}).encode()
    )
