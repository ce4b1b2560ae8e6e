"""Stages 3 and 4 as runs: the whole ladder at tiny size, started, stopped, resumed, flagged, played."""

from dataclasses import replace

import pytest

from curation.errors import InputError

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

import tiny_ladder  # noqa: E402 (after the packages are known to be here)
from tiny_ladder import tiny  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

from model.distiller import Distiller  # noqa: E402
from model.parallel import dist  # noqa: E402
from model.parallel.layout import ParallelLayout, place_rank  # noqa: E402
from model.play.export import export  # noqa: E402
from model.recipes import (  # noqa: E402
    BUILT_IN,
    demo_causal,
    demo_consistency,
    demo_distil,
    demo_extend,
    demo_teacher,
)
from model.train import train  # noqa: E402
from model.training import checkpoint  # noqa: E402
from model.training.settings import TrainPhase  # noqa: E402
from model.world_files import load_world  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torch", "ignore:.*:DeprecationWarning:torch")
STAGES = {"causal": demo_causal, "teacher": demo_teacher, "consistency": demo_consistency}
STAGES |= {"distil": demo_distil, "extend": demo_extend}
STARTS = {"teacher": "causal", "consistency": "causal", "distil": "consistency", "extend": "distil"}


def quiet(message):
    pass


class Ladder:
    """The runs of all stages, each made when it is asked for, from the one before by name."""

    def __init__(self, folder, out):
        self.folder, self.out, self._made = folder, out, {}

    def recipe(self, stage):
        recipe = tiny(STAGES[stage]())
        if stage in STARTS:
            recipe = replace(recipe, model=replace(recipe.model, init_from=self.run(STARTS[stage])))
        if recipe.objective.kind == "self_forcing":
            recipe = replace(recipe, distillation=replace(recipe.distillation, teacher=self.run("teacher")))
        return replace(recipe, train=replace(recipe.train, sample_every=0))

    def run(self, stage):
        """The folder of a stage's finished run."""
        if stage not in self._made:
            self._made[stage] = str(self.folder / stage)
            self.history = train(self.recipe(stage), [self.out], self._made[stage], log=quiet)
        return self._made[stage]


@pytest.fixture(scope="module")
def ladder(out, tmp_path_factory):
    return Ladder(tmp_path_factory.mktemp("ladder"), out)


def saved(folder):
    """All tensors of a run's newest checkpoint, and its state."""
    path = checkpoint.latest(str(folder))
    dcp_to_torch_save(path, f"{folder}-whole.pt")
    return torch.load(f"{folder}-whole.pt"), checkpoint.read_state(path)


