"""The table of engines, on made-up recordings and predictions."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("scenedetect", reason="PySceneDetect's cuts are beside ours")
from bench import engines
from bench.interactions import ClipVerdict, Recording
from curation.actions.learned import KINDS, REGIMES, Prediction
from curation.actions.spans import InteractionSettings
from synth.engines.labels import LabelSpan

SECONDS, FPS = 20, 30


def recording(kind="door", start_s=5.0, end_s=6.0):
    event = np.zeros(SECONDS * FPS, bool)
    event[round(start_s * FPS) : round(end_s * FPS)] = True
    spans = (LabelSpan(kind, round(start_s * FPS), round(end_s * FPS)),)
    labels = SimpleNamespace(engine="minetest", event=event, truth=SimpleNamespace(fps=FPS), spans=spans)
    return Recording(None, SimpleNamespace(), labels)


def watched(truth):
    return Recording(None, SimpleNamespace(), SimpleNamespace(truth=truth))


def predicted(start_s=5.0, end_s=6.0, kind="door", sure=0.9, high=0.9):
    times = np.arange(SECONDS * 10) / 10
    inside = (times >= start_s - 1e-6) & (times < end_s - 1e-6)
    kinds = np.full((len(times), len(KINDS)), 0.01)
    kinds[inside, KINDS.index(kind)] = sure
    regimes = np.full((len(times), len(REGIMES)), 1 / len(REGIMES))
    return Prediction(times, np.where(inside, high, 0.01), regimes, kinds, np.ones(len(times)), np.zeros(len(times)))


def verdict(true, score, confidence):
    return ClipVerdict("minetest", true, score, confidence, np.zeros(6))


def scan(motion=None):
    frames = SECONDS * FPS
    times, pairs = np.arange(frames) / FPS, np.arange(SECONDS * 10) / 10
    calm = np.zeros(frames), np.ones(frames), np.ones(frames)
    still = np.zeros(len(pairs)) if motion is None else motion
    return engines.Scanned(times, *calm, pairs, still, float(FPS), float(SECONDS), np.array([70]), np.array([], int))


def test_boundaries_avoid_what_is_predicted_and_only_those_inside_an_event_count():
    event = predicted(5.5, 6.5)
    starts = engines.boundaries(scan(), event)
    assert starts
    assert not any(5.4 < start < 6.6 for start in starts)
    one = recording(start_s=starts[0] - 0.5, end_s=starts[0] + 0.5)
    assert engines.inside_events(one, starts).count(True) == 1
    assert not any(engines.inside_events(recording(start_s=0.2, end_s=0.5), starts))


def test_a_brief_event_is_found_where_a_span_holds_it():
    brief = recording(start_s=5.0, end_s=5.27)
    assert engines.brief_events_found(brief, predicted(5.0, 5.3)) == (1, 1)
    assert engines.brief_events_found(brief, predicted(12.0, 12.3)) == (0, 1)
    assert engines.brief_events_found(recording(), predicted()) == (0, 0), "a second is not brief"


@pytest.mark.parametrize(("kind", "sure", "expected"), [("door", 0.9, (1, 1)), ("shot", 0.9, (0, 1)), ("door", 0.3, (0, 0))])
def test_a_name_is_right_where_an_event_of_its_kind_is_near(kind, sure, expected):
    assert engines.names_right(recording("door"), predicted(kind=kind, sure=sure)) == expected


def test_answers_are_counted_apart_from_abstentions():
    unsure = InteractionSettings().min_confidence - 0.1
    verdicts = [verdict(True, 0.9, 0.95), verdict(False, 0.9, 0.95), verdict(True, 0.0, 0.95), verdict(True, 0.9, unsure)]
    assert [engines.answer(one) for one in verdicts] == [True, True, False, None]
    assert engines.verdict_words(verdicts) == "1 of 2, 1 of 2, 1, 1 of 4"


def test_a_clips_category_is_that_of_its_surest_event():
    verdicts = [verdict(True, 0.9, 0.95)]
    assert engines.categories_right(recording("torch"), predicted(kind="door"), verdicts, 6.0) == (1, 1), "both by an actor"
    assert engines.categories_right(recording("weather"), predicted(kind="door"), verdicts, 6.0) == (0, 1)
    assert engines.categories_right(recording(), predicted(), [verdict(True, 0.0, 0.95)], 6.0) == (0, 0)


def test_reliability_is_the_share_of_right_verdicts_in_each_band(tmp_path):
    verdicts = [verdict(True, 0.9, 0.95), verdict(False, 0.9, 0.95), verdict(True, 0.9, 0.65)]
    bands = engines.reliability(verdicts)
    assert [(round(said, 2), right, count) for said, right, count in bands] == [(0.65, 1.0, 1), (0.95, 0.5, 2)]
    engines.plot_reliability({"minetest": bands, "doom": []}, tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


def seen_from(position_m, yaw_deg=0.0, pitch_deg=0.0):
    """Return the truth of a camera that is at the origin, and from frame 71 on elsewhere."""
    there, frames = np.arange(SECONDS * FPS) >= 71, SECONDS * FPS
    return SimpleNamespace(
        fps=FPS,
        position=np.outer(there, np.array(position_m) * 32),
        yaw_deg=np.where(there, yaw_deg, 0.0),
        pitch_deg=np.where(there, pitch_deg, 0.0) + np.zeros(frames),
    )


def test_cuts_of_each_method_are_matched_with_the_engines(monkeypatch):
    monkeypatch.setattr(engines.truth, "discontinuities", lambda recorded: [71])
    rows = [*engines.cut_rows("minetest", [watched(seen_from((50.0, 0.0, 0.0)))], [scan()])]
    assert rows == [
        "| minetest | ours | 0.000 | 0 of 1 | 0 |  |",
        "| minetest | PySceneDetect Adaptive | 1.000 | 1 of 1 | 0 |  |",
        "| minetest | PySceneDetect Content | 0.000 | 0 of 1 | 0 |  |",
    ]


def test_a_snap_that_is_found_is_neither_right_nor_false(monkeypatch):
    monkeypatch.setattr(engines.truth, "discontinuities", lambda recorded: [71])
    rows = [*engines.cut_rows("minetest", [watched(seen_from((2.0, 0.0, 0.0), 20.0))], [scan()])]
    assert rows[1] == "| minetest | PySceneDetect Adaptive |  | 0 of 0 | 0 | 1 of 1 |"


@pytest.mark.parametrize(
    ("position_m", "yaw_deg", "pitch_deg", "cut"),
    [
        ((2.0, 2.0, 1.0), 10.0, 0.0, False),
        ((2.0, 0.0, 0.0), 350.0, 0.0, False),  # ten degrees to the right
        ((5.0, 0.0, 0.0), 0.0, 0.0, True),
        ((0.0, 0.0, 0.0), 90.0, 0.0, True),
        ((0.0, 0.0, 0.0), 0.0, -60.0, True),
    ],
)
def test_a_camera_snaps_that_stays_near_its_view(position_m, yaw_deg, pitch_deg, cut, monkeypatch):
    monkeypatch.setattr(engines.truth, "discontinuities", lambda recorded: [71, 74])  # the second follows too closely
    assert engines.cuts_and_snaps(seen_from(position_m, yaw_deg, pitch_deg)) == (([71], []) if cut else ([], [71]))
