"""The metrics of made videos, on pictures with a known change."""

import numpy as np
import pytest

from synth import metrics
from synth.metrics import RATE_FPS

FRAMES, HEIGHT, WIDTH = 50, 120, 160


@pytest.fixture
def still():
    rng = np.random.default_rng(3)
    ground = rng.integers(60, 120, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.repeat(ground[None], FRAMES, axis=0)


def course(rgb):
    return metrics._change_metrics(metrics.cell_changes(rgb), metrics._luma_changes(rgb))


def test_nothing_changes(still):
    found = course(still)
    assert found["change_peak"] == found["change_brief"] == found["change_end"] == 0
    assert found["kept"] == 0
    assert metrics.shifted_share(still) == 0


def test_a_change_that_stays_where_hands_are(still):
    still[20:, 80:120, 60:100] = 255
    found = course(still)
    assert found["change_end"] == found["change_peak"] == pytest.approx(16 / 192)
    assert found["kept"] == pytest.approx(1, abs=0.01)
    assert found["hands"] == pytest.approx(1)
    assert found["onset_s"] == pytest.approx(20 / RATE_FPS)
    assert found["light_end"] > 5


def test_a_change_that_is_undone(still):
    still[20:35, 0:40, 0:40] = 255
    found = course(still)
    assert found["change_peak"] == pytest.approx(16 / 192)
    assert found["change_end"] == found["kept"] == 0


def test_a_flash_is_brief_and_bright(still):
    still[20:22] = np.minimum(still[20:22].astype(int) + 90, 255).astype(np.uint8)
    found = course(still)
    assert found["change_brief"] == 1
    assert found["change_peak"] == 0
    assert found["light_peak"] > 60
    assert abs(found["light_end"]) < 1


def test_a_torch_lights_all_but_most_of_all_the_hand(still):
    still[20:] = np.minimum(still[20:].astype(int) + 14, 255).astype(np.uint8)
    still[20:, 70:120, 60:100] = 255
    assert course(still)["change_end"] == 1
    assert course(still)["hands"] > 0.7


def test_dots_all_over_leave_the_picture_where_it_is_and_a_camera_does_not(still):
    rng = np.random.default_rng(4)
    snow, turned = still.copy(), still.copy()
    for number in range(15, FRAMES):
        y, x = rng.integers(0, HEIGHT, 400), rng.integers(0, WIDTH, 400)
        snow[number, y, x] = 255
        turned[number] = np.roll(still[number], number - 14, axis=1)
    assert metrics.shifted_share(snow) == 0
    assert course(snow)["change_end"] > 0.6
    assert metrics.shifted_share(turned) > 0.5
