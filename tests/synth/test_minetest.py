"""Minetest recordings: the camera's arithmetic, the player, and real recordings where the game is installed."""

import itertools
import json
import math
import random
import shutil

import cv2
import numpy as np
import pytest

from curation.cameras import engine
from curation.captions import engine_events
from curation.errors import InputError, Unavailable
from curation.media.decode import Span, read_frames
from synth.doom.truth import forward_speed, read_truth, yaw_rate_deg_s
from synth.engines import minetest
from synth.engines.__main__ import main
from synth.engines.minetest import EVENTS, Recording, engine_camera, logged_events
from synth.engines.minetest_game import MOUSE_STEP_DEG, Optics
from synth.engines.player import KEY_TURN_DEG_S, PLAYS, RADIUS_M, Roamer, View

FPS = 17.5
installed = pytest.mark.skipif(
    not (shutil.which("minetest", path="/usr/games:/usr/local/bin:/usr/bin") and shutil.which("Xvfb") and shutil.which("cc")),
    reason="needs minetest, Xvfb and cc: make engines",
)


def truth_file(folder, poses, events=()):
    """Write a truth file of frames (east, north, up in metres, yaw, perhaps pitch); return its truth."""
    optics = Optics.of(256, 192)
    lines = [{"header": True, "fps": FPS, "width": 256, "height": 192, "fx": optics.focal_px, "fy": optics.focal_px,
              "cx": 128.0, "cy": optics.centre_y}]  # fmt: skip
    for number, (east, north, up, yaw, *pitch) in enumerate(poses):
        state = {"CAMERA_POSITION_X": 32 * east, "CAMERA_POSITION_Y": 32 * north, "CAMERA_POSITION_Z": 32 * up}
        state |= {"CAMERA_ANGLE": yaw, "ATTACK_READY": 1.0, **({"CAMERA_PITCH": pitch[0]} if pitch else {})}
        happening = [event for frame, event in events if frame == number]
        lines.append(
            {"frame": number, "mode": "walk", "keys": [], "mouse_dx": 0, "state": state, "events": happening, "moving": []}
        )
    lines.append({"footer": True, "frames": len(poses), "true_cuts": []})
    path = folder / "play.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_truth(path)


def test_walking_is_one_unit_of_speed_along_the_view(tmp_path):
    east = [4 / FPS * k for k in range(10)]  # 4 m/s east, looking east
    camera = engine_camera(truth_file(tmp_path, [(x, 7.0, 1.5, 0.0) for x in east]))
    step = camera.pose[1:, :3, 3] - camera.pose[:-1, :3, 3]
    np.testing.assert_allclose(step * FPS * camera.scale_to_unit, np.tile([0, 0, 1.0], (9, 1)), atol=1e-9)


@pytest.mark.parametrize(
    ("metres", "unit"), [((0, -1, 0), (0.25, 0, 0)), ((0, 0, 1), (0, -0.25, 0)), ((1, 0, 0), (0, 0, 0.25))]
)
def test_axes_are_right_down_forward(tmp_path, metres, unit):
    camera = engine_camera(truth_file(tmp_path, [(0, 0, 0, 0.0), (*metres, 0.0)]))  # looking east: south is right
    np.testing.assert_allclose(camera.pose[1, :3, 3] * camera.scale_to_unit, unit, atol=1e-9)


