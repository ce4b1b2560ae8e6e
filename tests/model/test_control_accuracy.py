"""Control accuracy: signs of synthetic motion in pictures, and of trajectories of the integrator."""

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.control.spec import ControlSpec, ControlState
from model.control.trajectory import integrate
from model.evaluation.control_accuracy import camera_motion, follows, is_blank, proportion, video_motion

SPEC = ControlSpec(fps=8.75)


@pytest.fixture(scope="module")
def picture():
    """Smooth noise, larger than the view."""
    grain = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    return cv2.GaussianBlur(cv2.resize(grain, (256, 192), interpolation=cv2.INTER_CUBIC), (0, 0), 3)


def view(picture, shift=0.0, grown=1.0):
    """64x48 px of it, moved to the right by so many px and enlarged about the middle."""
    matrix = np.array([[grown, 0, 32 - 128 * grown + shift], [0, grown, 24 - 96 * grown]])
    return cv2.warpAffine(picture, matrix, (64, 48), flags=cv2.INTER_AREA)


@pytest.mark.parametrize("side", [1, -1])
def test_a_turn_moves_the_picture_the_other_way(picture, side):
    motion = video_motion(np.stack([view(picture, shift=-2 * side * i) for i in range(5)]))
    assert motion.turn == pytest.approx(8 * side, abs=1)
    assert abs(motion.forward) < 0.05
    assert follows("right", motion) == (side > 0)
    assert follows("left", motion) == (side < 0)


@pytest.mark.parametrize("rate", [1.05, 1 / 1.05])
def test_a_walk_makes_the_picture_grow_or_shrink(picture, rate):
    motion = video_motion(np.stack([view(picture, grown=rate**i) for i in range(5)]))
    assert motion.forward == pytest.approx(4 * (rate - 1), rel=0.35)
    assert follows("forward", motion) == (rate > 1)
    assert follows("back", motion) == (rate < 1)


@pytest.mark.parametrize(
    ("keys", "direction"),
    [({"RIGHT"}, "right"), ({"LEFT", "W"}, "left"), ({"W"}, "forward"), ({"S"}, "back"), ({"A"}, None), (set(), None)],
)
def test_the_direction_that_keys_control(keys, direction):
    assert camera_motion(integrate([ControlState(frozenset(keys))] * 8, SPEC)).direction == direction


def test_a_turn_through_half_a_circle_is_counted_on():
    assert camera_motion(integrate([ControlState(frozenset({"RIGHT"}))] * 20, SPEC)).yaw_deg == pytest.approx(20 * 90 / 8.75)


def test_a_wall_is_blank(picture):
    assert is_blank(np.full((48, 64, 3), 90, np.uint8))
    assert not is_blank(view(picture))


def test_wilsons_interval():
    """Against the values of Brown, Cai and DasGupta's formula for 9 of 10, worked by hand."""
    found = proportion([True] * 9 + [False])
    assert (found.share, found.clips) == (0.9, 10)
    assert found.low == pytest.approx(0.5958, abs=1e-3)
    assert found.high == pytest.approx(0.9821, abs=1e-3)
    with pytest.raises(ValueError, match="at least one clip"):
        proportion([])
