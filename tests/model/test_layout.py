"""Placement on many devices: refusals, and blocks that compute the same when wrapped."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402

from model.backbone.dit import Expert  # noqa: E402
from model.config import tiny  # noqa: E402
from model.parallel import context_parallel, dist, fsdp, recompute  # noqa: E402
from model.parallel.layout import ParallelLayout, place_rank  # noqa: E402
from model.world import ControlledExpert  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def group():
    dist.start()
    yield
    dist.stop()


def gradients(expert):
    torch.manual_seed(2)
    x, text = torch.randn(1, 36, 2, 4, 4), torch.randn(1, 3, tiny().text_dim)
    expert(x, torch.full((1, 2), 500.0), text).square().mean().backward()
    return {name: p.grad for name, p in expert.named_parameters()}


# aot_eager traces blocks as the compiler does, without a minute of C++.
WRAPPINGS = {
    "recomputed": recompute.recompute_blocks,
    "compiled": lambda e: recompute.compile_blocks(recompute.recompute_blocks(e), backend="aot_eager"),
    "shared": lambda e: context_parallel.parallelize(e, init_device_mesh("cpu", (1,))),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's tracer looks at it itself
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_wrapped_expert_has_the_same_names_and_gradients(wrap):
    torch.manual_seed(1)
    plain = Expert(tiny())
    wrapped = Expert(tiny())
    wrapped.load_state_dict(plain.state_dict())
    expected, found = gradients(plain), gradients(wrap(wrapped))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_ranks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="1 ranks do not divide into groups of 2"):
        place_rank(ParallelLayout(context=2), torch.device("cpu"))
    with pytest.raises(ValueError, match="at least 1 rank, not 0"):
        ParallelLayout(context=0)
    with pytest.raises(ValueError, match="heads that divide among them, not 3"):
        context_parallel.parallelize(Expert(replace(tiny(), num_attention_heads=3)), Two())


class Two:
    """The part of a mesh of two ranks that is used."""

    def size(self):
        return 2


def test_one_rank_reads_everything():
    placement = place_rank(ParallelLayout(recompute=True), torch.device("cpu"))
    placement.parallelize(ControlledExpert(Expert(tiny())), torch.float32)
    assert (placement.data_rank, placement.data_ranks) == (0, 1)


def test_the_norm_to_clip_by_takes_one_message(monkeypatch):
    """Of all sharded gradients together, and it is the norm of what one device would have."""
    torch.manual_seed(1)
    made = place_rank(ParallelLayout(), torch.device("cpu")).parallelize(ControlledExpert(Expert(tiny())), torch.float32)
    x, text = torch.randn(1, 36, 2, 4, 4), torch.randn(1, 3, tiny().text_dim)
    made(x, torch.full((1, 2), 0.5), text).square().mean().backward()
    trained = [p for p in made.parameters() if p.grad is not None]
    before = [(g.full_tensor() if isinstance(g, DTensor) else g).clone() for g in (p.grad for p in trained)]
    assert {isinstance(p.grad, DTensor) for p in trained} == {True, False}
    sent, send = [], torch.distributed.all_reduce
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda tensor, *more: sent.append(tensor.numel()) or send(tensor, *more)
    )
    with CommDebugMode() as counted:
        norm = fsdp.clip_gradients(trained, 1e-3)
    assert sent == [1]
    assert counted.get_total_counts() <= 1, "and none by the tensors themselves"
    expected = torch.cat([g.flatten() for g in before]).norm()
    torch.testing.assert_close(norm, expected)
    for parameter, gradient in zip(trained, before, strict=True):
        now = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        torch.testing.assert_close(now, gradient * 1e-3 / expected, rtol=1e-4, atol=1e-12)
