"""s3:// behaves as local files do, against a store on this machine; reads fetch parts."""

import random
import threading
from pathlib import Path

import pytest

pytest.importorskip("moto", reason="the S3 store of the tests is in the extra 'dev'")

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from curation import storage, video
from curation.encode import Encoding, encode
from curation.video import Span, UnreadableVideo, probe, read_frames


@pytest.fixture
def remote(s3, clip) -> tuple[str, str]:
    """The same clip here and there."""
    there = f"{s3.uri}/in/clip one.mp4"
    storage.put(there, Path(clip).read_bytes())
    return clip, there


def test_put_list_read_and_delete(s3):
    uri = f"{s3.uri}/out/a/name"
    assert storage.put(uri, b"one", if_absent=True)
    assert not storage.put(uri, b"two", if_absent=True)
    assert (storage.read(uri), storage.read(uri, 1), storage.read(uri, 1, 1)) == (b"one", b"ne", b"n")
    assert (storage.read(uri, 9, 4), storage.read(uri, 1, 0)) == (b"", b"")
    before = storage.list_files(f"{s3.uri}/out")
    assert [(entry.uri, entry.size) for entry in before] == [(uri, 3)]
    assert storage.put(uri, b"six")
    assert storage.list_files(f"{s3.uri}/out")[0].token != before[0].token
    assert storage.exists(uri)
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    assert storage.list_files(s3.uri) == []


def test_a_prefix_is_a_folder_and_hidden_names_are_left_out(s3):
    for key in ("out/b", "out/a", "out/.tmp", "out/.trash/x", "output/c", "outer", "out/folder/"):
        storage.put(f"{s3.uri}/{key}", b"")
    assert storage.names(f"{s3.uri}/out") == ["a", "b"]
    assert len(storage.list_files(s3.uri)) == 4


def test_a_local_file_is_put(s3, tmp_path):
    (tmp_path / "part").write_bytes(b"x" * 3_000_000)
    assert storage.put_file(f"{s3.uri}/whole", str(tmp_path / "part"), if_absent=True)
    assert not storage.put_file(f"{s3.uri}/whole", str(tmp_path / "part"), if_absent=True)
    assert len(storage.read(f"{s3.uri}/whole")) == 3_000_000


def test_of_several_that_put_at_once_one_wins(s3):
    won: list[int] = []

    def run(number: int) -> None:
        if storage.put(f"{s3.uri}/lock", bytes([number]), if_absent=True):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read(f"{s3.uri}/lock") == bytes(won)


def test_more_objects_than_one_page_are_listed(s3):
    # Straight into the store behind the server: a thousand requests would take seconds.
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(1005):
        store.put_object(s3.bucket, f"many/{number:04}", b"")
    names = storage.names(f"{s3.uri}/many")
    assert names == [f"{number:04}" for number in range(1005)]


def test_sources_below_a_prefix(s3):
    for key in ("in/b.mp4", "in/deep/a.webm", "in/notes.txt", "inner/x.mp4"):
        storage.put(f"{s3.uri}/{key}", key.encode())
    assert [entry.uri for entry in storage.find_sources([f"{s3.uri}/in"])] == [f"{s3.uri}/in/b.mp4", f"{s3.uri}/in/deep/a.webm"]
    assert [entry.uri for entry in storage.find_sources([f"{s3.uri}/in/notes.txt"])] == [f"{s3.uri}/in/notes.txt"]
    with pytest.raises(ValueError, match=f"^{s3.uri}/none: no video found there$"):
        storage.find_sources([f"{s3.uri}/none"])
    with pytest.raises(ValueError, match="no video found there; name a prefix, patterns are not matched on s3://"):
        storage.find_sources([f"{s3.uri}/in/*.mp4"])


@pytest.mark.parametrize("size", [0, 5000, (5 << 20) + 3])
def test_content_has_the_same_name_here_and_there(size, s3, tmp_path):
    data = random.Random(size).randbytes(size)
    (tmp_path / "a").write_bytes(data)
    storage.put(f"{s3.uri}/other", data)
    here, there = (storage.content_id(storage.list_files(uri)[0]) for uri in (f"{tmp_path}/a", f"{s3.uri}/other"))
    assert here == there
    assert sum(s3.fetched) <= min(size, 3 << 20)


def test_a_video_is_the_same_here_and_there(remote):
    here, there = remote
    assert vars(probe(there)) == {**vars(probe(here)), "uri": there}
    assert [time_s for time_s, _ in video.decode(there)] == [time_s for time_s, _ in video.decode(here)]
    span = Span(2.05, 3.0)
    assert read_frames(there, span).rgb.tobytes() == read_frames(here, span).rgb.tobytes()
    assert encode(there, span, None, Encoding()).mp4 == encode(here, span, None, Encoding()).mp4


def test_a_span_fetches_a_part_of_the_object(s3, tmp_path, moving, write, monkeypatch):
    monkeypatch.setattr(storage, "_RANGE_BYTES", 32 << 10)
    uri = write(tmp_path / "a.mp4", moving(300, 160, 120), (k / 10 for k in range(300)), options={"g": "20", "crf": "4"})
    storage.put(f"{s3.uri}/a.mp4", Path(uri).read_bytes())
    probe(f"{s3.uri}/a.mp4")
    s3.fetched.clear()
    assert len(read_frames(f"{s3.uri}/a.mp4", Span(25, 26)).rgb) == 10
    assert sum(s3.fetched) < Path(uri).stat().st_size / 3


def test_what_is_absent_is_named(s3):
    for call in (storage.read, storage.open_binary):
        for uri in (f"{s3.uri}/none", "s3://no-such-bucket-here/a.mp4"):
            with pytest.raises(FileNotFoundError, match=uri):
                call(uri)
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here/in: NoSuchBucket"):
        storage.list_files("s3://no-such-bucket-here/in")
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here/a"):
        storage.put("s3://no-such-bucket-here/a", b"")
    with pytest.raises(UnreadableVideo, match=f"cannot be opened: {s3.uri}/none.mp4"):
        probe(f"{s3.uri}/none.mp4")


def test_a_store_that_does_not_answer_is_an_error_of_the_system(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage._s3.cache_clear()
    monkeypatch.setattr("botocore.config.Config", lambda **_: None)
    with pytest.raises(OSError, match=f'{s3.uri}/a: Could not connect to the endpoint URL: "http://127.0.0.1:9'):
        storage.read(f"{s3.uri}/a")


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_store_that_fails_while_a_video_is_read_is_not_a_short_video(reads, remote, monkeypatch):
    _, there = remote
    probe(there)
    left, real = [None] * reads, storage._s3_read

    def failing(*arguments):
        if not left:
            raise OSError(f"{there}: SlowDown")
        left.pop()
        return real(*arguments)

    monkeypatch.setattr(storage, "_RANGE_BYTES", 16 << 10)
    monkeypatch.setattr(storage, "_s3_read", failing)
    with pytest.raises(OSError, match="SlowDown"):
        list(video.decode(there))
