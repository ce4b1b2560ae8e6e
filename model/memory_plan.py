"""How much memory a rank of a training run needs, before it runs: `gamecraft train --plan`.

Weights, gradients and optimizer state are counted from the shapes of the model, and divided as FSDP2 divides them. Cached keys
and activations are those of the real passes, run on torch's meta device at the recipe's sizes: what autograd keeps is measured,
not guessed. Context parallel divides them. What the frozen codec and the text encoder need while they work is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curation.errors import InputError
from model.backbone.dit import Expert
from model.backbone.vae import MASK_CHANNELS
from model.causal.cache import PageCache, TokenGrid
from model.causal.passes import BlockCondition, commit, denoise, prepare, sequence_layout, teacher_forced
from model.config import CELL_PX, FRAMES_PER_LATENT
from model.control.encoder import CameraEncoder
from model.parallel.fsdp import is_unsharded
from model.parallel.recompute import recompute_blocks
from model.recipes import TrainRecipe
from model.training import lora
from model.training.live_memory import LiveMemory
from model.warp import condition_channels
from model.world import ControlledExpert, World

_GIB = 1 << 30
# Bytes of the frozen parts of Wan2.2: UMT5-XXL's encoder in bfloat16, the video autoencoder in float32.
_TEXT_ENCODER, _VIDEO_CODEC = 2 * 5_680_910_336, 4 * 126_892_531
_TEXT_TOKENS = 512
# Memory that a process of a GPU has before it computes, and what its allocator leaves unused.
_CONTEXT_BYTES, _UNUSED_SHARE = 2 * _GIB, 0.05


class MemoryPlan(NamedTuple):
    """Bytes that a rank needs, by part.

    Activations hold what autograd keeps and what passes need while they run. Gradients take their place in the backward pass,
    so the two are counted together: at the moment when they need most.
    """

    parts: dict[str, int]
    cache: int  # of the activations: keys and values of past blocks

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """Describe the plan, a line for each part."""
        width = max(map(len, self.parts))
        rows = [f"{name:{width}}  {size / _GIB:9.2f} GiB" for name, size in self.parts.items()]
        rows.append(f"{'together':{width}}  {self.total / _GIB:9.2f} GiB a rank")
        return [*rows, f"of the activations, keys and values of past blocks: {self.cache / _GIB:.2f} GiB"]

    def check(self, device_bytes: float) -> None:
        """Raise InputError where a rank's device is too small, with what would help."""
        available = (device_bytes - _CONTEXT_BYTES) * (1 - _UNUSED_SHARE)
        if self.total > available:
            raise InputError(
                f"a rank needs {self.total / _GIB:.1f} GiB, but {available / _GIB:.1f} of {device_bytes / _GIB:.1f} GiB can be "
                "used; use more ranks, a larger layout.context, layout.recompute, or distillation.critic_lora"
            )


def report(recipe: TrainRecipe, ranks: Sequence[int], device_gib: float, say: Callable[[str], None]) -> None:
    """Print the plans for some numbers of ranks, each with whether it fits. InputError where the first of them does not.

    A recipe whose precision is auto is planned in bfloat16.
    """
    if recipe.train.precision == "auto":
        recipe = replace(recipe, train=replace(recipe.train, precision="bfloat16"))
    refused: list[InputError] = []
    activations: Activations | None = None
    for count in ranks:
        if activations is None:
            _check_ranks(recipe, count)
            activations = measure_activations(recipe)
        made = plan(recipe, count, activations)
        say(f"{recipe.name} on {count} ranks, context parallel {recipe.layout.context}, {recipe.train.precision}:")
        for line in made.lines():
            say(f"  {line}")
        try:
            made.check(device_gib * _GIB)
        except InputError as error:
            say(f"  does not fit: {error}")
            refused += [error] if count == ranks[0] else []
        else:
            say(f"  fits devices of {device_gib:g} GiB")
    if refused:
        raise refused[0]


def _check_ranks(recipe: TrainRecipe, ranks: int) -> None:
    if ranks % recipe.layout.context:
        raise InputError(f"{ranks} ranks do not divide into groups of {recipe.layout.context}")