def test_a_turn_to_the_right_is_about_the_cameras_own_vertical_axis(tmp_path):
    camera = engine_camera(truth_file(tmp_path, [(0, 0, 0, 90.0), (0, 0, 0, 60.0)]))
    turn = math.radians(30)
    expected = [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    np.testing.assert_allclose(camera.pose[1, :3, :3], expected, atol=1e-9)


def test_a_look_down_is_about_the_cameras_own_horizontal_axis(tmp_path):
    camera = engine_camera(truth_file(tmp_path, [(0, 0, 0, 70.0, 0.0), (0, 0, 0, 70.0, -30.0)]))
    look = math.radians(30)
    expected = [[1, 0, 0], [0, math.cos(look), math.sin(look)], [0, -math.sin(look), math.cos(look)]]
    np.testing.assert_allclose(camera.pose[1, :3, :3], expected, atol=1e-9)


@pytest.mark.parametrize("size", [(256, 192), (320, 240), (640, 360)])
def test_the_window_has_the_pictures_focal_length_and_hides_rows_of_sky(size):
    optics = Optics.of(*size)
    aspect = size[0] / optics.window_height
    drawn_deg = optics.fov_setting * min(max(math.sqrt(1.6 / aspect), 1), 1.4)  # as the game widens it
    assert optics.window_height / 2 / math.tan(math.radians(drawn_deg / 2)) == pytest.approx(optics.focal_px)
    assert optics.centre_y == pytest.approx(0.425 * size[1], abs=0.5)


def test_events_with_a_caption_are_logged(tmp_path):
    event = {"e": "snow", "caption": "it starts to snow", "category": "environment"}
    truth = truth_file(tmp_path, [(0, 0, 0, 0.0)] * 40, [(35, event), (36, "other")])
    assert logged_events(truth) == [engine_events.EngineEvent(35, 2.0, "it starts to snow", "environment")]


def walked(play, seed, seconds=240):
    """Return what a player does in an open field, frame by frame, and its distance from the middle."""
    view = View()
    roamer = Roamer(random.Random(seed), view, FPS)
    acts, distances, behaviours = [], [], []
    for act in itertools.islice(PLAYS[play](roamer), round(seconds * FPS)):
        view.yaw_deg -= act.turn_deg
        along, across = ("up" in act.keys) - ("down" in act.keys), ("right" in act.keys) - ("left" in act.keys)
        yaw, length = math.radians(view.yaw_deg), math.hypot(along, across) or 1
        view.east += (along * math.cos(yaw) + across * math.sin(yaw)) / length * 4 / FPS
        view.north += (along * math.sin(yaw) - across * math.cos(yaw)) / length * 4 / FPS
        acts.append(act)
        distances.append(math.hypot(view.east, view.north))
        behaviours.append(roamer.behaviour)
    return acts, distances, behaviours


def test_a_roaming_player_stays_near_and_turns_as_a_held_key_does_in_half_of_the_turns():
    acts, distances, behaviours = walked("roam", 3)
    assert max(distances) < RADIUS_M + 10
    assert np.mean(np.array(distances) < RADIUS_M) > 0.7
    turns = [abs(act.turn_deg) * FPS for act in acts if abs(act.turn_deg) * FPS > 15]
    assert 0.35 < np.mean(np.isclose(turns, KEY_TURN_DEG_S)) < 0.75
    assert {"walk", "turn", "walk_turn", "back", "strafe", "still", "turn_back", "walk_back"} <= set(behaviours)


def test_equal_seeds_play_alike_and_others_do_not():
    assert walked("amble", 5, 20)[0] == walked("amble", 5, 20)[0]
    assert walked("amble", 5, 20)[0] != walked("amble", 6, 20)[0]


def test_a_key_turn_is_a_whole_number_of_mouse_steps():
    assert pytest.approx(32) == KEY_TURN_DEG_S / FPS / MOUSE_STEP_DEG


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.avi"], "the recording must be named *.mp4, not 'out.avi'"),
        (["out.mp4", "--scenario", "fly"], "unknown scenario 'fly'; known: roam, amble, still"),
        (["out.mp4", "--event", "rain"], "unknown event 'rain'; known: snow, night, torch, block, creature, explosion"),
        (["out.mp4", "--event", "snow", "--seconds", "4"], "a recording with an event must be at least 7 s long, not 4"),
        (["out.mp4", "--size", "63x64"], "the size must be even and at least 64x64, not 63x64"),
        (["out.mp4", "--time-of-day", "2"], "time_of_day must be between 0 and 1, not 2.0"),
    ],
)
def test_bad_arguments_are_one_line(words, message, capsys):
    assert main(["minetest", *words]) == 2
    assert capsys.readouterr().err == f"synth.engines: {message}\n"


