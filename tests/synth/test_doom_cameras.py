"""The camera log of the engine agrees with the engine's truth and with its pictures."""

import cv2
import numpy as np
import pytest

from curation.cameras import engine
from curation.cameras.controls import rates
from curation.media.decode import Span, read_frames
from synth.doom.__main__ import main
from synth.doom.truth import forward_speed, read_truth, yaw_rate_deg_s

pytest.importorskip("vizdoom")


def recorded(folder, *words):
    """Record three seconds; return the video, its frames, and the camera in the log."""
    path = folder / "play.mp4"
    assert main([str(path), "--map", "freedoom2:MAP01:3", "--seed", "3", "--no-monsters", "--camera-log", *words]) == 0
    frames = read_frames(str(path), Span(0, 3))
    facts, camera = engine.annotate(str(path), (640, 480), Span(0, 3), frames.times_s)
    assert (facts.status, facts.backend, camera.scale_source) == ("ok", "engine", "engine")
    return path, frames.rgb, camera


def test_rates_from_the_log_are_the_truths(tmp_path):
    path, _, camera = recorded(tmp_path, "--style", "camera")
    truth, found = read_truth(path.with_suffix(".jsonl")), rates(camera.pose, camera.times_s, smooth_s=0.0)
    np.testing.assert_allclose(found.forward, forward_speed(truth), atol=0.5)
    np.testing.assert_allclose(found.pan_deg_s, -yaw_rate_deg_s(truth), atol=0.01)  # ours is positive to the right
    assert np.abs(found.forward).max() > 100


@pytest.mark.parametrize("drawn", [[], ["--no-hud", "--no-weapon"]], ids=["hud", "bare"])
def test_turning_the_picture_by_the_log_gives_the_next_one(tmp_path, drawn):
    """The homography K R K^-1 of a rotation in place maps one picture to the other."""
    _, frames, camera = recorded(tmp_path, "--style", "static", *drawn)
    step = np.linalg.inv(camera.pose[:-4]) @ camera.pose[4:]
    turn = np.degrees(np.arccos(np.clip((np.trace(step[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)))
    i = int(np.argmax(turn))
    assert (turn[i] > 4, bool(np.allclose(step[i, :3, 3], 0))) == (True, True)
    fx, fy, cx, cy = camera.intrinsics[i]
    inner = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])  # OpenCV counts from the pixel's centre
    warp = inner @ step[i, :3, :3].T @ np.linalg.inv(inner)
    before, after = (cv2.cvtColor(frames[k], cv2.COLOR_RGB2GRAY).astype(float) for k in (i, i + 4))
    led, middle = cv2.warpPerspective(before, warp, (640, 480)), np.s_[60:280, 160:480]
    assert np.abs(led - after)[middle].mean() < 0.4 * np.abs(before - after)[middle].mean()
