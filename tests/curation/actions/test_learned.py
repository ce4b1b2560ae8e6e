"""The detector's own arithmetic and how it is fed; how well it reads play is for `bench/partition.py` and the last test."""

from importlib.resources import files
from types import SimpleNamespace

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
    first, second = Net().eval(), Net().eval()
    common = {name: value for name, value in first.state_dict().items() if name.startswith("space")}
    second.load_state_dict(common, strict=False)
    weights = {name: value.numpy() for name, value in common.items()}
    for k, net in enumerate((first, second)):
        weights |= {f"{k}/{name}": value.numpy() for name, value in net.state_dict().items() if name not in common}
    known = {"known.mean": np.zeros(48), "known.whiten": np.eye(48), "known.limit": np.ones(1)}
    ours = learned.Detector({**weights, **known})
    planes = learned.with_context(inputs(*signals(50), fps=35.0))
    with torch.inference_mode():
        logits = np.stack([net(torch.from_numpy(planes)[None])[0].numpy() for net in (first, second)])
    prediction = ours.classify(np.arange(50) / 10, *ours.encode(planes))
    event = 1 / (1 + np.exp(-logits[..., 0]))
    np.testing.assert_allclose(prediction.event_probability, event.mean(0), rtol=1e-4)
    np.testing.assert_allclose(prediction.spread, event.std(0), atol=1e-5)
    regimes = np.exp(logits[..., 1 : 1 + len(REGIMES)])
    np.testing.assert_allclose(prediction.regime_probability, (regimes / regimes.sum(-1, keepdims=True)).mean(0), rtol=1e-3)
    kinds = 1 / (1 + np.exp(-logits[..., 1 + len(REGIMES) :]))
    np.testing.assert_allclose(prediction.kind_probability, kinds.mean(0), rtol=1e-4)


def test_networks_have_equal_votes_and_equal_convolutions_run_once(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the network is trained with torch")
    from bench.shipped_weights.train_interactions import Net, export

    torch.manual_seed(0)
    nets = [Net().eval() for _ in range(3)]
    common = {name: value for name, value in nets[0].state_dict().items() if name.startswith("space")}
    nets[1].load_state_dict(common, strict=False)
    planes = learned.with_context(inputs(*signals(20), fps=30.0))
    export(nets, [SimpleNamespace(planes=np.repeat(planes, 10, 0))], tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz") as data:
        detector = learned.Detector(dict(data))
    runs, real = [], learned._convolve
    monkeypatch.setattr(learned, "_convolve", lambda *a: runs.append(1) or real(*a))
    event = detector.classify(np.arange(20) / 10, *detector.encode(planes)).event_probability
    assert len(detector) == 3
    assert len(runs) == 2
    with torch.inference_mode():
        logits = np.stack([net(torch.from_numpy(planes)[None])[0, :, 0].numpy() for net in nets])
    mean = np.pad((1 / (1 + np.exp(-logits))).mean(0), 1, mode="edge")
    np.testing.assert_allclose(event, (mean[:-2] + 2 * mean[1:-1] + mean[2:]) / 4, rtol=5e-3)


def test_weights_of_a_single_network_that_reads_six_planes_are_read_too():
    rng = np.random.default_rng(0)
    sizes = {"space0": (24, 6, 3, 3), "space1": (32, 24, 3, 3), "space2": (48, 32, 3, 3), "look": (64, 576)}
    sizes |= {f"time{layer}": (64, 64, 5) for layer in range(3)} | {"head": (20, 64)}
    weights = {f"{name}.weight": rng.normal(0, 0.05, size) for name, size in sizes.items()}
    weights |= {f"{name}.bias": np.zeros(size[0]) for name, size in sizes.items()}
    known = {"known.mean": np.zeros(48), "known.whiten": np.eye(48), "known.limit": np.ones(1)}
    detector = learned.Detector({**weights, **known})
    assert len(detector) == 1
    planes = learned.with_context(inputs(*signals(20), fps=30.0))
    prediction = detector.classify(np.arange(20) / 10, *detector.encode(planes))
    assert prediction.kind_probability.shape == (20, len(KINDS))
    assert (prediction.spread == 0).all()
    nearby = learned.Detector({**weights, **known, "nearby": np.array([0, 0, 1])})  # the next tick alone
    shifted = nearby.classify(np.arange(20) / 10, *nearby.encode(planes))
    np.testing.assert_allclose(shifted.event_probability[:-1], prediction.event_probability[1:], rtol=1e-5)
    assert shifted.event_probability[-1] == prediction.event_probability[-1]
    assert (shifted.spread == 0).all()


def test_a_view_that_turns_rolls_and_zooms_leaves_no_flow_and_what_moves_by_itself_does():
    y, x = np.meshgrid(np.linspace(-1, 1, ROWS), np.linspace(-1, 1, COLUMNS), indexing="ij")
    flow = np.stack([3 + 2 * x - y + 0.5 * x * y, 1 + x + 2 * y + 0.5 * x * x])[None].repeat(5, 0)
    planes = np.zeros((5, 6, ROWS, COLUMNS), np.float32)
    planes[:, :2] = np.arcsinh(flow)
    assert np.abs(learned.with_context(planes)[:, 6:8]).max() < 0.01
    flow[:, 0, 4:6, 7:9] += 4
    planes[:, :2] = np.arcsinh(flow)
    left = np.sinh(learned.with_context(planes)[:, 6])
    assert left[:, 4:6, 7:9].min() > 3
    left[:, 4:6, 7:9] = 0
    assert np.abs(left).max() < 0.3


def test_changes_count_against_what_is_usual_in_the_seconds_around():
    planes = np.zeros((200, 6, ROWS, COLUMNS), np.float32)
    planes[:, 4] = 2
    planes[100, 4, 3, 3] = 5
    context = learned.with_context(planes)[:, 9]
    assert context[100, 3, 3] == pytest.approx(3, abs=0.1)
    assert np.abs(context[100, 5:]).max() < 1e-5


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
    assert shipped_detector()._networks[0]._w["head.weight"].shape == (1 + len(REGIMES) + len(KINDS), 64)
