import numpy as np
import pytest

from curation.captions import embedding_cache


class Letters:
    """An encoder that counts letters, and remembers what it was given."""

    name = version = "letters"

    def __init__(self):
        self.given = []

    def __call__(self, texts):
        self.given += texts
        return np.array([[text.count("a"), text.count("b")] for text in texts], np.float32).reshape(-1, 2)


@pytest.fixture
def folder(tmp_path):
    embedding_cache.use_folder(str(tmp_path))
    return tmp_path


def forget():
    """As a new process: nothing in memory."""
    embedding_cache._recent.clear()


def test_no_text_is_embedded_twice(folder):
    encoder = Letters()
    first = embedding_cache.encode(encoder, ["a", "ab", "a"], "v")
    assert encoder.given == ["a", "ab"]
    forget()
    again = embedding_cache.encode(encoder, ["ab", "bb", "a"], "v")
    assert encoder.given == ["a", "ab", "bb"]
    np.testing.assert_array_equal(again, [[1, 1], [0, 2], [1, 0]])
    np.testing.assert_array_equal(first, [[1, 0], [1, 1], [1, 0]])
    assert again.dtype == np.float32
    (file,) = folder.rglob("*.npz")
    assert file.name == "v.npz"


def test_a_text_of_another_video_is_in_memory(folder):
    encoder = Letters()
    embedding_cache.encode(encoder, ["a"], "v")
    embedding_cache.encode(encoder, ["a"], "w")
    assert encoder.given == ["a"]


def test_another_model_has_other_vectors(folder):
    encoder, other = Letters(), Letters()
    other.version = "more letters"
    embedding_cache.encode(encoder, ["a"], "v")
    embedding_cache.encode(other, ["a"], "v")
    assert encoder.given == other.given == ["a"]
    assert len(list(folder.rglob("v.npz"))) == 2


@pytest.mark.parametrize("content", [b"", b"half", b"PK\x03\x04half"])
def test_a_file_of_which_half_is_there_is_written_again(folder, content):
    encoder = Letters()
    embedding_cache.encode(encoder, ["a"], "v")
    (file,) = folder.rglob("v.npz")
    whole = file.read_bytes()
    file.write_bytes(content)
    forget()
    embedding_cache.encode(encoder, ["a"], "v")
    assert encoder.given == ["a", "a"]
    assert file.read_bytes() == whole


def test_without_a_folder_there_is_no_cache():
    encoder = Letters()
    embedding_cache.encode(encoder, ["a"], "v")
    embedding_cache.encode(encoder, ["a"], "v")
    assert encoder.given == ["a", "a"]


def test_memory_holds_the_texts_used_last(folder, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_IN_MEMORY", 2)
    encoder = Letters()
    for text in ("a", "b", "ab", "a"):
        embedding_cache.encode(encoder, [text], text)
    assert len(embedding_cache._recent) == 2
    assert encoder.given == ["a", "b", "ab"], "the last came from its file"
