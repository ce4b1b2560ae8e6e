import numpy as np
import pytest

from curation.cameras.klt.agreement import UNKNOWN, Disagreement, umeyama
from curation.cameras.rotation import exponential


@pytest.fixture
def pose() -> np.ndarray:
    rng = np.random.default_rng(4)
    found = np.tile(np.eye(4), (60, 1, 1))
    found[:, :3, :3] = exponential(np.cumsum(rng.normal(0, 0.02, (60, 3)), 0))
    found[:, :3, 3] = np.cumsum(rng.normal(0.3, 1, (60, 3)), 0)
    return found


def elsewhere(pose: np.ndarray) -> np.ndarray:
    """The same way in another world, at another scale."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = exponential(np.array([0.3, -1, 0.2])), [5, 6, 7]
    found = world @ pose
    found[:, :3, 3] *= 0.02
    return found


def test_the_same_way_in_another_world_is_not_apart(pose: np.ndarray) -> None:
    assert Disagreement.of(elsewhere(pose), pose) == pytest.approx((0, 0), abs=1e-5)


def test_a_scale_that_changes_half_way_is_a_distance(pose: np.ndarray) -> None:
    other = pose.copy()
    other[30:, :3, 3] = other[30, :3, 3] + 0.2 * (other[30:, :3, 3] - other[30, :3, 3])
    found = Disagreement.of(elsewhere(other), pose)
    assert found.path > 0.02
    assert found.rotation_deg == pytest.approx(0, abs=1e-5)


def test_rotations_that_differ_by_a_degree_a_frame_do(pose: np.ndarray) -> None:
    other = pose.copy()
    other[:, :3, :3] = pose[:, :3, :3] @ exponential(np.radians(np.arange(60))[:, None] * np.array([0.0, 1.0, 0.0]))
    assert Disagreement.of(other, pose).rotation_deg > 0.5


def test_one_that_does_not_move_tells_nothing(pose: np.ndarray) -> None:
    still = np.tile(np.eye(4), (60, 1, 1))
    assert Disagreement.of(still, pose) == Disagreement.of(pose, still) == UNKNOWN


def test_the_similarity_is_the_one_that_was_put_in(pose: np.ndarray) -> None:
    points, rotation = pose[:, :3, 3], exponential(np.array([0.1, 0.7, -0.4]))
    scale, found, translation = umeyama(points, 3 * points @ rotation.T + [1, 2, 3])
    assert scale == pytest.approx(3)
    assert found == pytest.approx(rotation)
    assert translation == pytest.approx([1, 2, 3])
