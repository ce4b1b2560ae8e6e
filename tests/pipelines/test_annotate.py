"""What is kept is annotated, in units that follow the clips and not the limits that kept them."""

from dataclasses import replace

import numpy as np
import pytest

from curation import shards
from curation.cameras import annotate as front_door
from curation.cameras.camera import Camera, from_npz, to_npz
from pipelines import ledger, phases, recipes, run

EVERY = ["partition", "score", "annotate"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The local runner's work in this process."""
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))


@pytest.fixture
def source(make_video, tmp_path):
    """Sixteen seconds, and the log of an engine that walked ahead and turned right: one unit and nine degrees a second."""
    (tmp_path / "raw").mkdir()
    path = make_video(tmp_path / "raw" / "walk.mp4", seconds=16, size=(320, 240), bars=30)
    frames = 16 * 15
    turn = np.radians(9 / 15) * np.arange(frames)
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 0, 0] = pose[:, 2, 2] = np.cos(turn)
    pose[:, 0, 2], pose[:, 2, 0] = np.sin(turn), -np.sin(turn)
    pose[1:, :3, 3] = np.cumsum(pose[:-1, :3, 2] / 15, axis=0)
    inner = np.tile([160.0, 160.0, 160.0, 120.0], (frames, 1))
    known = np.ones(frames, bool), np.zeros(frames, np.float32), np.arange(0)
    log = Camera(pose, inner, np.arange(frames) / 15, (320, 240), (0, 30, 320, 180), *known, 1.0, "engine")
    (tmp_path / "raw" / "walk.camera.npz").write_bytes(to_npz(log))
    return path


def with_cameras(**settings):
    smoke = recipes.smoke()
    return replace(smoke, annotate=replace(smoke.annotate, camera=replace(smoke.annotate.camera, **settings)))


def test_an_engines_log_goes_with_the_clip_into_the_shard(source, tmp_path):
    done = run.curate([source], str(tmp_path / "o"), with_cameras(backend="auto"))
    rows = {row["clip_id"]: row for row in ledger.clips(done.out).to_pylist()}
    samples = [sample for name in shards.committed(done.out) for sample in shards.read_samples(done.out, name)]
    assert len(samples) == done.kept >= 2
    for sample in samples:
        row, camera = rows[sample.clip_id], from_npz(sample.members["camera.npz"])
        assert (row["camera_status"], row["camera_source"], row["camera_scale_source"]) == ("ok", "engine", "engine")
        assert row["camera_words"] == ["dolly_in"]  # nine degrees a second are steering
        assert row["camera_top_speed"] == pytest.approx(1, rel=0.01)
        assert sample.meta["camera_turn_deg"] == pytest.approx(9 * (row["end_s"] - row["start_s"]), abs=1)
        assert len(camera.times_s) == row["stored_frames"]
        np.testing.assert_allclose(camera.pose[0], np.eye(4), atol=1e-6)
        assert camera.size == (row["stored_width"], row["stored_height"]) == (320, 180)
        np.testing.assert_allclose(camera.intrinsics[0], [160, 160, 160, 90])  # the bars are cut away


def test_a_second_run_asks_nothing_twice_and_limits_that_keep_the_same_clips_cost_nothing(source, tmp_path):
    out, recipe = str(tmp_path / "o"), with_cameras(backend="auto")
    first = run.curate([source], out, recipe, phases=EVERY)
    assert [record.phase for record in first.records] == EVERY
    assert run.curate([source], out, recipe, phases=EVERY).records == []
    milder = replace(recipe, score=replace(recipe.score, luminance=replace(recipe.score.luminance, max_mean=254.0)))
    assert [record.phase for record in run.curate([source], out, milder, phases=EVERY).records] == ["score"]


def test_clips_that_other_limits_take_out_lose_their_annotation(source, tmp_path):
    out, recipe = str(tmp_path / "o"), with_cameras(backend="auto")
    run.curate([source], out, recipe, phases=EVERY)
    strict = replace(recipe, score=replace(recipe.score, luminance=replace(recipe.score.luminance, max_mean=1.0)))
    done = run.curate([source], out, strict, phases=EVERY)
    assert done.kept == 0
    assert set(ledger.clips(out)["camera_status"].to_pylist()) == {None}


def test_nothing_is_planned_before_it_is_annotated(source, tmp_path):
    out, recipe = str(tmp_path / "o"), with_cameras(backend="auto")
    early = run.curate([source], out, recipe, phases=["partition", "score", "shard"])
    assert (early.kept > 0, early.stored, shards.plans(out)) == (True, 0, [])
    assert run.curate([source], out, recipe).stored == early.kept


def test_a_backend_that_is_not_installed_is_said_and_the_clips_are_kept(make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(front_door, "find_spec", lambda name: None)
    path = make_video(tmp_path / "plain.mp4", seconds=7)
    done = run.curate([path], str(tmp_path / "o"), with_cameras(backend="auto"))
    assert done.stored == done.kept == 1
    (row,) = ledger.kept(ledger.clips(done.out)).to_pylist()
    assert row["camera_status"] == "skipped:pycolmap is not installed (pip install 'gamecraft[camera]')"
    (sample,) = shards.read_samples(done.out, "000000")
    assert set(sample.members) == {"mp4"}


def test_a_backend_that_the_recipe_names_and_that_is_not_installed_fails_the_unit(make_video, tmp_path, monkeypatch):
    monkeypatch.setattr(front_door, "find_spec", lambda name: None)
    path = make_video(tmp_path / "plain.mp4", seconds=7)
    done = run.curate([path], str(tmp_path / "o"), with_cameras(backend="klt_glomap"))
    assert [record.failure for record in done.failures] == [
        "OSError: camera backend klt_glomap: pycolmap is not installed (pip install 'gamecraft[camera]')"
    ]
    assert (done.kept, done.stored) == (1, 0)


def test_a_damaged_log_is_the_clips_reason(source, tmp_path):
    np.savez(tmp_path / "raw" / "walk.camera.npz", pose=np.eye(4))
    done = run.curate([source], str(tmp_path / "o"), with_cameras(backend="auto"))
    statuses = set(ledger.kept(ledger.clips(done.out))["camera_status"].to_pylist())
    assert len(statuses) == 1
    assert statuses.pop().startswith("failed:not a camera.npz: it lacks")
    assert done.stored == done.kept
