"""The parts of the estimator on made numbers with a known answer."""

from dataclasses import replace

import numpy as np
import pytest

from curation.cameras.klt import focal, mapping
from curation.cameras.klt.bundle_adjust import Problem, adjust, focal_error
from curation.cameras.klt.mapping import triangulate
from curation.cameras.klt.resection import Observations, resect
from curation.cameras.klt.smooth_poses import smooth_poses
from curation.cameras.rotation import angle_deg, exponential, nearest_rotation


def problem(turn_deg: float, noise: float = 0.3) -> Problem:
    """Twelve cameras on a sideways path, turning as they go, before three hundred points."""
    rng = np.random.default_rng(4)
    count = 12
    yaw = np.radians(turn_deg) * np.linspace(-0.5, 0.5, count)
    rotation = exponential(np.stack([0 * yaw, yaw, 0 * yaw], 1))
    centre = np.stack([np.linspace(0, 4, count), 0.1 * np.arange(count), 0 * yaw], 1)
    point = rng.uniform([-8, -4, 6], [12, 4, 20], (300, 3))
    translation = -np.einsum("kij,kj->ki", rotation, centre)
    local = np.einsum("kij,pj->kpi", rotation, point) + translation[:, None]
    seen = 320 * local[..., :2] / local[..., 2:] + rng.normal(0, noise, (count, 300, 2))
    of_point, camera = np.divmod(np.arange(300 * count), count)
    return Problem(
        rotation, translation, point, 320.0, camera, of_point, seen.transpose(1, 0, 2).reshape(-1, 2), np.arange(count) < 1
    )


def disturbed(true: Problem) -> Problem:
    rng = np.random.default_rng(5)
    off = exponential(rng.normal(0, 0.01, (12, 3)))
    off[0] = np.eye(3)
    translation = true.translation + rng.normal(0, 0.05, (12, 3)) * (np.arange(12) > 0)[:, None]
    return replace(
        true,
        rotation=off @ true.rotation,
        translation=translation,
        point=true.point + rng.normal(0, 0.1, (300, 3)),
        focal=345.0,
    )


def test_adjustment_finds_poses_points_and_focal_length() -> None:
    true = problem(turn_deg=60)
    found = adjust(disturbed(true), 30, focal_fixed=False)
    assert np.median(np.linalg.norm(found.residuals(), axis=1)) < 0.5
    assert found.focal == pytest.approx(320, rel=0.005)
    assert angle_deg(found.rotation @ true.rotation.transpose(0, 2, 1)).max() < 0.2
    assert np.array_equal(found.rotation[0], true.rotation[0])


def test_outliers_do_not_bend_it() -> None:
    true = problem(turn_deg=60)
    seen = true.observed.copy()
    seen[::10] += 30
    found = adjust(replace(disturbed(true), observed=seen), 30, focal_fixed=False)
    assert found.focal == pytest.approx(320, rel=0.01)


def test_the_error_of_a_focal_length_tells_whether_it_was_seen() -> None:
    assert focal_error(problem(turn_deg=60)) < 0.01 < focal_error(problem(turn_deg=0))


def test_the_focal_length_that_is_held_stays() -> None:
    assert adjust(disturbed(problem(turn_deg=60)), 5, focal_fixed=True).focal == 345.0


def test_what_corners_do_from_frame_to_frame_tells_its_motion_where_their_errors_add_up() -> None:
    true = problem(turn_deg=60, noise=0.0)
    drift = np.random.default_rng(6).normal(0, 0.3, (300, 12, 2)).cumsum(1).reshape(-1, 2)
    seen = replace(true, observed=true.observed + drift)
    rotation, translation = nearest_rotation(seen.rotation), seen.translation
    each = Observations(
        np.stack([seen.point] * 12), seen.observed.reshape(300, 12, 2).transpose(1, 0, 2), np.ones((12, 300), bool)
    )
    alone = resect(each, rotation, translation, 320.0)
    found = smooth_poses(replace(seen, rotation=alone.rotation, translation=alone.translation))

    def off(rotation: np.ndarray) -> float:
        one, two = (t[1:] @ t[:-1].transpose(0, 2, 1) for t in (rotation, true.rotation))
        return float(angle_deg(one @ two.transpose(0, 2, 1)).mean())

    assert off(found.rotation) < 0.85 * off(alone.rotation)


def test_steadying_leaves_a_frame_alone_in_which_nothing_is_seen() -> None:
    true = problem(turn_deg=60)
    rest = true.camera_of != 7
    found = smooth_poses(
        replace(true, camera_of=true.camera_of[rest], point_of=true.point_of[rest], observed=true.observed[rest])
    )
    assert np.array_equal(found.rotation[7], true.rotation[7])
    assert angle_deg(found.rotation @ true.rotation.transpose(0, 2, 1)).max() < 0.2


def test_a_pose_is_found_from_some_way_off() -> None:
    true = problem(turn_deg=30)
    sight = Observations(true.point[None], true.observed[true.camera_of == 5][None], np.ones((1, 300), bool))
    off = exponential(np.array([0.03, -0.05, 0.02]))
    found = resect(sight, (off @ true.rotation[5])[None], true.translation[5][None] + 0.3, 320.0)
    assert angle_deg(found.rotation[0] @ true.rotation[5].T) < 0.1
    assert found.translation[0] == pytest.approx(true.translation[5], abs=0.02)


def test_points_need_rays_that_meet_at_an_angle() -> None:
    true = problem(turn_deg=30, noise=0.1)
    xy = true.observed.reshape(300, 12, 2).transpose(1, 0, 2).copy()
    seen = np.ones((12, 300), bool)
    seen[1:, 0] = False  # one ray
    xy[6, 1] += 40  # a ray that goes elsewhere
    found = triangulate(xy, seen, true.rotation, true.translation, 320.0)
    assert np.isnan(found[:2]).all()
    assert found[2:] == pytest.approx(true.point[2:], abs=0.2)
    still = triangulate(xy, seen, true.rotation[[5] * 12], true.translation[[5] * 12], 320.0)
    assert np.isnan(still).all()


def test_the_angle_of_a_rotation_is_exact_when_small() -> None:
    assert angle_deg(exponential(np.array([0, 1e-9, 0]))) == pytest.approx(np.degrees(1e-9))
    assert angle_deg(exponential(np.array([0, 3.0, 0]))) == pytest.approx(np.degrees(3.0))


@pytest.mark.parametrize(("shares", "pool"), [([], None), ([0.5], 0.5), ([0.5, 0.51, 0.9], 0.51), ([0.4, 0.5, 0.6, 0.8], None)])
def test_one_focal_length_for_clips_that_agree(shares: list[float], pool: float | None) -> None:
    assert focal.pool_focals(shares, 0.05) == pool


def test_a_pair_without_parallax_is_no_beginning() -> None:
    """Frames of a turn on the spot: whatever pose comes of them, no point can be placed."""
    rng = np.random.default_rng(5)
    world = rng.uniform((-3, -2, 4), (3, 2, 9), (60, 3))
    turns = exponential(np.outer(np.linspace(0, 0.2, 6), [0.0, 1.0, 0.0]))
    seen = np.einsum("nij,mj->nmi", turns, world)
    points = 320 * seen[:, :, :2] / seen[:, :, 2:]
    assert mapping.reconstruct(points, np.arange(6) / 30, mapping.InitialPair(0, 5, 1.0), 320.0, True) is None
