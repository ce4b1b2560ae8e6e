"""What is kept is annotated, in units that follow the clips and not the limits that kept them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from curation import shards
from curation.cameras import engine
from curation.cameras.camera import Camera, from_npz, to_npz
from curation.errors import InputError
from pipelines import ledger, phases, recipes, run
from pipelines.cli import app
from pipelines.report.page import write_report

EVERY = ["partition", "score", "annotate"]
LATER = ["score", "annotate"]


def with_cameras(**settings):
    smoke = recipes.smoke()
    return replace(smoke, annotate=replace(smoke.annotate, camera=replace(smoke.annotate.camera, **settings)))


AUTO = with_cameras(backend="auto")


def with_brightest(limit):
    return replace(AUTO, score=replace(AUTO.score, luminance=replace(AUTO.score.luminance, max_mean=limit)))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The local runner's work in this process."""
    engine.read_log.cache_clear()
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))


@pytest.fixture(scope="module")
def scored(make_video, tmp_path_factory):
    """Fourteen seconds with the log of an engine that walked ahead, one unit and nine degrees to the right a second; and the
    output of the phases before annotation.
    """
    folder = tmp_path_factory.mktemp("logged")
    path = make_video(folder / "walk.mp4", seconds=14, size=(320, 240), bars=30)
    (folder / "walk.camera.npz").write_bytes(to_npz(_log(14 * 15)))
    run.curate([path], str(folder / "o"), AUTO, phases=["partition", "score"])
    return folder


def _log(frames):
    turn = np.radians(9 / 15) * np.arange(frames)
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 0, 0] = pose[:, 2, 2] = np.cos(turn)
    pose[:, 0, 2], pose[:, 2, 0] = np.sin(turn), -np.sin(turn)
    pose[1:, :3, 3] = np.cumsum(pose[:-1, :3, 2] / 15, axis=0)
    inner = np.tile([160.0, 160.0, 160.0, 120.0], (frames, 1))
    known = np.ones(frames, bool), np.zeros(frames, np.float32), np.arange(0)
    return Camera(pose, inner, np.arange(frames) / 15, (320, 240), (0, 30, 320, 180), *known, 1.0, "engine")


@pytest.fixture
def source(scored):
    return str(scored / "walk.mp4")


@pytest.fixture
def out(scored, tmp_path):
    """A copy of that output."""
    return shutil.copytree(scored / "o", tmp_path / "o").as_posix()


def kept(out):
    return ledger.kept_clips(ledger.clips(out)).to_pylist()


def test_an_engines_log_goes_with_the_clip_into_the_shard(source, out):
    done = run.curate([source], out, AUTO)
    rows = {row["clip_id"]: row for row in kept(out)}
    samples = [sample for name in shards.list_committed(out) for sample in shards.read_samples(out, name)]
    assert len(samples) == done.kept == 2
    for sample in samples:
        row, camera = rows[sample.clip_id], from_npz(sample.members["camera.npz"])
        assert (row["camera_status"], row["camera_source"], row["camera_scale_source"]) == ("ok", "engine", "engine")
        assert row["camera_words"] == ["dolly_in"]  # nine degrees a second are steering
        assert row["camera_top_speed"] == pytest.approx(1, rel=0.01)
        assert sample.meta["camera_turn_deg"] == pytest.approx(9 * (row["end_s"] - row["start_s"]), abs=1)
        assert len(camera.times_s) == row["stored_frames"]
        assert [(span.start, span.end, span.scale_source) for span in camera.spans] == [(0, row["stored_frames"], "engine")]
        [span] = row["camera_spans"]
        assert (span["start_s"], span["end_s"]) == pytest.approx((0, camera.times_s[-1]), abs=1e-3)
        assert (span["scale_to_unit"], row["camera_valid_share"]) == (1.0, 1.0)
        np.testing.assert_allclose(camera.pose[0], np.eye(4), atol=1e-6)
        assert camera.size == (row["stored_width"], row["stored_height"]) == (320, 180)
        np.testing.assert_allclose(camera.intrinsics[0], [160, 160, 160, 90])  # the bars are cut away


