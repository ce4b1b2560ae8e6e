import cv2
import numpy as np

from curation.cameras.tracks import _Follower

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
    follower = _Follower(np.full((HEIGHT, WIDTH), 255, np.uint8))
    for picture in panned(steps):
        follower.add(picture)
    found = follower.tracks(np.arange(len(steps) + 1) / 16)
    moved = np.diff(found.dense(), axis=0)
    for step, each in zip(steps, moved, strict=True):
        seen = each[np.isfinite(each[:, 0])]
        assert len(seen) >= 60
        assert np.abs(np.median(seen, axis=0) - np.array([-step, 0])).max() < 0.5
