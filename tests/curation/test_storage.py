"""Local files: what an input names, puts that are whole or nothing, and names by content."""

import errno
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from curation import source_files, storage
from curation.errors import SourceChanged, describe

BLOCK = 1 << 20


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def found(*inputs, exclude=None, below: Path) -> list[str]:
    return [os.path.relpath(entry.uri, below) for entry in source_files.find_sources([str(i) for i in inputs], exclude)]


def refusal(*inputs, exclude=None) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the caller compares the whole message
        source_files.find_sources([str(i) for i in inputs], exclude)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path) -> Path:
    touch(tmp_path, "b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", "deep/d.json", ".hidden.mp4", ".trash/e.mp4")
    return tmp_path


def test_a_folder_gives_its_videos_at_any_depth(tree):
    assert found(tree, below=tree) == ["a.MKV", "b.mp4", "deep/er/c.webm"]
    assert found(f"{tree}/", tree / "b.mp4", tree, below=tree) == ["a.MKV", "b.mp4", "deep/er/c.webm"], "each once"


def test_a_file_named_outright_is_taken_whatever_its_suffix(tree):
    assert found(tree / "deep/d.json", below=tree) == ["deep/d.json"]
    assert found(tree / ".hidden.mp4", below=tree) == [".hidden.mp4"]


def test_a_hidden_folder_is_seen_when_it_is_named(tree):
    assert found(tree / ".trash", below=tree) == [".trash/e.mp4"]


def test_patterns(tree):
    assert found(tree / "*.mp4", below=tree) == ["b.mp4"]
    assert found(tree / "**/*.webm", below=tree) == ["deep/er/c.webm"]
    assert found(tree / "d*", below=tree) == ["deep/er/c.webm"]
    assert found(tree / "?.*", below=tree) == ["a.MKV", "b.mp4"]


@pytest.mark.parametrize(
    "name", ["-dash.mp4", "a b.mp4", "größe.mp4", "a#b.mp4", "[1].mp4", "what?.mp4", "100%20.mp4", "a:b.mp4"]
)
def test_any_name_can_be_read(name, tmp_path, monkeypatch, clip):
    (tmp_path / "in").mkdir()
    os.rename(clip, tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path / "in")
    from curation.media.source import probe

    assert found(name, below=tmp_path) == found(tmp_path / "in", below=tmp_path) == [f"in/{name}"]
    for uri in (name, str(tmp_path / "in" / name)):
        assert probe(uri).width == 160


def test_file_uris(tree):
    touch(tree, "with space.mp4")
    assert found(f"file://{tree}/with%20space.mp4", below=tree) == ["with space.mp4"]
    assert refusal("https://host/a.mp4") == (
        "https://host/a.mp4: only paths, file:// and s3:// can be read; download other sources first"
    )


def test_a_list_names_inputs_relative_to_itself(tree):
    (tree / "deep/list.txt").write_text("\ufeff# ours\n\n  ../b.mp4\ner\n./c#1.mp4\n", encoding="utf-8")
    touch(tree, "deep/c#1.mp4")
    assert found(tree / "deep/list.txt", below=tree) == ["b.mp4", "deep/c#1.mp4", "deep/er/c.webm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"b.mp4\n\nnone.mp4\n", "{tree}/my.list, line 3: {tree}/none.mp4: no such file or folder"),
        (b"my.list\n", "{tree}/my.list, line 1: {tree}/my.list is a list itself; name its videos here"),
        (b"# nothing\n", "{tree}/my.list: the list names no video"),
        (b"\xff\xfe\x00", "{tree}/my.list: a list of inputs must be UTF-8 text (invalid start byte at byte 0)"),
    ],
)
def test_a_bad_list_says_where_it_is_bad(text, message, tree):
    (tree / "my.list").write_bytes(text)
    assert refusal(tree / "my.list") == message.format(tree=tree)


def test_what_names_nothing_says_so(tree):
    (tree / "empty").mkdir()
    os.mkfifo(tree / "pipe.mp4")
    assert refusal(tree / "none.mp4") == f"{tree}/none.mp4: no such file or folder"
    assert refusal(tree / "empty") == f"{tree}/empty: the folder holds no video (0 other files)"
    assert (
        refusal(tree / "deep", exclude=str(tree / "deep/er")) == f"{tree}/deep: all 1 videos lie in the output {tree}/deep/er"
    )
    assert refusal(tree / "*.avi") == f"{tree}/*.avi: no video matches"
    assert refusal(tree / "pipe.mp4") == f"{tree}/pipe.mp4: is neither a file nor a folder"


