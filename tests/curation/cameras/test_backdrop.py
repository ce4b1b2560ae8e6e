import numpy as np

from curation.cameras.klt.backdrop import fixed_row_share

WIDTH, FOCAL, FRAMES, TURN = 640, 320.0, 16, np.radians(3.0)


def view(world_M3: np.ndarray, yaw: np.ndarray, shift_N3: np.ndarray) -> np.ndarray:
    """Where points are seen by a camera that turns and goes, [N, M, 2]; NaN outside the picture."""
    cos, sin, none, one = np.cos(yaw), np.sin(yaw), 0 * yaw, 0 * yaw + 1
    turn = np.stack([[cos, none, -sin], [none, one, none], [sin, none, cos]]).transpose(2, 0, 1)
    local = (world_M3[None] - shift_N3[:, None]) @ turn.transpose(0, 2, 1)
    seen = FOCAL * local[..., :2] / np.where(local[..., 2:] > 0.1, local[..., 2:], np.nan)
    return np.where((np.abs(seen) < (320, 240)).all(-1, keepdims=True), seen, np.nan)


def room(count: int = 300) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([rng.uniform(-60, 60, count), rng.uniform(-20, 20, count), rng.uniform(10, 60, count)], 1)


def painted(yaw: np.ndarray, count: int = 200) -> np.ndarray:
    """A sky of this kind: columns by bearing, rows of the screen."""
    rng = np.random.default_rng(2)
    bearing, row = rng.uniform(-1, 2, count) - yaw[:, None], np.tile(rng.uniform(-230, -80, count), (len(yaw), 1))
    column = FOCAL * np.tan(np.where(np.abs(bearing) < 0.75, bearing, np.nan))
    return np.stack([column, np.where(np.isfinite(column), row, np.nan)], -1)


def test_a_painted_sky_is_told_from_the_world_below_it_and_from_a_true_one_above() -> None:
    yaw = TURN * np.arange(FRAMES)
    world = view(room(), yaw, np.stack([0 * yaw, 0 * yaw, 0.2 * np.arange(FRAMES)], 1))
    kept = fixed_row_share(np.concatenate([world, painted(yaw)], 1), 4, WIDTH)
    sky = kept[world.shape[1] :]
    judged = np.isfinite(painted(yaw)[::4, :, 0]).sum(0) >= 2
    assert (sky[judged] > 0.5).mean() > 0.8
    assert (kept[: world.shape[1]] > 0.5).mean() < 0.03


def test_what_a_view_that_goes_aside_passes_keeps_its_row_and_is_no_sky() -> None:
    aside = np.stack([0.8 * np.arange(FRAMES), np.zeros(FRAMES), np.zeros(FRAMES)], 1)
    points = view(room(), np.zeros(FRAMES), aside)
    assert np.nanmax(np.abs(np.diff(points[:, :, 0], axis=0))) > 5
    assert not fixed_row_share(points, 4, WIDTH).any()


def test_nothing_is_said_of_points_that_are_not_seen() -> None:
    assert not fixed_row_share(np.full((8, 5, 2), np.nan, np.float32), 3, WIDTH).any()
