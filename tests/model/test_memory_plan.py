"""`gamecraft train --plan`: what it counts is what a step needs."""

from dataclasses import replace
from itertools import product

import pytest

from curation.errors import InputError

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

import tiny_ladder  # noqa: E402 (after the package is known to be here)

from model import memory_plan  # noqa: E402
from model.backbone.dit import Expert  # noqa: E402
from model.backbone.frame_codec import FrameCodec  # noqa: E402
from model.backbone.text import WordTextEncoder  # noqa: E402
from model.control.encoder import CameraEncoder  # noqa: E402
from model.distiller import Distiller  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.parallel import dist  # noqa: E402
from model.parallel.layout import ParallelLayout, place_rank  # noqa: E402
from model.parallel.recompute import recompute_blocks  # noqa: E402
from model.recipes import BUILT_IN, demo_distil  # noqa: E402
from model.training.live_memory import LiveMemory, bytes_of  # noqa: E402
from model.training.parts import ModelParts  # noqa: E402
from model.training.settings import TrainPhase  # noqa: E402
from model.world import ControlledExpert, World  # noqa: E402

SIZE = 128


def recipe(recompute, two=True):
    """A recipe whose activations weigh more than its weights."""
    made = tiny_ladder.tiny(demo_distil())
    backbone = replace(made.model.backbone, num_attention_heads=4, attention_head_dim=24, num_layers=4, ffn_dim=256)
    noise = NoiseSpec(boundary=0.9 if two else 0.0)
    return replace(
        made,
        model=replace(made.model, backbone=backbone, two_experts=two, noise=noise),
        codec=replace(made.codec, cell_px=8),
        data=replace(made.data, size=(SIZE, SIZE)),
        layout=ParallelLayout(recompute=recompute),
        train=replace(made.train, curriculum=(TrainPhase(5, 40),)),
        distillation=replace(made.distillation, update_ratio=1),
        causal=replace(made.causal, context_gradient=not recompute),
    )


def measured(recipe, folder, out):
    """Bytes that a step of the recipe's run needs at once, without FSDP2: what exists before it, and the peak within."""
    spec = recipe.model

    def world():
        experts = []
        for _ in range(2 if spec.two_experts else 1):
            camera = CameraEncoder(spec.backbone.width, spec.control_width, 1, 1, recipe.data.fps)
            expert = ControlledExpert(Expert(spec.backbone), camera, recipe.warp_sources)
            if recipe.layout.recompute:
                recompute_blocks(expert.expert)
            experts.append(expert)
        return World(experts[0], experts[-1], spec.noise)

    window = recipe.distillation.window
    teacher_causal = replace(recipe.causal, block=window, window=window, memory="none")
    codec = FrameCodec(spec.backbone.out_channels, 4, 8).eval().requires_grad_(False)
    teacher = world().requires_grad_(False)
    parts = ModelParts(world(), codec, WordTextEncoder(spec.backbone.text_dim), None, "x", teacher, world(), teacher_causal)
    placement = place_rank(ParallelLayout(), torch.device("cpu"))
    trainer = Distiller(parts, placement, recipe, str(folder), [out])
    batch = tiny_ladder.batch(2, 5)
    batch["video"] = torch.randint(0, 256, (2, 3, 5, SIZE, SIZE), dtype=torch.uint8)
    batch["intrinsics"] = torch.tensor([90.0, 90.0, SIZE / 2, SIZE / 2]).expand(2, 5, 4)
    for step in range(2):  # the first makes the optimizers' state
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.critic.optimizer.zero_grad(set_to_none=True)
        states = [*trainer.optimizer.state.values(), *trainer.critic.optimizer.state.values()]
        static = [*parts.world.parameters(), *teacher.parameters(), *parts.critic.parameters(), *trainer.ema.weights.values()]
        static += [value for state in states for value in state.values() if torch.is_tensor(value)]
        with LiveMemory("cpu") as memory:
            trainer._step([(batch, 2 * step)])
        trainer.step += 1
    return bytes_of(static) + memory.peak


@pytest.fixture(scope="module", autouse=True)
def group():
    dist.start()
    yield
    dist.stop()


@pytest.mark.parametrize(
    ("recompute", "side"),
    [
        case if case == (True, 64) else pytest.param(*case, marks=pytest.mark.exhaustive)
        for case in product((False, True), (32, 64, 128))
    ],
)
def test_the_plan_is_what_a_step_of_distillation_needs(recompute, side, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SIZE", side)
    settings = recipe(recompute, two=False)
    made = memory_plan.plan(settings, ranks=1)
    planned = made.total - made.parts["gathered weights"]  # the step below has no FSDP2
    needed = measured(settings, tmp_path / "run", str(tmp_path))
    assert planned == pytest.approx(needed, rel=0.1)
    if side == 128:
        assert made.parts["activations, gradients"] > 0.4 * planned, "they are not drowned in weights"


def test_bytes_that_are_alive_are_counted_until_they_are_freed():
    with LiveMemory("cpu") as memory:
        a = torch.ones(1000)
        b = a + 1
        view = b.view(10, 100)
        assert memory.now == 8000
        del a, b
        assert memory.now == 4000, "a view keeps its storage"
        del view
        assert memory.now == 0
    assert memory.peak == 8000


@pytest.mark.exhaustive
def test_more_ranks_and_low_rank_critics_need_less(monkeypatch):
    monkeypatch.setitem(globals(), "SIZE", 64)
    small = recipe(recompute=True)
    one, eight = memory_plan.plan(small, 1), memory_plan.plan(small, 8)
    for name in ("weights", "optimizer", "critic's optimizer", "averaged weights"):
        assert eight.parts[name] < 0.5 * one.parts[name]
    # The activations of a rank stay the same; gradients, which take their place later, are divided.
    assert (
        eight.parts["activations, gradients"]
        <= one.parts["activations, gradients"]
        < 1.5 * eight.parts["activations, gradients"]
    )
    adapted = memory_plan.plan(replace(small, distillation=replace(small.distillation, critic_lora=2)), 1)
    assert adapted.parts["critic's optimizer"] < 0.2 * one.parts["critic's optimizer"]
    assert "critic" not in adapted.parts


def test_what_cannot_fit_is_refused_with_what_would_help(monkeypatch):
    monkeypatch.setitem(globals(), "SIZE", 32)
    lines = []
    with pytest.raises(InputError, match=r"a rank needs .* GiB, but .* can be used; use more ranks"):
        memory_plan.report(recipe(recompute=False), [1], 2.01, lines.append)
    assert any("does not fit" in line for line in lines)
    memory_plan.report(recipe(recompute=False), [1], 16.0, lines.append)
    assert any("fits devices of 16 GiB" in line for line in lines)
    with pytest.raises(InputError, match="3 ranks do not divide into groups of 4"):
        memory_plan.plan(BUILT_IN["gamecraft2-distil"](), 3)
