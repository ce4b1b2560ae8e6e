"""A recipe's model on a device: experts, codec, text encoder. Sharded where there are ranks; a rank of one is sharded alike."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import torch

from model.backbone import load_weights, text, vae, vlm_context
from model.backbone.dit import Expert
from model.backbone.vae import Codec
from model.control.encoder import CameraEncoder
from model.encode_latents import check_made_with
from model.parallel.layout import Seat
from model.recipes import TrainRecipe, weights_folder
from model.training import checkpoint as checkpoints
from model.training import frame_codec
from model.training.flow_matching import Thoughts, Words
from model.training.precision import settle
from model.world import ControlledExpert, World


class Parts(NamedTuple):
    """What a trainer is made of. codec_hash: of the codec's file or folder (`codec.fingerprint`)."""

    world: World
    codec: Codec
    words: Words
    thoughts: Thoughts | None
    codec_hash: str

    @property
    def device(self) -> torch.device:
        return next(self.world.parameters()).device


def parts(recipe: TrainRecipe, outputs: Sequence[str], folder: str, seat: Seat, say: Callable[[str], None]) -> Parts:
    """The recipe's model; its precision is named (not auto). Where it has a codec of its own that is trained first, into
    `folder`; other ranks wait for it.

    Weights of `model.start` are loaded where `folder` has no checkpoint yet. ValueError where `model.weights` or `model.start`
    names nothing, or a run of another model.
    """
    kind = seat.everyone.device_type
    device = torch.device(kind, torch.cuda.current_device() if kind == "cuda" else None)
    spec = recipe.model
    codec, words, codec_hash = _coded(recipe, outputs, folder, device, say)
    thoughts = (
        vlm_context.load_thoughts(spec.thoughts, device, getattr(torch, recipe.train.precision)) if spec.thoughts else None
    )
    width = thoughts.width if thoughts else None
    torch.manual_seed(recipe.train.seed)
    high = _expert(recipe, codec.per, "transformer", seat, device, width)
    low = _expert(recipe, codec.per, "transformer_2", seat, device, width) if spec.pair else high
    world = World(high, low, spec.noise)
    if spec.start and checkpoints.latest(folder) is None:
        _start(world, recipe, codec_hash, say)
    return Parts(world, codec, words, thoughts, codec_hash)


def trained(recipe: TrainRecipe, outputs: Sequence[str], folder: str, seat: Seat, say: Callable[[str], None]) -> Parts:
    """The model of a run with its averaged weights, for evaluation. ValueError where `folder` has no complete checkpoint."""
    path = checkpoints.latest(folder)
    if path is None:
        raise ValueError(f"{folder}: no complete checkpoint there; train first")
    precision = settle(recipe.train.precision, folder, torch.device(seat.everyone.device_type)).name
    recipe = replace(recipe, train=replace(recipe.train, precision=precision))
    made = parts(recipe, outputs, folder, seat, say)
    checkpoints.load_weights(path, made.world)
    return made


def _start(world: World, recipe: TrainRecipe, codec_hash: str, say: Callable[[str], None]) -> None:
    """Load the averaged weights of the run `model.start`. Its model has the same sizes; the branch for a vision-language model
    may be new, and then begins at zero. ValueError where that run has another codec or other controls.
    """
    spec = recipe.model
    path = checkpoints.latest(spec.start)
    if path is None:
        raise ValueError(f"{spec.start}: no complete checkpoint there; model.start must name the folder of a run")
    theirs = checkpoints.read_state(path)["spec"]
    ours = {"codec": codec_hash, "control": asdict(recipe.control)}
    if changed := checkpoints.differences({name: theirs[name] for name in ours if name in theirs}, ours):
        raise ValueError(f"{path}: {'; '.join(changed)}; set what the run that model.start names was made with")
    new = checkpoints.load_weights(path, world, vlm_context.PARTS if spec.thoughts else ())
    say(f"start from {path}" + (f"; {len(new)} weights of model.thoughts are new" if new else ""))


def _coded(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, device: torch.device, say: Callable[[str], None]
) -> tuple[Codec, Words, str]:
    """Codec, text encoder and the codec's hash."""
    if recipe.model.weights:
        weights = weights_folder(recipe.model)
        place = os.path.join(weights, "vae")
        codec_hash = frame_codec.fingerprint(place)
        if recipe.data.latents:
            check_made_with(recipe.data.latents, recipe.data, codec_hash)
        return vae.load(place, device), text.load(weights, device), codec_hash
    path = os.path.join(folder, "codec.safetensors")
    if torch.distributed.get_rank() == 0:
        os.makedirs(folder, exist_ok=True)
        if recipe.model.start:
            frame_codec.taken_over(recipe.model.start, path)
        elif not os.path.exists(path) and checkpoints.latest(folder):
            raise ValueError(f"{path}: no such file, but checkpoints that were trained with it are there: copy it back")
        frame_codec.trained(outputs, recipe.data, recipe.codec, path, device, say)
    torch.distributed.barrier()
    codec = frame_codec.trained(outputs, recipe.data, recipe.codec, path, device, say)
    return codec, text.NoWords(recipe.model.backbone.text_dim).to(device), frame_codec.fingerprint(path)


def _expert(recipe: TrainRecipe, per: int, name: str, seat: Seat, device: torch.device, width: int | None) -> ControlledExpert:
    """One expert with its camera encoder, sharded: from the folder of that name in the weights, else fresh. width: of the
    second source of cross-attention, None where it has none.
    """
    spec, fps, dtype = recipe.model, recipe.data.fps, getattr(torch, recipe.train.precision)
    folder = os.path.join(spec.weights, name) if spec.weights else ""
    base = load_weights.blank(load_weights.read_config(folder)) if folder else Expert(spec.backbone)
    if width is not None and base.config.added_kv_proj_dim is None:
        base = vlm_context.widened(base, width)
    camera = CameraEncoder(base.config.width, spec.control_width, base.config.patch_size[1], per, fps / per)
    if not folder:
        return seat.put(ControlledExpert(base, camera).to(device), dtype)
    made = seat.put(ControlledExpert(base, camera.to(device)), dtype)
    load_weights.load_sharded(made, base, folder)
    return made
