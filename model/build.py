"""The model of a recipe on a device: experts, codec, encoders. Weights are sharded over the ranks, also where there is one."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

from curation.errors import InputError
from model import world_files
from model.backbone import load_weights, text, vae, vlm_context
from model.backbone.dit import Expert
from model.backbone.vae import Codec
from model.causal.spec import CausalSpec, spec_from_plain
from model.control.encoder import CameraEncoder
from model.encode_latents import check_encoded_with
from model.parallel.layout import Placement
from model.recipes import TrainRecipe, weights_folder
from model.training import checkpoint as checkpoints
from model.training import frame_codec, lora, precision
from model.training.flow_matching import EncodeText
from model.training.parts import ModelParts
from model.world import ControlledExpert, World


def build(
    recipe: TrainRecipe,
    outputs: Sequence[str],
    folder: str,
    placement: Placement,
    log: Callable[[str], None],
    with_teacher: bool = True,
) -> ModelParts:
    """Build a recipe's model for a run in `folder`. The recipe's precision must be a dtype by now, not auto.

    A recipe with a frame codec has it trained first, into `folder`, by rank 0 while the other ranks wait. Weights of
    `model.init_from` are loaded where `folder` has no checkpoint yet. with_teacher: whether distillation gets its teacher, and
    self-forcing its critic. The teacher of consistency distillation is the run `model.init_from`, that of self-forcing the run
    `distillation.teacher`. InputError where `model.weights`, or a run that is started from, is no such folder or of another
    model.
    """
    kind = placement.mesh.device_type
    device = torch.device(kind, torch.cuda.current_device() if kind == "cuda" else None)
    spec = recipe.model
    codec, text_encoder, codec_hash = _codec_and_text_encoder(recipe, outputs, folder, device, log)
    vlm_encoder = None
    if spec.vlm_encoder:
        vlm_encoder = vlm_context.load_vlm_encoder(spec.vlm_encoder, device, getattr(torch, recipe.train.precision))
    context_width = vlm_encoder.width if vlm_encoder else None
    torch.manual_seed(recipe.train.seed)
    world = _world(recipe, codec, placement, device, context_width)
    if spec.init_from and checkpoints.latest(folder) is None:
        _load_run(world, recipe, spec.init_from, "model.init_from", codec_hash, log)
    parts = ModelParts(world, codec, text_encoder, vlm_encoder, codec_hash)
    if not with_teacher or recipe.objective.kind not in ("consistency", "self_forcing"):
        return parts
    if recipe.objective.kind == "consistency":
        teacher = _world(recipe, codec, placement, device, context_width)
        _load_run(teacher, recipe, spec.init_from, "model.init_from", codec_hash, log)
        return replace(parts, teacher=teacher.eval().requires_grad_(False))
    teacher_causal = _causal_of_teacher(recipe)
    run, rank = recipe.distillation.teacher, recipe.distillation.critic_lora
    teacher = _world(recipe, codec, placement, device, context_width, rank)
    _load_run(teacher, recipe, run, "distillation.teacher", codec_hash, log)
    if rank:  # with its low-rank changes it is the critic
        return replace(parts, teacher=teacher, critic=teacher, teacher_causal=teacher_causal)
    critic = _world(recipe, codec, placement, device, context_width)
    _load_run(critic, recipe, run, "distillation.teacher", codec_hash, log)
    return replace(parts, teacher=teacher.eval().requires_grad_(False), critic=critic, teacher_causal=teacher_causal)


def _causal_of_teacher(recipe: TrainRecipe) -> CausalSpec | None:
    """Return how the run `distillation.teacher` saw its samples, None for a bidirectional run.

    InputError where it does not read windows of `distillation.window` latents at once.
    """
    run, window = recipe.distillation.teacher, recipe.distillation.window
    path, is_exported = _source_of(run, "distillation.teacher")
    if is_exported:
        spec: CausalSpec | None = world_files.read_world_file(path).causal
    else:
        stored = checkpoints.read_state(path)["spec"].get("causal")
        spec = None if stored is None else spec_from_plain(stored)
    if (spec is None) == recipe.causal.warp:
        kind = "turned frames (causal.warp)" if recipe.causal.warp else "a first frame, as bidirectional runs have"
        raise InputError(f"{path}: distillation.teacher must be conditioned on {kind}, as the student is")
    if spec is not None and (spec.block, spec.warp) != (window, True):
        raise InputError(
            f"{path}: causal.block is {spec.block}, but distillation.window is {window}: the teacher must see a window at once"
        )
    return spec


def load_trained(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, placement: Placement, log: Callable[[str], None]
) -> ModelParts:
    """Return the model of a run with its averaged weights, for evaluation. InputError for a folder without checkpoint."""
    path = checkpoints.latest(folder)
    if path is None:
        raise InputError(f"{folder}: no complete checkpoint there; train first")
    dtype = precision.choose(recipe.train.precision, folder, torch.device(placement.mesh.device_type)).name
    recipe = replace(recipe, train=replace(recipe.train, precision=dtype))
    parts = build(recipe, outputs, folder, placement, log, with_teacher=False)
    checkpoints.load_weights(path, parts.world)
    return parts


def _source_of(name: str, setting: str) -> tuple[str, bool]:
    """Return the checkpoint of a run, or the folder of an exported world and True. setting: that names it, for messages."""
    if path := checkpoints.latest(name):
        return path, False
    if world := _exported_world(name):
        return world, True
    raise InputError(f"{name}: no complete checkpoint there; {setting} must name the folder of a run or of an exported world")


def _load_run(world: World, recipe: TrainRecipe, run: str, setting: str, codec_hash: str, log: Callable[[str], None]) -> None:
    """Load the averaged weights of a run, or those of an exported world, whose model must have the same sizes.

    The cross-attention to a vision-language model may be new, and so may low-rank changes; their output is zero at first.
    setting: that names the run, for messages. InputError where that run has another codec or other controls.
    """
    path, is_exported = _source_of(run, setting)
    if is_exported:  # its codec was copied
        theirs = {"codec": codec_hash, "control": asdict(world_files.read_world_file(path).control)}
    else:
        theirs = checkpoints.read_state(path)["spec"]
    ours = {"codec": codec_hash, "control": asdict(recipe.control)}
    if changed := checkpoints.differences({name: theirs[name] for name in ours if name in theirs}, ours):
        raise InputError(f"{path}: {'; '.join(changed)}; use the settings of the run that {setting} names")
    new: Sequence[str] = ()
    if is_exported:
        world_files.copy_weights(path, world)
    else:
        new = checkpoints.load_weights(path, world, (*(vlm_context.PARTS if recipe.model.vlm_encoder else ()), *lora.PARTS))
    vlm = [name for name in new if not any(part in name for part in lora.PARTS)]
    log(f"start from {path}" + (f"; {len(vlm)} weights for model.vlm_encoder are new" if vlm else ""))


def _codec_and_text_encoder(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, device: torch.device, log: Callable[[str], None]
) -> tuple[Codec, EncodeText, str]:
    """Return codec, text encoder and the codec's hash."""
    if recipe.model.weights:
        weights = weights_folder(recipe.model)
        vae_folder = os.path.join(weights, "vae")
        codec_hash = frame_codec.fingerprint(vae_folder)
        if recipe.data.latents:
            check_encoded_with(recipe.data.latents, recipe.data, codec_hash)
        return vae.load(vae_folder, device, tiny_decoder=recipe.model.tiny_decoder), text.load(weights, device), codec_hash
    path = os.path.join(folder, "codec.safetensors")
    if torch.distributed.get_rank() == 0:
        os.makedirs(folder, exist_ok=True)
        if recipe.model.init_from:
            source = recipe.model.init_from
            frame_codec.copy_from_run(_exported_world(source) or source, path)
        elif not os.path.exists(path) and checkpoints.latest(folder):
            raise InputError(f"{path}: no such file, but the checkpoints next to it were trained with it: copy it back")
        frame_codec.load_or_train(outputs, recipe.data, recipe.codec, path, device, log)
    torch.distributed.barrier()
    codec = frame_codec.load_or_train(outputs, recipe.data, recipe.codec, path, device, log)
    kind = text.WordTextEncoder if recipe.model.text == "words" else text.ZeroTextEncoder
    text_encoder = kind(recipe.model.backbone.text_dim).to(device)
    return codec, text_encoder, frame_codec.fingerprint(path)


