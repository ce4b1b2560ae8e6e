"""Which detector judges a source, and what comes of its prediction; the last test on a recorded fight."""

from dataclasses import replace

import numpy as np
import pytest

from curation.actions import detect
from curation.actions.detect import ActionSettings, boundary_costs, unknown_reason
from curation.actions.learned import KINDS, REGIMES, Prediction
from curation.actions.spans import InteractionSettings
from curation.media.time_gaps import Segment
from curation.partition.chunks import ScanSettings
from curation.partition.optical_flow import FlowMotion, FlowSettings
from curation.partition.scan import Signals, scan

TICKS = 200


@pytest.fixture(autouse=True)
def prediction_is_given(monkeypatch):
    real = detect.predict
    monkeypatch.setattr(detect, "predict", lambda source: source.prediction if isinstance(source, Played) else real(source))


class Played:
    """Signals of twenty seconds in which the prediction is given: a turn from 5 to 10 s, a door at 12 to 13 s."""

    def __init__(self, distance=0.5, look_px=0.0, sure=0.8):
        self.times_s = np.arange(2 * TICKS) / 20
        self.pair_times_s, self.fps, self.end_s = np.arange(TICKS) / 10, 20.0, 20.0
        self.segments = (Segment(0, 2 * TICKS, 0.0, 20.0),)
        affine = np.zeros((TICKS, 2, 3))
        affine[:, 1, 0] = look_px
        pan, parallax = np.where((self.pair_times_s >= 5) & (self.pair_times_s < 10), -10.0, 0.0), np.zeros(TICKS)
        self.motion = FlowMotion(affine, pan, parallax, np.abs(pan), np.zeros(TICKS))
        event = np.where((self.pair_times_s >= 12) & (self.pair_times_s < 13), 0.9, 0.02)
        regime = np.full((TICKS, len(REGIMES)), 0.02)
        regime[:, 0] = 0.9
        regime[50:100, [0, REGIMES.index("turn_right")]] = [0.02, 0.9]
        kinds = np.full((TICKS, len(KINDS)), 0.02)
        kinds[120:130, KINDS.index("door")] = sure
        known = np.full(TICKS, distance), np.full(TICKS, 0.01)
        self.prediction = Prediction(self.pair_times_s, event, regime, kinds, *known)


def names(actions):
    return [(span.name, round(span.start_s, 6), round(span.end_s, 6)) for span in actions.spans]


def test_a_source_like_the_training_set_is_read_by_the_network():
    actions = detect.detect_actions(Played(), ActionSettings())
    assert actions.detector == "learned"
    assert names(actions) == [("turn_right", 5.0, 10.0), ("door", 11.9, 13.1)]


def test_what_is_of_no_certain_kind_is_an_event():
    actions = detect.detect_actions(Played(sure=0.4), ActionSettings())
    assert [span.name for span in actions.spans if span.kind == "interaction"] == ["event"]


def test_a_clip_that_the_network_is_not_sure_of_is_unknown_with_the_reason(monkeypatch):
    settings = InteractionSettings()
    actions = detect.detect_actions(Played(), ActionSettings())
    monkeypatch.setattr(detect, "clip_confidence", lambda *given: 0.3)
    assert unknown_reason(actions, 10, 16, settings) == "the detector is not sure: confidence 0.30 < 0.6"
    monkeypatch.setattr(detect, "clip_confidence", lambda *given: 0.9)
    assert unknown_reason(actions, 10, 16, settings) is None
    far = detect.detect_actions(Played(distance=1.7), ActionSettings())
    assert far.confidence(0, 6) is None
    assert unknown_reason(far, 0, 6, settings) == "the detector does not know such footage: distance 1.70 > 1.5"


def test_that_nothing_happens_is_known_only_of_footage_like_the_training_set(monkeypatch):
    settings = InteractionSettings()
    monkeypatch.setattr(detect, "clip_confidence", lambda *given: 0.9)
    near, other = (detect.detect_actions(Played(distance=distance), ActionSettings()) for distance in (0.5, 1.2))
    assert unknown_reason(near, 0, 6, settings) is None
    reason = unknown_reason(other, 0, 6, settings)
    assert reason == "nothing is seen to happen, but the detector hardly knows such footage: distance 1.20 > 0.6"
    assert unknown_reason(other, 10, 16, settings) is None, "a door is seen at 12 s"


