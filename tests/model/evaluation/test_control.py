"""Obedience, expected flow, the way back, drift and inverse dynamics, on pictures whose camera is known."""

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

import itertools

from bench import drift_events
from curation.partition.optical_flow import DisFlow, FramePair
from model.control.spec import ControlSpec
from model.control.trajectory import integrate
from model.evaluation.control import drift, inverse_dynamics, mirror, obedience
from model.evaluation.control.expected_flow import flow_agreement, rotation_flow, translation_direction
from model.play.keys import parse_keys

H, W = 96, 128
K = np.array([110.0, 110.0, W / 2, H / 2])
SPEC = ControlSpec(fps=8.0)


@pytest.fixture(scope="module")
def wall():
    grain = np.random.default_rng(0).integers(0, 255, (100, 150, 3), np.uint8)
    return cv2.GaussianBlur(cv2.resize(grain, (1500, 1000), interpolation=cv2.INTER_CUBIC), (0, 0), 3)


def poses(script):
    return integrate(parse_keys(script), SPEC)


def matrix():
    return np.array([[K[0], 0, K[2]], [0, K[1], K[3]], [0, 0, 1]])


def film(wall, pose_F44):
    """A wall, 1500 x 1000 px, a metre and a half in front of the first camera: exact pictures of any path."""
    frames = []
    to_wall = np.array([[400.0, 0, 750], [0, 400.0, 500], [0, 0, 1]])  # px on the wall from metres at its distance of 1
    for pose in pose_F44:
        r, t = pose[:3, :3], pose[:3, 3]
        plane = np.stack([r.T[:, 0], r.T[:, 1], r.T @ (np.array([0, 0, 1.5]) - t)], 1)  # of x, y, 1 on the wall
        frames.append(cv2.warpPerspective(wall, matrix() @ plane @ np.linalg.inv(to_wall), (W, H), flags=cv2.INTER_LINEAR))
    return np.stack(frames)


def flows_of(video):
    flow = DisFlow()
    return flow([FramePair(a, b) for a, b in itertools.pairwise(video)])


