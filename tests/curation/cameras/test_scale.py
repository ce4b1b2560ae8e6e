import numpy as np
import pytest

from curation.cameras.camera import Camera
from curation.cameras.scale import scales


def walk(speeds: np.ndarray, scale: float = 1.0, noise: float = 0.0, fps: float = 30.0) -> Camera:
    """A camera that goes ahead at `speeds` [N] units a second, in a unit of its own."""
    count = len(speeds)
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[1:, 2, 3] = np.cumsum(speeds[:-1]) / fps
    pose[:, :3, 3] = (pose[:, :3, 3] + np.random.default_rng(0).normal(0, noise, (count, 3))) * scale
    none = np.zeros(count)
    return Camera(pose, np.zeros((count, 4)), np.arange(count) / fps, (2, 2), (0, 0, 2, 2), none > 0, none, np.array([0]))


def test_the_unit_is_what_the_top_speed_goes_in_a_second() -> None:
    [(scale, source)] = scales([[walk(np.full(90, 4.0), scale=10)]], [])
    assert source == "speed"
    assert scale == pytest.approx(1 / 40, rel=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_noise_and_standing_about_do_not_change_the_unit(scale: float) -> None:
    speeds = np.where(np.arange(180) < 60, 0.0, 4.0)
    [(found, _)] = scales([[walk(speeds, scale, noise=0.02)]], [])
    assert found * scale == pytest.approx(1 / 4, rel=0.1)


def test_a_clip_that_creeps_takes_its_scale_from_the_one_that_it_touches() -> None:
    fast = walk(np.full(150, 4.0), scale=7)
    slow = walk(np.concatenate([np.linspace(4, 1, 14), np.full(166, 1.0)]), scale=0.3)
    linked = scales([[fast], [slow]], [True])
    assert [source for _, source in linked] == ["speed", "linked"]
    assert linked[1][0] * 0.3 == pytest.approx(linked[0][0] * 7, rel=0.2)


def test_clips_that_do_not_touch_or_stand_at_the_boundary_are_not_linked() -> None:
    fast, slow = walk(np.full(90, 4.0)), walk(np.full(90, 1.0))
    assert [source for _, source in scales([[fast], [slow]], [False])] == ["speed", "speed"]
    stops = walk(np.concatenate([np.full(90, 4.0), np.zeros(30)]))
    assert [source for _, source in scales([[stops], [slow]], [True])] == ["speed", "speed"]


def test_what_has_no_translation_has_no_scale() -> None:
    moving = walk(np.full(90, 4.0))
    assert scales([[], [walk(np.zeros(90))], [moving]], [True, True])[:2] == [(1.0, "none"), (1.0, "none")]


def test_parts_of_one_scale_have_the_top_speed_of_both() -> None:
    slow, fast = walk(np.full(90, 1.0), scale=3), walk(np.full(90, 4.0), scale=3)
    assert scales([[slow, fast]], [])[0][0] == pytest.approx(1 / 12, rel=1e-6)
    assert [scale for scale, _ in scales([[slow], [fast]], [False])] == pytest.approx([1 / 3, 1 / 12], rel=1e-6)
