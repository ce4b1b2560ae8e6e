from itertools import pairwise

import numpy as np
import pytest

from curation.partition.clip_spans import boundary_cost, divide_scene
from curation.partition.cuts import SceneSettings

SETTINGS = SceneSettings()


def divided(length_s, cost=None, start_s=0.0):
    """A scene divided at ticks of a tenth of a second, with costs by time where given."""
    times = np.arange(0, length_s, 0.1) + start_s
    return divide_scene(start_s, start_s + length_s, SETTINGS, times, np.zeros(len(times)) if cost is None else cost(times))


@pytest.mark.parametrize("length_s", [0.4, 2.9, 3.0, 6.0, 6.99, 7.0, 7.01, 8.0, 8.01, 9.0, 12.5, 13.9, 60.0, 61.3, 601.7])
@pytest.mark.parametrize("noisy", [False, True])
def test_spans_cover_the_scene_and_only_a_short_scene_is_too_short(length_s, noisy):
    rng = np.random.default_rng(0)
    spans = divided(length_s, lambda times: rng.random(len(times)) * 30 * noisy, start_s=10.0)
    assert spans[0][0] == 10.0
    assert spans[-1][1] == 10.0 + length_s
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    lengths = [b - a for a, b in spans]
    assert max(lengths) <= SETTINGS.clip_s + 2 * SETTINGS.slack_s + 1e-6
    assert min(lengths) >= min(length_s, SETTINGS.min_clip_s) - 1e-6


def test_where_all_is_alike_clips_have_the_wanted_length():
    assert [b - a for a, b in divided(60.0)] == pytest.approx([6.0] * 10)


def test_a_boundary_moves_to_where_it_is_quiet():
    spans = divided(12.0, lambda times: np.where(np.abs(times - 6.4) < 0.15, 0.0, 3.0))
    assert spans[0][1] == pytest.approx(6.4, abs=0.11)


def test_a_boundary_leaves_an_interaction_even_beyond_the_slack():
    happens = lambda times: boundary_cost(np.ones(len(times)), ((times > 4.0) & (times < 8.5)).astype(float))  # noqa: E731
    bounds = [end for _, end in divided(12.0, happens)][:-1]
    assert bounds
    assert all(not 4.0 < bound < 8.5 for bound in bounds)


def test_a_turn_is_not_worth_an_odd_length():
    turn = lambda times: boundary_cost(np.where((times > 4.0) & (times < 8.0), 5.0, 0.5), np.zeros(len(times)))  # noqa: E731
    (first, second) = divided(12.0, turn)
    assert 5.0 - 1e-6 <= first[1] <= 7.0 + 1e-6
    assert second == (first[1], 12.0)


def test_frames_too_far_apart_for_a_choice_still_give_clips():
    assert divide_scene(0.0, 30.0, SETTINGS, np.array([0.0, 15.0]), np.zeros(2)) == [(6.0 * k, 6.0 * k + 6.0) for k in range(5)]
    assert len(divide_scene(0.0, 30.0, SETTINGS, np.zeros(0), np.zeros(0))) == 5