def test_our_own_output_is_no_input(tree):
    touch(tree, "out/shards/x.mp4", "outer/y.mp4")
    names = found(tree, exclude=str(tree / "out"), below=tree)
    assert "out/shards/x.mp4" not in names
    assert "outer/y.mp4" in names


def test_links_are_followed_but_not_in_circles(tree):
    os.symlink(tree / "deep", tree / "also")
    os.symlink(tree, tree / "deep/up")
    os.symlink(tree / "gone", tree / "dangling.mp4")
    assert found(tree, below=tree) == ["a.MKV", "also/er/c.webm", "b.mp4", "deep/er/c.webm"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read as somebody else")
def test_a_folder_that_may_not_be_listed_is_no_empty_folder(tree):
    folders = [tree, *(parent for parent in tree.parents if parent.name.startswith(("pytest-", "popen-")))]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o755)
    (tree / "deep").chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="deep"):
            storage.list_files(str(tree))
    finally:
        os.seteuid(0)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


def test_files_are_listed_in_order_with_a_token_that_changes(tree):
    before = storage.list_files(str(tree))
    assert [entry.uri for entry in before] == sorted(entry.uri for entry in before)
    assert storage.names(str(tree / "deep")) == ["c.webm", "d.json"]
    assert storage.list_files(str(tree / "nowhere")) == []
    (tree / "b.mp4").write_bytes(b"other")
    assert {a.uri for a, b in zip(before, storage.list_files(str(tree)), strict=True) if a.token != b.token} == {
        str(tree / "b.mp4")
    }


# Puts


def test_a_put_replaces_and_put_if_absent_does_not(tmp_path):
    uri = str(tmp_path / "new/folder/name")
    assert storage.put(uri, b"one", if_absent=True)
    assert not storage.put(uri, b"two", if_absent=True)
    assert storage.read(uri) == b"one"
    assert storage.put(uri, b"three")
    assert storage.read(uri, 1, 3) == b"hre"
    assert storage.read(uri, 9, 3) == b""
    assert os.listdir(tmp_path / "new/folder") == ["name"]
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    with pytest.raises(FileNotFoundError, match="name"):
        storage.read(uri)


