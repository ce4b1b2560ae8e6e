"""What a world is put into: refusals, and blocks that compute the same when wrapped."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402

from model.backbone.dit import Expert  # noqa: E402
from model.config import tiny  # noqa: E402
from model.parallel import blocks, context, ranks  # noqa: E402
from model.parallel.layout import Layout, seated  # noqa: E402
from model.world import ControlledExpert  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def group():
    ranks.start()
    yield
    ranks.stop()


def gradients(expert):
    torch.manual_seed(2)
    x, text = torch.randn(1, 36, 2, 4, 4), torch.randn(1, 3, tiny().text_dim)
    expert(x, torch.full((1, 2), 500.0), text).square().mean().backward()
    return {name: p.grad for name, p in expert.named_parameters()}


# aot_eager traces blocks as the compiler does, without a minute of C++.
WRAPPINGS = {
    "recomputed": blocks.recompute,
    "compiled": lambda e: blocks.compiled(blocks.recompute(e), backend="aot_eager"),
    "shared": lambda e: context.share(e, init_device_mesh("cpu", (1,))),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's tracer looks at it itself
@pytest.mark.parametrize("put", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_wrapped_expert_has_the_same_names_and_gradients(put):
    torch.manual_seed(1)
    plain = Expert(tiny())
    wrapped = Expert(tiny())
    wrapped.load_state_dict(plain.state_dict())
    expected, found = gradients(plain), gradients(put(wrapped))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_ranks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="1 ranks do not divide into groups of 2"):
        seated(Layout(context=2), torch.device("cpu"))
    with pytest.raises(ValueError, match="at least 1 rank, not 0"):
        Layout(context=0)
    with pytest.raises(ValueError, match="heads that divide among them, not 3"):
        context.share(Expert(replace(tiny(), num_attention_heads=3)), Two())


class Two:
    """A mesh of two, as far as it is asked."""

    def size(self):
        return 2


def test_one_rank_reads_everything():
    seat = seated(Layout(recompute=True), torch.device("cpu"))
    seat.put(ControlledExpert(Expert(tiny())), torch.float32)
    assert (seat.number, seat.of) == (0, 1)
