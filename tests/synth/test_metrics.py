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


def shape(rgb):
    return metrics._shape_metrics(rgb)


def test_nothing_has_no_shape(still):
    assert shape(still) == {"entry": 0, "spread": 0, "motion": 0}


def test_a_held_thing_comes_over_the_lower_edge_and_one_in_the_scene_is_there_at_once(still):
    held, stands = still.copy(), still.copy()
    for number in range(20, FRAMES):
        held[number, HEIGHT - min(48, 12 * (number - 19)) :, 70:100] = 255
    stands[20:, HEIGHT - 48 :, 70:100] = 255
    assert shape(held)["entry"] == pytest.approx(1)
    assert shape(stands)["entry"] == pytest.approx(0.5, abs=0.1)
    stands[20:, HEIGHT - 80 : HEIGHT - 48, 70:100] = 255
    assert shape(stands)["entry"] < 0.4
    assert shape(held)["motion"] == shape(stands)["motion"] == 0


def test_the_light_of_a_torch_does_not_hide_where_it_comes_from(still):
    for number in range(20, FRAMES):
        still[number] = np.minimum(still[number].astype(int) + 25, 255)
        still[number, HEIGHT - min(48, 12 * (number - 19)) :, 70:100] = 255
    assert shape(still)["entry"] > 0.9


def test_a_thing_is_in_one_place_and_a_fog_is_not(still):
    thing, fog = still.copy(), still.copy()
    thing[20:, 40:80, 60:90] = 255
    fog[20:, 50:70] = np.minimum(fog[20:, 50:70].astype(int) + 40, 255)
    assert shape(thing)["spread"] == pytest.approx(30 / WIDTH, abs=0.02)
    assert shape(fog)["spread"] == pytest.approx(1, abs=0.1)


def test_who_walks_moves_by_himself(still):
    walks, stands = still.copy(), still.copy()
    for number in range(20, FRAMES):
        walks[number, 40:80, 50 + number % 8 : 70 + number % 8] = 255
    stands[20:, 40:80, 50:70] = 255
    assert shape(walks)["motion"] > 0.03
    assert shape(stands)["motion"] == 0


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
