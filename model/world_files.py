"""A playable world as a folder: what `gamecraft export` writes, `gamecraft play` loads, and a run may start from.

`world.json` says what the world is, `weights.safetensors` has its experts, `codec.safetensors` a frame codec, `start/` pictures
to start from. Worlds with Wan's codec name the diffusers folder that has it. `attract.mp4`, if it is there, is a film of play
that the page shows while nobody plays; any video of `gamecraft rollout` or `gamecraft replay` serves.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from curation.errors import InputError
from model.backbone import text, vae
from model.backbone.dit import Expert
from model.backbone.frame_codec import FrameCodec
from model.backbone.vae import Codec
from model.causal.spec import CausalSpec
from model.config import BackboneConfig
from model.control.encoder import CameraEncoder
from model.control.spec import ControlSpec
from model.noise import NoiseSpec
from model.parallel.fsdp import is_unsharded
from model.training.flow_matching import EncodeText
from model.world import ControlledExpert, World

# The world that ships with the package.
DEMO = os.path.join(os.path.dirname(__file__), "play", "demo_world")
FORMAT = 1
CODEC_FILE = "codec.safetensors"
_WORLD, _WEIGHTS, _START, _ATTRACT = "world.json", "weights.safetensors", "start", "attract.mp4"
# Matrices smaller than this are stored as they are.
_MIN_INT8 = 1 << 12


@dataclass(frozen=True)
class WorldFile:
    """What `world.json` says."""

    name: str  # for people
    size: tuple[int, int]  # width and height of the frames, px
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy of the frames, px
    backbone: BackboneConfig
    noise: NoiseSpec
    causal: CausalSpec
    control: ControlSpec
    two_experts: bool
    control_width: int  # hidden channels of the camera encoder
    frames_per_latent: int
    codec: Mapping[str, int] | None = None  # arguments of `FrameCodec`; None: Wan's codec, from `weights`
    weights: str = ""  # diffusers folder with codec and text encoder; empty: a frame codec, and text by word
    reads_text: bool = False  # whether a world with a frame codec follows prompts
    prompts: tuple[str, ...] = ()  # prompts that are offered and accepted, those of the exported data; empty: any text
    lasts_s: Mapping[str, float] = field(default_factory=dict)  # prompts that end by themselves, and after how long
    about: Mapping[str, Any] = field(default_factory=dict)  # how it was trained, for people

    def to_json(self) -> str:
        """Return the text of `world.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, data: str, where: str) -> "WorldFile":
        """Read a `world.json`. InputError for another format or unknown settings."""
        try:
            values = json.loads(data)
            version = values.pop("format", None)
            if version != FORMAT:
                raise InputError(f"{where} has format {version}, but this release reads {FORMAT}: export the world again")
            backbone = values["backbone"]
            values["backbone"] = BackboneConfig(**backbone | {"patch_size": tuple(backbone["patch_size"])})
            values["noise"] = NoiseSpec(**values["noise"])
            causal = values["causal"]
            steps = {name: tuple(causal[name]) for name in ("steps", "first_steps")}
            values["causal"] = CausalSpec(**causal | steps)
            values["control"] = ControlSpec(**values["control"])
            for name in ("size", "intrinsics", "prompts"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{where} is no world of this release: {error}") from error


@dataclass(frozen=True)
class LoadedWorld:
    """A world that is ready to run, on a device."""

    file: WorldFile
    world: World
    codec: Codec
    encode_text: EncodeText
    starts: Sequence[tuple[str, np.ndarray]]  # name and picture, uint8 [H, W, 3]
    digest: str  # of the folder's files that decide frames; Wan's codec and text encoder are named there, not hashed
    attract: bytes = b""  # an MP4 of play; empty: none


def save_world(
    folder: str, file: WorldFile, world: World, codec: Codec, starts: Sequence[tuple[str, np.ndarray]], int8: bool = False
) -> None:
    """Write a world into a folder, which may exist; `world.json` comes last.

    int8: store matrices with 8 bits a weight and a scale for each row; otherwise they are bfloat16. What computes in float32
    (`fsdp.is_unsharded`) is stored so. A world that the folder had is replaced.
    """
    shutil.rmtree(os.path.join(folder, _START), ignore_errors=True)
    for name in (_WORLD, _ATTRACT):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))
    os.makedirs(os.path.join(folder, _START), exist_ok=True)
    state = world.state_dict() if file.two_experts else {f"high.{k}": v for k, v in world.high.state_dict().items()}
    save_file(_packed(state, int8), os.path.join(folder, _WEIGHTS))
    if isinstance(codec, FrameCodec):
        exact = {"mean", "basis", "scale"}
        weights = {k: v.float() if k in exact else v.half() for k, v in codec.state_dict().items()}
        save_file({k: v.contiguous() for k, v in weights.items()}, os.path.join(folder, CODEC_FILE))
    for number, (name, picture) in enumerate(starts):
        cv2.imwrite(os.path.join(folder, _START, f"{number:02d}-{name}.png"), picture[..., ::-1])
    with open(os.path.join(folder, _WORLD), "w", encoding="utf-8") as out:
        out.write(file.to_json())


def _packed(state: Mapping[str, Tensor], int8: bool) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    for name, part in state.items():
        value = part.full_tensor() if isinstance(part, DTensor) else part
        exact = is_unsharded(name.partition(".")[2])
        if int8 and not exact and value.ndim >= 2 and value.numel() >= _MIN_INT8:
            rows = value.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            packed[f"{name}:int8"] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
            packed[f"{name}:scale"] = scale
        else:
            packed[name] = value.to(torch.bfloat16 if value.ndim >= 2 and not exact else torch.float32).contiguous()
    return packed


def _unpacked(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {name: value.float() for name, value in packed.items() if ":" not in name}
    for name, value in packed.items():
        if name.endswith(":int8"):
            scale = packed[f"{name.removesuffix(':int8')}:scale"].view(-1, *[1] * (value.ndim - 1))
            state[name.removesuffix(":int8")] = value.float() * scale
    return state


def plain_prompt(prompt: str) -> str:
    """Return a prompt as worlds with known prompts name it."""
    return " ".join(prompt.lower().split())


def find_world(checkpoint: str) -> str:
    """Return a world's folder, given it or `demo`, the name of the one that ships."""
    return DEMO if checkpoint == "demo" else checkpoint


def is_world(checkpoint: str) -> bool:
    """Return whether there is a world of that name."""
    return os.path.isfile(os.path.join(find_world(checkpoint), _WORLD))


def read_world_file(checkpoint: str) -> WorldFile:
    """Return what a world is. InputError where there is none."""
    folder = find_world(checkpoint)
    path = os.path.join(folder, _WORLD)
    try:
        with open(path, encoding="utf-8") as source:
            return WorldFile.from_json(source.read(), path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: no {_WORLD} there; a playable world is made by `gamecraft export`") from None


def _read_state(folder: str) -> dict[str, Tensor]:
    """Return the weights of a world by their names. Where one expert serves all noise levels it has the names of both."""
    state = _unpacked(load_file(os.path.join(folder, _WEIGHTS)))
    return {name.replace("high.", "low.", 1): value for name, value in state.items()} | state


def copy_weights(checkpoint: str, world: World) -> None:
    """Give a model the weights of a world, to train on. InputError where it is another model."""
    folder = find_world(checkpoint)
    try:
        state = _read_state(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: its weights cannot be read: {error}") from error
    own = world.state_dict()
    other = {name for name in own.keys() | state.keys() if name not in own or name not in state}
    other |= {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    if other:
        raise InputError(f"{folder} is another model: {len(other)} weights differ, the first {min(other)}")
    with torch.no_grad():
        for name, part in own.items():
            whole = state[name].to(part.device, part.dtype)
            spread = isinstance(part, DTensor)
            part.copy_(distribute_tensor(whole, part.device_mesh, part.placements) if spread else whole)


def load_world(folder: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedWorld:
    """Load a world. InputError where the folder has none, or its files do not fit together."""
    file = read_world_file(folder)
    try:
        world = _build(file)
        world.load_state_dict(_read_state(folder))
        codec, encode_text = _codec_and_text(file, folder)
    except (OSError, RuntimeError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder}: its files do not make the world of {_WORLD}: {error}") from error
    world = world.to(device).eval().requires_grad_(False)
    for expert in (world.high, world.low):
        for name, parameter in expert.named_parameters():
            if not is_unsharded(name):  # the parts that stay in float32 in training, too
                parameter.data = parameter.data.to(dtype)
    codec = codec.to(device).eval().requires_grad_(False)
    if isinstance(codec, FrameCodec):
        codec = codec.to(memory_format=torch.channels_last)
    return LoadedWorld(file, world, codec, encode_text, _starts(folder), _digest(folder), _attract(folder))


def _build(file: WorldFile) -> World:
    per = file.frames_per_latent

    def expert() -> ControlledExpert:
        base = Expert(file.backbone)
        patch = file.backbone.patch_size[1]
        camera = CameraEncoder(file.backbone.width, file.control_width, patch, per, file.causal.fps / per)
        return ControlledExpert(base, camera, file.causal.warp_sources)

    high = expert()
    return World(high, expert() if file.two_experts else high, file.noise)


def _codec_and_text(file: WorldFile, folder: str) -> tuple[Codec, EncodeText]:
    if file.weights:
        return vae.load(os.path.join(file.weights, "vae")), text.load(file.weights)
    codec = FrameCodec(**(file.codec or {}))
    codec.load_state_dict({name: value.float() for name, value in load_file(os.path.join(folder, CODEC_FILE)).items()})
    width = file.backbone.text_dim
    return codec, text.WordTextEncoder(width) if file.reads_text else text.ZeroTextEncoder(width)


def _starts(folder: str) -> list[tuple[str, np.ndarray]]:
    where = os.path.join(folder, _START)
    names = sorted(os.listdir(where)) if os.path.isdir(where) else []
    pictures = []
    for name in names:
        picture = cv2.imread(os.path.join(where, name))
        if picture is None:
            raise InputError(f"{os.path.join(where, name)} is no picture")
        pictures.append((os.path.splitext(name)[0].partition("-")[2] or name, picture[..., ::-1].copy()))
    return pictures


def _attract(folder: str) -> bytes:
    try:
        with open(os.path.join(folder, _ATTRACT), "rb") as film:
            return film.read()
    except FileNotFoundError:
        return b""


def _digest(folder: str) -> str:
    """Return a hash, 16 hex digits, of what decides frames."""
    digest = hashlib.sha256()
    for name in (_WORLD, _WEIGHTS, CODEC_FILE):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, "rb") as source:
                while block := source.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]
