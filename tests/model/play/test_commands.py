"""The commands, given an engine: rollout, replay, and play until its loading fails."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from mock_engine import BLOCK, RED, MockEngine, picture

from curation.errors import InputError
from model.play import commands
from model.play.record import read_record


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_a_rollout_plays_the_script_and_a_replay_of_its_record_gives_the_same_video(tmp_path):
    said: list[str] = []
    video, record, again = tmp_path / "a.mp4", tmp_path / "a.gcplay", tmp_path / "b.mp4"
    commands.rollout(MockEngine, "hall", "W*6 D*3", "snow", 2, str(video), str(record), said.append)
    frames = frames_of(video)
    assert len(frames) == 1 + 12  # the start image, and nine frames filled up to three blocks
    reds = [int(frame[10, 10, 0]) for frame in frames]
    expected = [90, *[RED["W"]] * 6, *[RED["D"]] * 3, *[10] * 3]
    assert np.abs(np.subtract(reds, expected)).max() <= 8
    header = read_record(str(record)).header
    assert (header.prompt, header.seed, header.engine) == ("snow", 2, "mock")
    commands.replay(lambda _: MockEngine(), str(record), str(again), said.append)
    assert again.read_bytes() == video.read_bytes()
    assert said[-1] == f"{record}: 4 blocks replayed, all frames equal; {again}"


def test_a_replay_says_that_the_last_line_was_cut_off(tmp_path):
    said: list[str] = []
    record = tmp_path / "a.gcplay"
    commands.rollout(MockEngine, "", "W*8", "", 0, "", str(record), said.append)
    record.write_text(record.read_text()[:-9])
    commands.replay(lambda _: MockEngine(), str(record), "", said.append)
    assert said[-2:] == [
        f"{record}: the last line was cut off; 2 blocks are whole",
        f"{record}: 2 blocks replayed, all frames equal",
    ]


def test_a_wrong_record_or_script_is_refused_before_an_engine_is_loaded(tmp_path):
    def load():
        raise AssertionError("loaded")

    with pytest.raises(InputError, match="no such file"):
        commands.replay(load, str(tmp_path / "none.gcplay"), "", print)
    with pytest.raises(InputError, match="unknown key 'Q'"):
        commands.rollout(load, "", "Q*3", "", 0, "", "", print)
    with pytest.raises(InputError, match="no such file"):
        commands.play(load, "127.0.0.1", 0, 1, str(tmp_path / "none.gcplay"), False, print)


def test_images_are_files_or_start_images(tmp_path):
    engine = MockEngine()
    assert np.array_equal(commands.start_picture(engine, ""), picture(40))
    assert np.array_equal(commands.start_picture(engine, "yard"), picture(140))
    file = str(tmp_path / "a.png")
    cv2.imwrite(file, np.full((5, 5, 3), (1, 2, 3), np.uint8))
    assert commands.start_picture(engine, file)[0, 0].tolist() == [3, 2, 1]
    Path(file).write_text("text")
    with pytest.raises(InputError, match="not a picture"):
        commands.start_picture(engine, file)
    with pytest.raises(InputError, match="no such file, and no start image of that name; there are cave, hall, yard"):
        commands.start_picture(engine, "moon")
    with pytest.raises(InputError, match="does the folder exist"):
        commands.rollout(lambda: engine, "", f"W*{BLOCK}", "", 0, str(tmp_path / "none" / "a.mp4"), "", print)


def test_play_ends_with_the_error_of_loading():
    said: list[str] = []

    def load(log):
        log("reading weights")
        raise InputError("no such checkpoint")

    with pytest.raises(InputError, match="no such checkpoint"):
        commands.play(load, "127.0.0.1", 8613, 1, "", False, said.append)
    assert said == ["play at http://127.0.0.1:8613/ (Ctrl-C stops)", "load: reading weights"]


def test_a_record_is_lines_of_json(tmp_path):
    record = tmp_path / "a.gcplay"
    commands.rollout(MockEngine, "", "W+A@1,2*4", "", 0, "", str(record), print)
    header, first, block = (json.loads(line) for line in record.read_text().splitlines())
    assert sorted(header) == [
        "block_frames", "control", "engine", "fps", "gcplay", "identity", "image", "prompt", "seed", "size",
    ]  # fmt: skip
    assert sorted(first) == ["block", "controls", "prompts", "sha"]
    assert block["controls"] == [[["A", "W"], 1.0, 2.0]] * 4
