import numpy as np
import pytest

from curation.cameras.camera import Camera
from curation.cameras.controls import controls, rates
from curation.cameras.rotation import logarithm
from curation.cameras.words import WordSettings, describe_motion, held_keys


def turned(axis, degrees):
    """A rotation matrix by Rodrigues' formula."""
    axis, angle = np.asarray(axis, float) / np.linalg.norm(axis), np.radians(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def walk(frames, fps, forward=0.0, right=0.0, up=0.0, pan=0.0, tilt=0.0):
    """A camera that each frame moves in its own axes (units/s) and then turns (deg/s)."""
    pose = [np.eye(4)]
    for _ in range(frames - 1):
        step = np.eye(4)
        step[:3, :3] = turned([0, 1, 0], pan / fps) @ turned([1, 0, 0], tilt / fps)
        step[:3, 3] = np.array([right, -up, forward]) / fps
        pose.append(pose[-1] @ step)
    return np.array(pose), np.arange(frames) / fps


def camera(pose, times_s, scale=1.0, source="speed"):
    n = len(pose)
    inner = np.tile([320.0, 320.0, 320.0, 240.0], (n, 1))
    known = np.ones(n, bool), np.zeros(n, np.float32), np.array([0])
    return Camera(pose, inner, times_s, (640, 480), (0, 0, 640, 480), *known, scale, source)


@pytest.mark.parametrize(
    ("how", "axis", "sign"),
    [
        ({"forward": 3}, "forward", 1),
        ({"forward": -3}, "forward", -1),
        ({"right": 2}, "right", 1),
        ({"up": 2}, "up", 1),
        ({"pan": 40}, "pan_deg_s", 1),
        ({"tilt": 25}, "tilt_deg_s", 1),
    ],
)
def test_each_motion_is_its_own_rate(how, axis, sign):
    found = rates(*walk(60, 30, **how))
    amount = abs(next(iter(how.values())))
    np.testing.assert_allclose(getattr(found, axis), sign * amount, rtol=1e-6)
    for other in set(found._fields) - {axis}:
        np.testing.assert_allclose(getattr(found, other), 0, atol=1e-9)


def test_the_axes_are_the_bodys_not_the_worlds():
    found = rates(*walk(90, 30, forward=2, pan=60))
    np.testing.assert_allclose(found.forward[3:-4], 2, rtol=0.01)
    np.testing.assert_allclose(found.pan_deg_s, 60, rtol=1e-6)


def test_rates_are_a_second_at_variable_frame_times():
    pose, _ = walk(5, 1, forward=1)
    found = rates(pose, np.array([0.0, 0.5, 1.0, 3.0, 5.0]), smooth_s=0.0)
    np.testing.assert_allclose(found.forward, [2, 2, 0.5, 0.5, 0.5])


def test_one_frame_and_none_have_no_rates():
    assert rates(np.eye(4)[None], np.zeros(1)).forward.tolist() == [0.0]
    assert rates(np.zeros((0, 4, 4)), np.zeros(0)).forward.shape == (0,)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 5.0, 90.0, 179.0])
def test_rotation_vectors_undo_rodrigues(degrees):
    axis = np.array([0.6, 0.0, 0.8])
    np.testing.assert_allclose(logarithm(turned(axis, degrees)[None])[0], axis * np.radians(degrees), atol=1e-9)


def test_controls_are_in_the_units_of_the_data_set():
    pose, times_s = walk(60, 30, forward=4, pan=-30)
    found = controls(pose, times_s, scale_to_unit=0.25)
    np.testing.assert_allclose(found[5:-5, 0], 1.0, rtol=0.01)
    np.testing.assert_allclose(found[:, 2], -30, rtol=1e-6)


def test_words_come_in_order_of_time_spent():
    first, second = walk(90, 30, forward=2), walk(60, 30, pan=50)
    pose = np.concatenate([first[0], first[0][-1] @ second[0][1:]])
    motion = describe_motion(camera(pose, np.arange(len(pose)) / 30, scale=0.5), WordSettings())
    assert motion.words == ["dolly_in", "pan_right"]
    assert motion.top_speed == pytest.approx(1.0, rel=0.02)
    assert motion.speed == pytest.approx(0.5 * 2 * 89 / 149, rel=0.05)


def test_a_standing_camera_is_static():
    motion = describe_motion(camera(*walk(60, 30)), WordSettings())
    assert (motion.words, motion.turn_deg_s) == (["static"], 0.0)


def test_without_a_scale_no_speed_is_claimed_but_the_direction_is():
    motion = describe_motion(camera(*walk(60, 30, right=-1), source="none"), WordSettings())
    assert (motion.words, motion.speed, motion.top_speed) == (["truck_left"], None, None)


def test_slow_drift_is_no_word_where_the_top_speed_is_known():
    assert describe_motion(camera(*walk(60, 30, forward=0.1)), WordSettings()).words == ["static"]


@pytest.mark.parametrize("scale", [(0.25, "speed"), (1.0, "none")])
def test_keys_are_held_while_they_move_the_view(scale):
    first, second = walk(90, 30, forward=-4, right=4), walk(60, 30, pan=-30)
    pose = np.concatenate([first[0], first[0][-1] @ second[0][1:]])
    keys = held_keys(camera(pose, np.arange(len(pose)) / 30, *scale), WordSettings())
    assert keys[10].tolist() == [-1, 1, 0, 0]
    assert keys[120].tolist() == [0, 0, -1, 0]


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"min_share must be over 0 and at most 1, not 2"):
        WordSettings(min_share=2.0)
