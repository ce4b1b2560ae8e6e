"""The detector's own arithmetic and how it is fed; how well it reads play is for `bench/partition.py` and the last test."""

from importlib.resources import files

import numpy as np
import pytest

from curation.actions import learned
from curation.actions.learned import COLUMNS, KINDS, REGIMES, ROWS, inputs, predict, shipped_detector


def signals(pairs, rows=12, seed=0):
    rng = np.random.default_rng(seed)
    cells = rng.normal(0, 2, (pairs, rows, COLUMNS, 2)).astype(np.float16)
    return cells, rng.integers(0, 256, (pairs, rows, COLUMNS, 4), np.uint8)


def test_numpy_and_torch_agree():
    torch = pytest.importorskip("torch", reason="the network is trained with torch")
    from bench.shipped_weights.train_interactions import Net

    torch.manual_seed(0)
    net = Net().eval()
    weights = {name: value.numpy() for name, value in net.state_dict().items()}
    known = {"known.mean": np.zeros(48), "known.whiten": np.eye(48), "known.limit": np.ones(1)}
    ours = learned.Detector({**weights, **known})
    planes = inputs(*signals(50), fps=35.0)
    with torch.inference_mode():
        logits = net(torch.from_numpy(planes)[None])[0].numpy()
    prediction = ours.classify(np.arange(50) / 10, *ours.encode(planes))
    np.testing.assert_allclose(prediction.event_probability, 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-4)
    np.testing.assert_allclose(
        np.log(prediction.regime_probability[:, 1:] / prediction.regime_probability[:, :1]),
        logits[:, 2 : 1 + len(REGIMES)] - logits[:, 1:2],
        atol=1e-3,
    )
    np.testing.assert_allclose(prediction.kind_probability, 1 / (1 + np.exp(-logits[:, 1 + len(REGIMES) :])), rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 6, 9, 12, 28, 36])
def test_any_shape_of_picture_is_brought_to_the_networks_cells(rows):
    assert inputs(*signals(3, rows), fps=30.0).shape == (3, 6, ROWS, COLUMNS)


def test_speed_counts_by_the_second_not_by_the_frame():
    cells, change = signals(4)
    change[...] = 128
    change[..., 1:] = 0
    np.testing.assert_allclose(inputs(cells, change, 30.0), inputs(cells / 2, change, 60.0), atol=1e-3)


@pytest.mark.parametrize("rate_hz", [2.5, 5, 10, 12])
def test_ticks_are_a_tenth_of_a_second_whatever_the_rate_of_pairs(rate_hz):
    times = np.arange(0, 8, 1 / rate_hz)
    prediction = predict(times, *signals(len(times)), fps=30.0)
    np.testing.assert_allclose(np.diff(prediction.times_s), 0.1)
    assert prediction.times_s[0] == 0
    assert times[-1] - prediction.times_s[-1] < 0.1
    assert prediction.event_probability.shape == prediction.distance.shape == prediction.times_s.shape
    assert prediction.regime_probability.shape == (len(prediction.times_s), len(REGIMES))
    assert prediction.kind_probability.shape == (len(prediction.times_s), len(KINDS))


@pytest.mark.parametrize("pairs", [0, 1, 2])
def test_few_pairs_are_read_too(pairs):
    prediction = predict(np.arange(pairs) / 10, *signals(pairs), fps=30.0)
    assert len(prediction.event_probability) == pairs
    assert np.isfinite(prediction.event_probability).all()


def test_long_sources_are_read_in_parts_with_equal_results(monkeypatch):
    times = np.arange(130) / 10
    whole = predict(times, *signals(130), fps=30.0)
    monkeypatch.setattr(learned, "_TICKS_AT_ONCE", 50)
    parts = predict(times, *signals(130), fps=30.0)
    np.testing.assert_allclose(whole.event_probability, parts.event_probability, rtol=1e-3)


def test_noise_is_far_from_what_the_network_knows():
    times = np.arange(60) / 10
    assert np.median(predict(times, *signals(60), fps=30.0).distance) > 1


def test_the_weights_are_small_and_the_card_is_there():
    assert len((files("curation.actions") / "interactions.npz").read_bytes()) < 2_000_000
    assert shipped_detector()._w["head.weight"].shape == (1 + len(REGIMES) + len(KINDS), 64)