def test_one_unlike_it_is_judged_by_its_flow_and_says_so():
    actions = detect.detect_actions(Played(distance=1.7), ActionSettings())
    assert (actions.detector, actions.distance) == ("flow", 1.7)
    assert [name for name, *_ in names(actions)] == ["turn_right"]


@pytest.mark.parametrize(("which", "distance"), [("learned", 9.0), ("flow", 0.1)])
def test_a_detector_asked_for_by_name_is_taken(which, distance):
    assert detect.detect_actions(Played(distance), ActionSettings(detector=which)).detector == which


def test_nothing_goes_on_over_a_hole_in_time():
    for distance in (0.5, 1.7):
        played = Played(distance)
        played.segments = (Segment(0, 160, 0.0, 8.0), Segment(160, 250, 8.0, 12.5), Segment(250, 400, 12.5, 20.0))
        spans = detect.detect_actions(played, ActionSettings()).spans
        assert [(s.start_s, s.end_s) for s in spans if s.name == "turn_right"] == [(5.0, 8.0), (8.0, 10.0)]
        events = [(round(s.start_s, 6), round(s.end_s, 6)) for s in spans if s.kind == "interaction"]
        assert events == ([(11.9, 12.5), (12.5, 13.1)] if distance < 1 else [])


def test_how_far_is_too_far_is_a_setting():
    settings = ActionSettings(interactions=InteractionSettings(max_distance=2.0))
    assert detect.detect_actions(Played(distance=1.2), settings).detector == "learned"


def test_an_open_sky_is_no_look_up_because_the_network_alone_says_how_the_player_moves():
    actions = detect.detect_actions(Played(look_px=20.0), ActionSettings())
    assert "look_up" not in {name for name, *_ in names(actions)}


def test_boundaries_cost_most_where_something_happens_and_just_around_it():
    played = Played()
    times_s, cost = boundary_costs(played, detect.detect_actions(played, ActionSettings()))
    assert set(times_s) <= set(played.times_s)
    cost_at = dict(zip(np.round(times_s, 2), cost, strict=True))
    assert cost_at[12.5] > 15
    assert cost_at[11.8] > 15
    assert cost_at[2.0] < 1 < cost_at[7.0] < 15


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="auto, learned, flow, not 'best'"):
        ActionSettings(detector="best")


def test_a_source_without_pairs_has_no_actions(clip):
    signals = scan(clip, ScanSettings(FlowSettings(backend="dis")))
    none = replace(signals, pair_frame=signals.pair_frame[:0], cells=signals.cells[:0], change_cells=signals.change_cells[:0])
    assert isinstance(none, Signals)
    actions = detect.detect_actions(none, ActionSettings())
    assert (actions.spans, actions.detector) == ([], "flow")
    assert len(boundary_costs(none, actions)[0]) == 0


@pytest.mark.footage
def test_shots_in_a_recorded_fight_lie_in_spans(footage):
    truth = pytest.importorskip("synth.doom.truth")
    recording = footage / "vizdoom" / "doom_open_c_fight.mp4"
    ground_truth = truth.read_truth(recording.with_suffix(".jsonl"))
    actions = detect.detect_actions(scan(str(recording), ScanSettings(FlowSettings(backend="dis"))), ActionSettings())
    assert actions.detector == "learned"
    spans = [span for span in actions.spans if span.kind == "interaction"]
    shots_s = [event.frame / ground_truth.fps for event in ground_truth.events if event.name == "shot_fired"]
    inside = [any(span.start_s - 0.25 <= shot <= span.end_s + 0.25 for span in spans) for shot in shots_s]
    assert np.mean(inside) > 0.8
    assert sum(span.end_s - span.start_s for span in spans) < 0.5 * len(ground_truth) / ground_truth.fps