def assert_equal(ours, theirs, where=""):
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            assert_equal(ours[name], theirs[name], f"{where}.{name}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("stage", ["distil", "extend"])
def test_each_stage_trains_from_the_one_before_and_is_played(ladder, out, tmp_path, stage):
    folder = ladder.run(stage)
    tensors, state = saved(folder)
    before, _ = saved(ladder.run(STARTS[stage]))
    assert state["step"] == 4
    assert state["spec"]["distillation"]["window_at"] == ("end" if stage == "distil" else "uniform")
    name = "high.expert.blocks.0.ffn.net.2.weight"
    assert not torch.equal(tensors["model"][name], before["average"][name]), "the student has moved"
    assert not torch.equal(tensors["critic"][name], saved(ladder.run("teacher"))[0]["average"][name]), "and so has its critic"
    export(ladder.recipe(stage), folder, [out], str(tmp_path / "world"), starts=1, log=quiet)
    assert load_world(str(tmp_path / "world")).file.causal.steps == (1.0, 0.5)


@pytest.mark.parametrize("stage", ["distil", "extend"])
def test_a_stopped_run_resumes_to_the_result_of_an_undisturbed_one(ladder, out, tmp_path, stage, monkeypatch):
    """Weights, critic, both optimizers, average, stop criteria: bit for bit (pitfalls 12 and 13)."""
    recipe, whole = ladder.recipe(stage), saved(ladder.run(stage))
    steps = Distiller.run
    monkeypatch.setattr(Distiller, "run", lambda self: steps(self, 3))  # after a step that has not trained the student
    train(recipe, [out], str(tmp_path / "run"), log=quiet)
    assert saved(tmp_path / "run")[1]["step"] == 3
    assert saved(tmp_path / "run")[1]["criteria"]["steps"] == 1
    monkeypatch.undo()
    train(recipe, [out], str(tmp_path / "run"), log=quiet)
    again = saved(tmp_path / "run")
    assert_equal(again[0], whole[0])
    assert_equal(again[1], whole[1])


def test_the_log_holds_losses_of_student_and_critic_and_the_stop_criteria(ladder, tmp_path, out):
    recipe, messages = ladder.recipe("distil"), []
    recipe = replace(recipe, distillation=replace(recipe.distillation, min_flow_ratio=0.0, max_variance_ratio=1e6))
    history = train(recipe, [out], str(tmp_path / "run"), log=messages.append)
    assert ["student loss" in metrics["values"] for metrics in history] == [True, False, True, False]
    assert ["variance ratio" in metrics["values"] for metrics in history] == [False, True, False, True]
    assert any("flow ratio" in message for message in messages)
    assert not any("use an earlier checkpoint" in message for message in messages)


def test_a_run_that_is_pushed_too_far_is_flagged_and_stops(ladder, tmp_path, out):
    recipe, messages = ladder.recipe("distil"), []
    settings = replace(recipe.distillation, lr_high=0.3, update_ratio=1, max_variance_ratio=2.0, stop=True, measure_every=1)
    recipe = replace(recipe, distillation=settings, train=replace(recipe.train, max_grad_norm=100.0, warmup_steps=1))
    history = train(recipe, [out], str(tmp_path / "run"), log=messages.append)
    assert len(history) < 4, "it ends before its last step"
    assert any("times the variance of true ones" in message for message in messages)
    assert saved(tmp_path / "run")[1]["step"] == len(history)


def test_a_critic_of_low_rank_trains_and_resumes(ladder, tmp_path, out, monkeypatch):
    recipe = ladder.recipe("distil")
    recipe = replace(recipe, distillation=replace(recipe.distillation, critic_lora=2))
    train(recipe, [out], str(tmp_path / "whole"), log=quiet)
    tensors, _ = saved(tmp_path / "whole")
    assert tensors["critic"]
    assert all("lora_" in name for name in tensors["critic"]), "what is frozen is the teacher's, and is not stored"
    assert any(value.any() for name, value in tensors["critic"].items() if "lora_up" in name)
    steps = Distiller.run
    monkeypatch.setattr(Distiller, "run", lambda self: steps(self, 2))
    train(recipe, [out], str(tmp_path / "run"), log=quiet)
    monkeypatch.undo()
    train(recipe, [out], str(tmp_path / "run"), log=quiet)
    assert_equal(saved(tmp_path / "run")[0], tensors)


def test_an_exported_world_can_be_distilled_further(ladder, out, tmp_path):
    recipe = ladder.recipe("consistency")
    export(recipe, ladder.run("consistency"), [out], str(tmp_path / "world"), starts=1, log=quiet)
    on = ladder.recipe("distil")
    on = replace(on, model=replace(on.model, init_from=str(tmp_path / "world")))
    on = replace(on, train=replace(on.train, curriculum=(replace(on.train.curriculum[0], steps=1),)))
    assert len(train(on, [out], str(tmp_path / "on"), log=quiet)) == 1


def test_a_teacher_that_does_not_see_a_window_at_once_is_refused(ladder, out, tmp_path):
    recipe = ladder.recipe("distil")
    other = replace(recipe, distillation=replace(recipe.distillation, teacher=ladder.run("causal")))
    with pytest.raises(InputError, match=r"causal.block is 1, but distillation.window is 4"):
        train(other, [out], str(tmp_path / "run"), log=quiet)
    missing = replace(recipe, distillation=replace(recipe.distillation, teacher=str(tmp_path)))
    with pytest.raises(InputError, match=r"distillation.teacher must name the folder of a run"):
        train(missing, [out], str(tmp_path / "run"), log=quiet)


@pytest.mark.parametrize("name", ["gamecraft2-distil", "gamecraft2-extend", "demo-distil", "demo-extend"])
def test_recipes_name_the_stage_before(name):
    recipe = BUILT_IN[name]()
    assert recipe.model.init_from.replace("demo-", "") == {"distil": "consistency", "extend": "distil"}[name.split("-")[1]]
    assert recipe.distillation.teacher


def test_the_large_recipes_follow_the_papers_table():
    distil, extend = BUILT_IN["gamecraft2-distil"](), BUILT_IN["gamecraft2-extend"]()
    assert (distil.train.steps, distil.layout.context) == (10_000, 4)
    assert (extend.train.steps, extend.layout.context) == (3_000, 4)
    assert distil.causal.steps == (1.0, 0.9375, 0.8333, 0.625)
    plan = distil.causal.plan(distil.model.noise, first=False)
    assert [name for _, name in plan] == ["high", "high", "low", "low"], "re-mapped at the boundary of the experts"
    seconds = extend.train.curriculum[0].frames / extend.data.fps
    assert seconds > 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, model=replace(r.model, init_from="")), "needs model.init_from"),
        (lambda r: replace(r, causal=replace(r.causal, sampler="euler")), "needs causal.sampler consistency"),
        (lambda r: replace(r, distillation=replace(r.distillation, window=16)), "no fewer than distillation.window 16"),
        (lambda r: replace(r, causal=replace(r.causal, block=3, window=6)), "must be whole blocks of 3 latents"),
    ],
)
def test_recipes_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        change(tiny(demo_distil()))


def test_only_the_expert_whose_step_has_the_gradient_is_stepped(tmp_path, out):
    """Two experts, whose shared context gives gradients to both (pitfall 4)."""
    dist.start()
    try:
        spec = replace(tiny_ladder.PLAIN, sharing="low_noise")
        parts = tiny_ladder.parts(spec)
        recipe = tiny(demo_distil())
        recipe = replace(recipe, distillation=replace(recipe.distillation, update_ratio=1, lr_high=1e-2, lr_low=1e-2))
        recipe = replace(recipe, train=replace(recipe.train, curriculum=(TrainPhase(9, 100),)))
        object.__setattr__(recipe, "causal", spec)
        trainer = Distiller(parts, place_rank(ParallelLayout(), torch.device("cpu")), recipe, str(tmp_path / "run"), [out])
        seen = set()
        for _ in range(6):
            before = {name: p.detach().clone() for name, p in parts.world.named_parameters()}
            critic = {name: p.detach().clone() for name, p in parts.critic.named_parameters()}
            trainer._step([(tiny_ladder.batch(frames=9), 0)])
            moved = {name.split(".")[0] for name, p in parts.world.named_parameters() if not torch.equal(p, before[name])}
            moved_critic = {
                name.split(".")[0] for name, p in parts.critic.named_parameters() if not torch.equal(p, critic[name])
            }
            assert moved == {trainer._draws.exit_expert}
            assert moved_critic == {trainer._draws.critic_expert}
            seen |= moved
            trainer.step += 1
        assert seen == {"high", "low"}
    finally:
        dist.stop()