def winners(uri: str, count: int = 12) -> list[int]:
    """Who wrote `uri`, of `count` that try at once."""
    start, won = threading.Barrier(count), []

    def run(number: int) -> None:
        start.wait()
        if storage.put(uri, bytes([number]) * 1000, if_absent=True):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_many_that_put_at_once_one_wins(tmp_path):
    for turn in range(20):
        won = winners(f"{tmp_path}/{turn}")
        assert len(won) == 1
        assert storage.read(f"{tmp_path}/{turn}") == bytes(won) * 1000
    assert len(os.listdir(tmp_path)) == 20, "no temporary file is left"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    uri = str(tmp_path / "name")
    storage.put(uri, b"before")

    def half(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        storage.put(uri, b"after")
    assert os.listdir(tmp_path) == ["name"]
    assert storage.read(uri) == b"before"


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system at /dev/shm")
def test_a_file_is_put_across_file_systems(tmp_path):
    here, there = f"/dev/shm/gamecraft-{os.getpid()}.part", str(tmp_path / "whole")
    Path(here).write_bytes(b"x" * 100_000)
    assert storage.put_file(there, here, if_absent=True)
    assert storage.read(there) == b"x" * 100_000
    assert not os.path.exists(here), "it was moved"
    Path(here).write_bytes(b"late")
    assert not storage.put_file(there, here, if_absent=True)
    assert storage.read(there) == b"x" * 100_000
    Path(here).unlink(missing_ok=True)


# Names by content


def content(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return source_files.content_id(storage.list_files(str(path))[0])


@pytest.mark.parametrize("size", [0, 1, 5000, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK])
def test_equal_bytes_have_one_name_and_other_bytes_another(size, tmp_path):
    data = random.Random(size).randbytes(size)
    name = content(tmp_path / "a", data)
    assert len(name) == 16
    assert content(tmp_path / "other.mp4", data) == name
    assert content(tmp_path / "b", data + b"\0") != name, "one byte longer"
    inside = [size // 2 - size % 2] if size <= 2 * BLOCK else [BLOCK + (size - 2 * BLOCK) * 7 // 16]
    for at in (0, *inside, size - 1) if size else ():
        changed = bytearray(data)
        changed[at] ^= 1
        assert content(tmp_path / "c", bytes(changed)) != name, at


# Versions


def test_reads_of_another_version_are_refused(tmp_path):
    uri = str(tmp_path / "a")
    storage.put(uri, b"first version")
    (entry,) = storage.list_files(uri)
    assert storage.version(uri) == entry.token
    assert storage.read(uri, 2, 3, entry.token) == b"rst"
    with storage.open_binary(uri, entry.token) as file:
        storage.put(uri, b"other version")  # another file under the same name; the open one is still the old one
        assert file.read() == b"first version"
    now = storage.version(uri)
    words = f"^{uri}: the file changed since it was listed .size and mtime were 13 and {entry.token[3:]}, are 13 and {now[3:]}"
    for call in (storage.open_binary, storage.check_version, lambda *_: source_files.content_id(entry)):
        with pytest.raises(SourceChanged, match=words):
            call(uri, entry.token)
    with pytest.raises(SourceChanged, match=words):
        storage.read(uri, 2, 3, entry.token)
    storage.check_version(uri, "")
    assert storage.read(uri, 0, 5) == b"other"
    for gone in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=gone):
            storage.version(gone)
        with pytest.raises(FileNotFoundError, match=gone):
            storage.check_version(gone, now)


def test_a_file_that_changes_while_it_is_read_is_refused_when_it_is_closed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"first version")
    file = storage.open_binary(str(path))
    assert file.read(5) == b"first"
    with open(path, "ab") as growing:
        growing.write(b"more")
    with pytest.raises(SourceChanged, match=r"size and mtime were 13 and \d+, are 17 and"):
        file.close()
    assert file.closed
    file.close()


def grow_inside(path: Path, error: Exception | None) -> None:
    with storage.open_binary(str(path)), open(path, "ab") as growing:
        growing.write(b"more")
        if error:
            raise error


def test_a_change_is_raised_by_the_context_but_hides_no_other_error(tmp_path):
    (tmp_path / "a").write_bytes(b"first version")
    with pytest.raises(SourceChanged):
        grow_inside(tmp_path / "a", None)
    with pytest.raises(KeyError, match="theirs"):
        grow_inside(tmp_path / "a", KeyError("theirs"))


# Replacing one version


def test_only_the_known_version_is_replaced(tmp_path):
    uri = str(tmp_path / "new/name")
    assert storage.replace(uri, b"none", "4-1") == ""
    first = storage.replace(uri, b"one", "")
    assert first == storage.version(uri)
    assert storage.replace(uri, b"two", "") == ""
    second = storage.replace(uri, b"second", first)
    assert second == storage.version(uri) != first
    assert storage.replace(uri, b"third", first) == ""
    assert storage.read(uri) == b"second"
    stamped = storage.read_stamped(uri)
    assert (stamped.data, stamped.version) == (b"second", second)
    assert 0 <= stamped.age_s < 60
    os.utime(uri, (1e9, 1e9))
    assert storage.read_stamped(uri).age_s > 1e8
    assert os.listdir(tmp_path / "new") == ["name"]
    storage.check_conditions(str(tmp_path / "new"))
    assert os.listdir(tmp_path / "new") == ["name"]


COUNT = """
import errno, fcntl, os, sys
from curation import storage
uri, turns, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
real = fcntl.flock
def no_folder(file, how):
    if os.path.isdir(f"/proc/self/fd/{file}"):
        raise OSError(errno.EBADF, "a folder cannot be locked on NFS")
    return real(file, how)
def no_link(*_):
    raise OSError(errno.EPERM, "no links here")
if kind == "nfs":
    fcntl.flock = no_folder
if kind == "no links":
    os.link = no_link
while turns:
    try:
        seen = storage.read_stamped(uri)
    except FileNotFoundError:
        turns -= bool(storage.replace(uri, b"1", ""))
        continue
    turns -= bool(storage.replace(uri, b"%d" % (int(seen.data) + 1), seen.version))
"""


@pytest.mark.parametrize("kind", ["local", "nfs", "no links"])
def test_processes_that_replace_one_file_lose_no_turn(kind, tmp_path):
    uri = str(tmp_path / "count")
    counting = [subprocess.Popen([sys.executable, "-c", COUNT, uri, "20", kind]) for _ in range(3)]
    assert [process.wait() for process in counting] == [0, 0, 0]
    assert storage.read(uri) == b"60"


# Words


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["makedirs", "link", "write"])
def test_a_full_disk_is_named_with_the_remedy(code, step, tmp_path, monkeypatch):
    uri = str(tmp_path / "new/name")

    def full(*_, **__):
        raise OSError(code, os.strerror(code))  # as a write raises it: without a file's name

    monkeypatch.setattr(*{"makedirs": (os, "makedirs"), "link": (os, "link"), "write": (Path, "write_bytes")}[step], full)
    with pytest.raises(OSError, match=f"{os.strerror(code)}; free some space, and the same command resumes: '{uri}'") as caught:
        storage.put(uri, b"data", if_absent=True)
    assert caught.value.errno == code
    assert not (tmp_path / "new").exists() or os.listdir(tmp_path / "new") == []


