"""Stages 1 and 2 on a tiny world: it learns, resumes bit for bit, and does not change what is frozen."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")

import tiny_world  # noqa: E402

from model.noise import NoiseSpec  # noqa: E402
from model.parallel import dist  # noqa: E402
from model.parallel.layout import ParallelLayout, place_rank  # noqa: E402
from model.sampling import Conditioning  # noqa: E402
from model.trainer import Trainer  # noqa: E402
from model.training import checkpoint, flow_matching, sample_videos  # noqa: E402
from model.training.settings import TrainPhase, TrainSettings  # noqa: E402
from model.world import World  # noqa: E402

SETTINGS = TrainSettings(
    curriculum=(TrainPhase(5, 7), TrainPhase(9, 5)),
    batch=2,
    lr=1e-3,
    warmup_steps=1,
    save_every=100,
    log_every=1,
    sample_every=0,
    workers=0,
    ema_decay=0.9,
)


@pytest.fixture(scope="module", autouse=True)
def group():
    """A process group of one rank, as the command starts it."""
    dist.start()
    yield
    dist.stop()


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    shards.put_index(folder, "000000", shards.put_tar(folder, "000000", [made.clip("a", i, 30 * i, 30) for i in range(4)]))
    return folder


@pytest.fixture(scope="module")
def codec():
    return tiny_world.codec()


@pytest.fixture
def trainer(out, codec, tmp_path):
    """Return a function: settings -> a trainer of the same fresh world, in a folder by name."""

    def make(settings=SETTINGS, folder="run", outputs=(out,), sharded=False):
        placement = place_rank(ParallelLayout(), torch.device("cpu"))
        experts = [placement.parallelize(e, torch.float32) if sharded else e for e in tiny_world.experts()]
        parts = replace(tiny_world.parts(World(*experts, NoiseSpec())), codec=codec)
        return Trainer(parts, placement, tiny_world.recipe(settings), str(tmp_path / folder), outputs)

    return make


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.world.named_parameters()}


def untimed(metrics):
    return {name: value for name, value in metrics.items() if name not in ("seconds", "waited", "samples_s", "tokens_s", "mfu")}


def test_a_run_is_the_same_run_when_it_is_stopped_within_a_phase_and_an_epoch(trainer):
    whole = trainer(folder="whole").run()
    assert [step["step"] for step in whole] == list(range(12))
    before = trainer().run(steps=3)
    again = trainer()
    assert again.step == 3
    after = again.run()
    assert [untimed(step) for step in before + after] == [untimed(step) for step in whole]
    full = trainer(folder="whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(full).values(), weights(again).values(), strict=True))
    assert all(torch.equal(full.ema.weights[n], again.ema.weights[n]) for n in full.ema.weights)
    assert full.optimizer.state_dict()["state"].keys() == again.optimizer.state_dict()["state"].keys()


def test_both_experts_learn_and_only_the_one_of_the_step(trainer):
    made = trainer()
    start = weights(made)
    (metrics,) = made.run(steps=1)
    moved = {name.partition(".")[0] for name, p in made.world.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {metrics["expert"]}
    later = {n["expert"] for n in made.run()}
    assert later == {"high", "low"}


def test_the_loss_falls(trainer):
    history = trainer(replace(SETTINGS, curriculum=(TrainPhase(5, 60),), lr=3e-3)).run()
    early, late = (sum(n["loss"] for n in part) / 20 for part in (history[:20], history[-20:]))
    assert late < 0.9 * early


def test_stage_two_leaves_the_camera_encoder_bit_for_bit(trainer):
    made = trainer(replace(SETTINGS, freeze_camera=True))
    start = weights(made)
    made.run()
    same = {name: torch.equal(p, start[name]) for name, p in made.world.named_parameters()}
    assert all(same[name] for name in same if ".camera." in name)
    assert not all(same[name] for name in same if ".expert." in name)


def test_the_log_has_a_line_a_step_by_expert_and_noise_level(trainer, tmp_path):
    found = trainer().run(steps=3)
    first, *lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert (first["step"], first["frames"], list(first["windows"].values())) == (0, 5, [8])
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line, note in zip(lines, found, strict=True):
        assert line["experts"] == {note["expert"]: note["loss"]}
        low, high = (float(edge) for edge in next(iter(line["bins"])).split("-"))
        assert (low >= 0.8) or note["expert"] == "low"
        assert high <= 1


def test_a_line_for_several_steps_holds_their_means(trainer, tmp_path):
    found = trainer(replace(SETTINGS, log_every=3)).run(steps=3)
    _, line = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert line["step"] == 2
    assert line["loss"] == pytest.approx(sum(note["loss"] for note in found) / 3)
    for expert, loss in line["experts"].items():
        losses = [note["loss"] for note in found if note["expert"] == expert]
        assert loss == pytest.approx(sum(losses) / len(losses))


def test_a_checkpoint_without_its_state_does_not_count(trainer, tmp_path):
    trainer().run(steps=2)
    trainer().run(steps=2)
    (tmp_path / "run" / "step-00000004" / "state.json").unlink()
    assert checkpoint.latest(str(tmp_path / "run")).endswith("step-00000002")
    assert trainer().step == 2


def test_a_run_says_which_shards_it_is_trained_on_through_all_phases(trainer, tmp_path, made, out):
    """A new shard enters with the next phase at the latest; one that is lost is missed there too."""
    copy = shutil.copytree(out, tmp_path / "data")
    make = partial(trainer, outputs=[str(copy)])
    make().run(steps=7)
    shards.put_index(str(copy), "000001", shards.put_tar(str(copy), "000001", [made.clip("b", 0, 0, 30)]))
    make().run(steps=1)
    (listing,) = checkpoint.read_state(checkpoint.latest(str(tmp_path / "run")))["shards"]
    assert [(epoch, sorted(held.values())) for epoch, held in listing] == [
        (0, [f"{copy}/shards/000000", f"{copy}/shards/000001"])
    ]
    (copy / "shards" / "000000.parquet").unlink()
    with pytest.raises(ValueError, match="1 of 2 shards that this run is trained on are gone or changed"):
        make().run(steps=1)


def test_the_newest_checkpoints_stay_and_what_killed_runs_left_goes(trainer, tmp_path):
    folder = tmp_path / "run"
    torn = folder / "step-00000001"
    torn.mkdir(parents=True)
    (torn / "__0_0.distcp").write_bytes(b"half")
    trainer(replace(SETTINGS, save_every=1, keep_checkpoints=2)).run(steps=5)
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000004", "step-00000005"]
    assert all((folder / f"step-0000000{n}" / "state.json").exists() for n in (4, 5))


def test_a_second_save_of_a_step_leaves_the_complete_one_alone(trainer, tmp_path, monkeypatch):
    """The last step is due and is the end as well. To write it again would first delete what is complete."""
    deleted = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: deleted.append(path))
    trainer(replace(SETTINGS, save_every=2)).run(steps=4)
    again = trainer()
    assert again.run(steps=0) == []
    assert [path for path in deleted if path.endswith(("step-00000002", "step-00000004"))] == [
        str(tmp_path / "run" / f"step-0000000{n}") for n in (2, 4)
    ], "before their first writing only"


def test_older_checkpoints_go_only_when_a_newer_one_is_complete(trainer, tmp_path, monkeypatch):
    made = trainer(replace(SETTINGS, keep_checkpoints=1))
    made.run(steps=1)

    def full(path, state):
        assert checkpoint.latest(str(tmp_path / "run")).endswith("step-00000001")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "_put_state", full)
    with pytest.raises(OSError, match="no space left"):
        made.run(steps=1)
    assert checkpoint.latest(str(tmp_path / "run")).endswith("step-00000001")


def test_a_checkpoint_is_saved_before_sample_videos_are_made(trainer, tmp_path, monkeypatch):
    """A failure there costs no steps."""

    def fails(*_):
        raise RuntimeError("no videos")

    monkeypatch.setattr(sample_videos, "generate", fails)
    made = trainer(replace(SETTINGS, save_every=3, sample_every=3))
    with pytest.raises(RuntimeError, match="no videos"):
        made.run()
    assert trainer().step == 3


def test_steps_after_the_last_line_are_written_when_the_run_ends_or_fails(trainer, tmp_path, monkeypatch):
    log = tmp_path / "run" / "log.jsonl"
    trainer(replace(SETTINGS, log_every=5)).run(steps=7)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 6]
    made = trainer(replace(SETTINGS, log_every=5))
    real = made._step
    monkeypatch.setattr(made, "_step", lambda passes: real(passes) if made.step < 9 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.run()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 6, 8]


def test_a_checkpoint_that_cannot_be_written_is_an_error_not_a_silence(trainer, tmp_path, monkeypatch):
    made = trainer()
    made.run(steps=1)

    def full(path, state):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "_put_state", full)
    with pytest.raises(OSError, match="no space left"):
        made.run(steps=1)
    assert checkpoint.latest(str(tmp_path / "run")).endswith("step-00000001")


def test_a_run_of_another_spec_is_refused(trainer):
    trainer().run(steps=1)
    with pytest.raises(ValueError, match=r"seed was 0, now 5; use another folder"):
        trainer(replace(SETTINGS, seed=5))


def test_sharded_and_whole_parameters_are_updated_apart_as_optimizers_on_cuda_need_it(trainer):
    """There torch updates all parameters of a group at once (`foreach`), and refuses a group that mixes both kinds."""
    settings = replace(SETTINGS, curriculum=(TrainPhase(5, 3),))
    usual = trainer(settings, folder="usual")
    usual.run()
    grouped = trainer(settings, folder="grouped", sharded=True)
    kinds = [{type(p) for p in group["params"]} for group in grouped.optimizer.param_groups]
    assert len(kinds) == 2
    assert all(len(kind) == 1 for kind in kinds)
    for group in grouped.optimizer.param_groups:
        group["foreach"] = True
    grouped.run()
    ours, theirs = weights(grouped), weights(usual)
    assert all(torch.allclose(whole_tensor(ours[name]), whole_tensor(theirs[name]), atol=1e-5) for name in theirs)


def whole_tensor(weight):
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def test_a_run_resumes_whose_checkpoint_has_its_parameters_in_one_group(trainer, monkeypatch):
    """As they were stored before sharded and whole parameters had groups of their own."""
    whole = trainer(folder="whole", sharded=True).run()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_adam_state", lambda *a, **k: checkpoint.get_optimizer_state_dict(*a[:2]))
        older = trainer(sharded=True)
        parameters = [p for group in older.optimizer.param_groups for p in group["params"]]
        older.optimizer = torch.optim.AdamW(
            parameters, lr=SETTINGS.lr, betas=SETTINGS.betas, weight_decay=SETTINGS.weight_decay
        )
        older.run(4)
    assert list(map(untimed, trainer(sharded=True).run())) == list(map(untimed, whole[4:]))


def test_the_loss_is_zero_for_the_true_velocity():
    """Rectified flow: x = (1 - sigma) x0 + sigma eps moves with eps - x0."""
    torch.manual_seed(0)
    x0, noise, sigma = torch.randn(2, 16, 2, 4, 4), torch.randn(2, 16, 2, 4, 4), torch.tensor([0.3, 0.8])
    batch = flow_matching.LatentBatch(x0, Conditioning(torch.zeros(2, 20, 2, 4, 4), torch.zeros(2, 3, 24), None))

    def oracle(x, sigma_BT, text, **_):
        torch.testing.assert_close(x[:, :16], (1 - sigma.view(-1, 1, 1, 1, 1)) * x0 + sigma.view(-1, 1, 1, 1, 1) * noise)
        return noise - x0

    assert flow_matching.loss(oracle, batch, sigma, noise).tolist() == [0, 0]


def test_a_run_whose_spec_has_older_names_of_settings_resumes(trainer, tmp_path):
    trainer().run(steps=1)
    path = tmp_path / "run" / "step-00000001" / "state.json"
    text = path.read_text()
    for new, old in (("max_origin_distance", "origin_way"), ("camera_dropout", "camera_none_share"), ("dropout", "none_share")):
        assert f'"{new}"' in text
        text = text.replace(f'"{new}"', f'"{old}"')
    path.write_text(text)
    assert trainer().step == 1
