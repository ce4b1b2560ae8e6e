"""The bench's lines on scale, for a walk whose truth is known because it is its own estimate."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom", reason="vizdoom is in the demo extra")

from bench.camera import Row, _scale_lines
from bench.camera_takes import Place, Take
from curation.cameras.camera import Camera, CameraFacts

FRAMES = 120


def walk(still: int) -> Row:
    """A take that stands for so many frames and then walks a curve at one speed."""
    gone = np.cumsum(np.where(np.arange(FRAMES) < still, 0.0, 5.0))
    pose = np.tile(np.eye(4), (FRAMES, 1, 1))
    pose[:, 0, 3], pose[:, 2, 3] = 200 * np.cos(gone / 200), 200 * np.sin(gone / 200)
    times_s, none = np.arange(FRAMES) / 35, np.zeros(FRAMES)
    inner = np.tile([320.0, 320, 320, 240], (FRAMES, 1))
    camera = Camera(pose, inner, times_s, (640, 480), (0, 0, 640, 480), none == 0, none.astype(np.float32), np.arange(1))
    take = Take(
        "made", "mix", Place("w", "m", False), 35.0, Path(), pose, times_s, 320.0, np.zeros((FRAMES, 3)), np.arange(FRAMES)
    )
    return Row(take, False, CameraFacts("ok"), camera, None, 0.0)


def test_a_walk_comes_to_its_own_unit_whole_and_in_halves() -> None:
    table = "\n".join(_scale_lines([walk(0)], 1))
    assert "x1.00" in table
    assert "1 clips: median x1.00, 95 % within x1.00" in table


def test_a_half_that_stands_is_left_out_of_the_halves() -> None:
    assert "1 clips: median x1.00" in "\n".join(_scale_lines([walk(0), walk(70)], 1))
    assert not any("halves" in line for line in _scale_lines([walk(70)], 1))
