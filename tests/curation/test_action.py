import numpy as np
import pytest

from curation.action import ActionSpan, RegimeSettings, clip_spans, quiet_instant, regime_names, regime_spans
from curation.flow import CameraMotion

FPS = 30.0
TIMES = np.arange(100) / 10


def motion(turn=0.0, look=0.0, walk=0.0, strafe=0.0):
    """Camera motion of 100 pairs from rates in px/s; a number or an array each."""
    turn, look, walk, strafe = (np.broadcast_to(np.asarray(v, float) / FPS, 100) for v in (turn, look, walk, strafe))
    affine = np.zeros((100, 2, 3))
    affine[:, 1, 0], affine[:, 0, 1], affine[:, 1, 2] = look, walk, walk
    return CameraMotion(affine, -turn, -strafe, np.abs(turn) + np.abs(walk), np.zeros(100))


@pytest.mark.parametrize(
    ("rates", "name"),
    [
        ({}, "still"),
        ({"turn": 200}, "turn_right"),
        ({"turn": -200}, "turn_left"),
        ({"look": 100}, "look_up"),
        ({"look": -100}, "look_down"),
        ({"walk": 120}, "forward"),
        ({"walk": -120}, "back"),
        ({"strafe": 150}, "strafe_right"),
        ({"strafe": -150}, "strafe_left"),
        ({"turn": 100, "walk": 400, "strafe": 400}, "turn_right"),
    ],
)
def test_each_motion_has_its_name(rates, name):
    assert set(regime_names(motion(**rates), TIMES, FPS, RegimeSettings())) == {name}


def test_a_turn_between_stillness_is_one_span_with_its_peak():
    turn = np.zeros(100)
    turn[30:60] = 200
    turn[45] = 400
    names = regime_names(motion(turn=turn), TIMES, FPS, RegimeSettings())
    spans = regime_spans(names, TIMES, motion(turn=turn).camera, end_s=10.0)
    assert len(spans) == 1
    span = spans[0]
    assert (span.kind, span.name) == ("regime", "turn_right")
    assert (span.start_s, span.end_s) == (pytest.approx(3.0, abs=0.2), pytest.approx(6.0, abs=0.2))
    assert span.peak_s == pytest.approx(4.5)


def test_a_flicker_is_no_regime():
    turn = np.zeros(100)
    turn[50] = 500
    assert set(regime_names(motion(turn=turn), TIMES, FPS, RegimeSettings(min_s=0.7))) == {"still"}


def test_a_regime_that_lasts_to_the_end_ends_with_the_source():
    names = ["still"] * 50 + ["forward"] * 50
    assert regime_spans(names, TIMES, np.ones(100), end_s=10.03)[0].end_s == 10.03


def test_no_pairs_no_regimes():
    nothing = CameraMotion(np.zeros((0, 2, 3)), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    assert regime_names(nothing, np.zeros(0), FPS, RegimeSettings()) == []
    assert regime_spans([], np.zeros(0), np.zeros(0), 1.0) == []


def test_spans_are_cut_to_the_clip():
    spans = [ActionSpan(1, 2, 5, 0.5, "regime", "forward"), ActionSpan(8, 8.5, 9, 0.5, "regime", "back")]
    assert clip_spans(spans, 3, 6) == [ActionSpan(3, 3, 5, 0.5, "regime", "forward")]


def test_the_quietest_instant_wins_near_the_wanted_time():
    energy = np.full(100, 5.0)
    energy[52:57] = 0.1
    assert quiet_instant(TIMES, energy, 5.0, 7.0, 6.0) == pytest.approx(5.4, abs=0.1)


def test_where_all_is_alike_the_wanted_time_stays():
    assert quiet_instant(TIMES, np.full(100, 5.0), 5.0, 7.0, 6.0) == 6.0
    assert quiet_instant(np.zeros(0), np.zeros(0), 5.0, 7.0, 6.0) == 6.0