def plan(recipe: TrainRecipe, ranks: int, activations: "Activations | None" = None) -> MemoryPlan:
    """Return what a rank of a run needs. Its precision must be a dtype, not auto. InputError for ranks that do not divide.

    activations: `measure_activations` of the recipe, where they are known: they do not depend on the number of ranks.
    """
    _check_ranks(recipe, ranks)
    dtype: torch.dtype = getattr(torch, recipe.train.precision)
    expert, networks = _expert(recipe), 2 if recipe.model.two_experts else 1
    distils = recipe.objective.kind == "self_forcing"
    trained = _bytes(expert, ranks, _is_trained(recipe))
    weights = _bytes(expert, ranks)
    # An expert whose keys the other one reads gets gradients, too, before they are dropped.
    both = distils and recipe.causal.sharing == "low_noise" and recipe.causal.context_gradient
    gradients, critics_gradients = (networks if both else 1) * trained, 0
    parts = {
        "weights": networks * weights,
        "optimizer": 2 * networks * trained,
        "averaged weights": networks * trained,
    }
    if distils:
        critics_parts, critics_gradients = _critic_parts(recipe, expert, networks, ranks)
        parts |= critics_parts
    elif recipe.objective.kind == "consistency":
        parts["teacher"] = networks * weights
    if distils:  # a batch of videos, in [-1, 1], and the frames of its rollouts
        (width, height), frames = recipe.data.size, recipe.train.curriculum[-1].frames
        parts["pictures"] = recipe.train.batch * 3 * frames * width * height * (1 + 4 + 4)
    if recipe.model.weights:
        parts |= {"text encoder": _TEXT_ENCODER, "codec": _VIDEO_CODEC}
    parts["gathered weights"] = _gathered(expert, dtype)
    first, second, cache = (size // recipe.layout.context for size in activations or measure_activations(recipe))
    if recipe.train.accumulate > 1:  # gradients of earlier passes are there
        most = gradients + critics_gradients + max(first, second)
    else:
        most = max(first, gradients + second, gradients + critics_gradients)
    parts["activations, gradients"] = most
    return MemoryPlan(parts, cache)


def _critic_parts(recipe: TrainRecipe, expert: ControlledExpert, networks: int, ranks: int) -> tuple[dict[str, int], int]:
    """Return the parts of teacher and critic, and the bytes of the critic's gradients."""
    weights, rank = _bytes(expert, ranks), recipe.distillation.critic_lora
    if not rank:
        return {
            "teacher": networks * weights,
            "critic": networks * weights,
            "critic's optimizer": 2 * networks * weights,
        }, weights
    changed = lora.add_lora(_expert(recipe), rank)
    added = _bytes(changed, ranks, lambda name: any(part in name for part in lora.PARTS))
    return {
        "teacher and critic": networks * (weights + added),
        "critic's optimizer": 2 * networks * added,
    }, added


def _is_trained(recipe: TrainRecipe) -> Callable[[str], bool]:
    return lambda name: name != "remainder" and not (recipe.train.freeze_camera and name.startswith("camera."))


def _expert(recipe: TrainRecipe) -> ControlledExpert:
    """Return an expert of a recipe on the meta device."""
    spec = recipe.model
    per = _frames_per_latent(recipe)
    with torch.device("meta"):
        base = Expert(spec.backbone, _attend)
        camera = CameraEncoder(base.config.width, spec.control_width, base.config.patch_size[1], per, recipe.data.fps / per)
        return ControlledExpert(base, camera, recipe.warp_sources)


def _attend(q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, _mask: Any = None, scale: float | None = None) -> Tensor:  # noqa: ARG001
    """Stand for a fused kernel of attention, which keeps its inputs and its output, and no matrix of scores."""
    values: Tensor = _FusedAttention.apply(q_BLNH, k_BSNH, v_BSNH)
    return values


class _FusedAttention(torch.autograd.Function):
    """The memory of a fused kernel; on the meta device there is nothing to compute."""

    @staticmethod
    def forward(ctx: Any, q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
        values = torch.empty(*q_BLNH.shape[:3], v_BSNH.shape[3], dtype=q_BLNH.dtype, device=q_BLNH.device)
        sums = torch.empty(q_BLNH.shape[:3], dtype=torch.float32, device=q_BLNH.device)
        ctx.save_for_backward(q_BLNH, k_BSNH, v_BSNH, values, sums)
        return values

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _frames_per_latent(recipe: TrainRecipe) -> int:
    return FRAMES_PER_LATENT if recipe.model.weights else 1


def _bytes(module: nn.Module, ranks: int, wanted: Callable[[str], bool] = lambda _: True) -> int:
    """Return the bytes of a rank's parameters in float32: FSDP2 divides their rows, and the first rank has the most."""
    total = 0
    for name, parameter in module.named_parameters():
        if wanted(name):
            rows = len(parameter) if is_unsharded(name) else -(-len(parameter) // ranks)
            total += 4 * rows * (parameter.numel() // max(1, len(parameter)))
    return total


def _gathered(expert: ControlledExpert, dtype: torch.dtype) -> int:
    """Return the bytes of gathered weights and whole gradients: of the block that runs, the next one, and what is around."""
    size = torch.finfo(dtype).bits // 8

    def gathered(module: nn.Module, prefix: str) -> int:
        return sum(p.numel() for name, p in module.named_parameters() if not is_unsharded(prefix + name))

    block = gathered(expert.expert.blocks[0], "expert.blocks.0.")
    around = gathered(expert, "") - len(expert.expert.blocks) * block
    return 2 * block * size + block * 4 + around * size


class Activations(NamedTuple):
    """Peaks of activations without context parallel, bytes: of the student's pass, of the critic's, and of it cached keys."""

    student: int
    critic: int
    cache: int


def measure_activations(recipe: TrainRecipe) -> Activations:
    """Run the passes of a step without memory, and return what they would need. The precision must be a dtype, not auto."""
    world = _world(recipe, getattr(torch, recipe.train.precision))
    if recipe.objective.kind == "self_forcing":
        return _self_forcing(recipe, world)
    return Activations(_one_pass(recipe, world), 0, 0)


def _world(recipe: TrainRecipe, dtype: torch.dtype) -> World:
    """Return a world on the meta device whose weights have the dtype that they compute in."""
    experts = []
    for _ in range(2 if recipe.model.two_experts else 1):
        expert = _expert(recipe)
        for name, parameter in expert.named_parameters():
            if not is_unsharded(name):
                parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        if recipe.layout.recompute:
            recompute_blocks(expert.expert)
        experts.append(expert)
    return World(experts[0], experts[-1], recipe.model.noise)


def _drop_gradient(parameter: Tensor) -> None:
    """Forget a gradient: gradients are counted by themselves."""
    parameter.grad = None


class _Sizes(NamedTuple):
    """Sizes of a recipe's latents."""

    batch: int
    channels: int
    rows: int
    columns: int
    frames_per_latent: int

    def latents(self, count: int) -> Tensor:
        return torch.empty(self.batch, self.channels, count, self.rows, self.columns, device="meta")


def _sizes(recipe: TrainRecipe) -> _Sizes:
    cell = CELL_PX if recipe.model.weights else recipe.codec.cell_px
    width, height = recipe.data.size
    return _Sizes(
        recipe.train.batch, recipe.model.backbone.out_channels, height // cell, width // cell, _frames_per_latent(recipe)
    )


def _condition(recipe: TrainRecipe, latents: range, frames: int) -> BlockCondition:
    """Return the condition of some latents, on the meta device."""
    sizes, out = _sizes(recipe), recipe.model.backbone.out_channels
    sources = recipe.warp_sources
    channels = condition_channels(sources, out) if sources else MASK_CHANNELS + out
    tokens = _TEXT_TOKENS if recipe.model.weights else 1
    with torch.device("meta"):
        return BlockCondition(
            latents,
            torch.empty(sizes.batch, channels, len(latents), sizes.rows, sizes.columns),
            torch.empty(sizes.batch, tokens, recipe.model.backbone.text_dim),
            torch.empty(sizes.batch, frames, 12, CELL_PX * sizes.rows, CELL_PX * sizes.columns),
        )


def _self_forcing(recipe: TrainRecipe, world: World) -> Activations:
    """Run the passes of a step that trains the student, whose window ends the longest rollout, on the meta device.

    Returns the peaks of the student's and of the critic's pass, and of it the cached keys and values.
    """
    spec, sizes, settings = recipe.causal, _sizes(recipe), recipe.distillation
    frames = recipe.train.curriculum[-1].frames
    latents = 1 + (frames - 1) // sizes.frames_per_latent
    first = latents - settings.window
    cache = PageCache(spec, TokenGrid.of(world.high.expert, sizes.rows, sizes.columns))
    name = spec.plan(world.noise, first=False)[-1][1]
    with LiveMemory("meta") as memory:
        made = []
        for block in spec.blocks(latents):
            in_window = block.start >= first
            count = len(block) * sizes.frames_per_latent if block.start else 1
            with torch.set_grad_enabled(in_window):
                prepared, history = prepare(world, _condition(recipe, block, count)), cache.history(block)
                x0 = sizes.latents(len(block))
                if block.start:
                    x0 = x0 - 0.5 * denoise(world, x0, 0.5, prepared, history, name)
            if in_window:
                made.append(x0)
            with torch.set_grad_enabled(in_window and spec.context_gradient):
                if block.stop < latents:
                    cache = cache.with_page(commit(world, x0, prepared, history, spec))
        pages = sum(
            each.numel() * each.element_size()
            for page in cache.pages
            for kv in page.kv.values()
            for pair in kv
            for each in pair
        )
        rolled = torch.cat(made, 2)
        del prepared, history, x0, made
        with torch.no_grad():
            _score(recipe, world, name)
        (rolled * rolled.detach()).mean().backward()
        del rolled, cache
    with LiveMemory("meta") as critics:
        _score(recipe, world, name).square().mean().backward()
    return Activations(memory.peak, critics.peak, pages)


def _score(recipe: TrainRecipe, world: World, name: str) -> Tensor:
    """Run a score's pass over a window and the frame before it."""
    sizes, window = _sizes(recipe), recipe.distillation.window
    condition = _condition(recipe, range(1 + window), 1 + window * sizes.frames_per_latent)
    x, sigma = sizes.latents(1 + window), torch.empty(sizes.batch, 1 + window, device="meta")
    if recipe.causal.warp:
        spec = replace(recipe.causal, block=window, window=window, memory="none")
        layout = sequence_layout(spec, TokenGrid.of(world.high.expert, sizes.rows, sizes.columns), 1 + window)
        return teacher_forced(world, x, sigma, x, sigma, condition, spec, layout, name)  # type: ignore[arg-type]
    inputs = torch.cat([x, condition.condition], 1)
    expert = world.high if name == "high" else world.low
    velocity: Tensor = expert(inputs, sigma, condition.text, condition.maps)
    return velocity.float()


def _one_pass(recipe: TrainRecipe, world: World) -> int:
    """Run the pass of a step that has one, on the meta device."""
    sizes, frames = _sizes(recipe), max(phase.frames for phase in recipe.train.curriculum)
    latents = recipe.objective.latents or 1 + (frames - 1) // sizes.frames_per_latent
    condition = _condition(recipe, range(latents), 1 + (latents - 1) * sizes.frames_per_latent)
    with LiveMemory("meta") as memory:
        x, sigma = sizes.latents(latents), torch.empty(sizes.batch, latents, device="meta")
        if recipe.is_causal:
            grid = TokenGrid.of(world.high.expert, sizes.rows, sizes.columns)
            layout = sequence_layout(recipe.causal, grid, latents)
            velocity = teacher_forced(world, x, sigma, x, sigma, condition, recipe.causal, layout, "high")
        else:
            velocity = world.high(torch.cat([x, condition.condition], 1), sigma, condition.text, condition.maps)
        velocity.float().square().mean().backward()
    return memory.peak
