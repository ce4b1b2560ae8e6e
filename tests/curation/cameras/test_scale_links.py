import numpy as np

from curation.cameras.klt.scale_links import scale_links


def straight(count: int = 40) -> np.ndarray:
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, 0, 3] = np.arange(count)
    return pose


def points(count: int = 30) -> np.ndarray:
    return np.random.default_rng(1).uniform([0, -5, 20], [40, 5, 60], (count, 3))


def test_points_seen_all_along_tie_a_path_together() -> None:
    assert scale_links(np.ones((40, 30), bool), points(), straight()) == 30


def test_points_that_end_where_others_begin_tie_nothing() -> None:
    seen = np.ones((40, 30), bool)
    seen[20:, :15], seen[:20, 15:] = False, False
    assert scale_links(seen, points(), straight()) == 0
    seen[15:25, :4] = True  # seen on both sides
    assert scale_links(seen, points(), straight()) == 4


def test_far_points_tie_nothing_however_long_they_are_seen() -> None:
    far = points() + np.array([0, 0, 5000])
    assert scale_links(np.ones((40, 30), bool), far, straight()) == 0


def test_the_ends_of_a_path_need_no_link() -> None:
    seen = np.ones((40, 30), bool)
    seen[:2], seen[38:] = False, False
    near = points() * np.array([1, 1, 0.3])
    assert scale_links(seen, near, straight()) >= 25


def test_no_path_has_no_scale_links() -> None:
    assert scale_links(np.ones((9, 30), bool), points(), np.tile(np.eye(4), (9, 1, 1))) == 0
