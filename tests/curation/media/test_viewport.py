import cv2
import numpy as np
import pytest

from curation.media.viewport import Rect, ViewportAccumulator, find_viewport, inside_bars


def game(steps=30, bars=0, panel=0, mark=False, moving=True, height=180, width=320):
    """Lumas of a scrolling textured world, with black bars above and below, a status bar, a cross-hair."""
    random = np.random.default_rng(3)
    noise = lambda w: cv2.resize(random.integers(0, 256, (height // 6, w // 6), np.uint8), (w, height))  # noqa: E731
    world, status = noise(width * 4), noise(width)
    for step in range(steps):
        left = 20 * step % (3 * width) if moving else 0
        frame = world[:, left : left + width].copy()
        if panel:
            frame[height - panel :] = status[height - panel :]
        if mark:
            frame[86:94, 156:164] = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((2, 2))).astype(np.uint8) * 255
        if bars:
            frame[:bars] = frame[height - bars :] = 16
        yield frame


def viewport_of(**kwargs):
    accumulator = ViewportAccumulator()
    for frame in game(**kwargs):
        accumulator.add(frame)
    return find_viewport(accumulator.sums)


def test_a_plain_game_is_all_view():
    viewport = viewport_of()
    assert viewport.picture == viewport.view == (0, 0, 320, 180)
    assert viewport.static.mean() < 0.01


def test_bars_are_outside_the_picture_and_the_view():
    viewport = viewport_of(bars=22)
    assert viewport.picture == (0, 22, 320, 136)
    assert viewport.view == (0, 22, 320, 136)


def test_a_status_bar_is_in_the_picture_but_not_in_the_view():
    viewport = viewport_of(panel=30)
    assert viewport.picture == (0, 0, 320, 180)
    assert viewport.view == pytest.approx((0, 0, 320, 150), abs=1)


def test_a_cross_hair_is_static_and_little_else():
    viewport = viewport_of(mark=True)
    assert viewport.view == (0, 0, 320, 180)
    assert viewport.static[87:93, 157:163].mean() > 0.8
    assert viewport.static.sum() < 400


def test_a_still_picture_says_nothing_about_a_hud():
    viewport = viewport_of(moving=False, panel=30)
    assert viewport.steps == 0
    assert viewport.view == (0, 0, 320, 180)
    assert not viewport.static.any()


def test_a_few_tinted_steps_do_not_hide_the_hud():
    accumulator = ViewportAccumulator()
    for step, frame in enumerate(game(panel=30)):
        accumulator.add(cv2.convertScaleAbs(frame, alpha=0.6, beta=90) if step % 12 == 5 else frame)
    assert find_viewport(accumulator.sums).view.h == pytest.approx(150, abs=1)


def test_a_dark_game_is_not_all_bar():
    assert inside_bars(np.zeros((180, 320), np.uint8)) == (0, 0, 320, 180)
    night = np.zeros((180, 320), np.uint8)
    night[120:] = 200
    assert inside_bars(night) == (0, 0, 320, 180)


def test_one_frame_and_no_frame():
    accumulator = ViewportAccumulator()
    assert find_viewport(accumulator.sums).picture == (0, 0, 1, 1)
    accumulator.add(np.full((18, 32), 99, np.uint8))
    assert find_viewport(accumulator.sums).view == (0, 0, 32, 18)


def test_rectangles_scale_to_the_source():
    assert Rect(0, 22, 320, 136).scaled(4, 4) == (0, 88, 1280, 544)
    assert Rect(0, 20, 320, 140).scaled(323 / 320, 1, even=True) == (0, 20, 324, 140)
    assert Rect(0, 20, 324, 140).within(Rect(0, 0, 323, 180)) == (0, 20, 323, 140)
    assert Rect(1, 1, 3, 3).scaled(1.5, 1.5, even=True) == (2, 2, 4, 4)


def test_evidence_of_parts_adds_up_to_that_of_the_whole():
    frames = list(game(panel=30))
    whole, first, second = ViewportAccumulator(), ViewportAccumulator(), ViewportAccumulator()
    for number, frame in enumerate(frames):
        whole.add(frame)
        if number < 13:
            first.add(frame)
        if number >= 12:
            second.add(frame, counts=number >= 13)
    joined = first.sums + second.sums
    assert (joined.frames, joined.steps) == (len(frames), len(frames) - 1)
    for name in ("brightest", "total", "changed"):
        assert np.array_equal(getattr(joined, name), getattr(whole.sums, name))
