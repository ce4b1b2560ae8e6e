import numpy as np
import pytest

from bench.trajectory import errors
from curation.cameras.rotation import exponential


@pytest.fixture
def truth() -> np.ndarray:
    rng = np.random.default_rng(1)
    pose = np.tile(np.eye(4), (80, 1, 1))
    pose[:, :3, :3] = exponential(np.cumsum(rng.normal(0, 0.02, (80, 3)), 0))
    pose[:, :3, 3] = np.cumsum(rng.normal(0.2, 1, (80, 3)), 0)
    return pose


def _moved(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same way in another world, at another scale, a little wrong."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = exponential(np.array([0.3, -1, 0.2])), [5, 6, 7]
    found = world @ pose
    found[:, :3, 3] = found[:, :3, 3] * 0.1 + rng.normal(0, 0.01, (len(pose), 3))
    found[:, :3, :3] = found[:, :3, :3] @ exponential(rng.normal(0, 0.003, (len(pose), 3)))
    return found


def test_errors_are_those_of_evo(truth: np.ndarray) -> None:
    metrics = pytest.importorskip("evo.core.metrics", reason="evo is in the bench extra")
    from evo.core.trajectory import PosePath3D

    estimate = _moved(truth, np.random.default_rng(2))
    reference, aligned = (PosePath3D(poses_se3=list(poses)) for poses in (truth, estimate))
    aligned.align(reference, correct_scale=True)
    ate = metrics.APE(metrics.PoseRelation.translation_part)
    trans = metrics.RPE(metrics.PoseRelation.translation_part)
    rot = metrics.RPE(metrics.PoseRelation.rotation_angle_deg)
    for metric in (ate, trans, rot):
        metric.process_data((reference, aligned))
    found = errors(estimate, truth)
    path = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
    assert found.ate * path.sum() == pytest.approx(ate.get_statistic(metrics.StatisticsType.rmse))
    step = np.sqrt((path**2).mean())
    assert found.rpe_trans * step == pytest.approx(trans.get_statistic(metrics.StatisticsType.rmse))
    assert found.rpe_rot_deg == pytest.approx(rot.get_statistic(metrics.StatisticsType.rmse))


def test_a_trajectory_in_another_world_and_scale_has_no_error(truth: np.ndarray) -> None:
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = exponential(np.array([0.3, -1, 0.2])), [5, 6, 7]
    estimate = world @ truth
    estimate[:, :3, 3] *= 3
    found = errors(estimate, truth)
    assert found[:4] == pytest.approx((0, 0, 0, 0), abs=1e-5)
    assert found.scale == pytest.approx(1 / 3)


def test_a_turn_on_the_spot_has_errors_of_rotation_only(truth: np.ndarray) -> None:
    spot = truth.copy()
    spot[:, :3, 3] = 0
    off = spot.copy()
    off[:, :3, :3] = off[:, :3, :3] @ exponential(np.array([[0, 0.01, 0]]) * np.linspace(-1, 1, 80)[:, None])
    found = errors(off, spot)
    assert np.isnan([found.ate, found.rpe_trans, found.scale]).all()
    assert found.absolute_deg == pytest.approx(np.degrees(0.005), rel=0.1)


def test_no_translation_where_there_is_some_is_wrong_by_the_whole_path(truth: np.ndarray) -> None:
    still = truth.copy()
    still[:, :3, 3] = 0
    assert errors(still, truth).ate == 1.0
