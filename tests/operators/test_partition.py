"""From a source to its clips: time in which there is no frame makes none."""

import re
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from curation.actions import detect, learned
from curation.captions import engine_events
from curation.captions.engine_events import EngineEvent
from curation.partition import scan
from operators import partition
from operators.op import Step, run_chain
from pipelines import chains, recipes

FPS = 20


@pytest.fixture(autouse=True)
def fresh():
    scan.clear_caches()
    yield
    scan.clear_caches()


def write(path, times_s, size=(160, 96)):
    """A texture that scrolls, its frames at these times."""
    width, height = size
    ground = np.random.default_rng(1).integers(0, 256, (height // 6, width // 3, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for k, time_s in enumerate(times_s):
            picture = np.ascontiguousarray(np.roll(ground, -3 * k, axis=1)[:, :width])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


def clips_of(uri):
    recipe = recipes.load("smoke")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a mean of nothing is a warning, and a number that is no number
        return run_chain(chains.partition(recipe), [{"video_id": "v", "source_uri": uri}])


def spans(rows):
    return [(round(row["start_s"], 3), round(row["end_s"], 3)) for row in rows]


def at(count, first_s=0.0, fps=FPS):
    return [first_s + k / fps for k in range(count)]


@pytest.mark.parametrize("hole_s", [52.0, 46_792.0])
def test_a_hole_ends_a_scene_and_no_clip_covers_it(tmp_path, hole_s, monkeypatch):
    uri = write(tmp_path / "hole.ts", [*at(140), *at(140, 7.0 + hole_s)])
    ticks, real = [], learned.inputs
    monkeypatch.setattr(learned, "inputs", lambda cells, *rest: ticks.append(len(cells)) or real(cells, *rest))
    rows = clips_of(uri)
    assert spans(rows) == [(0.0, 7.0), (7.0 + hole_s, 14.0 + hole_s)]
    assert [row["scene_index"] for row in rows] == [0, 1]
    assert not any(row.get("error") for row in rows)
    assert [row["end_frame"] - row["start_frame"] for row in rows] == [140, 140]
    assert all(row["luma_mean"] > 0 and row["motion_camera"] < 20 for row in rows), "no flow across the hole"
    assert sum(ticks) < 160, "once, and where there are frames, not on the clock"
    (note,) = scan.scan(uri, recipes.load("smoke").partition.scan).notes
    assert note == f"no frame for {hole_s:.0f} s at 7.0 s"


def test_a_hole_at_the_start_and_several_leave_what_lies_between(tmp_path):
    uri = write(tmp_path / "holes.mp4", [0.0, *at(80, 50.0), *at(10, 60.0), *at(80, 70.0)])
    rows = clips_of(uri)
    assert spans(rows) == [(0.0, 0.05), (50.0, 54.0), (60.0, 60.5), (70.0, 74.0)]
    assert [row.get("reject") for row in rows] == ["too short: 0.05 s < 3 s", None, "too short: 0.50 s < 3 s", None]
    assert not any(row.get("error") for row in rows)


def test_two_frames_an_hour_apart_are_two_moments(tmp_path):
    rows = clips_of(write(tmp_path / "two.mp4", [0.0, 3600.0]))
    assert spans(rows) == [(0.0, 1.0), (3600.0, 3601.0)]
    assert all(row["reject"].startswith("too short") for row in rows)


def test_every_clip_of_a_slow_source_holds_a_frame(tmp_path):
    rows = clips_of(write(tmp_path / "slow.mp4", at(20, fps=0.5)))
    assert rows[0]["start_s"] == 0
    assert rows[-1]["end_s"] == 40
    assert all(row["end_frame"] > row["start_frame"] and not row.get("error") for row in rows)
    assert sum(row["end_frame"] - row["start_frame"] for row in rows) == 20


@pytest.mark.parametrize(("old", "new"), [pair for pair in recipes.RENAMED.items() if pair[0].startswith("partition.")])
def test_an_old_name_of_a_setting_is_refused_with_the_new_one(old, new):
    path, settings = old.split("."), 1
    for key in reversed(path):
        settings = {key: settings}
    with pytest.raises(ValueError, match=f"{re.escape(old)} is called {re.escape(new)} now"):
        recipes.from_mapping(recipes.Recipe, settings)
    known = recipes.load("laptop")
    for key in new.split("."):
        known = getattr(known, key)


def test_an_event_in_the_engine_log_begins_a_clip_in_the_same_scene(tmp_path):
    uri = write(tmp_path / "play.mp4", at(200))
    events = [EngineEvent(81, 81 / FPS, "it starts to snow", "environment"), EngineEvent(0, 0.0, "night falls", "environment")]
    (tmp_path / "play.events.json").write_text(engine_events.to_json(events))
    rows = clips_of(uri)
    assert spans(rows) == [(0.0, 4.05), (4.05, 10.0)]
    assert [(row["scene_index"], row["start_frame"]) for row in rows] == [(0, 0), (0, 81)]


def test_what_is_computed_of_a_whole_source_is_computed_once(tmp_path, monkeypatch):
    uri, calls = write(tmp_path / "v.mp4", at(int(40 * FPS))), []
    real, unpack = detect._detect, partition.unpack
    monkeypatch.setattr(detect, "_detect", lambda *a: calls.append("detect") or real(*a))
    monkeypatch.setattr(partition, "unpack", lambda cells: calls.append(len(cells)) or unpack(cells))
    rows = Step(chains.partition(recipes.laptop()))([{"video_id": "v", "source_uri": uri}], on_row=lambda _: None)
    clip_pairs = 10 * max(row["end_s"] - row["start_s"] for row in rows)
    assert len(rows) > 2
    assert calls.count("detect") == 1
    assert max(call for call in calls if call != "detect") <= clip_pairs + 1
