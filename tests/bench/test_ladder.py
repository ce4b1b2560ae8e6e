"""The ladder of play: rungs run on the smallest world, alone and on two ranks, and say why where they do not."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

from bench import ladder  # noqa: E402
from bench.shapes import SHAPES, random_world  # noqa: E402
from model.accelerate.spec import AccelerateSpec  # noqa: E402
from model.training import throughput  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def playable():
    return ladder.random_playable("tiny", CPU)


def rows(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_rungs_are_measured_and_those_that_cannot_run_say_why(playable):
    rungs = [rung for rung in ladder.RUNGS if rung.name in ("eager", "+ fp8", "+ cuDNN's attention", "+ overlapped decode")]
    header, _, eager, fp8, overlapped, cudnn = rows(ladder.table(playable, lambda: math.inf, rungs=rungs, seconds=0.1))
    assert header[1:3] == ["core FPS", "client FPS"]
    assert header[-2:] == ["kept", "public"]
    assert eager[-2:] == ["yes", "1 H200: 4.0 core, 3.7 client"]
    assert all(float(row[1]) > 0 < float(row[2]) for row in (eager, fp8, overlapped))
    assert "fp8: 20 layers by our own code" in fp8
    assert cudnn == ["+ cuDNN's attention", "attention=cudnn needs a GPU"]


@pytest.mark.exhaustive
def test_two_ranks_measure_a_rung(playable):
    measured = ladder.measure_on_ranks(playable, AccelerateSpec(backend="eager", sequence_parallel=2), 0.1, 250.0)
    assert measured.core_fps > measured.client_fps > 0


@pytest.mark.exhaustive
def test_ranks_that_fail_say_why(playable):
    spec = AccelerateSpec(backend="eager", sequence_parallel=2, attention="cudnn")
    with pytest.raises(RuntimeError, match="attention=cudnn needs a GPU"):
        ladder.measure_on_ranks(playable, spec, 0.1, 250.0)


def test_a_rung_needs_devices_and_heads_that_divide(playable):
    three, many = (ladder.Rung("+ SP", {}, ranks) for ranks in (3, 4096))
    assert ladder.cannot_run(three, playable) == "4 heads do not divide among 3 ranks"
    assert ladder.cannot_run(ladder.RUNGS[0], playable) == ""
    wide = ladder.replace(playable, backbone=ladder.replace(playable.backbone, num_attention_heads=4096), grid=(128, 128))
    assert "needs 4096 cores, this machine has" in ladder.cannot_run(many, wide)


def test_without_time_nothing_is_begun(playable):
    expected = [[rung.name, ladder.cannot_run(rung, playable) or "no time left"] for rung in ladder.RUNGS]
    assert rows(ladder.table(playable, lambda: 5.0)) == expected


@pytest.mark.parametrize(("name", "billions"), [("1.3b", 1.4), ("5b", 5.0), ("14b", 28.6)])
def test_shapes_have_the_sizes_of_wan(name, billions):
    with torch.device("meta"):
        from bench.shapes import _expert

        weights = SHAPES[name].experts * sum(p.numel() for p in _expert(SHAPES[name].backbone).expert.parameters())
    assert weights / 1e9 == pytest.approx(billions, rel=0.06)


def test_random_weights_keep_the_size_of_what_passes_and_their_dtypes():
    world = random_world(SHAPES["tiny"], CPU, torch.bfloat16)
    dtypes = {name: p.dtype for name, p in world.high.named_parameters()}
    assert dtypes["expert.blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["camera.frame.weight"] == dtypes["expert.blocks.0.norm2.weight"] == torch.float32
    shape = SHAPES["tiny"]
    x = torch.randn(1, shape.backbone.in_channels, 3, *shape.grid)
    made = world.high(x, torch.full((1, 3), 0.5), torch.randn(1, 8, 32))
    assert 0.1 < float(made.float().std()) < 10
    same = random_world(SHAPES["tiny"], CPU, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(world.parameters(), same.parameters(), strict=True))


def test_the_operations_of_a_block_are_those_of_the_published_estimate(playable):
    """81.5 TFLOP a frame at 864x480 with nine latents of context; 832x480 has 1560 of its 1620 tokens a latent."""
    shape = SHAPES["14b"]
    text = torch.zeros(1, 512, 1)
    large = ladder.replace(playable, causal=shape.causal, backbone=shape.backbone, grid=shape.grid, text=text)
    assert ladder.flops(large) / 12 / 1e12 == pytest.approx(81.5 * 1560 / 1620, rel=0.06)
    assert throughput.count_tokens(shape.backbone, (1, *shape.grid)) == 1560
