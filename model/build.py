"""A recipe's model on a device: experts, codec, text encoder. Sharded where there are ranks; a rank of one is sharded alike."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from model.backbone import added, checkpoint, text, vae
from model.backbone.dit import Expert
from model.backbone.vae import Codec
from model.control.encoder import CameraEncoder
from model.parallel.layout import Seat, lay
from model.recipes import TrainRecipe
from model.training import checkpoint as checkpoints
from model.training import codec as frame_codec
from model.training.average import Average
from model.training.flow import Thoughts, Words
from model.world import ControlledExpert, World


class Parts(NamedTuple):
    """What a trainer is made of; whose samples this rank takes."""

    world: World
    codec: Codec
    words: Words
    seat: Seat
    thoughts: Thoughts | None = None


def parts(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, device: torch.device, say: Callable[[str], None] = print
) -> Parts:
    """The recipe's model, laid on all ranks. A codec of its own is trained first, into `folder`; other ranks wait for it.

    ValueError where `model.weights` or `model.start` names nothing.
    """
    spec = recipe.model
    if spec.weights and not os.path.isdir(spec.weights):
        raise ValueError(
            f"{spec.weights}: no such folder; model.weights must be a diffusers folder of Wan2.2-I2V-A14B: "
            "hf download Wan-AI/Wan2.2-I2V-A14B-Diffusers --local-dir FOLDER"
        )
    codec, words = _coded(recipe, outputs, folder, device, say)
    thoughts = added.load_thoughts(spec.thoughts, device) if spec.thoughts else None
    torch.manual_seed(recipe.train.seed)
    names = ("transformer", "transformer_2")[: 1 + spec.pair]
    experts = [_expert(recipe, codec.per, name, device, thoughts.width if thoughts else None) for name in names]
    world = World(experts[0], experts[-1], spec.noise)
    seat = lay(world, recipe.layout)
    if spec.weights:
        for expert, name in zip(experts, names, strict=True):
            checkpoint.load_sharded(expert, expert.expert, os.path.join(spec.weights, name))
    if spec.start:
        _start(world, spec.start)
    return Parts(world, codec, words, seat, thoughts)


def _start(world: World, run: str) -> None:
    """Weights of a run whose model has the same sizes, averaged."""
    path, average = checkpoints.latest(run), Average(world, decay=0.0)
    if path is None:
        raise ValueError(f"{run}: no complete checkpoint there; model.start must name the folder of a run")
    checkpoints.load_average(path, average)
    average.put(world)


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


def _expert(recipe: TrainRecipe, per: int, name: str, device: torch.device, width: int | None) -> ControlledExpert:
    """One expert with its camera encoder; one that is read from a folder has no memory yet. width: of the second source of
    cross-attention (None: it has none).
    """
    spec, fps = recipe.model, recipe.data.fps
    if spec.weights:
        base = checkpoint.blank(checkpoint.read_config(os.path.join(spec.weights, name)))
    else:
        base = Expert(spec.backbone).to(device)
    if width is not None and base.config.added_kv_proj_dim is None:
        base = added.widened(base, width)
    camera = CameraEncoder(base.config.width, spec.control_width, base.config.patch_size[1], per, fps / per)
    return ControlledExpert(base, camera.to(device))
