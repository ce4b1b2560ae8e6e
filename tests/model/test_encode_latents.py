"""Latents encoded before training: equal to those encoded during it, each once, extended by new data, errors stored."""

import json
from dataclasses import replace

import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

import tiny_world  # noqa: E402

from model import encode_latents  # noqa: E402
from model.data import latents  # noqa: E402
from model.data.loader import Batches, DataSettings, Windows, read_sample  # noqa: E402
from model.recipes import BUILT_IN, ModelSpec, TrainRecipe  # noqa: E402
from model.training import flow_matching  # noqa: E402
from model.training.frame_codec import fingerprint  # noqa: E402
from model.training.settings import TrainPhase, TrainSettings  # noqa: E402


def put(folder, shard, samples):
    shards.put_index(folder, shard, shards.put_tar(folder, shard, samples))


@pytest.fixture(scope="module")
def codec():
    return tiny_world.codec()


@pytest.fixture(scope="module")
def recipe(codec, tmp_path_factory):
    """A recipe with the part of a weights folder that encoding reads."""
    weights = tmp_path_factory.mktemp("weights")
    codec.vae.save_pretrained(weights / "vae")
    settings = TrainSettings(curriculum=(TrainPhase(5, 1), TrainPhase(9, 1)))
    data = replace(tiny_world.DATA, camera_dropout=0.0)
    return TrainRecipe(model=ModelSpec(weights=str(weights)), data=data, train=settings)


@pytest.fixture
def out(made, tmp_path):
    put(str(tmp_path / "out"), "000000", [made.clip("a", i, 30 * i, 30) for i in range(2)])
    return str(tmp_path / "out")


def test_a_run_on_latents_sees_what_it_would_have_encoded(recipe, out, codec, tmp_path):
    folder = str(tmp_path / "latents")
    assert encode_latents.encode(recipe, [out], folder, log=lambda message: None) == 6  # two clips of ten frames: 2 x 2 + 2 x 1
    settings = replace(recipe.data, frames=5, latents=folder)
    batch = next(iter(Batches(Windows([out], settings), 2, workers=0)))
    assert "video" not in batch
    encoded = flow_matching.encode_batch(batch, codec, tiny_world.Waves(), torch.device("cpu"))
    plain = Windows([out], replace(settings, latents=""))
    for i, key in enumerate(batch["key"]):
        (window,) = (w for w in plain.windows if w.key == key)
        expected = encode_latents.encode_window(window, settings, codec)
        torch.testing.assert_close(encoded.x0[i], expected.latents, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(encoded.conditioning.image[i], expected.image, rtol=2e-3, atol=2e-3)
        middle = window._replace(start_s=window.start_s + window.slack_s / 2, slack_s=0.0)
        torch.testing.assert_close(batch["pose"][i], read_sample(middle, replace(settings, latents=""), 0)["pose"])
    assert encoded.conditioning.maps is not None


def test_what_is_there_is_not_made_again_and_more_data_adds(recipe, out, made, tmp_path):
    folder = str(tmp_path / "latents")
    encode_latents.encode(recipe, [out], folder, log=lambda message: None)
    assert encode_latents.encode(recipe, [out], folder, log=lambda message: None) == 0
    before = set(shards.list_committed(folder))
    put(out, "000001", [made.clip("b", 0, 0, 30)])
    with pytest.raises(ValueError, match=r"2 of 6 windows of 5 frames are not in .*`gamecraft encode`"):
        Windows([out], replace(recipe.data, latents=folder))
    assert encode_latents.encode(recipe, [out], folder, log=lambda message: None) == 3
    assert before < set(shards.list_committed(folder))
    assert len(Windows([out], replace(recipe.data, latents=folder))) == 6


def test_a_window_that_cannot_be_read_is_put_down_and_left_out(recipe, made, tmp_path):
    out, folder = str(tmp_path / "out"), str(tmp_path / "latents")
    broken = made.clip("b", 0, 0, 30)
    put(out, "000000", [made.clip("a", 0, 0, 30), replace(broken, members={**broken.members, "mp4": b"no video"})])
    encode_latents.encode(recipe, [out], folder, log=lambda message: None)
    assert [w.clips[0].video_id for w in Windows([out], replace(recipe.data, latents=folder)).windows] == ["a", "a"]
    samples = [s for shard in shards.list_committed(folder) for s in shards.read_samples(folder, shard)]
    assert {s.meta["error"] for s in samples if s.meta} == {
        "ValueError: cannot be decoded: Invalid data found when processing input"
    }
    assert sum(location is None for location in latents.locations(folder).values()) == 3


def test_a_codec_of_the_same_settings_and_other_weights_is_another_codec(recipe, codec, tmp_path):
    torch.manual_seed(7)
    tiny_world.VideoCodec(type(codec.vae).from_config(codec.vae.config)).vae.save_pretrained(tmp_path / "vae")
    theirs = f"{recipe.model.weights}/vae"
    assert fingerprint(str(tmp_path / "vae")) != fingerprint(theirs) == fingerprint(theirs)


def test_latents_of_another_size_and_recipes_without_a_codec_are_refused(recipe, out, tmp_path):
    folder = str(tmp_path / "latents")
    encode_latents.encode(recipe, [out], folder, log=lambda message: None)
    other = replace(recipe, data=replace(recipe.data, size=(48, 32)))
    with pytest.raises(ValueError, match=r"size was \[32, 32\], now \[48, 32\]; use another folder"):
        encode_latents.encode(other, [out], folder)
    with pytest.raises(ValueError, match=r"fps was 10.0, now 5.0; use another folder"):
        encode_latents.check_encoded_with(folder, replace(recipe.data, fps=5.0), fingerprint(f"{recipe.model.weights}/vae"))
    with pytest.raises(ValueError, match=r'codec was ".*", now "another"; use another folder'):
        encode_latents.check_encoded_with(folder, recipe.data, "another")
    with pytest.raises(ValueError, match=r"no encoded.json there; data.latents must be a folder of `gamecraft encode`"):
        encode_latents.check_encoded_with(str(tmp_path / "none"), recipe.data, "another")
    with pytest.raises(ValueError, match=r"needs model.weights"):
        encode_latents.encode(BUILT_IN["tiny"](), [out], folder)
    with pytest.raises(ValueError, match=r"nowhere: no such folder; model.weights must be"):
        encode_latents.encode(replace(recipe, model=ModelSpec(weights="nowhere")), [out], folder)
    for name in ("mirror_share", "reverse_share"):
        with pytest.raises(ValueError, match=rf"stored latents cannot be changed: {name} must be 0"):
            DataSettings(latents=folder, **{name: 0.5})
    with pytest.raises(ValueError, match=r"data.latents needs model.weights"):
        replace(recipe, model=ModelSpec(), data=replace(recipe.data, latents=folder))
    assert json.loads((tmp_path / "latents" / "encoded.json").read_text())["size"] == [32, 32]
