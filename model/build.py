"""A recipe's model on a device: experts, codec, text encoder. Sharded where there are ranks; a rank of one is sharded alike."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh

from model.backbone import checkpoint, text, vae
from model.backbone.dit import Expert
from model.backbone.vae import Codec
from model.control.encoder import CameraEncoder
from model.data.loader import DataSettings
from model.parallel import fsdp
from model.recipes import ModelSpec, TrainRecipe
from model.training import codec as frame_codec
from model.training.flow import Words
from model.world import ControlledExpert, World


class Parts(NamedTuple):
    """What a trainer is made of."""

    world: World
    codec: Codec
    words: Words


def parts(recipe: TrainRecipe, outputs: Sequence[str], folder: str, mesh: DeviceMesh, say: Callable[[str], None]) -> Parts:
    """The recipe's model. Where it has a codec of its own that is trained first, into `folder`; other ranks wait for it."""
    device = torch.device(mesh.device_type, torch.cuda.current_device() if mesh.device_type == "cuda" else None)
    codec, words = _coded(recipe, outputs, folder, device, say)
    torch.manual_seed(recipe.train.seed)
    high = _expert(recipe.model, recipe.data, codec.per, "transformer").to(device)
    low = _expert(recipe.model, recipe.data, codec.per, "transformer_2").to(device) if recipe.model.pair else high
    dtype = getattr(torch, recipe.train.precision)
    for expert in dict.fromkeys((high, low)):
        fsdp.shard(expert, mesh, dtype)
    return Parts(World(high, low, recipe.model.noise), codec, words)


def _coded(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, device: torch.device, say: Callable[[str], None]
) -> tuple[Codec, Words]:
    weights = recipe.model.weights
    if weights:
        return vae.load(os.path.join(weights, "vae"), device), text.load(weights, device)
    path = os.path.join(folder, "codec.safetensors")
    if torch.distributed.get_rank() == 0:
        os.makedirs(folder, exist_ok=True)
        frame_codec.trained(outputs, recipe.data, recipe.codec, path, device, say)
    torch.distributed.barrier()
    codec = frame_codec.trained(outputs, recipe.data, recipe.codec, path, device, say)
    return codec, text.NoWords(recipe.model.backbone.text_dim)


def _expert(spec: ModelSpec, data: DataSettings, per: int, name: str) -> ControlledExpert:
    base = checkpoint.load(os.path.join(spec.weights, name)) if spec.weights else Expert(spec.backbone)
    camera = CameraEncoder(base.config.width, spec.control_width, base.config.patch_size[1], per, data.fps / per)
    return ControlledExpert(base, camera)