def test_the_flow_of_a_rotation_is_that_of_its_homography():
    pose = poses("RIGHT+UP")
    step = np.linalg.inv(pose[0]) @ pose[1]
    flow = rotation_flow(step[:3, :3], K, H, W)
    homography = matrix() @ step[:3, :3].T @ np.linalg.inv(matrix())
    for x, y in ((0, 0), (100, 20), (64, 48)):
        there = homography @ [x + 0.5, y + 0.5, 1]
        assert flow[y, x] == pytest.approx(there[:2] / there[2] - [x + 0.5, y + 0.5], abs=1e-9)
    assert flow[..., 0].max() < 0  # to the right: the picture moves to the left
    assert flow[H // 2, W // 2, 1] > 0  # up: the picture moves down


@pytest.mark.parametrize("script", ["RIGHT*6", "LEFT*6", "UP*4", "DOWN*4"])
def test_observed_flow_is_the_expected_one(wall, script):
    slow = ControlSpec(fps=40.0)
    pose = integrate(parse_keys(script), slow)
    found = flow_agreement(flows_of(film(wall, pose)), pose, K)
    assert found.gain == pytest.approx(1, abs=0.06)
    assert found.cosine > 0.99
    assert found.turning_steps == len(pose) - 1
    assert np.isnan(found.parallax)
    against = flow_agreement(flows_of(film(wall, pose))[::-1], pose[::-1], K)
    assert against.gain == pytest.approx(-1, abs=0.06)


def test_a_video_that_stands_still_has_no_gain(wall):
    pose = poses("RIGHT*6")
    video = np.repeat(film(wall, pose)[:1], len(pose), 0)
    assert flow_agreement(flows_of(video), pose, K).gain == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("script", ["W*6", "S*6", "D*6"])
def test_parallax_follows_the_translation(wall, script):
    pose = integrate(parse_keys(script), ControlSpec(fps=20.0, glide_s=0.0))
    flows = flows_of(film(wall, pose))
    assert flow_agreement(flows, pose, K).parallax > 0.9
    assert flow_agreement(flows, np.linalg.inv(pose), K).parallax < -0.9


def test_the_direction_of_a_walk_is_away_from_the_middle():
    step = np.eye(4)
    step[2, 3] = 0.3
    direction = translation_direction(step, K, H, W)
    assert direction[10, 10, 0] < 0
    assert direction[10, 10, 1] < 0
    assert np.abs(direction[H // 2, W // 2]).max() < 1


@pytest.mark.parametrize(
    ("script", "action"),
    [
        ("RIGHT*8", "right"), ("LEFT*8", "left"), ("UP*4", "up"), ("DOWN*4", "down"), ("W*8", "forward"), ("S*8", "back"),
        ("D*8", "strafe_right"), ("A*8", "strafe_left"), (".*8", "still"), ("RIGHT+UP*8", None), ("W+D*8", None),
    ],
)  # fmt: skip
def test_the_action_that_keys_control(script, action):
    assert obedience.action_of(poses(script)) == action


@pytest.mark.parametrize("script", ["RIGHT*8", "LEFT*8", "UP*4", "DOWN*4", "W*8", "S*8", "D*8", "A*8", ".*8"])
def test_real_pictures_obey_and_the_opposite_does_not(wall, script):
    fine = ControlSpec(fps=24.0, speed=0.8)
    pose = integrate([state for state in parse_keys(script) for _ in range(3)], fine)
    flows = flows_of(film(wall, pose))
    (window,) = obedience.windows(flows, pose, len(flows))
    assert window.obeys
    if window.action != "still":
        motion = obedience.WindowMotion(-window.motion.right, -window.motion.up, -window.motion.grown, 1.0)
        assert not obedience.follows(window.action, motion)


def test_shares_by_action():
    good, bad = obedience.WindowMotion(1, 0, 0, 1), obedience.WindowMotion(-1, 0, 0, 1)
    rows = [obedience.Window("right", good), obedience.Window("right", bad), obedience.Window("left", bad)]
    table = obedience.shares(rows)
    assert {name: part.share for name, part in table.items()} == {"right": 0.5, "left": 1.0, "all": 2 / 3}
    assert obedience.shares([]) == {}


def test_the_way_back_of_exact_pictures_is_the_way_there(wall):
    pose = poses("RIGHT*5 LEFT*5")
    assert mirror.is_mirrored(pose)
    assert not mirror.is_mirrored(poses("RIGHT*10"))
    assert not mirror.is_mirrored(poses(".*10"))
    video = film(wall, pose)
    curve = mirror.mirror_curve(video)
    assert list(curve.age) == [2, 4, 6, 8, 10]
    assert curve.psnr.min() > 45
    forgetful = video.copy()
    forgetful[6:] = film(wall[::-1], pose)[6:]
    assert mirror.mirror_curve(forgetful).psnr.max() < curve.psnr.min() - 10
    assert mirror.mirror_curve(forgetful).ssim.max() < 0.9
    with pytest.raises(ValueError, match="odd number"):
        mirror.mirror_pairs(4)


def walk(wall, frames, step=8):
    """A window that slides over the wall and never comes back."""
    return np.stack([wall[300 : 300 + H, step * k : step * k + W] for k in range(frames)])


def test_a_walk_that_goes_on_has_no_event(wall):
    pose = poses("W*99")
    curve = drift.drift_curve(walk(wall, 100), 8.0)
    assert curve.similarity[0] == pytest.approx(1)
    assert drift.events(curve, 8.0, pose) == []


@pytest.mark.parametrize(("fps", "blend"), [(8.0, 0), (16.0, 4)])
def test_a_collapse_to_the_first_frame_is_named_with_its_time(wall, fps, blend):
    video = walk(wall, 100)
    for k in range(blend):
        share = (k + 1) / (blend + 1)
        video[70 - blend + k] = (1 - share) * video[70 - blend + k] + share * video[k]
    video[70:] = video[:30]
    curve = drift.drift_curve(video, fps)
    (event, *rest) = drift.events(curve, fps, integrate(parse_keys("W*99"), ControlSpec(fps=fps)))
    assert event.kind == "sink_collapse"
    assert event.start_s == pytest.approx(69 / fps, abs=0.4)
    assert drift.count([event, *rest], "sink_collapse") == 1
    # Without the controls a cut is a cut, and a blend could be a fast turn.
    assert len(drift.events(curve, fps)) == (0 if blend else 1)


def test_a_player_who_returns_is_no_collapse(wall):
    video = walk(wall, 41)
    video = np.concatenate([video, video[-2::-1]])
    pose = integrate(parse_keys("W*40 S*40"), ControlSpec(fps=8.0, glide_s=0.0))
    assert drift.events(drift.drift_curve(video, 8.0), 8.0, pose) == []
    elsewhere = integrate(parse_keys("W*80"), ControlSpec(fps=8.0, glide_s=0.0))
    assert drift.count(drift.events(drift.drift_curve(video, 8.0), 8.0, elsewhere), "sink_collapse") == 0  # it moves there


def test_made_up_events_are_found_and_counted(wall, monkeypatch):
    monkeypatch.setattr(drift_events, "_PLACES", 3)
    take = drift_events.Recording(walk(wall, 180, 5), integrate(parse_keys("W*179"), ControlSpec(fps=8.0)), 8.0)
    counts = drift_events.measure(take)
    assert (counts.collapses, counts.lock_ins) == (0, 0)
    assert counts.made == {"cut": 3, "blend": 3, "freeze": 1, "loop": 1}
    assert {kind: counts.found[kind] for kind in ("cut", "freeze", "loop")} == {"cut": 3, "freeze": 1, "loop": 1}
    assert drift_events.table([("a", counts)]).rows[-1].cells[3] == "3 of 3"


def test_a_world_that_stops_while_the_camera_moves_is_locked_in(wall):
    video = walk(wall, 100)
    video[40:] = video[40]
    (event,) = drift.events(drift.drift_curve(video, 8.0), 8.0, poses("W*99"))
    assert event.kind == "lock_in"
    assert event.start_s == pytest.approx(48 / 8, abs=0.5)
    assert event.end_s == pytest.approx(100 / 8)
    assert drift.events(drift.drift_curve(video, 8.0), 8.0, poses("W*39 .*60")) == []


def test_drift_is_compared_with_the_real_curves(wall):
    real = drift.drift_curve(walk(wall, 60), 8.0)
    darker = drift.drift_curve((walk(wall, 60) * 0.5).astype(np.uint8), 8.0)
    table = drift.drift_table(darker, real, 8)
    assert table["similarity_difference"] == pytest.approx(0, abs=0.02)
    assert table["luma_difference"] == pytest.approx(real.luma.mean() / 2, rel=0.1)
    blurred = drift.drift_curve(np.stack([cv2.GaussianBlur(f, (0, 0), 4) for f in walk(wall, 60)]), 8.0)
    assert drift.drift_table(blurred, real, 8)["sharpness_share"] < 0.7


def test_controls_are_read_back_and_a_mirrored_video_is_not(wall, tmp_path):
    scripts = ["RIGHT*20", "LEFT*20", "UP*10 DOWN*10", "W*20", "S*20", "D*10 A*20", "RIGHT*9 W*9 LEFT*9", "A*12 S*9 UP*6"]
    fine = ControlSpec(fps=24.0, speed=0.6)
    takes = [integrate(parse_keys(script), fine) for script in scripts]
    flows = [flows_of(film(wall, pose)) for pose in takes]
    features = [inverse_dynamics.flow_features(each) for each in flows]
    rates = [inverse_dynamics.step_rates(pose) for pose in takes]
    model = inverse_dynamics.fit(np.concatenate(features[:-1]), np.concatenate(rates[:-1]))
    inverse_dynamics.save(model, str(tmp_path / "m.npz"))
    model = inverse_dynamics.load(str(tmp_path / "m.npz"))
    table = inverse_dynamics.recovered(model, features[-1], rates[-1])
    assert table["look"][0] > 0.8
    assert table["side"][0] > 0.8
    flipped = [flow[:, ::-1] * [-1, 1] for flow in flows[-1]]
    wrong = inverse_dynamics.recovered(model, inverse_dynamics.flow_features(flipped), rates[-1])
    assert wrong["side"][0] < 0.4
    with pytest.raises(ValueError, match="at least as many steps"):
        inverse_dynamics.fit(features[0], rates[0])
    assert inverse_dynamics.sign_accuracy([{"turn": (1.0, 1)}, {"turn": (0.0, 3)}]) == {"turn": 0.25}
