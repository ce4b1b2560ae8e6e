"""The log of events that a game engine writes next to its video."""

import pytest

from curation.captions import engine_events
from curation.captions.engine_events import EngineEvent, event_at

SNOW = EngineEvent(70, 4.0, "it starts to snow", "environment")
TORCH = EngineEvent(100, 5.7, "take out a torch", "actor")


def test_a_log_is_read_in_order_of_time(tmp_path):
    (tmp_path / "play.events.json").write_text(engine_events.to_json([TORCH, SNOW]))
    assert engine_events.read_log(str(tmp_path / "play.mp4")) == (SNOW, TORCH)
    assert engine_events.boundaries_s(str(tmp_path / "play.mp4")) == [4.0, 5.7]


def test_without_a_log_there_are_no_onsets(tmp_path):
    assert engine_events.read_log(str(tmp_path / "other.mp4")) is None
    assert engine_events.boundaries_s(str(tmp_path / "other.mp4")) == []


@pytest.mark.parametrize(("time_s", "event"), [(3.9, None), (3.9999, SNOW), (4.0, SNOW), (5.69, SNOW), (9.0, TORCH)])
def test_an_event_lasts_until_the_next(time_s, event):
    assert event_at((SNOW, TORCH), time_s) == event


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not a log of events"),
        ('{"happenings": []}', "'events'"),
        ('{"events": [{"frame": 1}]}', "missing"),
        (
            '{"events": [{"frame": 1, "time_s": 1.0, "caption": "rain", "category": "wet"}]}',
            "unknown category wet; known: environment",
        ),
    ],
)
def test_a_file_that_is_no_log_is_an_error_that_names_it(tmp_path, text, problem):
    (tmp_path / "play.events.json").write_text(text)
    with pytest.raises(ValueError, match=problem) as error:
        engine_events.read_log(str(tmp_path / "play.mp4"))
    assert "play.events.json" in str(error.value)
