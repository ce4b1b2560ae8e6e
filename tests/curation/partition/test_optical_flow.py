import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation import model_files
from curation.errors import Unavailable
from curation.partition import optical_flow
from curation.partition.optical_flow import (
    CELL_PX,
    DisFlow,
    FlowSettings,
    FramePair,
    RaftFlow,
    camera_motion,
    cell_means,
    load_flow,
    torchvision_keys,
)
from pipelines import recipes

SHARED = Path(os.environ.get("GAMECRAFT_SHARED", Path(__file__).parents[4] / "shared"))
OFFICIAL = SHARED / "weights" / "raft-small" / "raft-small.pth"


def texture(height=240, width=320):
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def moved(frame, right, down):
    return cv2.warpAffine(frame, np.float32([[1, 0, right], [0, 1, down]]), frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


def inner(field):
    return field[40:-40, 40:-40].reshape(-1, 2)


def test_dis_finds_a_known_shift():
    (flow,) = DisFlow()([FramePair(texture(), moved(texture(), 4, -3))])
    assert np.median(inner(flow), axis=0) == pytest.approx([4, -3], abs=0.3)


@pytest.mark.footage
@pytest.mark.skipif(not OFFICIAL.is_file(), reason=f"no official RAFT-small weights at {OFFICIAL}")
@pytest.mark.parametrize("size", [(240, 320), (181, 322)])
def test_raft_with_official_weights_finds_a_known_shift(size):
    pytest.importorskip("torch", reason="the raft extra is not installed")
    (flow,) = load_flow(FlowSettings("raft", weights=str(OFFICIAL)))([FramePair(texture(*size), moved(texture(*size), 6, -3))])
    assert flow.shape == (*size, 2)
    assert np.median(inner(flow), axis=0) == pytest.approx([6, -3], abs=0.3)


def test_official_names_become_torchvisions(tmp_path):
    torch = pytest.importorskip("torch", reason="the raft extra is not installed")
    models = pytest.importorskip("torchvision.models.optical_flow")
    state = models.raft_small(weights=None).state_dict()
    back = {_official(name): value for name, value in state.items()}
    assert len(back) == len(state)
    again = torchvision_keys(back)
    assert list(again) == list(state)
    assert torchvision_keys(state) == state
    torch.save(back, tmp_path / "raft.pth")
    raft = load_flow(FlowSettings("raft", weights=str(tmp_path / "raft.pth"), raft_updates=1))
    assert raft([FramePair(texture(), texture())])[0].shape == (240, 320, 2)
    assert (raft.name, raft.batch) == ("raft", 1)
    with pytest.raises(ValueError, match=r"partition\.flow\.weights: is no checkpoint of RAFT-large"):
        load_flow(FlowSettings("raft", "large", str(tmp_path / "raft.pth")))


def _official(name):
    import re

    name = re.sub(r"convnormrelu(\d)\.0\.", r"conv\1.", name).replace("convnormrelu.0.", "conv1.")
    name = name.replace("feature_encoder.conv.", "fnet.conv2.").replace("context_encoder.conv.", "cnet.conv2.")
    name = name.replace("feature_encoder.", "fnet.").replace("context_encoder.", "cnet.")
    name = name.replace("motion_encoder.convcorr1.0", "encoder.convc1").replace("motion_encoder.conv.0", "encoder.conv")
    name = re.sub(r"motion_encoder\.convflow(\d)\.0", r"encoder.convf\1", name)
    return "module." + name.replace("recurrent_block.convgru1", "gru")


def pairs(count):
    return [FramePair(texture(136, 136), moved(texture(136, 136), right, 1)) for right in range(count)]


@pytest.fixture
def networks():
    pytest.importorskip("torch", reason="the raft extra is not installed")
    return pytest.importorskip("torchvision.models.optical_flow")


@pytest.mark.parametrize(("size", "name"), [("small", "raft"), ("large", "raft-large")])
def test_a_batch_gives_each_pair_its_own_flow(networks, monkeypatch, size, name):
    raft = RaftFlow(getattr(networks, f"raft_{size}")(weights=None).state_dict(), 2, size, device="cpu")
    assert raft.name == name
    alone = raft(pairs(5))
    monkeypatch.setattr(raft, "batch", 3)  # as on a GPU: the second batch is filled up with its last pair
    calls = []
    raft._model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    together = raft(pairs(5))
    assert [tuple(shape) for shape in calls] == [(3, 3, 136, 136)] * 2
    assert len(together) == 5
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("size", ["small", "large"])
def test_half_precision_gives_float32_flow_near_the_exact_one(networks, monkeypatch, size):
    """The dtypes of autocast, in bfloat16 on a processor. float16 on a GPU was not run."""
    import torch

    torch.manual_seed(0)
    raft = RaftFlow(getattr(networks, f"raft_{size}")(weights=None).state_dict(), 2, size, device="cpu")
    (exact,) = raft(pairs(1))
    monkeypatch.setattr(raft, "_precision", lambda: torch.autocast("cpu", torch.bfloat16))
    (half,) = raft(pairs(1))
    assert half.dtype == np.float32
    assert np.abs(half - exact).mean() < 0.1 * max(1.0, np.abs(exact).mean())


def test_auto_without_a_gpu_is_dis(monkeypatch):
    monkeypatch.setattr(optical_flow, "_has_cuda", lambda: False)
    assert load_flow(FlowSettings(backend="auto")).name == "dis"


def test_auto_with_a_gpu_is_raft_of_the_size_in_the_recipe(networks, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(optical_flow, "_has_cuda", lambda: True)
    torch.save(networks.raft_large(weights=None).state_dict(), tmp_path / "large.pth")
    assert load_flow(FlowSettings(raft="large", weights=str(tmp_path / "large.pth"))).name == "raft-large"


def test_auto_with_a_gpu_and_no_weights_is_dis_with_a_warning(networks, no_hub, monkeypatch, caplog):
    monkeypatch.setattr(optical_flow, "_has_cuda", lambda: True)
    assert load_flow(FlowSettings(backend="auto")).name == "dis"
    assert "optical flow is DIS on this machine, though it has a GPU: RAFT-small: not on this machine" in caplog.text
    with pytest.raises(Unavailable, match=r"no file at nowhere\.pth"):
        load_flow(FlowSettings(backend="auto", weights="nowhere.pth"))


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch", reason="the raft extra is not installed")
    monkeypatch.setenv("GAMECRAFT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def unreachable(url, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)


@pytest.mark.parametrize(("size", "file"), [("small", "raft_small_C_T_V2"), ("large", "raft_large_C_T_SKHT_V2")])
def test_raft_without_weights_names_the_three_ways(no_hub, size, file):
    ways = rf"(?s)RAFT-{size}.*path in the recipe.*GAMECRAFT_WEIGHTS/raft-{size}.*https://\S*{file}"
    with pytest.raises(Unavailable, match=ways):
        load_flow(FlowSettings("raft", size))


def test_torchvision_downloads_its_weights_by_name(networks, monkeypatch, tmp_path):
    import torch

    downloaded = []

    def download(url, target, hash_prefix=None, progress=True):
        downloaded.append((url.rpartition("/")[2], hash_prefix))
        torch.save(networks.raft_large(weights=None).state_dict(), target)

    monkeypatch.delenv("GAMECRAFT_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert load_flow(FlowSettings("raft", "large", "C_T_SKHT_K_V2", raft_updates=1)).name == "raft-large"
    assert downloaded == [("raft_large_C_T_SKHT_K_V2-b5c70766.pth", "b5c70766")]
    load_flow(FlowSettings("raft", "large"))
    assert [name for name, _ in downloaded[1:]] == [model_files.RAFT_LARGE.hub_file]


def test_files_of_the_default_weights_are_torchvisions(networks):
    for size, files in (("Small", model_files.RAFT_SMALL), ("Large", model_files.RAFT_LARGE)):
        assert getattr(networks, f"Raft_{size}_Weights").DEFAULT.url == files.hub_url
        assert files.hub_url.endswith(files.hub_file)


def test_the_size_changes_no_digest_unless_it_is_named():
    plain = recipes.laptop()
    partition = plain.partition
    large = replace(plain, partition=replace(partition, flow=FlowSettings(raft="large")))
    assert "raft" not in recipes.settings_of(plain)["partition"]["flow"]
    assert plain.digest("partition") != large.digest("partition")
    assert plain.digest("partition") == replace(plain, partition=replace(partition, gpus=0.25)).digest("partition")


def test_weights_are_found_in_one_order(monkeypatch, tmp_path):
    hub = tmp_path / "hub" / "checkpoints" / model_files.RAFT_SMALL.hub_file
    own = tmp_path / "own" / model_files.RAFT_SMALL.file
    for file in (hub, own):
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("GAMECRAFT_WEIGHTS", str(tmp_path / "own"))
    assert model_files.local_weights(model_files.RAFT_SMALL, str(hub)) == hub
    assert model_files.local_weights(model_files.RAFT_SMALL) == own
    own.unlink()
    assert model_files.local_weights(model_files.RAFT_SMALL) == hub
    with pytest.raises(Unavailable, match="no file at"):
        model_files.local_weights(model_files.RAFT_SMALL, str(tmp_path / "nowhere.pth"))


def test_cells_are_means():
    field = np.arange(240 * 320 * 2, dtype=np.float32).reshape(240, 320, 2)
    cells = cell_means(field)
    assert cells.shape == (12, 16, 2)
    assert cells[2, 3] == pytest.approx(field[40:60, 60:80].reshape(-1, 2).mean(0), rel=1e-5)
    assert cell_means(np.ones((10, 12, 2), np.float32)).shape == (1, 1, 2)


def synthetic(u0=0.0, spread=0.0, rows=12, columns=16):
    """Cells of a pan u0 px/frame plus an expansion of `spread` px at half a width from the middle."""
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    u = u0 + spread * (x / columns * 2 - 1)
    return np.stack([u, spread * (y - rows / 2) / columns * 2], -1)[None].astype(np.float16)


def test_the_camera_is_fitted_past_a_moving_object_and_a_hud():
    cells, weight = synthetic(u0=-5.0), np.ones((12, 16))
    cells[0, 4:7, 5:8] = (9, 9)
    cells[0, 10:] = 0
    weight[10:] = 0
    motion = camera_motion(cells, weight)
    assert motion.affine[0, 0, 0] == pytest.approx(-5, abs=0.1)
    assert motion.camera[0] == pytest.approx(5, abs=0.1)
    assert motion.object[0] == pytest.approx(9 * np.hypot(14, 9) / 160, rel=0.05)


def test_rates_tell_turning_from_walking():
    turn, look, walk, strafe = camera_motion(synthetic(u0=-5.0), np.ones((12, 16))).rates()[0]
    assert (turn, look, walk, strafe) == (pytest.approx(5, abs=0.05), *[pytest.approx(0, abs=0.05)] * 3)
    turn, look, walk, strafe = camera_motion(synthetic(spread=4.0), np.ones((12, 16))).rates()[0]
    assert walk == pytest.approx(4, abs=0.05)
    assert abs(turn) < 0.2


def test_no_pairs_and_no_open_cell_are_no_error():
    assert camera_motion(np.zeros((0, 12, 16, 2), np.float16), np.ones((12, 16))).rates().shape == (0, 4)
    covered = camera_motion(synthetic(u0=-5.0), np.zeros((12, 16)))
    assert covered.rates()[0, 0] == pytest.approx(5, abs=0.1)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="backend must be auto, raft or dis, not 'farneback'"):
        FlowSettings(backend="farneback")
    with pytest.raises(ValueError, match="raft must be small or large, not 'huge'"):
        FlowSettings(raft="huge")
    assert CELL_PX == 20
