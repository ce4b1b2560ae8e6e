"""Which version of a source counts: files that are replaced, touched, grow, vanish, and come back."""

import os
import shutil
from pathlib import Path

import av
import pytest

from curation import shards, source_files
from pipelines import ledger, phases, planning, recipes, run, sources, units
from pipelines.phases import Phase
from pipelines.report.funnel import funnel
from pipelines.report.output import read_output

BEFORE_SHARDS = ("partition", "score", "annotate", "caption", "relate")


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))


@pytest.fixture(scope="module")
def films(make_video, tmp_path_factory):
    """Two recordings with different content, some minutes old."""
    folder = tmp_path_factory.mktemp("films")
    paths = [make_video(folder / name, seconds=4, seed=seed) for name, seed in (("one.mp4", 31), ("two.mp4", 32))]
    for path in paths:
        os.utime(path, (1e9, 1e9))
    return paths


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def put(film, target, seconds=0):
    """Copy a film, and date the copy `seconds` after the film."""
    shutil.copyfile(film, target)
    os.utime(target, (1e9 + seconds, 1e9 + seconds))


def curate(folder, tmp_path, phases=None, **how):
    return run.curate([str(folder)], str(tmp_path / "o"), recipes.smoke(), phases=phases, **how)


def status(out):
    return sorted((Path(v["uri"]).name, v["status"]) for v in ledger.videos(out).to_pylist())


def stored(out):
    """Return the mp4 of every stored clip, by clip_id."""
    return {s.clip_id: s.members["mp4"] for name in shards.list_committed(out) for s in shards.read_samples(out, name)}


@pytest.fixture(scope="module")
def alone(films, tmp_path_factory, monkeypatch_module):
    """The stored clips of each film, if the film is never changed."""
    made = []
    for film in films:
        folder = tmp_path_factory.mktemp("alone")
        (folder / "in").mkdir()
        put(film, folder / "in" / "a.mp4")
        made.append(stored(curate(folder / "in", folder).out))
    return made


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))
        yield patch


