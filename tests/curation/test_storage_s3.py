"""s3:// behaves as local files do, against a store on this machine; reads fetch parts."""

import os
import random
import re
import threading
from collections import Counter
from pathlib import Path

import pytest

from curation import s3 as s3_module
from curation import source_files
from curation.errors import SourceChanged, Unavailable
from curation.worker_state import worker

pytest.importorskip("moto", reason="the S3 store of the tests is in the extra 'dev'")

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from curation import storage
from curation.media import decode
from curation.media.decode import Span, read_frames
from curation.media.encode import Encoding, encode
from curation.media.source import probe


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
    assert [entry.uri for entry in source_files.find_sources([f"{s3.uri}/in"])] == [
        f"{s3.uri}/in/b.mp4",
        f"{s3.uri}/in/deep/a.webm",
    ]
    assert [entry.uri for entry in source_files.find_sources([f"{s3.uri}/in/notes.txt"])] == [f"{s3.uri}/in/notes.txt"]
    with pytest.raises(ValueError, match=f"^{s3.uri}/none: no video found there$"):
        source_files.find_sources([f"{s3.uri}/none"])
    with pytest.raises(ValueError, match="no video found there; name a prefix, patterns are not matched on s3://"):
        source_files.find_sources([f"{s3.uri}/in/*.mp4"])


@pytest.mark.parametrize("size", [0, 5000, (5 << 20) + 3])
def test_content_has_the_same_name_here_and_there(size, s3, tmp_path):
    data = random.Random(size).randbytes(size)
    (tmp_path / "a").write_bytes(data)
    storage.put(f"{s3.uri}/other", data)
    here, there = (source_files.content_id(storage.list_files(uri)[0]) for uri in (f"{tmp_path}/a", f"{s3.uri}/other"))
    assert here == there
    assert sum(s3.fetched) <= min(size, 3 << 20)


def test_a_video_is_the_same_here_and_there(remote):
    here, there = remote
    assert vars(probe(there)) == {**vars(probe(here)), "uri": there}
    assert [time_s for time_s, _ in decode.decode(there)] == [time_s for time_s, _ in decode.decode(here)]
    span = Span(2.05, 3.0)
    assert read_frames(there, span).rgb.tobytes() == read_frames(here, span).rgb.tobytes()
    assert encode(there, span, None, Encoding()).mp4 == encode(here, span, None, Encoding()).mp4


def test_a_span_fetches_a_part_of_the_object(s3, tmp_path, moving, write, monkeypatch):
    monkeypatch.setattr(s3_module, "RANGE_BYTES", 32 << 10)
    uri = write(tmp_path / "a.mp4", moving(300, 160, 120), (k / 10 for k in range(300)), options={"g": "20", "crf": "4"})
    storage.put(f"{s3.uri}/a.mp4", Path(uri).read_bytes())
    probe(f"{s3.uri}/a.mp4")
    s3.fetched.clear()
    assert len(read_frames(f"{s3.uri}/a.mp4", Span(25, 26)).rgb) == 10
    assert sum(s3.fetched) < Path(uri).stat().st_size / 3


def test_blocks_are_kept_over_seeks_and_openings_and_little_is_fetched_ahead(s3):
    data = random.Random(1).randbytes(12 << 20)
    uri = f"{s3.uri}/a"
    storage.put(uri, data)
    s3.fetched.clear()
    with storage.open_binary(uri) as file:
        for start, length in ((0, 3000), (len(data) - 5000, 5000), (6 << 20, 2 << 20), (100, 50)):
            file.seek(start)
            assert file.read(length) == data[start : start + length]
    wanted = 3000 + 5000 + (2 << 20)
    assert sum(s3.fetched) <= 1.3 * wanted + 2 * s3_module._BLOCK_BYTES
    before = len(s3.fetched)
    with storage.open_binary(uri) as file:
        assert file.read(3000) == data[:3000]
        file.seek(6 << 20)
        assert file.read(1 << 20) == data[6 << 20 : 7 << 20]
    assert len(s3.fetched) == before
    storage.put(uri, data[::-1])
    with storage.open_binary(uri) as file:
        assert file.read(3000) == data[::-1][:3000], "another version has blocks of its own"


def test_a_long_read_takes_few_requests_and_bounded_memory(s3, monkeypatch):
    monkeypatch.setattr(s3_module, "_KEPT_BYTES", 6 << 20)
    data = random.Random(2).randbytes(30 << 20)
    storage.put(f"{s3.uri}/a", data)
    s3.fetched.clear()
    with storage.open_binary(f"{s3.uri}/a") as file:
        read = bytearray()
        while piece := file.read(50_000):
            read += piece
            assert sum(map(len, s3_module._kept.values())) <= (6 << 20) + s3_module.RANGE_BYTES
    assert bytes(read) == data
    assert sum(s3.fetched) == len(data), "nothing is fetched twice"
    assert len(s3.fetched) < 45
    assert max(s3.fetched) == s3_module.RANGE_BYTES