def _exported_world(name: str) -> str | None:
    """Return the folder of the exported world that is meant, None for a run: its folder may be called `demo`, too."""
    return world_files.find_world(name) if checkpoints.latest(name) is None and world_files.is_world(name) else None


def _world(
    recipe: TrainRecipe,
    codec: Codec,
    placement: Placement,
    device: torch.device,
    context_width: int | None,
    lora_rank: int = 0,
) -> World:
    """Build a world. lora_rank: of low-rank changes, besides which it is frozen; 0: none."""
    high = _expert(recipe, codec, "transformer", placement, device, context_width, lora_rank)
    low = high
    if recipe.model.two_experts:
        low = _expert(recipe, codec, "transformer_2", placement, device, context_width, lora_rank)
    return World(high, low, recipe.model.noise)


def _expert(
    recipe: TrainRecipe,
    codec: Codec,
    name: str,
    placement: Placement,
    device: torch.device,
    context_width: int | None,
    lora_rank: int,
) -> ControlledExpert:
    """Build one expert with its camera encoder, sharded: from the subfolder `name` of the weights, or else fresh.

    context_width: of a token of the vision-language model, None where the expert has no cross-attention to one.
    """
    spec, fps, dtype = recipe.model, recipe.data.fps, getattr(torch, recipe.train.precision)
    folder = os.path.join(spec.weights, name) if spec.weights else ""
    base = load_weights.meta_expert(load_weights.read_config(folder)) if folder else Expert(spec.backbone)
    if context_width is not None and base.config.added_kv_proj_dim is None:
        base = vlm_context.with_vlm_cross_attention(base, context_width)
    per = codec.frames_per_latent
    camera = CameraEncoder(base.config.width, spec.control_width, base.config.patch_size[1], per, fps / per)
    if not folder:
        fresh = ControlledExpert(base, camera, recipe.warp_sources)
        if recipe.warp_sources:  # the prediction is that of the turned frame at first
            nn.init.zeros_(base.proj_out.weight)
            nn.init.zeros_(base.proj_out.bias)
        if lora_rank:
            lora.add_lora(fresh, lora_rank)
        return placement.parallelize(fresh.to(device), dtype)
    controlled = ControlledExpert(base, camera.to(device))
    if lora_rank:
        lora.add_lora(controlled, lora_rank)
    expert = placement.parallelize(controlled, dtype)
    load_weights.load_sharded(expert, base, folder)
    return expert
