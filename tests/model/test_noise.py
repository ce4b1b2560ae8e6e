"""One rule for which expert a noise level belongs to, used everywhere."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.noise import NoiseSpec  # noqa: E402

NOISE = NoiseSpec()


def test_the_boundary_is_in_shifted_time():
    assert pytest.approx(1 - 0.9 / (5 - 4 * 0.9), abs=1e-12) == NOISE.high_share  # 0.357, not 0.1
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float((NOISE.to_sigma(u) >= 0.9).double().mean()) == pytest.approx(NOISE.high_share, abs=0.005)
    torch.testing.assert_close(NOISE.from_sigma(NOISE.to_sigma(u)), u)


@pytest.mark.parametrize("noise", [NOISE, NoiseSpec(3.0, 0.875), NoiseSpec(12.0, 0.875), NoiseSpec(1.0, 0.5)])
def test_every_draw_belongs_to_the_expert_it_was_drawn_for(noise):
    generator = torch.Generator().manual_seed(1)
    for expert in ("high", "low"):
        sigma = noise.draw_sigma(expert, 20_000, generator)
        assert {noise.expert_for(one) for one in sigma.split(1)[:500]} == {expert}
        assert noise.expert_for(sigma) == expert
        assert 0 <= float(sigma.min()) <= float(sigma.max()) <= 1


def test_drawing_an_expert_first_leaves_the_shifted_uniform_as_it_is():
    generator = torch.Generator().manual_seed(2)
    names = [NOISE.draw_expert(generator) for _ in range(4000)]
    assert names.count("high") / 4000 == pytest.approx(NOISE.high_share, abs=0.03)
    pooled = torch.cat([NOISE.draw_sigma(name, 5, generator) for name in names])
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    torch.testing.assert_close(torch.quantile(pooled.double(), quantiles), NOISE.to_sigma(quantiles), atol=0.02, rtol=0)


def test_a_pass_for_both_experts_is_refused():
    with pytest.raises(ValueError, match=r"lie on both sides of 0\.9"):
        NOISE.expert_for(torch.tensor([0.95, 0.5]))
    with pytest.raises(ValueError, match="there are none"):
        NOISE.expert_for(torch.tensor([]))
