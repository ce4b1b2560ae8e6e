"""The lockstep protocol against a process that speaks it without drawing, and what is said where programs are missing."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from curation.errors import AttemptFailed, Unavailable
from synth.engines import lockstep
from synth.engines.lockstep import Game

# Draws frames of 4x2 px whose blue is the frame's number in the lower row and 100 more in the upper one, and prints its clock.
FAKE = """
import os, socket, struct, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["GLGRAB_SOCKET"])
clock_us = 0
for number in range(int(sys.argv[1])):
    print("frame", number, "at", clock_us, flush=True)
    rows = [bytes([number + shade, 7, 9, 0]) * 4 for shade in (0, 100)]
    connection.sendall(struct.pack("<3I", number, 4, 2) + b"".join(rows))
    clock_us += struct.unpack("<I", connection.recv(4))[0]
print("the end", flush=True)
"""


@pytest.fixture
def game(monkeypatch):
    """Return a function that starts the process with a number of frames to draw."""
    monkeypatch.setattr(lockstep, "build_grabber", lambda: "")

    def start(frames, code=FAKE):
        return Game([sys.executable, "-c", code, str(frames)], {}, 1 / 17.5)

    return start


def test_each_picture_comes_with_what_was_printed_before_it_and_the_clock_advances_by_one_frame(game):
    with game(3) as running:
        for number in range(3):
            picture = running.next_frame()
            assert picture.shape == (2, 4, 3)
            np.testing.assert_array_equal(picture[:, 0], [[9, 7, number + 100], [9, 7, number]])  # RGB, upper row first
            assert running.take_lines() == [f"frame {number} at {number * 57143}"]
            running.advance()


def test_a_game_that_ends_is_an_error_with_its_last_words(game):
    with game(1) as running:
        running.next_frame()
        running.advance()
        with pytest.raises(AttemptFailed, match=r"ended in the middle of a recording; its last lines: .*the end"):
            running.next_frame()


def test_a_game_that_never_draws_is_an_error_with_its_status(game):
    ends = game(0, "print('no display'); raise SystemExit(3)")
    with ends as running, pytest.raises(AttemptFailed, match=r"ended with status 3"):
        running.next_frame()


def test_the_process_and_its_socket_are_gone_afterwards(game):
    with game(5) as running:
        running.next_frame()
        process, folder = running._process, running._folder
    assert process.poll() is not None
    assert not folder.exists()


def test_a_missing_program_is_named_with_the_packages_that_bring_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *args, **more: None)
    with pytest.raises(Unavailable, match="minetest is not installed: apt-get install minetest xvfb"):
        lockstep.require("minetest", "minetest xvfb")


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda *args, **more: None)
    with pytest.raises(Unavailable, match="cc is not installed: apt-get install gcc libc6-dev"):
        lockstep.build_grabber()


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_library_is_compiled_once_and_a_program_runs_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = lockstep.build_grabber()
    compiled = library.stat().st_mtime_ns
    assert lockstep.build_grabber().stat().st_mtime_ns == compiled
    told = subprocess.run(["date", "+%Y"], env={"LD_PRELOAD": str(library)}, capture_output=True, text=True, check=True)
    assert (int(told.stdout) > 2000, told.stderr) == (True, ""), "outside of the render thread clocks are real"
