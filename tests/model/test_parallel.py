"""Two ranks train as one: sharded weights, shared batches, and checkpoints that another number of ranks resumes from."""

from pathlib import Path

import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

from ranks import ranks_of  # noqa: E402

from model.backbone import load_weights  # noqa: E402
from model.backbone.dit import Expert  # noqa: E402
from model.config import tiny  # noqa: E402

PROGRAM = Path(__file__).with_name("ranks_run.py")


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    shards.put_index(folder, "000000", shards.put_tar(folder, "000000", [made.clip("a", i, 30 * i, 30) for i in range(4)]))
    return folder


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with ranks_of(PROGRAM, tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="module")
def alone(out, tmp_path_factory, ranks):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return ranks(1).do(out, folder, 6, "train"), torch.load(f"{folder}-weights.pt")


def same(found, expected):
    assert [expert for expert, *_ in found] == [expert for expert, *_ in expected]
    for (_, *ours), (_, *theirs) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("layout", ["train", "context"])
def test_two_ranks_train_as_one(out, alone, ranks, tmp_path, layout):
    found = ranks(2).do(out, tmp_path / "two", 6, layout)
    same(found, alone[0])
    weights = torch.load(f"{tmp_path / 'two'}-weights.pt")
    assert weights.keys() == alone[1].keys()
    # Adam divides by the gradient's size: where that is rounding, weights move by rounding.
    for name, weight in weights.items():
        assert (weight - alone[1][name]).norm() <= 5e-5 * alone[1][name].norm() + 1e-6, name


@pytest.mark.parametrize(
    "what",
    [
        "forced",
        "distil in context",
        *(pytest.param(what, marks=pytest.mark.exhaustive) for what in ("distil", "forced in context")),
    ],
)
def test_two_ranks_distil_as_one(out, ranks, tmp_path, what):
    """Rollouts, scores and critic: sharded by FSDP2, and with pages of keys that context parallel divides by heads."""
    expected = ranks(1).do(out, tmp_path / "one", 4, what.split()[0])
    found = ranks(2).do(out, tmp_path / "two", 4, what)
    same(found, expected)
    assert all(gradient > 0 for _, _, _, gradient in found)
    ours, theirs = (torch.load(f"{tmp_path / name}-weights.pt") for name in ("two", "one"))
    # Losses and gradients agree to 1e-5. Adam moves a weight whose gradient is rounding by its full rate either way.
    for name, weight in ours.items():
        assert (weight - theirs[name]).norm() <= 5e-4 * theirs[name].norm() + 1e-6, name


def test_a_run_resumes_with_another_number_of_ranks(out, alone, ranks, tmp_path):
    before = ranks(2).do(out, tmp_path / "run", 3, "train")
    after = ranks(1).do(out, tmp_path / "run", 3, "train")
    same(before + after, alone[0])


@pytest.mark.parametrize("count", [1, 2])
def test_an_expert_on_the_meta_device_is_read_by_each_rank_in_part(ranks, tmp_path, count):
    torch.manual_seed(3)
    expert = Expert(tiny())
    load_weights.save(expert, str(tmp_path / "w"))
    ranks(count).do(tmp_path / "w", tmp_path / "x", 0, "load")
    found = torch.load(f"{tmp_path / 'x'}-weights.pt")
    assert found.keys() == dict(expert.named_parameters()).keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in expert.named_parameters())


def test_blocks_in_bfloat16_train_about_as_well(out, alone, ranks, tmp_path):
    found = ranks(2).do(out, tmp_path / "half", 3, "bfloat16")
    for (expert, loss, _), (theirs, exact, _) in zip(found, alone[0], strict=False):
        assert expert == theirs
        assert loss == pytest.approx(exact, rel=0.02)


def test_ranks_that_choose_different_experts_are_caught(out, ranks, tmp_path):
    with pytest.raises(
        AssertionError, match=r"ranks disagree on the expert of a step: \['expert of rank 0', 'expert of rank 1'\]"
    ):
        ranks(2).do(out, tmp_path / "x", 1, "disagree")