def test_what_is_absent_is_named(s3):
    for call in (storage.read, storage.open_binary):
        for uri in (f"{s3.uri}/none", "s3://no-such-bucket-here/a.mp4"):
            with pytest.raises(FileNotFoundError, match=uri):
                call(uri)
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here/in: NoSuchBucket"):
        storage.list_files("s3://no-such-bucket-here/in")
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here/a"):
        storage.put("s3://no-such-bucket-here/a", b"")
    with pytest.raises(FileNotFoundError, match=f"{s3.uri}/none.mp4"):  # of the store, not of the footage
        probe(f"{s3.uri}/none.mp4")


def test_a_store_that_does_not_answer_is_an_error_of_the_system(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3_module, "_LONGEST_PAUSE_S", 0.01)
    s3_module.client.cache_clear()
    monkeypatch.setattr("botocore.config.Config", lambda **_: None)
    with pytest.raises(OSError, match=f'{s3.uri}/a: Could not connect to the endpoint URL: "http://127.0.0.1:9'):
        storage.read(f"{s3.uri}/a")


def test_a_machine_without_credentials_is_told_which_to_set(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    s3_module.client.cache_clear()
    with pytest.raises(
        Unavailable, match="s3://b/x: this machine has no S3 credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"
    ):
        storage.read("s3://b/x")
    s3_module.client.cache_clear()


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_store_that_fails_while_a_video_is_read_is_not_a_short_video(reads, remote, monkeypatch):
    _, there = remote
    probe(there)
    left, real = [None] * reads, s3_module.read

    def failing(*arguments):
        if not left:
            raise OSError(f"{there}: SlowDown")
        left.pop()
        return real(*arguments)

    monkeypatch.setattr(s3_module, "RANGE_BYTES", 8 << 10)
    monkeypatch.setattr(s3_module, "read", failing)
    with pytest.raises(OSError, match="SlowDown"):
        list(decode.decode(there))


# Versions, and answers that nobody asked for


def test_reads_of_another_version_are_refused(front):
    uri = f"{front.uri}/a"
    storage.put(uri, b"first version")
    (entry,) = storage.list_files(uri)
    assert storage.version(uri) == entry.token
    assert storage.read(uri, 2, 3, entry.token) == b"rst"
    assert source_files.content_id(entry)
    file = storage.open_binary(uri, entry.token)
    unknown = storage.open_binary(uri)
    storage.put(uri, b"other version")  # as long, so that only the ETag tells
    now = storage.version(uri)
    words = f"^{uri}: the file changed since it was listed .size and ETag were 13 and {entry.token[3:]}, are 13 and {now[3:]}"
    for call in (
        lambda: storage.read(uri, 2, 3, entry.token),
        lambda: storage.read(uri, token=entry.token),
        lambda: storage.read(uri, 99, 3, entry.token),
        lambda: storage.open_binary(uri, entry.token),
        lambda: storage.check_version(uri, entry.token),
        lambda: source_files.content_id(entry),
        file.read,
        unknown.read,
    ):
        with pytest.raises(SourceChanged, match=words):
            call()
    storage.check_version(uri, "")
    assert storage.read(uri, 0, 5) == b"other"
    storage.delete(uri)
    for call in (storage.version, lambda uri: storage.check_version(uri, now), lambda uri: storage.read(uri, 0, 1, now)):
        with pytest.raises(FileNotFoundError, match=uri):
            call(uri)


def test_a_store_that_ignores_if_match_on_reads_is_seen_through(front):
    uri = f"{front.uri}/a"
    storage.put(uri, b"first version")
    before = storage.version(uri)
    storage.put(uri, b"other version")
    front.before = lambda request: request.headers.pop("if-match", None) and None
    with pytest.raises(SourceChanged, match="the file changed since it was listed"):
        storage.read(uri, 2, 3, before)


def test_a_store_that_refuses_the_etag_it_gives_is_named(front):
    uri = f"{front.uri}/a"
    storage.put(uri, b"first version")
    front.before = lambda request: front.refusal(412, "PreconditionFailed") if "if-match" in request.headers else None
    with pytest.raises(OSError, match=f"{uri}: the store refuses If-Match with the ETag that it gives itself") as caught:
        storage.read(uri, 2, 3, storage.version(uri))
    assert not isinstance(caught.value, SourceChanged)


def shorter(answer):
    answer.body, answer.length = answer.body[:-3], answer.length - 3


def broken_off(answer):
    answer.body = answer.body[:-3]


def other_start(answer):
    answer.headers["content-range"] = answer.headers["content-range"].replace("bytes 2-", "bytes 3-")


def other_object(answer):
    answer.headers["etag"] = '"0123"'


def other_size(answer):
    answer.headers["content-range"] = answer.headers["content-range"].replace("/13", "/14")


def not_a_range(answer):
    del answer.headers["content-range"]


WRONG = {
    shorter: r"(4|8) bytes came instead of (7|11)",
    broken_off: "the answer broke off",
    other_start: r"requested bytes 2 to \d+ of 13, the answer has 3 to",
    other_object: "requested ETag .*, the answer has .0123",
    other_size: r"requested bytes 2 to \d+ of 13, the answer has 2 to \d+ of 14",
    not_a_range: "requested a range, the answer has Content-Range None",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
@pytest.mark.parametrize("length", [7, None])
def test_a_wrong_answer_is_asked_for_again_on_a_new_connection_and_then_an_error(wrong, length, front):
    uri = f"{front.uri}/a"
    storage.put(uri, b"first version")
    token, left = storage.version(uri), [1]

    def spoil(request, answer):
        if request.ranged and left:
            left.pop()
            wrong(answer)

    front.after = spoil
    before = front.connections
    assert storage.read(uri, 2, length, token) == b"first version"[2 : 2 + length if length else None]
    assert front.connections == before + 1
    left += [1] * 3
    with pytest.raises(OSError, match=f"{uri}: ({WRONG[wrong]}).*, 3 times$") as caught:
        storage.read(uri, 2, length, token)
    assert not isinstance(caught.value, SourceChanged)
    assert not left
    assert storage.read(uri, 2, length) == b"first version"[2 : 2 + length if length else None]


# Forked children


def test_forked_children_do_not_read_each_others_bytes(front):
    for child in "AB":
        storage.put(f"{front.uri}/{child}", child.encode() * 50_000)
    storage.list_files(front.uri)  # as a loader does before it forks: an open connection lies in the pool
    client, before = s3_module.client(), front.connections
    children = {}
    for child in "AB":
        if not (pid := os.fork()):
            ours = client is not s3_module.client() and s3_module.client() is s3_module.client()
            wrong = sum(storage.read(f"{front.uri}/{child}", 100, 40_000) != child.encode() * 40_000 for _ in range(100))
            os._exit(wrong if ours else 255)
        children[child] = pid
    codes = {child: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for child, pid in children.items()}
    assert codes == {"A": 0, "B": 0}, "reads of other bytes, 255: the client was the parent's"
    assert front.connections == before + 2, "one for each child"
    assert s3_module.client() is client
    assert storage.read(f"{front.uri}/A", 1, 2) == b"AA"
    assert front.connections == before + 2, "the parent's is still open"


def test_threads_of_a_process_share_one_client(front):
    s3_module.client.cache_clear()
    assert len(set(map(id, storage.at_once(lambda _: s3_module.client(), range(64))))) == 1


# Replacing one version


def test_only_the_known_version_is_replaced(front, monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    uri = f"{front.uri}/name"
    assert storage.replace(uri, b"none", "4-abc") == ""
    first = storage.replace(uri, b"one", "")
    assert first == storage.version(uri)
    assert storage.replace(uri, b"two", "") == ""
    second = storage.replace(uri, b"second", first)
    assert second == storage.version(uri) != first
    assert storage.replace(uri, b"third", first) == ""
    stamped = storage.read_stamped(uri)
    assert (stamped.data, stamped.version) == (b"second", second)
    assert 0 <= stamped.age_s < 60
    storage.check_conditions(front.uri)
    assert storage.names(front.uri) == ["name"]
    with pytest.raises(FileNotFoundError, match="no-such-bucket-here"):
        storage.replace("s3://no-such-bucket-here/a", b"", "")


# A store that is busy


@pytest.fixture
def impatient(monkeypatch):
    """Pauses of no length, and no words said yet."""
    monkeypatch.setattr(s3_module, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr(s3_module, "_reported_s", float("-inf"))
    worker.s3_requests.clear()


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests")])
def test_a_store_that_throttles_is_asked_again_and_said_to_throttle_once_in_a_while(status, code, impatient, front, caplog):
    storage.put(f"{front.uri}/a", b"bytes")
    worker.s3_requests.clear()
    tries = Counter()

    def busy(request):
        tries[name := request.headers["amz-sdk-invocation-id"]] += 1
        return front.refusal(status, code) if tries[name] < 3 else None

    front.before = busy
    # More repeats at once than botocore's own quota lets a process have.
    assert set(storage.at_once(lambda _: storage.read(f"{front.uri}/a"), range(60))) == {b"bytes"}
    assert (worker.s3_requests["all"], worker.s3_requests["throttled"]) == (180, 120)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "curation.s3"]
    assert re.fullmatch(
        r"S3 throttled 5 of \d requests \(503 or 429\); they are repeated later, which takes time\. "
        "Fewer workers, or sources spread over more prefixes, help",
        said,
    )
    assert s3_module.throttling(worker.s3_requests).startswith("S3 throttled 120 of 180 requests (503 or 429)")


def test_a_store_that_throttles_for_too_long_is_an_error_with_words(impatient, front):
    front.before = lambda request: front.refusal(503, "SlowDown", "reduce your rate")
    with pytest.raises(OSError, match=rf"^{front.uri}/a: SlowDown: .*reduce your rate"):
        storage.read(f"{front.uri}/a")
    assert worker.s3_requests["throttled"] == s3_module._REQUEST_TRIES


def test_a_store_that_is_away_for_a_moment_is_asked_again(impatient, front):
    storage.put(f"{front.uri}/a", b"bytes")
    gone = [1] * 6

    def drop(request, answer):
        if gone:
            gone.pop()
            answer.body, answer.length = b"", 10  # the connection closes before the answer

    front.after = drop
    assert storage.version(f"{front.uri}/a")
