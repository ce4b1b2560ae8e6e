import numpy as np
import pytest

from curation.cameras.klt.vertical_runs import longest_vertical_run, vertical_run_s
from curation.cameras.rotation import exponential

TIMES = np.arange(40) / 16


def path(*legs: tuple[int, tuple[float, float, float]]) -> np.ndarray:
    """Poses of a camera that goes so far a frame for so many frames; 40 in all, the rest it stands."""
    pose = np.tile(np.eye(4), (40, 1, 1))
    steps = np.concatenate([np.tile(step, (count, 1)) for count, step in legs])
    steps = np.concatenate([steps, np.zeros((39 - len(steps), 3))])
    pose[1:, :3, 3] = np.cumsum(steps, 0)
    return pose


def wall(distance: float) -> np.ndarray:
    return np.random.default_rng(1).uniform([-20, -20, distance], [20, 20, distance + 1], (50, 3))


def of(pose: np.ndarray, distance: float = 60, seen: bool = True) -> float:
    return vertical_run_s(np.full((40, 50), seen), wall(distance), pose, TIMES)


@pytest.mark.parametrize("way", [-1, 1])
def test_a_rise_and_a_fall_last_as_long_as_they_do(way: int) -> None:
    assert of(path((10, (0, 0, 1)), (12, (0, way, 0)), (10, (0, 0, 1)))) == pytest.approx(12 / 16, abs=0.13)


def test_up_and_down_count_alone_as_in_a_jump_on_the_spot() -> None:
    jump = of(path((10, (0, 0, 1)), (6, (0, -1, 0)), (6, (0, 1, 0)), (10, (0, 0, 1))))
    assert 0.25 < jump < 8 / 16


@pytest.mark.parametrize(
    ("first", "last", "counts"), [(-2.0, -0.4, False), (0.4, 2.0, False), (-0.4, -2.0, True), (1.0, 1.0, True)]
)
def test_a_jump_slows_down_and_a_fall_gets_faster_and_a_door_does_neither(first: float, last: float, counts: bool) -> None:
    rise = path((10, (0, 0, 1)), *((1, (0, step, 0)) for step in np.linspace(first, last, 12)), (10, (0, 0, 1)))
    assert (of(rise) > 0.5) == counts


def test_the_frames_of_a_run_are_those_of_the_rise_and_its_last_step() -> None:
    rise = path((10, (0, 0, 1)), (12, (0, 1, 0)), (10, (0, 0, 1)))
    first, end = longest_vertical_run(np.ones((40, 50), bool), wall(60), rise, TIMES)
    assert (abs(first - 10) <= 1, abs(end - 22) <= 2) == (True, True)


def test_stairs_and_falls_on_the_way_are_none() -> None:
    assert of(path((20, (0, -0.8, 1)), (10, (0, 1.2, 1)))) == 0


def test_a_single_step_up_is_short() -> None:
    assert of(path((10, (0, 0, 1)), (1, (0, -5, 0)), (10, (0, 0, 1)))) < 0.2


def test_what_a_vertical_run_shows_counts_not_what_it_measures() -> None:
    rise = path((10, (0, 0, 1)), (12, (0, 0.3, 0)), (10, (0, 0, 1)))
    assert of(rise) > 0.6
    assert of(rise, distance=600) == 0
    assert of(rise, seen=False) == 0


def test_up_is_the_cameras_not_the_worlds() -> None:
    rise, about = path((10, (0, 0, 1)), (12, (0, 1, 0))), np.eye(4)
    about[:3, :3] = exponential(np.array([0.4, -0.8, 1.1]))
    points = wall(60) @ about[:3, :3].T
    assert vertical_run_s(np.ones((40, 50), bool), points, about @ rise, TIMES) == of(rise)


def test_who_stands_does_not_rise() -> None:
    assert of(path((1, (0, 0, 0)))) == 0
