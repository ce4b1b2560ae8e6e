"""The truth of a recording: reading it, and the motion derived from it, on hand-made and on shared recordings."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synth.doom.truth import (
    REGIMES,
    discontinuities,
    forward_speed,
    interactions,
    read_truth,
    regimes,
    runs,
    strafe_speed,
    yaw_rate_deg_s,
)

FPS = 35
SHARED = Path(os.environ.get("GAMECRAFT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
RECORDINGS = ("doom_open_a_explore_2maps", "doom_open_b_camera_nohud", "doom_open_c_fight")


def write_truth(path: Path, poses: list[tuple[float, float, float]], events: dict[int, list[Any]], cuts=()) -> Path:
    """Write a truth file for poses (x, y, yaw in degrees), one per frame."""
    lines: list[dict[str, Any]] = [{"header": True, "fps": FPS}]
    for frame, (x, y, yaw) in enumerate(poses):
        state = {
            "CAMERA_POSITION_X": x,
            "CAMERA_POSITION_Y": y,
            "CAMERA_POSITION_Z": 41.0,
            "CAMERA_ANGLE": yaw % 360,
            "ATTACK_READY": 1.0,
        }
        line = {"frame": frame, "mode": "nav", "keys": ["W"], "mouse_dx": 0, "state": state}
        lines.append(line | {"events": events.get(frame, [])})
    lines.append({"footer": True, "frames": len(poses), "true_cuts": list(cuts), "event_counts": {}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def moving(velocity_units_s: tuple[float, float], yaw_deg: float, turn_deg_s: float = 0.0, frames: int = 8):
    """Poses of a steady motion: velocity (forward, right) in the body frame, turning to the left."""
    x, y, yaw, poses = 0.0, 0.0, yaw_deg, []
    for _ in range(frames):
        poses.append((x, y, yaw))
        ahead, right = velocity_units_s[0] / FPS, velocity_units_s[1] / FPS
        angle = np.radians(yaw)
        x += ahead * np.cos(angle) + right * np.sin(angle)
        y += ahead * np.sin(angle) - right * np.cos(angle)
        yaw += turn_deg_s / FPS
    return poses


@pytest.mark.parametrize(
    ("velocity_units_s", "turn_deg_s", "regime"),
    [
        ((0, 0), 0, "still"),
        ((39, 0), 0, "still"),
        ((290, 0), 0, "forward"),
        ((290, 100), 29, "forward"),
        ((-290, 0), 0, "back"),
        ((0, 280), 0, "strafe_right"),
        ((100, -280), 0, "strafe_left"),
        ((0, 0), 31, "turn_left"),
        ((290, 0), -31, "turn_right"),
        ((0, 0), 10, "still"),
    ],
)
@pytest.mark.parametrize("yaw_deg", [0.0, 137.0, 359.5])
def test_known_motion_gives_its_regime_whatever_the_heading(tmp_path, velocity_units_s, turn_deg_s, regime, yaw_deg):
    truth = read_truth(write_truth(tmp_path / "t.jsonl", moving(velocity_units_s, yaw_deg, turn_deg_s), {}))
    assert regimes(truth) == [regime] * len(truth)
    np.testing.assert_allclose(forward_speed(truth), velocity_units_s[0], atol=1e-6)
    np.testing.assert_allclose(strafe_speed(truth), velocity_units_s[1], atol=1e-6)
    np.testing.assert_allclose(yaw_rate_deg_s(truth), turn_deg_s, atol=1e-6)


def test_a_rate_never_spans_a_cut_or_a_teleport(tmp_path):
    first, far = moving((290, 0), 0.0, frames=5), [(x + 5000, y, yaw + 90) for x, y, yaw in moving((0, 0), 0.0)]
    back = moving((-290, 0), 45.0, frames=5)
    path = write_truth(tmp_path / "t.jsonl", first + far + back, {5: ["level_change"], 13: ["teleport"]}, cuts=[5])
    truth = read_truth(path)
    assert truth.cuts == (5,)
    assert discontinuities(truth) == [5, 13]
    assert regimes(truth) == ["forward"] * 5 + ["still"] * 8 + ["back"] * 5


def test_a_segment_of_one_frame_is_still(tmp_path):
    poses = [*moving((290, 0), 0.0, frames=3), (900.0, 900.0, 0.0), *moving((290, 0), 90.0, frames=3)]
    truth = read_truth(write_truth(tmp_path / "t.jsonl", poses, {}, cuts=[3, 4]))
    assert regimes(truth) == ["forward"] * 3 + ["still"] + ["forward"] * 3


def test_events_are_read_in_both_notations_and_notes_are_skipped(tmp_path):
    path = write_truth(tmp_path / "t.jsonl", moving((0, 0), 0.0), {2: ["kill", {"e": "hurt", "by": 3.0}]})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], json.dumps({"note": "died", "before_frame": 3}) + "\n", *lines[4:]]))
    truth = read_truth(path)
    assert [(event.frame, event.name, event.details) for event in truth.events] == [
        (2, "kill", {}),
        (2, "hurt", {"by": 3.0}),
    ]
    assert len(truth) == 8


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (slice(1, None), "its first line is not a header"),
        (slice(0, -1), "ends without a footer"),
        (slice(0, 0), "not a header"),
    ],
)
def test_an_incomplete_file_is_refused(tmp_path, keep, message):
    path = write_truth(tmp_path / "t.jsonl", moving((0, 0), 0.0), {})
    path.write_text("".join(path.read_text().splitlines(keepends=True)[keep]))
    with pytest.raises(ValueError, match=message):
        read_truth(path)


def test_a_lost_line_is_noticed(tmp_path):
    path = write_truth(tmp_path / "t.jsonl", moving((0, 0), 0.0), {})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(ValueError, match="has 7 frames, its footer says 8"):
        read_truth(path)


@pytest.mark.parametrize("name", RECORDINGS)
def test_shared_recordings_are_read(name):
    path = SHARED / "data" / "vizdoom" / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no shared recordings at {path.parent}; set GAMECRAFT_SHARED")
    truth = read_truth(path)
    assert len(truth) == {RECORDINGS[0]: 1575, RECORDINGS[1]: 1400, RECORDINGS[2]: 1050}[name]
    assert truth.cuts == ((875,) if name == RECORDINGS[0] else ())
    assert truth.position.shape == (len(truth), 3)
    assert {"forward", "turn_left", "turn_right", "still"} <= set(regimes(truth)) <= set(REGIMES)
    assert np.abs(forward_speed(truth)).max() < 700, "running is 580 units a second, a teleport would be thousands"
    assert_mouse_turns_the_view(truth)


def assert_mouse_turns_the_view(truth):
    """Where only the mouse turns the view, the yaw falls by the mouse's turn to the right."""
    only_mouse = np.array([not keys & {"TURN_LEFT", "TURN_RIGHT"} for keys in truth.keys])
    only_mouse[[frame - 1 for frame in [*discontinuities(truth), len(truth)]]] = False
    only_mouse[:7] = False  # the engine ignores the first seven tics of a map; these recordings did not wait
    difference = yaw_rate_deg_s(truth) / truth.fps + truth.mouse_dx_deg
    assert np.abs(difference[only_mouse]).max() < 0.02


