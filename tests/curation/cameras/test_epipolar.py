import numpy as np
import pytest

from curation.cameras.klt.epipolar import epipolar_distance, outlier_coverage
from curation.cameras.rotation import exponential

TIMES = np.arange(40) / 16
FOCAL, WIDTH = 320.0, 640


def seen(world_NM3: np.ndarray, pose: np.ndarray) -> np.ndarray:
    local = np.einsum("nji,nmj->nmi", pose[:, :3, :3], world_NM3 - pose[:, None, :3, 3])
    return (FOCAL * local[..., :2] / local[..., 2:]).astype(np.float32)


def sinking() -> np.ndarray:
    """A camera that walks aside and sinks as it does."""
    pose = np.tile(np.eye(4), (40, 1, 1))
    pose[:, :2, 3] = np.arange(40)[:, None]
    return pose


def walking() -> np.ndarray:
    pose = sinking()
    pose[:, 1, 3] = 0
    return pose


def points(low_x: float, high_x: float, count: int) -> np.ndarray:
    return np.random.default_rng(2).uniform([low_x, -40, 60], [high_x, 40, 90], (count, 3))


def of(world_NM3: np.ndarray, true: np.ndarray, estimate: np.ndarray) -> float:
    return outlier_coverage(seen(world_NM3, true), estimate, FOCAL, TIMES, WIDTH)


def still(world_M3: np.ndarray) -> np.ndarray:
    return np.tile(world_M3, (40, 1, 1))


def test_points_are_off_their_lines_by_what_they_were_moved_across_them() -> None:
    world = points(-40, 40, 30)
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[1, :3, :3], pose[1, :3, 3] = exponential(np.array([0.0, 0.1, 0.0])), [8, 0, 0]
    a, b = seen(np.tile(world, (2, 1, 1)), pose).astype(float)
    move = np.linalg.inv(pose[1]) @ pose[0]
    assert epipolar_distance(a, b, move, FOCAL) == pytest.approx(np.zeros(30), abs=1e-3)
    # Sampson's distance shares an error between both pictures.
    assert epipolar_distance(a, b + np.array([0, 3]), move, FOCAL) == pytest.approx(np.full(30, 3 / np.sqrt(2)), rel=0.15)


def test_a_right_trajectory_is_not_contradicted() -> None:
    assert of(still(points(-60, 60, 200)), walking(), walking()) == 0


def test_a_rising_door_mistaken_for_the_world_is_contradicted_by_what_frames_it() -> None:
    sides = still(np.concatenate([points(-60, -40, 60), points(40, 60, 60)]))
    door = still(points(-35, 35, 180))
    door[:, :, 1] -= np.arange(40)[:, None]
    world = np.concatenate([sides, door], 1)
    assert of(world, walking(), sinking()) > 0.3
    assert of(door, walking(), sinking()) == pytest.approx(0, abs=0.01), "where nothing frames it, nothing tells"


def test_what_moves_in_one_place_counts_little() -> None:
    beast = still(points(-6, 6, 60))
    beast[:, :, 1] -= np.arange(40)[:, None]
    assert 0 < of(np.concatenate([still(points(-60, 60, 140)), beast], 1), walking(), walking()) < 0.1


def test_few_points_tell_nothing() -> None:
    assert of(still(points(-60, 60, 10)), walking(), sinking()) == 0
