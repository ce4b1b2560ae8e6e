"""RPE against evo, and what it says where no alignment is defined."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from curation.cameras.rotation import angle_deg
from model.evaluation.general.pose_error import path_rank, pose_error


def rotation(rng, degrees):
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    a = np.radians(degrees)
    return np.eye(3) + np.sin(a) * k + (1 - np.cos(a)) * k @ k


def path(rng, frames=40, dimensions=3):
    pose = np.tile(np.eye(4), (frames, 1, 1))
    steps = np.zeros((frames - 1, 3))
    steps[:, :dimensions] = rng.normal(0.3, 0.2, (frames - 1, dimensions))
    pose[1:, :3, 3] = np.cumsum(steps, 0)
    for k in range(1, frames):
        pose[k, :3, :3] = pose[k - 1, :3, :3] @ rotation(rng, 4)
    return pose


def disturbed(rng, truth, scale=0.37):
    """The path in another world and unit, with errors."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation(rng, 70), (5, -2, 9)
    estimate = truth.copy()
    for k in range(len(estimate)):
        estimate[k, :3, :3] = estimate[k, :3, :3] @ rotation(rng, rng.normal(0, 1.5))
        estimate[k, :3, 3] += rng.normal(0, 0.05, 3)
    estimate = world @ estimate
    estimate[:, :3, 3] *= scale
    return estimate


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_evo(seed):
    evo = pytest.importorskip("evo.core.trajectory")
    from evo.core import metrics

    rng = np.random.default_rng(seed)
    truth = path(rng, dimensions=2 + seed % 2)
    estimate = disturbed(rng, truth)
    times = np.arange(len(truth), dtype=float)
    reference, ours = (evo.PoseTrajectory3D(poses_se3=list(p), timestamps=times) for p in (truth, estimate))
    _, _, scale = ours.align(reference, correct_scale=True)
    wanted = {}
    for relation in (metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg):
        rpe = metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True)
        rpe.process_data((reference, ours))
        wanted[relation] = rpe.get_statistic(metrics.StatisticsType.rmse)
    error = pose_error(estimate, truth)
    assert error.scale == pytest.approx(scale, rel=1e-9)
    assert error.trans == pytest.approx(wanted[metrics.PoseRelation.translation_part], abs=1e-9)
    assert error.rot_deg == pytest.approx(wanted[metrics.PoseRelation.rotation_angle_deg], abs=1e-9)


def test_the_same_path_in_another_world_has_no_error():
    rng = np.random.default_rng(9)
    truth = path(rng)
    world = np.eye(4)
    world[:3, :3] = rotation(rng, 120)
    estimate = world @ truth
    estimate[:, :3, 3] *= 12
    error = pose_error(estimate, truth)
    assert (error.trans, error.rot_deg) == pytest.approx((0, 0), abs=1e-6)
    assert error.rank == 3


def test_a_walk_straight_on_is_scaled_by_its_length():
    rng = np.random.default_rng(4)
    truth = path(rng, dimensions=1)
    estimate = truth.copy()
    estimate[:, :3, 3] *= 0.2
    error = pose_error(estimate, truth)
    assert error.rank == 1
    assert error.scale == pytest.approx(5)
    assert error.trans == pytest.approx(0, abs=1e-9)
    standing = estimate.copy()
    standing[:, :3, 3] = 0
    steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
    assert pose_error(standing, truth).trans == pytest.approx(np.sqrt((steps**2).mean()))


def test_a_turn_on_the_spot_has_a_rotation_error_only():
    rng = np.random.default_rng(5)
    truth = path(rng, dimensions=0)
    estimate = truth.copy()
    estimate[3:, :3, :3] = rotation(rng, 10) @ estimate[3:, :3, :3]
    error = pose_error(estimate, truth)
    assert error.rank == 0
    assert np.isnan(error.trans)
    assert error.rot_deg == pytest.approx(np.sqrt(10**2 / 39), rel=1e-6)
    assert angle_deg(np.eye(3)[None])[0] == pytest.approx(0, abs=1e-6)


def test_the_bob_of_a_player_who_stands_is_a_point():
    positions = np.zeros((20, 3))
    positions[::2, 1] = 0.01
    assert path_rank(positions) == 1
    assert path_rank(positions, min_extent=0.05) == 0
    with pytest.raises(ValueError, match="same frames"):
        pose_error(np.tile(np.eye(4), (3, 1, 1)), np.tile(np.eye(4), (4, 1, 1)))