def test_an_output_of_an_older_schema_can_be_read_but_not_continued(source, out, tmp_path):
    dataset = json.loads((tmp_path / "o" / "dataset.json").read_text())
    (tmp_path / "o" / "dataset.json").write_text(json.dumps(dataset | {"schema_version": 2}))
    assert shards.read_dataset(out)["schema_version"] == 2
    with pytest.raises(
        InputError, match="schema version 2, which this release reads but does not continue: it writes version 3"
    ):
        run.curate([source], out, AUTO)


def test_a_second_run_asks_nothing_twice_and_limits_that_keep_the_same_clips_cost_nothing(source, out):
    assert [record.phase for record in run.curate([source], out, AUTO, phases=EVERY).records] == ["annotate"]
    assert run.curate([source], out, AUTO, phases=EVERY).records == []
    assert [record.phase for record in run.curate([source], out, with_brightest(254.0), phases=EVERY).records] == ["score"]


def test_clips_that_other_limits_take_out_lose_their_annotation(source, out):
    run.curate([source], out, AUTO, phases=LATER)
    assert {row["camera_status"] for row in kept(out)} == {"ok"}
    assert run.curate([source], out, with_brightest(1.0), phases=LATER).kept == 0
    assert set(ledger.clips(out)["camera_status"].to_pylist()) == {None}


def test_nothing_is_planned_before_it_is_annotated(source, out):
    early = run.curate([source], out, AUTO, phases=["shard"])
    assert (early.kept > 0, early.stored, shards.list_plans(out)) == (True, 0, [])
    assert run.curate([source], out, AUTO).stored == early.kept


def test_a_backend_that_the_recipe_names_and_that_is_not_installed_fails_the_unit(source, out):
    done = run.curate([source], out, with_cameras(backend="vipe", vipe_command="no-such-vipe"))
    assert [record.failure for record in done.failures] == [
        "Unavailable: camera backend vipe: ViPE needs the package nvidia-vipe and CUDA, or the program 'no-such-vipe', "
        "and neither is here; install one of them, or choose the backend klt, which needs neither"
    ]
    assert (done.kept, done.stored) == (2, 0)


def test_a_damaged_log_is_the_clips_reason_and_the_report_says_so(source, out, monkeypatch):
    monkeypatch.setattr(engine, "from_npz", lambda data: from_npz(data[:-1]))
    done = run.curate([source], out, AUTO)
    statuses = {row["camera_status"] for row in kept(out)}
    assert len(statuses) == 1
    assert statuses.pop().startswith("failed:not a camera.npz")
    assert done.stored == done.kept
    assert "no trajectory" in cameras_of(write_report(out))


def test_the_report_draws_trajectories(source, out):
    done = run.curate([source], out, AUTO)
    section = cameras_of(write_report(out))
    assert section.count('class="walked"') == 2 * done.kept
    assert "90&deg; field of view (engine)" in section
    assert "dolly in" in section


def cameras_of(report):
    with open(report, encoding="utf-8") as file:
        page = file.read()
    return page[page.index('id="cameras"') : page.index('id="cost"')]


def test_inspect_draws_the_controls_that_the_trajectory_shows(source, out):
    run.curate([source], out, AUTO)
    row = kept(out)[0]
    said = CliRunner().invoke(app, ["inspect", out, row["clip_id"]]).output.splitlines()
    [ahead, _, turn, _] = [
        next(line for line in said if line.startswith(f"{name} ")) for name in ("forward", "right", "turn", "look")
    ]
    assert ahead.split()[1] == "W" * len(ahead.split()[1])
    assert len(ahead.split()[1]) == pytest.approx(10 * (row["end_s"] - row["start_s"]), abs=1)
    assert ahead.endswith("1.00 to 1.00 unit/s")
    assert turn.endswith("9.00 to 9.00 deg/s")  # under what counts as a turn
    assert set(turn.split()[1]) == {"."}


def test_inspect_saves_a_stored_clips_camera(source, out, tmp_path):
    run.curate([source], out, AUTO)
    clip = kept(out)[0]["clip_id"]
    saved = CliRunner().invoke(app, ["inspect", out, clip, "--camera", str(tmp_path / "c.npz")])
    assert (saved.exit_code, "camera saved as" in saved.output) == (0, True)
    assert from_npz((tmp_path / "c.npz").read_bytes()).size == (320, 180)
    refused = CliRunner().invoke(app, ["inspect", out, clip, "--camera", str(tmp_path / "c.csv")])
    assert "a camera is written as one of" in str(refused.exception)
