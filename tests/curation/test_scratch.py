"""Scratch folders: each process has its own. Those of dead processes are removed, those of live ones are not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from curation import scratch

HOLD = """
import sys
from curation import scratch
(scratch.folder() / "clip.mp4").write_bytes(b"waits for its commit")
print(scratch.folder(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._folder_of.cache_clear()
    yield tmp_path
    scratch._folder_of.cache_clear()


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_live_process_is_left_alone_and_that_of_a_killed_one_is_swept(temporary):
    process, theirs = holder(temporary)
    mine = scratch.folder()
    assert mine != theirs
    assert mine.parent == theirs.parent == temporary
    assert (theirs / "clip.mp4").read_bytes() == b"waits for its commit"
    process.kill()
    process.wait()
    scratch._folder_of.cache_clear()
    again = scratch.folder()
    assert not theirs.exists()
    assert not Path(f"{theirs}.lock").exists()
    assert mine.exists(), "this process lives"
    assert again.exists()
    process.stdin.close()
    process.stdout.close()


def test_a_process_that_ends_takes_its_folder_away(temporary):
    process, theirs = holder(temporary)
    process.communicate("\n")
    assert list(temporary.iterdir()) == []
    assert not theirs.exists()


def test_its_own_process_number_says_nothing(temporary):
    """A restarted container has the same process number as before, so a folder with that number may belong to another."""
    old = temporary / f"gamecraft-scratch-{os.getpid()}"
    old.mkdir()
    assert scratch.folder() != old


def test_a_lock_file_that_was_swept_before_it_was_locked_is_given_up(temporary, monkeypatch):
    made, real = [], tempfile.mkstemp

    def swept_once(**names):
        file, path = real(**names)
        if not made:
            os.unlink(path)
        made.append(path)
        return file, path

    monkeypatch.setattr(tempfile, "mkstemp", swept_once)
    assert f"{scratch.folder()}.lock" == made[1]
