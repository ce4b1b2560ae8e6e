"""Local files: what an input names, puts that are whole or nothing, and names by content."""

import os
import random
import re
import threading
from pathlib import Path

import pytest

from curation import storage

BLOCK = 1 << 20


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def found(*inputs, exclude=None, below: Path) -> list[str]:
    return [os.path.relpath(entry.uri, below) for entry in storage.find_sources([str(i) for i in inputs], exclude)]


def refusal(*inputs, exclude=None) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the caller compares the whole message
        storage.find_sources([str(i) for i in inputs], exclude)
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
    from curation import video

    assert found(name, below=tmp_path) == found(tmp_path / "in", below=tmp_path) == [f"in/{name}"]
    for uri in (name, str(tmp_path / "in" / name)):
        assert video.probe(uri).width == 160


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
    return storage.content_id(storage.list_files(str(path))[0])


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


NAME = b"\xe9t\xe9.mp4"


def test_a_name_that_is_no_utf8_is_listed_as_a_uri_that_can_be_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    for name in (NAME, b".\xe9.mp4", b"plain.mp4"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(name)
    (tmp_path / "good é.mp4").write_bytes(b"good")
    found = storage.find_sources([str(tmp_path)])
    assert [entry.uri for entry in found] == [
        str(tmp_path / "good é.mp4"),
        f"file://{tmp_path}/%FF/%E9t%E9.mp4",
        f"file://{tmp_path}/%FF/plain.mp4",
    ]
    assert [storage.read(entry.uri) for entry in found] == [b"good", NAME, b"plain.mp4"]
    with storage.open_binary(found[1].uri) as file:
        assert file.read() == NAME
    assert storage.exists(found[1].uri)
    for entry in found:
        assert entry.uri.encode().isascii() or entry.uri.endswith("é.mp4")
        assert storage.find_sources([entry.uri]) == [entry], "a row's uri is an input"
    assert storage.content_id(found[0]) != storage.content_id(found[1])


def test_a_scheme_is_one_in_any_case(tmp_path):
    assert storage.normal("S3://Bucket/Key") == "s3://Bucket/Key"
    (tmp_path / "a b.mp4").write_bytes(b"x")
    assert [entry.uri for entry in storage.find_sources([f"FILE://{tmp_path}/a%20b.mp4"])] == [str(tmp_path / "a b.mp4")]


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
        storage.find_sources([str(tmp_path / "list.txt")])


def test_a_table_of_links_is_called_one(tmp_path):
    (tmp_path / "links.csv").write_text("a.mp4\n")
    (tmp_path / "links.jsonl").write_text('{"url": "https://example.com/a.mp4"}\n')
    with pytest.raises(ValueError, match=r"links.jsonl: is a table"):
        storage.find_sources([str(tmp_path / "links.jsonl")])
    with pytest.raises(ValueError, match=r"links.csv: is a table, not a video; .*must be downloaded first"):
        storage.find_sources([str(tmp_path / "links.csv")])
