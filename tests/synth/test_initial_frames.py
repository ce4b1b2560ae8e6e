"""Initial frames: folders of pictures, maps, quiet moments of clips; clear errors for anything else."""

import cv2
import numpy as np
import pytest

from synth import initial_frames
from synth.requests import InitialFrame


@pytest.fixture
def pictures(tmp_path):
    for number, color in enumerate(((255, 0, 0), (0, 255, 0))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((60, 100, 3), color, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_gives_its_pictures_by_content(pictures):
    found = initial_frames.find_frames([str(pictures), str(pictures / "1.png")])
    assert [frame.name for frame in found] == [str(pictures / "0.png"), str(pictures / "1.png")]
    assert found[0].token != found[1].token
    assert initial_frames.read_pixels(found[1])[0, 0].tolist() == [0, 255, 0]
    assert initial_frames.read_pixels(found[0])[0, 0].tolist() == [0, 0, 255]


def test_what_is_no_frame_is_said(pictures):
    with pytest.raises(ValueError, match="no picture found"):
        initial_frames.find_frames([str(pictures / "notes.txt")])
    with pytest.raises(ValueError, match="one kind at a time, not paint, picture"):
        initial_frames.find_frames([str(pictures), "paint"])
    (pictures / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not a picture that can be read"):
        initial_frames.read_pixels(InitialFrame("broken", str(pictures / "broken.png")))


def test_maps_of_the_engine():
    pytest.importorskip("vizdoom", reason='the game engine is in the extra "demo"')
    assert [frame.name for frame in initial_frames.find_frames(["doom:freedoom2:MAP01"])] == ["doom:freedoom2:MAP01"]
    assert len(initial_frames.find_frames(["doom"])) > 60
    with pytest.raises(ValueError, match="no such map"):
        initial_frames.find_frames(["doom:freedoom3"])


def test_a_picture_is_cut_about_its_middle():
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[:, :50] = 255
    found = initial_frames.crop_and_resize(picture, 64, 32)
    assert found.shape == (32, 64, 3)
    assert found[:, :31].min() == 255
    assert found[:, 33:].max() == 0


def test_a_clip_is_quiet_just_before_its_first_interaction():
    spans = [
        {"kind": "regime", "start_s": 10.0},
        {"kind": "interaction", "start_s": 12.0},
        {"kind": "interaction", "start_s": 14.0},
    ]
    row = {
        "clip_id": "c",
        "source_uri": "v.mp4",
        "start_s": 10.0,
        "action_spans": spans,
        "picture": {"x": 0, "y": 2, "w": 8, "h": 6},
    }
    (frame,) = initial_frames.quiet_frames([row])
    assert (frame.name, frame.time_s, frame.crop) == ("clip:c@1.60", 11.6, (0, 2, 8, 6))
    (frame,) = initial_frames.quiet_frames([row | {"action_spans": None}])
    assert frame.time_s == 10.0
