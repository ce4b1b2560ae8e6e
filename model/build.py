"""A recipe's model on a device: experts, codec, text encoder. Sharded where there are ranks; a rank of one is sharded alike."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from model.backbone import added, checkpoint, text, vae
from model.backbone.dit import Expert
from model.backbone.vae import Codec
from model.control.encoder import CameraEncoder
from model.parallel.layout import Seat
from model.recipes import TrainRecipe, weights_folder
from model.training import checkpoint as checkpoints
from model.training import codec as frame_codec
from model.training.average import Average
from model.training.flow import Thoughts, Words
from model.world import ControlledExpert, World


class Parts(NamedTuple):
    """What a trainer is made of."""

    world: World
    codec: Codec
    words: Words
    thoughts: Thoughts | None = None


def parts(recipe: TrainRecipe, outputs: Sequence[str], folder: str, seat: Seat, say: Callable[[str], None]) -> Parts:
    """The recipe's model. Where it has a codec of its own that is trained first, into `folder`; other ranks wait for it.

    ValueError where `model.weights` or `model.start` names nothing.
    """
    kind = seat.everyone.device_type
    device = torch.device(kind, torch.cuda.current_device() if kind == "cuda" else None)
    spec = recipe.model
    codec, words = _coded(recipe, outputs, folder, device, say)
    thoughts = added.load_thoughts(spec.thoughts, device) if spec.thoughts else None
    width = thoughts.width if thoughts else None
    torch.manual_seed(recipe.train.seed)
    high = _expert(recipe, codec.per, "transformer", seat, device, width)
    low = _expert(recipe, codec.per, "transformer_2", seat, device, width) if spec.pair else high
    world = World(high, low, spec.noise)
    if spec.start:
        _start(world, spec.start)
    return Parts(world, codec, words, thoughts)


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
    if recipe.model.weights:
        weights = weights_folder(recipe.model)
        return vae.load(os.path.join(weights, "vae"), device), text.load(weights, device)
    path = os.path.join(folder, "codec.safetensors")
    if torch.distributed.get_rank() == 0:
        os.makedirs(folder, exist_ok=True)
        frame_codec.trained(outputs, recipe.data, recipe.codec, path, device, say)
    torch.distributed.barrier()
    codec = frame_codec.trained(outputs, recipe.data, recipe.codec, path, device, say)
    return codec, text.NoWords(recipe.model.backbone.text_dim)


def _expert(recipe: TrainRecipe, per: int, name: str, seat: Seat, device: torch.device, width: int | None) -> ControlledExpert:
    """One expert with its camera encoder, sharded: from the folder of that name in the weights, else fresh. width: of the
    second source of cross-attention, None where it has none.
    """
    spec, fps, dtype = recipe.model, recipe.data.fps, getattr(torch, recipe.train.precision)
    folder = os.path.join(spec.weights, name) if spec.weights else ""
    base = checkpoint.blank(checkpoint.read_config(folder)) if folder else Expert(spec.backbone)
    if width is not None and base.config.added_kv_proj_dim is None:
        base = added.widened(base, width)
    camera = CameraEncoder(base.config.width, spec.control_width, base.config.patch_size[1], per, fps / per)
    if not folder:
        return seat.put(ControlledExpert(base, camera).to(device), dtype)
    made = seat.put(ControlledExpert(base, camera.to(device)), dtype)
    checkpoint.load_sharded(made, base, folder)
    return made
