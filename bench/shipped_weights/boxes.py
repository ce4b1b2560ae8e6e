"""Draw a world of boxes in plain colours, like a game without textures: a ground, a sky, edges, and little else."""

from typing import NamedTuple

import cv2
import numpy as np

FRAMES = 16
Rng = np.random.Generator
Snippet = np.ndarray
_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
_NEAR = 0.3  # faces that are nearer to the eye than this are not drawn


class PixelWindow(NamedTuple):
    """A window of a picture of width x height px: the place x, y of the window, and its visible size."""

    width: int
    height: int
    x: int
    y: int
    visible_width: int
    visible_height: int


def boxes(rng: Rng, window: PixelWindow) -> Snippet:
    """Return sixteen frames, uint8 [16, H, W], of boxes of all sizes on a ground, seen by an eye that walks and turns.

    They are drawn at twice the size and then shrunk.
    """
    count = int(rng.integers(8, 60))
    sizes = np.exp(rng.uniform(np.log(0.15), np.log(3.0), (count, 3)))
    places = rng.uniform((-8, 0, 1), (8, 0, 16), (count, 3)) - sizes * (0.5, 1, 0.5)  # y is down, and 0 the ground
    shades = np.clip(rng.uniform(30, 220, (count, 1)) + rng.uniform(-40, 40, (1, 6)), 5, 250)
    backdrop = _backdrop(rng, window)
    walk, turn, eye = rng.uniform(-0.04, 0.04, 3) * (1, 0, 1), rng.uniform(-0.008, 0.008), rng.uniform(-2.0, -0.6)
    frames = []
    for k in range(FRAMES):
        corners = (places[:, None] + sizes[:, None] * _CORNERS) - walk * k - (0, eye, 0)
        c, s = np.cos(turn * k), np.sin(turn * k)
        corners = corners @ np.array([(c, 0, s), (0, 1, 0), (-s, 0, c)])
        frames.append(_render(corners, shades, backdrop.copy(), window))
    return np.stack(frames)


def _backdrop(rng: Rng, window: PixelWindow) -> np.ndarray:
    """Draw sky and ground at twice the size, each in one tone or with a gradient."""
    tones = rng.uniform(20, 240, 4)
    tones[[1, 3]] += (tones[[0, 2]] - tones[[1, 3]]) * (rng.random(2) < 0.4)
    rows = (np.arange(window.visible_height * 2) + window.y * 2) / (window.height * 2)
    column = np.where(
        rows < 0.5,
        tones[0] + (tones[1] - tones[0]) * rows * 2,
        tones[2] + (tones[3] - tones[2]) * np.sqrt(np.maximum(rows * 2 - 1, 0)),
    )
    return np.repeat(column[:, None], window.visible_width * 2, 1).astype(np.uint8)


def _render(corners: np.ndarray, shades: np.ndarray, picture: np.ndarray, window: PixelWindow) -> np.ndarray:
    """Draw the faces from the farthest to the nearest. corners [N, 8, 3], shades [N, 6]."""
    scale, middle = window.width, np.array([window.width, window.height]) - (window.x * 2, window.y * 2)
    faces = [(corners[n, list(face)], shades[n, k]) for n in range(len(corners)) for k, face in enumerate(_FACES)]
    for face, shade in sorted(faces, key=lambda item: -float(item[0][:, 2].mean())):
        if face[:, 2].min() > _NEAR:
            outline = face[:, :2] / face[:, 2:] * scale + middle
            cv2.fillConvexPoly(picture, np.rint(outline * 16).astype(np.int32), float(shade), shift=4)
    return cv2.resize(picture, (window.visible_width, window.visible_height), interpolation=cv2.INTER_AREA)
