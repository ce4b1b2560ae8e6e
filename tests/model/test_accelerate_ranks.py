"""Several ranks share a session, decode a picture in parts, and gather only the expert that runs."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

from ranks import ranks_of  # noqa: E402
from tiny_play import save_world_file  # noqa: E402

PROGRAM = Path(__file__).with_name("play_ranks_run.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with ranks_of(PROGRAM, tmp_path_factory) as started:
        yield started


@pytest.mark.parametrize(
    "switches", ["", "cache=fp8", pytest.param("weights=fp8 fp8_backend=own", marks=pytest.mark.exhaustive)]
)
def test_two_ranks_play_as_one_on_pages_of_half_the_heads(ranks, tmp_path, switches):
    heads, _ = ranks(1).do(tmp_path / "one", f"play {switches}")
    half, _ = ranks(2).do(tmp_path / "two", f"play {switches}")
    assert (heads, half) == (2, 1)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert one.std() > 0.1
    # Heads of an fp8 cache have their own scales, so that it is divided exactly; sums of fp8 products are in another order.
    torch.testing.assert_close(two, one, rtol=1e-4, atol=5e-3 if "fp8" in switches else 1e-5)


def test_two_ranks_share_the_sessions_of_an_engine_and_only_one_is_asked(ranks, tmp_path):
    save_world_file(str(tmp_path / "world"))
    for count, name in ((1, "one"), (2, "two")):
        ranks(count).do(tmp_path / f"{name}.npy", f"engine {tmp_path / 'world'}")
    one, two = (np.load(tmp_path / f"{name}.npy").astype(int) for name in ("one", "two"))
    assert one.shape == two.shape == (1 + 7 * 3, 16, 24, 3)
    assert one.std() > 5
    assert np.abs(one - two).max() <= 1


def test_two_ranks_compile_as_few_graphs_as_one(ranks, tmp_path):
    _, alone = ranks(1).do(tmp_path / "one", "play compile")
    _, shared = ranks(2).do(tmp_path / "two", "play compile")
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert alone == 2
    assert shared == 2


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (1, 2), (1, 3), (2, 2)])
def test_a_picture_decoded_in_parts_is_the_whole(ranks, tmp_path, count, parts):
    difference, deviation = ranks(count).do(tmp_path / "x", f"decode {parts}")
    assert deviation > 0.05
    assert difference < 1e-5


def test_parts_and_ranks_must_be_as_many(ranks, tmp_path):
    with pytest.raises(AssertionError, match="3 parts need as many ranks, not 2"):
        ranks(2).do(tmp_path / "x", "decode 3")


def test_the_expert_that_does_not_run_is_not_gathered(ranks, tmp_path):
    """Two experts of 14 billion weights: to gather the other one would double what moves between the ranks."""
    found = ranks(2).do(tmp_path / "x", "gathered")
    assert found["gathered"]["high"] == 0
    assert found["gathered"]["low"] >= 2 * 2, "each block, forwards and backwards"
    assert found["gradients"]["high"] == 0 < found["gradients"]["low"]
