import sys

import av
import numpy as np
import pytest

from curation.errors import Unavailable
from curation.quality.backends import load_iqa
from curation.quality.iqa import IqaSettings


def frames(count=1, blur=False):
    picture = np.random.default_rng(2).integers(0, 256, (24, 40, 3), np.uint8)
    picture = picture.repeat(8, 0).repeat(8, 1)
    if blur:
        picture = (picture // 64 * 64).astype(np.uint8)
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24") for _ in range(count)]


def test_a_machine_without_pyiqa_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(Unavailable, match=r"(?s)pyiqa cannot be imported.*uv pip install.*overrides-iqa.*embedded"):
        load_iqa(IqaSettings("pyiqa:musiq"))


def test_weights_that_are_nowhere_are_named_with_the_remedies(monkeypatch, tmp_path):
    pytest.importorskip("pyiqa", reason="the iqa extra is not installed", exc_type=ImportError)
    import torch

    monkeypatch.setenv("GAMECRAFT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def unreachable(url, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(Unavailable, match=r"(?s)pyiqa:musiq.*path in the recipe.*GAMECRAFT_WEIGHTS/pyiqa/musiq.*https://"):
        load_iqa(IqaSettings("pyiqa:musiq"))
    with pytest.raises(Unavailable, match=r"no file at nowhere\.pth"):
        load_iqa(IqaSettings("pyiqa:musiq", weights="nowhere.pth"))


@pytest.mark.parametrize("metric", ["nope", "ssim"])
def test_what_is_no_metric_without_reference_is_refused(metric):
    pytest.importorskip("pyiqa", reason="the iqa extra is not installed", exc_type=ImportError)
    with pytest.raises(ValueError, match=metric):
        load_iqa(IqaSettings(f"pyiqa:{metric}"))


def test_musiq_runs_with_random_weights():
    pytest.importorskip("pyiqa", reason="the iqa extra is not installed", exc_type=ImportError)
    from curation.quality.pyiqa_backend import PyiqaIqa

    rows = PyiqaIqa("musiq", pretrained=False)(frames(2))
    assert rows.shape == (2, 7)
    assert np.isfinite(rows[:, 0]).all()
    assert np.isnan(rows[:, 1:]).all()


@pytest.mark.footage
def test_niqe_with_its_real_parameters_likes_the_clean_picture_best(footage):
    pytest.importorskip("pyiqa", reason="the iqa extra is not installed", exc_type=ImportError)
    file = footage.parent / "weights" / "iqa-params" / "frames_modelparameters.mat"
    if not file.is_file():
        pytest.skip(f"no NIQE parameters at {file}")
    niqe = load_iqa(IqaSettings("pyiqa:niqe", weights=str(file)))
    with av.open(str(footage / "scene_cuts" / "bikes.mp4")) as container:
        clean = next(container.decode(video=0))
    rgb = clean.to_ndarray(format="rgb24").astype(float)
    noisy = np.clip(rgb + np.random.default_rng(0).normal(0, 40, rgb.shape), 0, 255).astype(np.uint8)
    good, bad = niqe([clean])[0, 0], niqe([av.VideoFrame.from_ndarray(noisy, "rgb24")])[0, 0]
    assert 0 <= bad < good <= 1