def test_a_source_replaced_before_its_clips_are_stored_is_superseded(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    for phase in BEFORE_SHARDS:
        curate(folder, tmp_path, [phase])
    put(films[1], folder / "a.mp4", 60)
    done = curate(folder, tmp_path)
    assert not done.finished
    assert len(done.changed) == 1
    assert status(done.out) == [("a.mp4", "ok"), ("a.mp4", "superseded")]
    assert {row["reject"] for row in ledger.clips(done.out).to_pylist() if row["clip_id"] in alone[0]} == {sources.CHANGED}
    assert stored(done.out) == alone[1]
    assert {step["count"] for step in funnel(read_output(done.out)) if step["noun"] == "clip"} == {len(alone[1])}
    again = curate(folder, tmp_path)
    assert again.finished
    assert again.records == []
    assert stored(again.out) == alone[1]


def test_clips_that_are_stored_already_stay_what_they_are(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    curate(folder, tmp_path)
    put(films[1], folder / "a.mp4", 60)
    done = curate(folder, tmp_path)
    assert stored(done.out) == alone[0] | alone[1]
    assert {row["clip_id"] for row in ledger.kept_clips(ledger.clips(done.out)).to_pylist()} == set(alone[0] | alone[1])
    assert all(row["caption_short"] for row in ledger.clips(done.out).to_pylist())


def test_planned_clips_of_a_source_that_changed_are_never_encoded(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    done = curate(folder, tmp_path, BEFORE_SHARDS)
    recipe = recipes.smoke()
    assert planning.plan_shards(done.out, recipe, []) is None
    ((unit,),) = (group.units for group in planning.pending_units("shard", done.out, recipe, sources.Listing([], recipe)))
    put(films[1], folder / "a.mp4", 60)
    record = phases.work(Phase("shard", recipe, done.out), unit)
    assert record.failure.startswith("SourceChanged: ")
    assert shards.list_committed(done.out) == []
    after = curate(folder, tmp_path)
    assert stored(after.out) == alone[1]


@pytest.mark.parametrize("phase", ["annotate", "caption"])
def test_other_phases_do_not_read_another_version_either(films, folder, tmp_path, monkeypatch, phase):
    """Their operators read the source to ask a model or to estimate a camera. Here a stand-in reads it."""
    put(films[0], folder / "a.mp4")
    done = curate(folder, tmp_path, BEFORE_SHARDS[: BEFORE_SHARDS.index(phase)])
    (group,) = planning.pending_units(phase, done.out, recipes.smoke(), sources.Listing([], recipes.smoke()))
    (unit,) = group.units
    put(films[1], folder / "a.mp4", 60)
    monkeypatch.setattr(phases, "_step", lambda phase: Reader())
    record = phases.work(Phase(phase, recipes.smoke(), done.out), unit)
    assert record.failure.startswith("SourceChanged: ")


class Reader:
    cpu_s = {}

    def __call__(self, rows, on_row=None, on_progress=None):
        from curation.media import decode

        decode.read_frames(rows[0]["source_uri"], decode.Span(0, 1))
        return rows


def test_a_source_replaced_while_it_is_read_fails_its_unit(films, alone, folder, tmp_path, monkeypatch):
    put(films[0], folder / "a.mp4")
    real_step = phases._step

    def step(phase):
        def run_and_replace(rows, on_row=None, on_progress=None):
            rows = real_step(phase)(rows, on_row, on_progress)
            put(films[1], folder / "a.mp4", 60)
            return rows

        run_and_replace.cpu_s = {}
        return run_and_replace

    with monkeypatch.context() as patch:
        patch.setattr(phases, "_step", step)
        done = curate(folder, tmp_path, ["partition"])
    assert [record.failure.partition(":")[0] for record in done.records] == ["SourceChanged"]
    assert status(done.out) == []
    assert stored(curate(folder, tmp_path).out) == alone[1]


def test_a_source_replaced_between_listing_and_reading_fails_its_unit(films, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    recipe, out = recipes.smoke(), str(tmp_path / "o")
    (unit,) = sources.pending_sources(source_files.find_sources([str(folder)]), out, recipe)
    put(films[1], folder / "a.mp4", 60)
    record = phases.work(Phase("partition", recipe, out), unit)
    assert record.failure.startswith("SourceChanged: ")
    assert units.list_committed(out, "partition") == []


def test_a_touched_file_gives_the_same_clips_once(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    for phase in BEFORE_SHARDS:
        curate(folder, tmp_path, [phase])
    os.utime(folder / "a.mp4", (2e9, 2e9))
    done = curate(folder, tmp_path)
    assert done.finished
    assert status(done.out) == [("a.mp4", "ok")]
    assert stored(done.out) == alone[0]
    assert len(ledger.clips(done.out)) == len({row["clip_id"] for row in ledger.clips(done.out).to_pylist()})


def test_a_version_that_comes_back_counts_again(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    curate(folder, tmp_path, BEFORE_SHARDS)
    put(films[1], folder / "a.mp4", 60)
    curate(folder, tmp_path, ["partition"])
    put(films[0], folder / "a.mp4")
    done = curate(folder, tmp_path)
    assert status(done.out) == [("a.mp4", "ok"), ("a.mp4", "superseded")]
    assert stored(done.out) == alone[0]


def test_a_copy_of_a_source_that_was_replaced_is_measured_in_its_place(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    put(films[0], folder / "copy.mp4")
    done = curate(folder, tmp_path, BEFORE_SHARDS)
    assert status(done.out) == [("a.mp4", "ok"), ("copy.mp4", "duplicate")]
    put(films[1], folder / "a.mp4", 60)
    done = curate(folder, tmp_path)
    assert status(done.out) == [("a.mp4", "ok"), ("copy.mp4", "ok")]
    assert stored(done.out) == alone[0] | alone[1]


def test_a_source_that_moved_is_measured_where_it_is(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    curate(folder, tmp_path, BEFORE_SHARDS)
    folder.rename(tmp_path / "elsewhere")
    done = curate(tmp_path / "elsewhere", tmp_path)
    assert done.finished
    assert [v["uri"] for v in ledger.videos(done.out).to_pylist()] == [f"{tmp_path}/elsewhere/a.mp4"]
    assert stored(done.out) == alone[0]


def test_a_remux_of_a_recording_that_was_replaced_is_measured_in_its_place(films, alone, folder, tmp_path):
    put(films[0], folder / "b.mp4")
    with av.open(films[0]) as source, av.open(str(folder / "a.mkv"), "w") as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    os.utime(folder / "a.mkv", (1e9, 1e9))
    done = curate(folder, tmp_path, BEFORE_SHARDS)
    assert status(done.out) == [("a.mkv", "ok"), ("b.mp4", "duplicate")]
    put(films[1], folder / "a.mkv", 60)
    done = curate(folder, tmp_path)
    assert status(done.out) == [("a.mkv", "ok"), ("a.mkv", "superseded"), ("b.mp4", "ok")]
    assert stored(done.out) == alone[0] | alone[1]


def test_a_copy_that_changes_leaves_its_original_alone(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    put(films[0], folder / "copy.mp4")
    curate(folder, tmp_path)
    put(films[1], folder / "copy.mp4", 60)
    done = curate(folder, tmp_path)
    assert [record.phase for record in done.records].count("partition") == 1
    assert done.finished
    assert stored(done.out) == alone[0] | alone[1]


def test_a_source_outside_of_the_input_holds_no_plan(films, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    out = curate(folder, tmp_path, ["partition"]).out
    assert planning.plan_shards(out, recipes.smoke(), [], is_input=lambda unit: False) is None
    assert planning.plan_shards(out, recipes.smoke(), []).startswith("1 source is not finished (")


@pytest.fixture(scope="module")
def stream(tmp_path_factory, make_video):
    """A recording whose bytes only grow while it is made, as in MPEG-TS: the whole file, and its first 70 %."""
    folder = tmp_path_factory.mktemp("stream")
    film = make_video(folder / "film.mp4", seconds=12, seed=33)
    with av.open(film) as source, av.open(str(folder / "film.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = (folder / "film.ts").read_bytes()
    return data, data[: len(data) * 7 // 10 // 188 * 188]


def write(path, data, seconds=0):
    path.write_bytes(data)
    os.utime(path, (1e9 + seconds, 1e9 + seconds))


def test_a_file_that_grew_before_it_was_planned_is_stored_once(stream, folder, tmp_path):
    whole, part = stream
    write(folder / "a.ts", part)
    curate(folder, tmp_path, BEFORE_SHARDS)
    write(folder / "a.ts", whole, 60)
    done = curate(folder, tmp_path)
    assert status(done.out) == [("a.ts", "ok"), ("a.ts", "superseded")]
    kept = ledger.kept_clips(ledger.clips(done.out)).to_pylist()
    assert {row["video_id"] for row in kept} == {source_files.content_id(source_files.find_sources([str(folder)])[0])}
    assert set(stored(done.out)) == {row["clip_id"] for row in kept}


def test_a_file_that_grew_after_clips_of_it_were_stored_is_not_stored_again(stream, folder, tmp_path):
    whole, part = stream
    write(folder / "a.ts", part)
    before = stored(curate(folder, tmp_path).out)
    assert before
    write(folder / "a.ts", whole, 60)
    done = curate(folder, tmp_path)
    reasons = [v["reason"] for v in ledger.videos(done.out).to_pylist() if v["status"] == "duplicate"]
    assert reasons == [sources.GREW]
    assert stored(done.out) == before


def test_a_file_that_is_being_written_waits_for_the_next_run(films, folder, tmp_path, monkeypatch):
    put(films[0], folder / "a.mp4")
    shutil.copyfile(films[1], folder / "b.mp4")
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: os.utime(folder / "b.mp4"))
    monkeypatch.setattr(sources, "_YOUNG_S", 60.0)
    done = curate(folder, tmp_path)
    assert ("still being written, so the next run takes it", str(folder / "b.mp4")) in done.notes
    assert done.finished
    assert status(done.out) == [("a.mp4", "ok")]


def test_a_source_that_is_away_fails_its_units_and_is_done_when_it_is_back(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    put(films[1], folder / "b.mp4")
    curate(folder, tmp_path, BEFORE_SHARDS)
    (folder / "a.mp4").rename(tmp_path / "away")
    done = curate(folder, tmp_path)
    assert len(done.failures) == 1
    assert "No such file" in done.failures[0].failure
    (tmp_path / "away").rename(folder / "a.mp4")
    back = curate(folder, tmp_path)
    assert back.finished
    assert stored(back.out) == alone[0] | alone[1]


def test_a_source_that_a_worker_cannot_see_is_not_unreadable(films, alone, folder, tmp_path):
    put(films[0], folder / "a.mp4")
    recipe, out = recipes.smoke(), str(tmp_path / "o")
    (unit,) = sources.pending_sources(source_files.find_sources([str(folder)]), out, recipe)
    (folder / "a.mp4").rename(tmp_path / "away")
    record = phases.work(Phase("partition", recipe, out), unit)
    assert "No such file" in record.failure
    assert units.list_committed(out, "partition") == []
    (tmp_path / "away").rename(folder / "a.mp4")
    assert stored(curate(folder, tmp_path).out) == alone[0]


def test_no_shard_is_planned_while_a_source_is_unfinished(films, folder, tmp_path, monkeypatch):
    put(films[0], folder / "a.mp4")
    put(films[1], folder / "b.mp4")
    real = phases.Phase.commit

    def fail_on_a(self, unit, rows, record):
        if unit.phase == "partition" and unit.uri.endswith("a.mp4"):
            raise OSError("503 SlowDown")
        real(self, unit, rows, record)

    with monkeypatch.context() as patch:
        patch.setattr(phases.Phase, "commit", fail_on_a)
        done = curate(folder, tmp_path)
    assert done.stored == 0
    assert done.held == (
        f"1 source is not finished ({folder}/a.mp4); run the same command again, or use --partial to plan without"
    )
    assert not done.finished
    whole = curate(folder, tmp_path)
    assert whole.finished
    reference = run.curate([str(folder)], str(tmp_path / "undisturbed"), recipes.smoke())
    assert stored(whole.out) == stored(reference.out)
    assert shards.list_committed(whole.out) == shards.list_committed(reference.out)


def test_a_source_that_failed_in_a_later_phase_holds_the_plan_too(films, folder, tmp_path, monkeypatch):
    put(films[0], folder / "a.mp4")
    put(films[1], folder / "b.mp4")
    real, calls = phases.Phase.commit, []

    def fail_once(self, unit, rows, record):
        if unit.phase == "annotate" and not calls:
            calls.append(unit)
            raise OSError("503 SlowDown")
        real(self, unit, rows, record)

    monkeypatch.setattr(phases.Phase, "commit", fail_once)
    done = curate(folder, tmp_path)
    assert done.stored == 0
    assert done.held.startswith("1 source is not finished (")
    assert curate(folder, tmp_path).stored > 0


def test_partial_plans_what_is_finished(films, alone, folder, tmp_path, monkeypatch):
    put(films[0], folder / "a.mp4")
    put(films[1], folder / "b.mp4")
    real = phases.Phase.commit

    def fail_on_a(self, unit, rows, record):
        if unit.phase == "partition" and unit.uri.endswith("a.mp4"):
            raise OSError("503 SlowDown")
        real(self, unit, rows, record)

    with monkeypatch.context() as patch:
        patch.setattr(phases.Phase, "commit", fail_on_a)
        assert stored(curate(folder, tmp_path, partial=True).out) == alone[1]
    assert stored(curate(folder, tmp_path).out) == alone[0] | alone[1]
