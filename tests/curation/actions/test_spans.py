import numpy as np
import pytest

from curation.actions.spans import (
    ActionSpan,
    InteractionSettings,
    RegimeSettings,
    clip_to,
    interaction_spans,
    most_likely_sequence,
    regime_names,
    regime_spans,
    unusual_motion,
)
from curation.partition.optical_flow import FlowMotion

FPS = 30.0
TIMES = np.arange(100) / 10


def motion(turn=0.0, look=0.0, walk=0.0, strafe=0.0):
    """Camera motion of 100 pairs from rates in px/s; a number or an array each."""
    turn, look, walk, strafe = (np.broadcast_to(np.asarray(v, float) / FPS, 100) for v in (turn, look, walk, strafe))
    affine = np.zeros((100, 2, 3))
    affine[:, 1, 0], affine[:, 0, 1], affine[:, 1, 2] = look, walk, walk
    return FlowMotion(affine, -turn, -strafe, np.abs(turn) + np.abs(walk), np.zeros(100))


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
    nothing = FlowMotion(np.zeros((0, 2, 3)), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    assert regime_names(nothing, np.zeros(0), FPS, RegimeSettings()) == []
    assert regime_spans([], np.zeros(0), np.zeros(0), 1.0) == []


def test_spans_are_cut_to_the_clip():
    spans = [ActionSpan(1, 2, 5, 0.5, "regime", "forward"), ActionSpan(8, 8.5, 9, 0.5, "regime", "back")]
    assert clip_to(spans, 3, 6) == [ActionSpan(3, 3, 5, 0.5, "regime", "forward")]


def event(**probabilities):
    """Probability 0.05 at each of 100 ticks, but for t20_25=0.9 from tick 20 to before 25."""
    probability_at = np.full(100, 0.05)
    for name, probability in probabilities.items():
        start, end = (int(number) for number in name[1:].split("_"))
        probability_at[start:end] = probability
    return probability_at


def bounds(**probabilities):
    settings = InteractionSettings(min_peak=0.5, min_edge=0.1, pad_s=0.0)
    return [(s.start_s, s.end_s) for s in interaction_spans(TIMES, event(**probabilities), settings, 10.0)]


def test_a_span_reaches_as_far_as_the_edge_threshold():
    assert bounds(t20_25=0.9, t18_20=0.4, t25_27=0.4) == [(1.8, 2.7)]


def test_what_never_exceeds_the_start_threshold_is_no_span():
    assert bounds(t20_25=0.45) == []


def test_a_short_gap_is_bridged_and_a_long_one_is_not():
    assert bounds(t20_25=0.9, t27_30=0.9) == [(2.0, 3.0)]
    assert bounds(t20_25=0.9, t35_40=0.9) == [(2.0, 2.5), (3.5, 4.0)]


def test_a_single_tick_is_too_short():
    assert bounds(t20_21=0.9) == []


def test_an_interaction_at_the_end_ends_with_the_source():
    assert bounds(t95_100=0.9) == [(9.5, 10.0)]


def test_peak_and_energy_are_those_of_the_probability():
    (span,) = interaction_spans(TIMES, event(t20_25=0.6, t22_23=0.9), InteractionSettings(), 10.0)
    assert (span.peak_s, span.kind, span.name) == (2.2, "interaction", "event")
    assert span.energy == pytest.approx(0.66)


def test_padding_stays_inside_the_source_and_between_spans():
    settings = InteractionSettings(pad_s=0.3)
    spans = interaction_spans(TIMES, event(t0_5=0.9, t10_15=0.9, t97_100=0.9), settings, 10.0)
    assert [(round(s.start_s, 6), round(s.end_s, 6)) for s in spans] == [(0.0, 0.7), (0.7, 1.8), (9.4, 10.0)]


def test_nothing_measured_nothing_found():
    assert interaction_spans(np.zeros(0), np.zeros(0), InteractionSettings(), 1.0) == []
    assert unusual_motion(motion(), np.zeros(0)).shape == (0,)


def test_motion_beside_the_cameras_is_unusual_where_it_is_rare():
    moves = motion()
    moves.object[40:45] = 3.0
    likely = unusual_motion(moves, TIMES)
    assert likely[42] == 1.0
    assert likely[:35].max() == 0.0


def test_the_likeliest_course_ignores_a_doubtful_tick():
    regime = np.tile([0.9, 0.1], (20, 1))
    regime[10] = [0.4, 0.6]
    assert most_likely_sequence(regime, ("still", "forward")) == ["still"] * 20


def test_the_likeliest_course_follows_a_lasting_change():
    regime = np.tile([0.9, 0.1], (20, 1))
    regime[10:] = [0.1, 0.9]
    assert most_likely_sequence(regime, ("still", "forward")) == ["still"] * 10 + ["forward"] * 10
    assert most_likely_sequence(regime[:0], ("still", "forward")) == []