def timed(tmp_path, frames, argv=()):
    """Return the truth of frames that are given as (events, moving, attack_ready)."""
    lines = [{"header": True, "fps": FPS, "argv": list(argv)}]
    for number, (events, moving, ready) in enumerate(frames):
        state = {
            "CAMERA_POSITION_X": 0,
            "CAMERA_POSITION_Y": 0,
            "CAMERA_POSITION_Z": 41,
            "CAMERA_ANGLE": 0,
            "ATTACK_READY": ready,
        }
        line = {"frame": number, "mode": "nav", "keys": [], "mouse_dx": 0, "state": state, "events": events}
        lines.append(line if moving is None else line | {"moving": moving})
    lines.append({"footer": True, "frames": len(frames), "true_cuts": [], "event_counts": {}})
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_truth(path)


DOOR = {"sector": 3, "motion": "door_opening", "dist": 100.0, "visible": True}


def test_a_door_counts_while_it_moves_in_view_and_near(tmp_path):
    doors = [DOOR, DOOR | {"visible": False}, DOOR | {"dist": 500.0}]
    told = timed(tmp_path, [([], [door], 1.0) for door in doors] + [([], [], 1.0)])
    assert interactions(told).tolist() == [True, False, False, False]


def test_older_recordings_tell_doors_by_their_events(tmp_path):
    start = {"e": "door_opening_start", "sector": 3, "dist": 100.0, "bearing": 5.0, "in_view": True}
    frames = [[], [start], [], [{"e": "door_opening_end", "sector": 3}], [start | {"in_view": False}], []]
    told = timed(tmp_path, [(events, None, 1.0) for events in frames])
    assert interactions(told).tolist() == [False, True, True, False, False, False]


def test_a_busy_weapon_counts_where_it_is_drawn(tmp_path):
    frames = [([], [], ready) for ready in (1.0, 0.0, 0.0, 1.0)]
    assert interactions(timed(tmp_path, frames)).tolist() == [False, True, True, False]
    assert not interactions(timed(tmp_path, frames, argv=["--no-weapon"])).any()


def test_runs_of_flags():
    assert runs(np.array([True, False, True, True])) == [(0, 1), (2, 4)]
    assert runs(np.zeros(3, bool)) == []
