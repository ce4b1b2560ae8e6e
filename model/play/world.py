"""Sessions of a world from its files: the engine behind `gamecraft play`, `rollout` and `replay`.

H W px of a frame, n frames of a block.
"""

import hashlib
import math
import os
import platform
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from curation.errors import InputError
from model.accelerate.apply import Accelerator, no_log
from model.accelerate.spec import AccelerateSpec
from model.backbone.vae import to_signed, to_uint8
from model.causal.cache import TokenGrid
from model.causal.passes import BlockCondition
from model.causal.rollout import Rollout, StreamStart
from model.config import CELL_PX
from model.control.spec import ControlState
from model.control.trajectory import PlayerState, step
from model.data.decode import covering_crop
from model.parallel import dist
from model.play.engine import BlockFrames, EngineInfo, Start, StartImage
from model.play.ranks import RankCaller, follow
from model.world_files import LoadedWorld, find_world, load_world, plain_prompt

_PLAIN = AccelerateSpec(backend="eager")


def load_engine(
    checkpoint: str,
    log: Callable[[str], None] = print,
    backend: str = "auto",
    accelerate: AccelerateSpec | None = None,
) -> "WorldEngine":
    """Load a playable world: a folder of `gamecraft export`, or `demo`, the one that ships. InputError where there is none.

    backend: that of `accelerate`, if it is not auto. A record replays bit-equal only with the backend and the switches that it
    names. InputError for a switch that cannot be on here.
    """
    spec = accelerate or AccelerateSpec()
    try:
        spec = replace(spec, backend=backend) if backend != "auto" else spec
    except ValueError as error:
        raise InputError(str(error)) from error
    device, mesh = torch.device("cuda" if torch.cuda.is_available() else "cpu"), None
    if spec.sequence_parallel > 1:
        _, ranks, device = dist.start()
        mesh = init_device_mesh(device.type, (ranks,))
    loaded = load_world(find_world(checkpoint), device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    engine = WorldEngine(loaded, device, spec, mesh, log)
    info = engine.info
    log(f"{info.name}: {info.size[0]}x{info.size[1]} px at {info.fps:g} fps on {device.type}, {engine.backend}")
    return engine


def follow_rank_0(checkpoint: str, backend: str = "auto", accelerate: AccelerateSpec | None = None) -> None:
    """Load a world on another rank than 0, and do what rank 0 does until it stops (`AccelerateSpec.sequence_parallel`)."""
    follow(load_engine(checkpoint, no_log, backend, accelerate))
    dist.stop()


def spec_of_record(identity: Mapping[str, Any]) -> AccelerateSpec:
    """Return the switches with which a record was made, which it names in `identity`. InputError for unknown ones."""
    try:
        return AccelerateSpec(**{**identity.get("accelerate", {}), "backend": identity.get("backend", "auto")})
    except (TypeError, ValueError) as error:
        raise InputError(f"this record was made with other switches than this release has: {error}") from error


@cache
def code_digest() -> str:
    """Return a hash, 16 hex digits, of this package's source: other code may compute other frames."""
    digest = hashlib.sha256()
    package = os.path.dirname(os.path.dirname(__file__))
    for folder, folders, names in os.walk(package):
        folders.sort()
        for name in sorted(name for name in names if name.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as source:
                digest.update(source.read())
    return digest.hexdigest()[:16]


class WorldEngine:
    """A world that is loaded and ready to be played."""

    def __init__(
        self,
        loaded: LoadedWorld,
        device: torch.device,
        accelerate: AccelerateSpec = _PLAIN,
        mesh: DeviceMesh | None = None,
        log: Callable[[str], None] = no_log,
    ) -> None:
        """accelerate: its switches are put on the loaded world, in place. mesh: ranks that share each session."""
        self.loaded, self.device = loaded, device
        file = loaded.file
        self.accelerator = Accelerator(loaded.world, file.causal, accelerate, mesh, log)
        self.caller = RankCaller() if mesh is not None and mesh.get_rank() == 0 else None
        self._choose_backend()
        self.info = EngineInfo(
            name=file.name,
            size=file.size,
            fps=file.causal.fps,
            block_frames=file.causal.block * file.frames_per_latent,
            control=file.control,
            prompts=file.prompts,
            start_images=tuple(StartImage(*start) for start in loaded.starts),
            attract=loaded.attract,
            overlaps_decode=accelerate.decode == "overlapped",
            # with a full window everything is compiled and recorded
            warm_up_blocks=file.causal.window // file.causal.block + 1 if accelerate.needs_warm_up else 1,
            identity=self._identity(),
        )

    @property
    def backend(self) -> str:
        """What computes passes: see `accelerate.backends`."""
        return self.accelerator.backend.name

    def _choose_backend(self) -> None:
        file, codec = self.loaded.file, self.loaded.codec
        rows, columns = file.size[1] // codec.cell_px, file.size[0] // codec.cell_px
        block, frames = file.causal.block_of(1), file.causal.block * file.frames_per_latent
        channels = file.backbone.in_channels - file.backbone.out_channels
        condition = torch.zeros(1, channels, len(block), rows, columns, device=self.device)
        maps = torch.zeros(1, frames, 12, CELL_PX * rows, CELL_PX * columns, device=self.device)
        example = BlockCondition(block, condition, self.loaded.encode_text([""]).to(self.device), maps)
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        exports = os.path.join(cache, "gamecraft", f"{self.loaded.digest}-{code_digest()}-{torch.__version__}")
        self.accelerator.choose_backend(example, exports)

    def _identity(self) -> Mapping[str, Any]:
        return {
            "checkpoint": self.loaded.digest,
            "causal": asdict(self.loaded.file.causal),
            "backend": self.backend,
            "accelerate": self.accelerator.spec.identity(),
            "device": self.device.type if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "threads": torch.get_num_threads(),
            "code": code_digest(),
            "torch": torch.__version__,
            "processor": platform.machine(),
        }

    def start(self, start: Start) -> tuple["WorldSession", BlockFrames]:
        """Start a session; return it with block 0, the start image as the world shows it."""
        began = time.perf_counter()
        number = 0
        if self.caller is not None:
            number = self.caller.new_session()
            self.caller.tell(number, "start", start)
        session = WorldSession(self, start, number)
        frames = to_frames(session.rollout.first_frame)
        return session, BlockFrames(0, frames, {"start": time.perf_counter() - began})

    def encode_prompt(self, prompt: str) -> Tensor:
        """Return the text [1, S, E] of a prompt. InputError for one that this world was not trained on."""
        known = self.loaded.file.prompts
        plain = plain_prompt(prompt)
        if plain and known and plain not in known:
            raise InputError(f"this world does not know the prompt {prompt!r}; it knows: {', '.join(known)}")
        if plain and not self.loaded.file.weights and not self.loaded.file.reads_text:
            raise InputError("this world does not follow prompts: leave the prompt empty")
        text: Tensor = self.loaded.encode_text([plain if known else prompt]).to(self.device)
        return text

    def fit_picture(self, picture: np.ndarray) -> Tensor:
        """Crop and scale a picture uint8 [H, W, 3] to the world's size; return it in [-1, 1], [1, 3, H, W]."""
        width, height = self.info.size
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or min(picture.shape[:2]) < 8:
            raise InputError(f"a start picture must be uint8 [H, W, 3] of at least 8 px, not {picture.dtype} {picture.shape}")
        crop = covering_crop((picture.shape[1], picture.shape[0]), (width, height))
        if picture.shape[:2] != (crop.height, crop.width):
            shrinks = crop.width < picture.shape[1]
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            picture = cv2.resize(picture, (crop.width, crop.height), interpolation=interpolation)
        cut = np.ascontiguousarray(picture[crop.top : crop.top + height, crop.left : crop.left + width])
        return to_signed(torch.from_numpy(cut).permute(2, 0, 1)[None]).to(self.device)


class WorldSession:
    """A world being played: the camera, the stream, and the prompt."""

    def __init__(self, engine: WorldEngine, start: Start, shared: int = 0) -> None:
        """shared: number of the session among those that several ranks share."""
        loaded = engine.loaded
        self._shared = shared
        if engine.caller is not None:
            weakref.finalize(self, engine.caller.end, shared)
        self._engine, self._control, self._player = engine, loaded.file.control, PlayerState()
        picture = engine.fit_picture(start.picture)
        text = engine.encode_prompt(start.prompt)
        spec, world, codec = loaded.file.causal, loaded.world, loaded.codec
        grid = TokenGrid.of(world.high.expert, picture.shape[2] // codec.cell_px, picture.shape[3] // codec.cell_px)
        intrinsics = torch.tensor([loaded.file.intrinsics], device=engine.device)
        stream, switches = StreamStart(picture, intrinsics, text), engine.accelerator
        decoder = switches.decoder(codec)
        self.rollout = Rollout(
            world,
            codec,
            spec,
            stream,
            start.seed,
            switches.cache(grid),
            switches.passes(),
            switches.spec.keeps_text,
            decoder,
        )
        self._thread = switches.decode_thread(decoder)
        if self._thread is not None:
            weakref.finalize(self, self._thread.close)
        self._text, self._blend = text, list[Tensor]()
        self._number = 0
        self._last_prompted = self._end_of(start.prompt)

    def generate(self, controls: Sequence[ControlState]) -> BlockFrames:
        """Return the next block. controls: one for each of its frames."""
        return self.begin(controls).result()

    def begin(self, controls: Sequence[ControlState]) -> "Future[BlockFrames]":
        """Make the latents of the next block and return its frames to come; `commit` may follow before they have come.

        With `AccelerateSpec.decode` serial they have come already.
        """
        if len(controls) != self.rollout.block_frames:
            raise ValueError(f"a block has {self.rollout.block_frames} frames, not {len(controls)}")
        self._tell("begin", list(controls))
        began = time.perf_counter()
        if self._number == self._last_prompted:
            self._change_prompt("")
        if self._blend:
            self.rollout.set_text(self._blend.pop(0))
        recached = time.perf_counter()
        poses = []
        for state in controls:
            self._player = step(self._player, state, self._control)
            poses.append(self._player.pose)
        pose = torch.from_numpy(np.stack(poses)).float()[None].to(self._engine.device)
        self.rollout.generate(pose)
        self._wait()
        denoised = time.perf_counter()
        self._number += 1
        number, times = self._number, {"recache": recached - began, "denoise": denoised - recached}

        def finish(video: Tensor) -> BlockFrames:
            frames = to_frames(video)
            return BlockFrames(number, frames, {**times, "decode": time.perf_counter() - denoised})

        if self._thread is not None:
            return self._thread.then(finish, self.rollout.decode_in(self._thread.submit))
        made: Future[BlockFrames] = Future()
        made.set_result(finish(self.rollout.decode()))
        return made

    def commit(self) -> float:
        """Enter the last block into the cache; return the seconds it took."""
        self._tell("commit")
        began = time.perf_counter()
        self.rollout.commit()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        """Wait for a GPU, so that times are of the work and not of its launch. A decoding on another stream goes on."""
        if self._engine.device.type == "cuda":
            torch.cuda.current_stream(self._engine.device).synchronize()

    def set_prompt(self, text: str, blend_blocks: int = 0) -> None:
        """Change the prompt from the next block on. InputError for a text that the world cannot read.

        A prompt that ends by itself (`WorldFile.lasts_s`) is taken back when its time is over.
        """
        self._tell("set_prompt", text, blend_blocks)
        self._change_prompt(text, blend_blocks)

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._engine.caller is not None:
            self._engine.caller.tell(self._shared, method, *arguments)

    def _change_prompt(self, text: str, blend_blocks: int = 0) -> None:
        aim = self._engine.encode_prompt(text)
        shares = (torch.arange(1, blend_blocks + 1) / blend_blocks).tolist() if blend_blocks else [1.0]
        self._blend = [torch.lerp(self._text, aim, share) for share in shares]
        self._text, self._last_prompted = aim, self._end_of(text)

    def _end_of(self, prompt: str) -> int | None:
        """Return the last block with a prompt that the next block gets; None for a prompt that stays."""
        file = self._engine.loaded.file
        lasts_s = file.lasts_s.get(plain_prompt(prompt))
        return None if lasts_s is None else self._number + math.ceil(lasts_s * file.causal.fps / self.rollout.block_frames)


def to_frames(video_B3FHW: Tensor) -> np.ndarray:
    """Return the frames of the first video in [-1, 1] as uint8 [n, H, W, 3]."""
    return np.ascontiguousarray(to_uint8(video_B3FHW[0].permute(1, 2, 3, 0)).cpu().numpy())
