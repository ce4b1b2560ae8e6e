"""The parts of the estimator on made numbers with a known answer."""

from dataclasses import replace

import numpy as np
import pytest

from curation.cameras import rotation
from curation.cameras.klt import focal, mapping
from curation.cameras.klt.bundle_adjust import Problem, adjust, focal_error
from curation.cameras.klt.mapping import triangulated
from curation.cameras.klt.resection import Sight, resect
from curation.cameras.klt.smooth_poses import steadied


def problem(turn_deg: float, noise: float = 0.3) -> Problem:
    """Twelve cameras on a sideways path, turning as they go, before three hundred points."""
    rng = np.random.default_rng(4)
    count = 12
    yaw = np.radians(turn_deg) * np.linspace(-0.5, 0.5, count)
    turn = rotation.exponential(np.stack([0 * yaw, yaw, 0 * yaw], 1))
    centre = np.stack([np.linspace(0, 4, count), 0.1 * np.arange(count), 0 * yaw], 1)
    point = rng.uniform([-8, -4, 6], [12, 4, 20], (300, 3))
    shift = -np.einsum("kij,kj->ki", turn, centre)
    local = np.einsum("kij,pj->kpi", turn, point) + shift[:, None]
    seen = 320 * local[..., :2] / local[..., 2:] + rng.normal(0, noise, (count, 300, 2))
    of_point, camera = np.divmod(np.arange(300 * count), count)
    return Problem(turn, shift, point, 320.0, camera, of_point, seen.transpose(1, 0, 2).reshape(-1, 2), np.arange(count) < 1)


def disturbed(true: Problem) -> Problem:
    rng = np.random.default_rng(5)
    off = rotation.exponential(rng.normal(0, 0.01, (12, 3)))
    off[0] = np.eye(3)
    shift = true.shift + rng.normal(0, 0.05, (12, 3)) * (np.arange(12) > 0)[:, None]
    return replace(true, turn=off @ true.turn, shift=shift, point=true.point + rng.normal(0, 0.1, (300, 3)), focal=345.0)


def test_adjustment_finds_poses_points_and_focal_length() -> None:
    true = problem(turn_deg=60)
    found = adjust(disturbed(true), 30, focal_held=False)
    assert np.median(np.linalg.norm(found.left(), axis=1)) < 0.5
    assert found.focal == pytest.approx(320, rel=0.005)
    assert rotation.angle_deg(found.turn @ true.turn.transpose(0, 2, 1)).max() < 0.2
    assert np.array_equal(found.turn[0], true.turn[0])


def test_outliers_do_not_bend_it() -> None:
    true = problem(turn_deg=60)
    seen = true.seen.copy()
    seen[::10] += 30
    found = adjust(replace(disturbed(true), seen=seen), 30, focal_held=False)
    assert found.focal == pytest.approx(320, rel=0.01)


def test_the_error_of_a_focal_length_tells_whether_it_was_seen() -> None:
    assert focal_error(problem(turn_deg=60)) < 0.01 < focal_error(problem(turn_deg=0))


def test_the_focal_length_that_is_held_stays() -> None:
    assert adjust(disturbed(problem(turn_deg=60)), 5, focal_held=True).focal == 345.0


def test_what_corners_do_from_frame_to_frame_tells_its_motion_where_their_errors_add_up() -> None:
    true = problem(turn_deg=60, noise=0.0)
    drift = np.random.default_rng(6).normal(0, 0.3, (300, 12, 2)).cumsum(1).reshape(-1, 2)
    seen = replace(true, seen=true.seen + drift)
    turn, shift = rotation.nearest(seen.turn), seen.shift
    each = Sight(np.stack([seen.point] * 12), seen.seen.reshape(300, 12, 2).transpose(1, 0, 2), np.ones((12, 300), bool))
    alone = resect(each, turn, shift, 320.0)
    found = steadied(replace(seen, turn=alone.turn, shift=alone.shift))

    def off(turn: np.ndarray) -> float:
        one, two = (t[1:] @ t[:-1].transpose(0, 2, 1) for t in (turn, true.turn))
        return float(rotation.angle_deg(one @ two.transpose(0, 2, 1)).mean())

    assert off(found.turn) < 0.85 * off(alone.turn)


def test_steadying_leaves_a_frame_alone_in_which_nothing_is_seen() -> None:
    true = problem(turn_deg=60)
    rest = true.camera != 7
    found = steadied(replace(true, camera=true.camera[rest], of_point=true.of_point[rest], seen=true.seen[rest]))
    assert np.array_equal(found.turn[7], true.turn[7])
    assert rotation.angle_deg(found.turn @ true.turn.transpose(0, 2, 1)).max() < 0.2


def test_a_pose_is_found_from_some_way_off() -> None:
    true = problem(turn_deg=30)
    sight = Sight(true.point[None], true.seen[true.camera == 5][None], np.ones((1, 300), bool))
    off = rotation.exponential(np.array([0.03, -0.05, 0.02]))
    found = resect(sight, (off @ true.turn[5])[None], true.shift[5][None] + 0.3, 320.0)
    assert rotation.angle_deg(found.turn[0] @ true.turn[5].T) < 0.1
    assert found.shift[0] == pytest.approx(true.shift[5], abs=0.02)


def test_points_need_rays_that_meet_at_an_angle() -> None:
    true = problem(turn_deg=30, noise=0.1)
    xy = true.seen.reshape(300, 12, 2).transpose(1, 0, 2).copy()
    seen = np.ones((12, 300), bool)
    seen[1:, 0] = False  # one ray
    xy[6, 1] += 40  # a ray that goes elsewhere
    found = triangulated(xy, seen, true.turn, true.shift, 320.0)
    assert np.isnan(found[:2]).all()
    assert found[2:] == pytest.approx(true.point[2:], abs=0.2)
    still = triangulated(xy, seen, true.turn[[5] * 12], true.shift[[5] * 12], 320.0)
    assert np.isnan(still).all()


def test_the_angle_of_a_rotation_is_exact_when_small() -> None:
    assert rotation.angle_deg(rotation.exponential(np.array([0, 1e-9, 0]))) == pytest.approx(np.degrees(1e-9))
    assert rotation.angle_deg(rotation.exponential(np.array([0, 3.0, 0]))) == pytest.approx(np.degrees(3.0))


@pytest.mark.parametrize(("said", "pool"), [([], None), ([0.5], 0.5), ([0.5, 0.51, 0.9], 0.51), ([0.4, 0.5, 0.6, 0.8], None)])
def test_one_focal_length_for_clips_that_agree(said: list[float], pool: float | None) -> None:
    assert focal.pooled(said, 0.05) == pool


def test_a_pair_without_parallax_is_no_beginning() -> None:
    """Frames of a turn on the spot: whatever pose comes of them, no point can be placed."""
    rng = np.random.default_rng(5)
    world = rng.uniform((-3, -2, 4), (3, 2, 9), (60, 3))
    turns = rotation.exponential(np.outer(np.linspace(0, 0.2, 6), [0.0, 1.0, 0.0]))
    seen = np.einsum("nij,mj->nmi", turns, world)
    points = 320 * seen[:, :, :2] / seen[:, :, 2:]
    assert mapping.reconstruct(points, np.arange(6) / 30, mapping.Pair(0, 5, 1.0), 320.0, True) is None
