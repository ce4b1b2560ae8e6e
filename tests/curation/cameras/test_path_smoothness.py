import numpy as np
import pytest

from curation.cameras.path_smoothness import step_ratio, velocity_spike
from curation.cameras.rotation import exponential


def walked(velocity: np.ndarray) -> np.ndarray:
    """Poses of a level camera that goes so far a frame."""
    pose = np.tile(np.eye(4), (len(velocity) + 1, 1, 1))
    pose[1:, :3, 3] = np.cumsum(velocity, 0)
    return pose


def steps(count: int = 40) -> np.ndarray:
    return np.tile([0.3, 0.0, 1.0], (count, 1))


def of(velocity: np.ndarray) -> float:
    return velocity_spike(walked(velocity), np.arange(len(velocity) + 1) / 16)


def test_who_walks_stops_at_a_wall_and_goes_back_has_no_spike() -> None:
    velocity = steps()
    velocity[15:20] = 0
    velocity[20:] *= -1
    assert of(velocity) == pytest.approx(0)


def test_a_path_that_goes_aside_for_one_frame_has_one() -> None:
    velocity = steps()
    velocity[20, 0] += 2
    assert of(velocity) == pytest.approx(2 / np.hypot(0.3, 1.0), rel=0.01)
    velocity[20, 0] -= 4
    assert of(velocity) > 1.5


def test_a_stair_is_none_whichever_way_the_world_lies() -> None:
    velocity = steps()
    velocity[20, 1] -= 4
    pose = walked(velocity)
    assert velocity_spike(pose, np.arange(41) / 16) == pytest.approx(0)
    about = np.eye(4)
    about[:3, :3] = exponential(np.array([0.4, -0.8, 1.1]))
    assert velocity_spike(about @ pose, np.arange(41) / 16) == pytest.approx(0, abs=1e-9)
    assert step_ratio(pose) > 3.5


def test_a_frame_shown_twice_is_within_the_limit() -> None:
    velocity = steps()
    velocity[20], velocity[21] = 0, 2 * velocity[21]
    assert of(velocity) == pytest.approx(1)


def test_frames_of_different_length_are_no_spike() -> None:
    lasts = np.where(np.arange(40) % 4, 1.0, 2.0) / 16
    pose = walked(steps() * lasts[:, None])
    assert velocity_spike(pose, np.concatenate([[0], np.cumsum(lasts)])) == pytest.approx(0)


def test_what_stands_is_smooth() -> None:
    assert (of(np.zeros((9, 3))), step_ratio(walked(np.zeros((9, 3))))) == (0, 1)
    assert of(steps(1)) == 0
