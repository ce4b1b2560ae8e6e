import cv2
import numpy as np

from curation.cameras.klt.landmarks import Landmarks, Part, alike
from curation.cameras.klt.tracks import _CornerTracker, normalize_contrast

WIDTH, HEIGHT = 320, 240


def panned(steps: np.ndarray) -> list[np.ndarray]:
    """Pictures of bricks that the view pans over by so many px a frame."""
    rng = np.random.default_rng(2)
    wide = int(steps.sum()) + WIDTH + 1
    wall = rng.integers(90, 130, (HEIGHT // 8, wide // 24 + 1)).astype(np.uint8)
    wall = cv2.resize(wall, (wall.shape[1] * 24, HEIGHT), interpolation=cv2.INTER_NEAREST)[:, :wide]
    wall[::16], wall[:, ::24] = 30, 30
    at = np.concatenate([[0], np.cumsum(steps)]).astype(int)
    return [np.ascontiguousarray(wall[:, x : x + WIDTH]) for x in at]


def test_a_turn_that_speeds_up_is_followed_over_a_wall_of_bricks() -> None:
    steps = np.minimum(np.arange(1, 21) * 4, 60)
    tracker = _CornerTracker(np.full((HEIGHT, WIDTH), 255, np.uint8))
    for picture in panned(steps):
        tracker.add(picture, 0.0)
    found = tracker.tracks(np.arange(len(steps) + 1) / 16)
    moved = np.diff(found.dense(), axis=0)
    for step, each in zip(steps, moved, strict=True):
        seen = each[np.isfinite(each[:, 0])]
        assert len(seen) >= 60
        assert np.abs(np.median(seen, axis=0) - np.array([-step, 0])).max() < 0.5


def bricks() -> np.ndarray:
    """Eight px a degree."""
    rng = np.random.default_rng(2)
    wall = cv2.resize(
        rng.integers(100, 120, (HEIGHT // 12, 120)).astype(np.uint8), (120 * 24, HEIGHT), interpolation=cv2.INTER_AREA
    )
    wall[::12], wall[:, ::24] = 30, 30
    return wall


def turned(wall: np.ndarray, yaw_deg: np.ndarray) -> list[np.ndarray]:
    """Pictures, 90 degrees wide, of a wall all around, which the view turns past."""
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / (WIDTH / 2)
    y = np.arange(HEIGHT)[:, None] + 0.5 - HEIGHT / 2
    row = np.broadcast_to(y / np.sqrt(1 + x**2) + HEIGHT / 2, (HEIGHT, WIDTH)).astype(np.float32)
    column = (np.degrees(np.arctan(x)) + 60 + yaw_deg[:, None]) * 8
    return [cv2.remap(wall, np.broadcast_to(c, row.shape).astype(np.float32), row, cv2.INTER_LINEAR) for c in column]


JERKS = np.tile([7.0, 7.0, 10.5], 6)


def gone_deg(wall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far corners turn a frame when the view goes by `JERKS`, and where they are, -1 to 1 over the width: [N - 1, M]."""
    yaw = np.concatenate([[0.0], np.cumsum(JERKS)])
    tracker = _CornerTracker(np.full((HEIGHT, WIDTH), 255, np.uint8))
    for picture in turned(wall, yaw):
        tracker.add(picture, 0.0)
    across = tracker.tracks(np.arange(len(yaw)) / 16).dense()[..., 0] / (WIDTH / 2) - 1
    return -np.diff(np.degrees(np.arctan(across)), axis=0), across[1:]


def test_a_jerky_turn_takes_corners_at_the_sides_further_and_they_are_found_on_their_own_bricks() -> None:
    gone, _ = gone_deg(bricks())
    right = np.abs(gone - JERKS[:, None]) < 0.5
    assert (right.sum(1) >= 60).all()
    assert right.sum() > 0.9 * np.isfinite(gone).sum()


def test_what_a_turn_stretches_at_the_sides_is_found_as_well_as_what_is_in_the_middle() -> None:
    spots = np.random.default_rng(4).integers(60, 190, (HEIGHT // 5, 120 * 24 // 5)).astype(np.uint8)
    gone, across = gone_deg(cv2.resize(spots, (120 * 24, HEIGHT), interpolation=cv2.INTER_CUBIC))
    off_px = np.radians(np.abs(gone - JERKS[:, None])) * (1 + across**2) * WIDTH / 2
    assert np.nanmedian(off_px[np.abs(across) > 0.5]) < 0.05


def test_a_bright_sky_leaves_corners_to_a_dark_wall() -> None:
    rng = np.random.default_rng(3)
    sky, wall = (rng.integers(0, most, (15, 40)).astype(np.uint8) for most in (255, 12))
    picture = cv2.resize(np.concatenate([sky, wall]), (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_NEAREST)
    tracker = _CornerTracker(np.full(picture.shape, 255, np.uint8))
    for _ in range(4):
        tracker.add(picture, 0.0)
    found = tracker.tracks(np.arange(4) / 16).dense()[0]
    assert 120 <= (found[:, 1] > HEIGHT).sum() <= 280


def test_a_flash_over_the_whole_picture_loses_no_corner() -> None:
    tracker = _CornerTracker(np.full((HEIGHT, WIDTH), 255, np.uint8))
    for k, picture in enumerate(panned(np.full(12, 6))):
        tracker.add((picture * 0.5 + 100).astype(np.uint8) if k in (4, 5, 9) else picture, 0.0)
    dense = tracker.tracks(np.arange(13) / 16).dense()
    seen = np.isfinite(dense[..., 0])
    stays = seen[:-1] & (dense[:-1, :, 0] > 20)
    assert (seen[1:] & stays).sum(1).min() >= 60
    assert (seen[1:] & stays).sum() > 0.97 * stays.sum()


def test_evened_pictures_are_the_same_in_any_light() -> None:
    dark, other = panned(np.array([8, 8]))[:2]
    flashed = normalize_contrast((dark * 0.6 + 90).astype(np.uint8)).astype(int)
    assert (
        np.abs(flashed - normalize_contrast(dark)).mean()
        < 3
        < np.abs(normalize_contrast(other).astype(int) - normalize_contrast(dark)).mean()
    )


def test_noise_of_a_blank_picture_stays_small() -> None:
    blank = np.random.default_rng(1).integers(19, 22, (HEIGHT, WIDTH)).astype(np.uint8)
    assert normalize_contrast(blank).std() < 10


def test_corners_that_come_back_into_view_look_alike() -> None:
    """Tracks end in a black frame. What is tracked after it has other numbers, and is known by its looks."""
    spots = np.random.default_rng(4).integers(0, 255, (HEIGHT // 6, WIDTH // 6)).astype(np.uint8)
    picture = cv2.resize(spots, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    tracker = _CornerTracker(np.full((HEIGHT, WIDTH), 255, np.uint8))
    for number, shown in enumerate([picture] * 5 + [np.zeros_like(picture)] + [np.roll(picture, 3, 1)] * 5):
        tracker.add(shown, number / 2)
    tracks = tracker.tracks(np.arange(11) / 2)
    first, second = (tracks.number[(tracks.start >= a) & (tracks.start < a + 5)] for a in (0, 6))
    nothing = np.empty((0, 4, 4))
    parts = [
        Part(frames, nothing, Landmarks(number, np.zeros((len(number), 3)), source))
        for source, (frames, number) in enumerate(((np.arange(5), first), (np.arange(6, 11), second)))
    ]
    pairs = alike(*parts, tracks.marks)
    assert len(pairs) > 50
    place = np.nanmedian(tracks.dense(), axis=0)
    before, after = (place[np.searchsorted(tracks.number, pairs[:, k])] for k in (0, 1))
    assert np.mean(np.abs(after - before - np.array([3, 0])).max(1) < 2) > 0.95
