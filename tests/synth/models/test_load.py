"""Models with one method each: pipelines of the real classes, and everything that can go wrong."""

import time
from dataclasses import replace

import numpy as np
import pytest

from synth.models import load
from synth.models.base import ModelFailed, ModelSettings, PromptPair
from synth.models.load import Models, as_uint8

SETTINGS = ModelSettings(width=64, height=48, frames=9, image_steps=2, video_steps=2, dtype="float32", device="cpu")
SNOW = PromptPair("make it snow", "a door")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def models(pipelines):
    return Models("diffusers", replace(SETTINGS, **pipelines.models))


@pytest.fixture
def first():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def test_painting_depends_on_seed_and_words_alone(models):
    picture = models.paint(SNOW, 1)
    assert picture.shape == (48, 64, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, models.paint(SNOW, 1))
    assert not np.array_equal(picture, models.paint(SNOW, 2))


def test_editing_depends_on_the_picture(models, first):
    edited = models.edit(first, SNOW, 1)
    assert edited.shape == first.shape
    assert np.array_equal(edited, models.edit(first, SNOW, 1))
    assert not np.array_equal(edited, models.edit(255 - first, SNOW, 1))


def test_a_video_from_its_first_frame_and_to_its_last(models, first):
    free, bound = models.animate(first, None, SNOW, 1), models.animate(first, 255 - first, SNOW, 1)
    assert free.shape == bound.shape == (9, 48, 64, 3)
    assert np.array_equal(free, models.animate(first, None, SNOW, 1))
    assert not np.array_equal(free, bound)


def test_a_pipeline_of_the_wrong_kind_says_what_to_use(pipelines, first):
    with pytest.raises(ValueError, match="edits no picture: use an instruction editor"):
        Models("diffusers", replace(SETTINGS, editor=pipelines.painter)).edit(first, SNOW, 1)
    with pytest.raises(ValueError, match=r"takes no last frame: set synth\.models\.between"):
        Models("diffusers", replace(SETTINGS, animator=pipelines.editor)).animate(first, first, SNOW, 1)
    with pytest.raises(ValueError, match=r"synth\.models\.painter is not set"):
        Models("diffusers", SETTINGS).paint(SNOW, 1)


def test_a_model_that_is_not_there_is_no_attempts_fault(first):
    with pytest.raises(OSError, match="no-such/model: not on this machine"):
        Models("diffusers", replace(SETTINGS, animator="no-such/model")).animate(first, None, SNOW, 1)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (np.zeros((9, 48, 32, 3), np.uint8), "m gave 9 pictures of 32x48 instead of 9 pictures of 64x48"),
        (np.zeros((5, 48, 64, 3), np.uint8), "m gave 5 pictures of 64x48"),
        (np.zeros((9, 48)), r"m gave an array of shape \(9, 48\)"),
        (np.full((9, 48, 64, 3), np.nan), "m gave NaN or infinity in 27648 of 27648 pixels"),
        (np.zeros((9, 48, 64, 3), np.int64), "m gave int64 instead of uint8 or floats"),
    ],
)
def test_what_comes_back_is_checked(made, said):
    with pytest.raises(ModelFailed, match=said):
        as_uint8(made, (9, 48, 64, 3), "m")


def test_floats_are_pictures():
    assert as_uint8(np.full((9, 48, 64, 3), 0.5), (9, 48, 64, 3), "m").max() == 128


class FakeModel:
    """A model that returns the result of a given function."""

    def __init__(self, give):
        self._give = give

    def paint(self, prompts, seed):
        return self._give()


def test_a_model_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(load, "_load_pipeline", _Loads(FakeModel(lambda: time.sleep(5))))
    began = time.monotonic()
    with pytest.raises(ModelFailed, match=r"slow gave nothing within 0\.2 s"):
        Models("diffusers", replace(SETTINGS, painter="slow", timeout_s=0.2)).paint(SNOW, 1)
    assert time.monotonic() - began < 4
    assert load._load_pipeline.cleared


def test_a_painter_may_choose_a_size_of_the_same_shape_and_no_other(monkeypatch):
    models = Models("diffusers", replace(SETTINGS, painter="p"))
    monkeypatch.setattr(load, "_load_pipeline", _Loads(FakeModel(lambda: np.zeros((96, 128, 3)))))
    assert models.paint(SNOW, 1).shape == (48, 64, 3)
    monkeypatch.setattr(load, "_load_pipeline", _Loads(FakeModel(lambda: np.zeros((96, 96, 3)))))
    with pytest.raises(ModelFailed, match="p gave a picture of 96x96 instead of a picture of 64x48"):
        models.paint(SNOW, 1)


class _Loads:
    """Replaces the loader and its cache."""

    def __init__(self, model):
        self._model, self.cleared = model, False

    def __call__(self, name, settings):
        return self._model

    def cache_clear(self):
        self.cleared = True


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": 100}, "width must be a multiple of 16, not 100"),
        ({"frames": 80}, "frames must be 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"offload": "disk"}, "offload must be one of"),
    ],
)
def test_wrong_settings_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(SETTINGS, **changed)