def test_errors_of_writing_name_their_file_and_keep_their_class(tmp_path):
    with pytest.raises(PermissionError, match=r"\[Errno 13\] Permission denied: '/somewhere'"), storage.naming("/somewhere"):
        raise OSError(errno.EACCES, "Permission denied")
    with pytest.raises(OSError, match=r"^plain$"), storage.naming("/somewhere"):
        raise OSError("plain")
    with pytest.raises(FileNotFoundError, match="'/theirs'"), storage.naming("/ours"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/theirs")


def test_no_error_is_without_words():
    silent = OSError()
    silent.__cause__ = KeyError()
    silent.__cause__.__context__ = ValueError("the real one")
    numbered = OSError()
    numbered.errno = errno.EIO
    assert [describe(error) for error in (OSError("plain"), numbered, silent, TimeoutError())] == [
        "OSError: plain",
        "OSError: Input/output error",
        "OSError: because of KeyError: because of ValueError: the real one",
        "TimeoutError: without a message",
    ]


# Names that are no UTF-8


NAME = b"\xe9t\xe9.mp4"


def test_a_name_that_is_no_utf8_is_listed_as_a_uri_that_can_be_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    for name in (NAME, b".\xe9.mp4", b"plain.mp4"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(name)
    (tmp_path / "good é.mp4").write_bytes(b"good")
    found = source_files.find_sources([str(tmp_path)])
    assert [entry.uri for entry in found] == [
        str(tmp_path / "good é.mp4"),
        f"file://{tmp_path}/%FF/%E9t%E9.mp4",
        f"file://{tmp_path}/%FF/plain.mp4",
    ]
    assert [storage.read(entry.uri) for entry in found] == [b"good", NAME, b"plain.mp4"]
    with storage.open_binary(found[1].uri) as file:
        assert file.read() == NAME
    assert storage.exists(found[1].uri)
    assert storage.version(found[1].uri) == found[1].token
    for entry in found:
        assert entry.uri.encode().isascii() or entry.uri.endswith("é.mp4")
        assert source_files.find_sources([entry.uri]) == [entry], "a row's uri is an input"
    assert source_files.content_id(found[0]) != source_files.content_id(found[1])


def test_a_scheme_is_one_in_any_case(tmp_path):
    assert storage.normal("S3://Bucket/Key") == "s3://Bucket/Key"
    (tmp_path / "a b.mp4").write_bytes(b"x")
    assert [entry.uri for entry in source_files.find_sources([f"FILE://{tmp_path}/a%20b.mp4"])] == [str(tmp_path / "a b.mp4")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gone.mp4", "gone.mp4: no such file or folder"),
        ("https://example.com/a.mp4", "https://example.com/a.mp4: only paths, file:// and s3:// can be read; download"),
        ("more.txt", "more.txt is a list itself; name its videos here"),
        ("links.csv", "links.csv: is a table, not a video; give a list: a .txt file"),
        ("empty", "empty: the folder holds no video"),
    ],
)
def test_a_bad_line_of_a_list_is_named(tmp_path, line, reason):
    (tmp_path / "more.txt").write_text("a.mp4\n")
    (tmp_path / "links.csv").write_text("url\nhttps://example.com/a.mp4\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text(f"# mine\na.mp4\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/list.txt, line 3: ") + ".*" + re.escape(reason)):
        source_files.find_sources([str(tmp_path / "list.txt")])


def test_a_table_of_links_is_called_one(tmp_path):
    (tmp_path / "links.csv").write_text("a.mp4\n")
    (tmp_path / "links.jsonl").write_text('{"url": "https://example.com/a.mp4"}\n')
    with pytest.raises(ValueError, match=r"links.jsonl: is a table"):
        source_files.find_sources([str(tmp_path / "links.jsonl")])
    with pytest.raises(ValueError, match=r"links.csv: is a table, not a video; .*download http links first"):
        source_files.find_sources([str(tmp_path / "links.csv")])