def test_where_the_game_is_absent_the_message_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda *args, **more: None)
    assert main(["minetest", str(tmp_path / "out.mp4")]) == 2
    assert "minetest is not installed: apt-get install minetest xvfb" in capsys.readouterr().err
    with pytest.raises(Unavailable):
        minetest.record(tmp_path / "out.mp4", Recording())
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_recording_that_fails(monkeypatch, tmp_path):
    def fail(*args):
        raise InputError("as asked")

    monkeypatch.setattr(minetest, "start_game", fail)
    with pytest.raises(InputError, match="as asked"):
        minetest.record(tmp_path / "out.mp4", Recording())
    assert not list(tmp_path.iterdir())


def drawn_number(picture):
    return sum(int(picture[186:190, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(12))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A recording that draws the number of each frame: its path, frames and truth."""
    path = tmp_path_factory.mktemp("minetest") / "play.mp4"
    assert main(["minetest", str(path), "--seconds", "8", "--seed", "3", "--draw-number"]) == 0
    frames = read_frames(str(path), Span(0, 8))
    return path, frames, read_truth(path.with_suffix(".jsonl"))


@installed
def test_every_picture_has_the_number_of_its_own_line(numbered):
    path, frames, _ = numbered
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    logged = [line["tic"] % 4096 for line in lines if "frame" in line]
    assert [drawn_number(picture) for picture in frames.rgb] == logged
    assert set(np.diff(logged)) == {1}
    np.testing.assert_allclose(frames.times_s, np.arange(140) / FPS, atol=1e-3)


@installed
def test_rates_are_those_of_the_keys(numbered):
    _, _, truth = numbered
    turns = np.abs(yaw_rate_deg_s(truth))
    assert np.isclose(turns, KEY_TURN_DEG_S, atol=0.1).sum() > 10, "turns as a held key makes them"
    assert np.abs(forward_speed(truth)).max() / 32 == pytest.approx(4, rel=0.02)
    np.testing.assert_allclose(np.radians(-truth.mouse_dx_deg[:-1]), np.radians(yaw_rate_deg_s(truth)[:-1]) / FPS, atol=1e-3)


@installed
def test_turning_the_picture_by_the_log_gives_the_next_one(numbered):
    """The homography K R K^-1 of a rotation in place maps one picture to the other."""
    path, frames, _ = numbered
    facts, camera = engine.annotate(str(path), (256, 192), Span(0, 8), frames.times_s)
    assert (facts.status, camera.scale_source) == ("ok", "engine")
    step = np.linalg.inv(camera.pose[:-1]) @ camera.pose[1:]
    still = np.linalg.norm(step[:, :3, 3], axis=1) < 1e-3
    turn = np.where(still, np.abs(step[:, 0, 2]), 0)
    i = int(np.argmax(turn))
    assert turn[i] > 0.05
    fx, fy, cx, cy = camera.intrinsics[i]
    inner = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    warp = inner @ step[i, :3, :3].T @ np.linalg.inv(inner)
    before, after = (cv2.cvtColor(frames.rgb[k], cv2.COLOR_RGB2GRAY).astype(float) for k in (i, i + 1))
    led, middle = cv2.warpPerspective(before, warp, (256, 192)), np.s_[20:160, 40:216]
    assert np.abs(led - after)[middle].mean() < 0.5 * np.abs(before - after)[middle].mean()


@installed
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["block", "torch", "creature"])
def test_an_event_shows_first_in_the_frame_that_the_log_names(name, tmp_path):
    path = tmp_path / "play.mp4"
    minetest.record(path, Recording(scenario="still", seconds=8, seed=5, event=name))
    (event,) = engine_events.read_log(str(path))
    assert (event.caption, event.category) == (EVENTS[name].caption, EVENTS[name].category)
    assert event.time_s == pytest.approx(event.frame / FPS)
    frames = read_frames(str(path), Span(0, 8)).rgb.astype(int)
    changed = (np.abs(np.diff(frames, axis=0)).max(-1) > 40).mean((1, 2))  # of frame k + 1 against frame k
    first = 41 + int(np.argmax(changed[40:] > 0.01))
    early = 1 if name == "block" else 0  # its mesh may be built before the frame is drawn
    assert event.frame - early <= first <= event.frame
