import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import shards, source_files
from curation.media import decode
from curation.media.source import probe
from curation.worker_state import worker
from pipelines import ledger, phases, recipes, run, units
from pipelines.phases import Phase


def tree(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}


def results(folder):
    """All files except the one that says when the last run was."""
    return {name: data for name, data in tree(folder).items() if name != "progress.json"}


def in_process(monkeypatch):
    """The local runner's work in this process, so that calls can be counted; the child process has its own tests."""
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))


@pytest.fixture(scope="module")
def curated(raw, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("out") / "o")
    return run.curate([str(raw)], out, recipes.smoke())


def test_every_source_is_in_the_ledger_with_its_reason(curated):
    videos = {Path(v["uri"]).name: v for v in ledger.videos(curated.out).to_pylist()}
    assert {name: v["status"] for name, v in videos.items()} == {
        "a.mp4": "ok", "b.mp4": "ok", "broken.mp4": "unreadable", "copy of a.mp4": "duplicate",
    }  # fmt: skip
    assert videos["broken.mp4"]["reason"] == "cannot be opened: no known container, or its header is missing or damaged"
    assert videos["copy of a.mp4"]["duplicate_of"].endswith("a.mp4")
    assert videos["a.mp4"]["cuts_s"] == [9.0]
    assert videos["a.mp4"]["duration_s"] == pytest.approx(16)


def test_every_second_of_a_source_is_in_exactly_one_clip(curated):
    rows = ledger.clips(curated.out).to_pylist()
    for video_id in {row["video_id"] for row in rows}:
        mine = [row for row in rows if row["video_id"] == video_id]
        assert [row["index"] for row in mine] == list(range(len(mine)))
        assert mine[0]["start_s"] == 0
        assert all(a["end_s"] == b["start_s"] and a["end_frame"] == b["start_frame"] for a, b in pairwise(mine))


def test_dark_clips_are_rejected_with_both_numbers(curated):
    rows = ledger.clips(curated.out).to_pylist()
    dark = [row for row in rows if row["reject"]]
    assert dark
    assert all(
        row["start_s"] >= 9 and row["reject"].startswith("too dark: mean luma") and row["reject"].endswith("< 16")
        for row in dark
    )
    assert all(row["luma_mean"] > 50 for row in rows if not row["reject"])


def test_shards_hold_the_kept_clips_and_nothing_else(curated):
    kept = {row["clip_id"]: row for row in ledger.kept_clips(ledger.clips(curated.out)).to_pylist()}
    stored = [sample for name in shards.list_committed(curated.out) for sample in shards.read_samples(curated.out, name)]
    assert [s.clip_id for s in stored] == sorted(kept, key=lambda c: (kept[c]["video_id"], kept[c]["index"]))
    for sample in stored:
        row = kept[sample.clip_id]
        assert sample.meta["start_s"] == row["start_s"]
        assert sample.meta["stored_frames"] == row["end_frame"] - row["start_frame"]
        assert sample.meta["action_spans"] == row["action_spans"]
        assert not {"source_uri", "reject"} & set(sample.meta)


def test_a_stored_clip_plays_and_has_the_planned_size(curated, tmp_path):
    sample = next(shards.read_samples(curated.out, "000000"))
    (tmp_path / "c.mp4").write_bytes(sample.members["mp4"])
    source = probe(str(tmp_path / "c.mp4"))
    assert (source.width, source.height) == (sample.meta["stored_width"], sample.meta["stored_height"]) == (160, 120)
    assert sum(1 for _ in decode.decode(str(tmp_path / "c.mp4"))) == sample.meta["stored_frames"]


def test_dataset_json_lists_what_is_committed(curated):
    dataset = shards.read_dataset(curated.out)
    assert [s["name"] for s in dataset["shards"]] == shards.list_committed(curated.out)
    assert dataset["counts"]["kept"] == curated.kept == sum(s["clips"] for s in dataset["shards"])
    assert dataset["recipe"] == json.loads(json.dumps(recipes.settings_of(recipes.smoke())))
    assert "libavcodec" in dataset["build"]


def test_each_clip_is_decoded_once_in_partition_and_once_in_shard(curated):
    decodes = {}
    for record in ledger.records(curated.out):
        for name, count in record.decodes.items():
            decodes[name] = decodes.get(name, 0) + count
    assert decodes == {"scan": 2, "encode": curated.kept}


def test_every_operator_reports_its_cpu_seconds(curated):
    seen = {name for record in curated.records for name in record.cpu_s}
    partition = {"scan_source", "split_scenes", "locate_viewport", "measure_motion", "measure_luminance", "measure_quality"}
    assert seen == partition | {
        *("judge_luminance", "judge_quality", "annotate_cameras", "encode_clip"),
        *("check_consistency", "write_captions", "judge_interactive", "relate_clips"),
    }


def test_thumbnails_and_signals_rest_beside_the_ledger(curated):
    clips = ledger.clips(curated.out)
    thumbs, signals = (
        [row for table in ledger.sidecars(curated.out, kind, clips["unit_id"].to_pylist()) for row in table.to_pylist()]
        for kind in ("thumbs", "signals")
    )
    assert {row["clip_id"] for row in thumbs} == set(clips["clip_id"].to_pylist())
    assert all(jpeg.startswith(b"\xff\xd8") for row in thumbs for jpeg in row["jpegs"])
    assert {row["video_id"] for row in signals} == set(clips["video_id"].to_pylist())
    assert all(len(row["times_s"]) == len(row["motion_camera"]) > 10 for row in signals)


def without_costs(name, data):
    """A file of an output without what two runs may not share: seconds, worker deaths, and when it was."""
    if name.startswith("clips/"):
        table = pq.read_table(pa.BufferReader(data))
        record = json.loads(table.schema.metadata[b"gamecraft.record"])
        return table.replace_schema_metadata(None), {k: v for k, v in record.items() if k not in ("wall_s", "cpu_s")}
    if name.startswith("dead/"):
        return {key: value for key, value in json.loads(data).items() if key not in ("time", "wall_s")}
    return data


def test_two_workers_of_which_one_is_killed_write_the_bytes_of_one(curated, raw, child, tmp_path):
    once = f"not os.path.exists({str(tmp_path / 'killed')!r}) and not os.mkdir({str(tmp_path / 'killed')!r})"
    child(
        "curation.media.decode",
        "real = module.decode; module.decode = lambda u, *a, **k: "
        f"os.kill(os.getpid(), 9) if u.endswith('b.mp4') and {once} else real(u, *a, **k)",
    )
    done = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke(), workers=2)
    deaths = {record.unit: record.deaths for record in done.records if record.deaths}
    assert list(deaths.values()) == [{"SIGKILL": 1}], "the other worker's unit is not blamed"
    ours, theirs = results(done.out), results(curated.out)
    assert ours.keys() == theirs.keys()
    for name, data in ours.items():
        if name.startswith(("clips/", "dead/")):
            assert without_costs(name, data) == without_costs(name, theirs[name]), name
        else:
            assert data == theirs[name], name


def test_a_second_run_reads_and_does_nothing(curated, raw, monkeypatch):
    in_process(monkeypatch)
    before, read = results(curated.out), []
    monkeypatch.setattr(source_files, "content_id", lambda entry: read.append(entry) or "x")
    monkeypatch.setattr(decode, "decode", lambda *a, **k: read.append(a) or iter(()))
    again = run.curate([str(raw)], curated.out, recipes.smoke())
    assert (read, again.records) == ([], [])
    assert again.before == {
        "partition": 4,
        "score": 4,
        "annotate": 2,
        "caption": 2,
        "relate": 2,
        "shard": len(shards.list_committed(curated.out)),
    }
    assert results(curated.out) == before


def test_more_input_makes_new_shards_and_touches_no_old_one(raw, tmp_path, monkeypatch):
    in_process(monkeypatch)
    out = tmp_path / "o"
    run.curate([str(raw / "b.mp4")], str(out), recipes.smoke())
    before = tree(out / "shards")
    done = run.curate([str(raw)], str(out), recipes.smoke())
    after = tree(out / "shards")
    assert {name: after[name] for name in before} == before
    assert "plan-001.parquet" in after
    ids = [s.clip_id for name in shards.list_committed(str(out)) for s in shards.read_samples(str(out), name)]
    assert len(ids) == len(set(ids)) == done.kept


def test_phases_can_run_one_by_one(raw, tmp_path, monkeypatch):
    in_process(monkeypatch)
    out = str(tmp_path / "o")
    for phase in recipes.PHASES:
        done = run.curate([str(raw)], out, recipes.smoke(), phases=[phase])
    assert done.stored == done.kept > 0


def test_limits_may_change_until_shards_are_planned(raw, tmp_path, monkeypatch):
    in_process(monkeypatch)
    out, smoke = str(tmp_path / "o"), recipes.smoke()
    strict = replace(smoke, score=replace(smoke.score, luminance=replace(smoke.score.luminance, max_mean=1.0)))
    run.curate([str(raw)], out, smoke, phases=["partition", "score"])
    redone = run.curate([str(raw)], out, strict, phases=["partition", "score"])
    assert {record.phase for record in redone.records} == {"score"}
    assert redone.kept == 0
    kept = run.curate([str(raw)], out, smoke).kept
    assert kept > 0
    with pytest.raises(ValueError, match=r"another recipe \(score\.luminance\.max_mean: 235\.0, now 1\.0\).*copy its videos"):
        run.curate([str(raw)], out, strict)


def test_an_output_of_another_recipe_is_refused_and_left_alone(curated, raw):
    before = tree(curated.out)
    with pytest.raises(
        ValueError, match=r"was made with another recipe \(partition\.flow.*Use that recipe again, or another --out"
    ):
        run.curate([str(raw)], curated.out, recipes.laptop())
    assert tree(curated.out) == before


def test_letterbox_bars_are_cut_away(make_video, tmp_path, monkeypatch):
    in_process(monkeypatch)
    path = make_video(tmp_path / "wide.mp4", size=(320, 240), bars=30)
    done = run.curate([path], str(tmp_path / "o"), recipes.smoke())
    row = ledger.clips(done.out).to_pylist()[0]
    assert row["picture"] == row["viewport"] == {"x": 0, "y": 30, "w": 320, "h": 180}
    assert (row["stored_width"], row["stored_height"]) == (320, 180)
    assert row["black_share"] < 0.05


def test_nothing_kept_is_an_output_too(raw, tmp_path):
    done = run.curate([str(raw / "broken.mp4")], str(tmp_path / "o"), recipes.smoke())
    assert (done.sources, done.unreadable, done.clips, done.shards) == (1, 1, 0, 0)
    assert shards.read_dataset(done.out)["shards"] == []


def test_the_output_inside_the_input_is_not_input(raw, tmp_path, monkeypatch):
    in_process(monkeypatch)
    (tmp_path / "b.mp4").write_bytes((raw / "b.mp4").read_bytes())
    run.curate([str(tmp_path)], str(tmp_path / "out"), recipes.smoke())
    (tmp_path / "out" / "preview").mkdir()
    (tmp_path / "out" / "preview" / "x.mp4").write_bytes((raw / "a.mp4").read_bytes())
    assert run.curate([str(tmp_path)], str(tmp_path / "out"), recipes.smoke()).sources == 1


def test_a_source_that_may_not_be_read_now_is_tried_again_later(raw, tmp_path, monkeypatch):
    in_process(monkeypatch)
    real, out = source_files.content_id, str(tmp_path / "o")

    def refuse(entry):
        if entry.uri.endswith("b.mp4"):
            raise PermissionError(13, "Permission denied")
        return real(entry)

    monkeypatch.setattr(source_files, "content_id", refuse)
    done = run.curate([str(raw)], out, recipes.smoke())
    assert [r.failure for r in done.failures] == [f"{raw}/b.mp4: Permission denied"]
    assert done.held.startswith(f"1 source is not finished ({raw}/b.mp4)")
    monkeypatch.setattr(source_files, "content_id", real)
    again = run.curate([str(raw)], out, recipes.smoke())
    assert again.failures == []
    assert again.stored > 0
    assert {Path(v["uri"]).name for v in ledger.videos(out).to_pylist()} == {"a.mp4", "b.mp4", "broken.mp4", "copy of a.mp4"}


def test_missing_weights_are_said_once_and_nothing_is_blamed_on_the_footage(raw, tmp_path, monkeypatch, caplog):
    in_process(monkeypatch)
    smoke, out = recipes.smoke(), str(tmp_path / "o")
    flow = replace(smoke.partition.flow, backend="raft", weights=str(tmp_path / "nowhere.pth"))
    done = run.curate([str(raw)], out, replace(smoke, partition=replace(smoke.partition, flow=flow)))
    remedy = "correct the path in the recipe, or copy the file there"
    assert {r.failure for r in done.failures} == {f"Unavailable: RAFT-small: no file at {tmp_path}/nowhere.pth; {remedy}"}
    assert caplog.text.count("no file at") == 1
    assert [v["status"] for v in ledger.videos(out).to_pylist()] == ["duplicate"]


def test_musiq_says_that_it_is_non_commercial_and_without_pyiqa_how_to_get_it(raw, tmp_path, monkeypatch, caplog):
    in_process(monkeypatch)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    smoke, out = recipes.smoke(), str(tmp_path / "o")
    done = run.curate(
        [str(raw)], out, replace(smoke, partition=replace(smoke.partition, iqa=recipes.gamecraft2().partition.iqa))
    )
    assert caplog.text.count("partition.iqa.backend: pyiqa:musiq is for non-commercial use only") == 1
    (failure,) = {record.failure for record in done.failures}
    assert failure.startswith("Unavailable: pyiqa cannot be imported")
    assert "--override overrides-iqa.txt" in failure
    assert "partition.iqa.backend: embedded" in failure


def test_a_unit_that_cannot_be_committed_is_a_failure_and_the_rest_goes_on(raw, tmp_path, monkeypatch):
    in_process(monkeypatch)
    commit = ledger.write_video

    def full(out, unit, row):
        if row["uri"].endswith("b.mp4"):
            raise OSError("No space left on device")
        commit(out, unit, row)

    monkeypatch.setattr(ledger, "write_video", full)
    out = str(tmp_path / "o")
    done = run.curate([str(raw)], out, recipes.smoke())
    assert [record.failure for record in done.failures] == ["OSError: No space left on device"]
    assert done.clips > 0
    monkeypatch.setattr(ledger, "write_video", commit)
    assert run.curate([str(raw)], out, recipes.smoke()).failures == []
    assert {Path(v["uri"]).name for v in ledger.videos(out).to_pylist()} >= {"a.mp4", "b.mp4"}


DRIVER = """
import sys
from pipelines import run, recipes

if __name__ == "__main__":
    run.curate([sys.argv[1]], sys.argv[2], recipes.smoke(), workers=2)
"""


def start_driver(raw, out):
    """The driver with two workers as a process of its own, in a group of its own, once its first unit is committed."""
    script = Path(out).parent / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(raw), str(out)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not units.list_committed(str(out), "partition") and time.monotonic() < deadline:
        time.sleep(0.02)
    return driver


def test_a_killed_run_goes_on_where_it_was(curated, raw, tmp_path):
    out = tmp_path / "o"
    driver = start_driver(raw, out)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = units.list_committed(str(out), "partition")
    assert finished
    rows = [row for row in ledger.videos(str(out)).to_pylist() if row["unit_id"] in map(str, finished)]
    measured = {row["video_id"] for row in rows if not row["duplicate_of"]}
    redone = sum(bool(row["duplicate_of"]) and row["video_id"] not in measured for row in rows)  # a copy before its original
    (out / "shards").mkdir(exist_ok=True)
    (out / "shards" / ".000000.tar.0.tmp").write_bytes(b"half")
    again = run.curate([str(raw)], str(out), recipes.smoke())
    assert again.before["partition"] == len(finished) - redone
    assert len([r for r in again.records if r.phase == "partition"]) == 4 - len(finished) + redone
    assert tree(out / "shards") == tree(Path(curated.out) / "shards")
    assert not list(out.rglob(".*"))


def test_a_run_that_ended_between_a_copy_and_its_original_goes_on(curated, raw, tmp_path, monkeypatch):
    out = str(tmp_path / "o")

    def stop_before_originals(phase, todo, _):
        yield from (phases.work(phase, unit) for unit in todo if unit.duplicate_of)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.runners, "run_local", stop_before_originals)
    with pytest.raises(KeyboardInterrupt):
        run.curate([str(raw)], out, recipes.smoke())
    assert len(units.list_committed(out, "partition")) == 1
    in_process(monkeypatch)
    again = run.curate([str(raw)], out, recipes.smoke())
    assert again.finished
    assert tree(tmp_path / "o" / "shards") == tree(Path(curated.out) / "shards")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_driver(sent, raw, tmp_path):
    driver = start_driver(raw, tmp_path / "o")
    workers = [pid for pid in processes_of_group(driver.pid) if pid != driver.pid]
    os.kill(driver.pid, sent)
    assert driver.wait(30) == -sent
    deadline = time.monotonic() + 30
    while processes_of_group(driver.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers) == 3, "two, and the one that they were forked from"
    assert processes_of_group(driver.pid) == []


def processes_of_group(group):
    """The live processes of a group, by /proc."""
    pids = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                state, _, number = (entry / "stat").read_text().rpartition(") ")[2].split()[:3]
                pids += [int(entry.name)] if int(number) == group and state != "Z" else []
    return pids


def test_a_phase_is_what_a_worker_needs(curated):
    phase = Phase("partition", recipes.smoke(), curated.out)
    assert pickle.loads(pickle.dumps(phase)) == phase


def test_a_script_needs_no_guard_and_another_folder_gets_the_same_shards(curated, raw, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "elsewhere" / name).write_bytes((raw / name).read_bytes())
    script, words = tmp_path / "script.py", f"[{str(tmp_path / 'elsewhere')!r}], {str(tmp_path / 'o')!r}"
    recipe = f"pickle.loads({pickle.dumps(recipes.smoke())!r})"  # the one of these tests, which embeds nothing
    script.write_text(f"import pickle\nfrom pipelines import run\nrun.curate({words}, {recipe}, workers=2)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "o" / "shards") == tree(Path(curated.out) / "shards")


def test_an_unexpected_failure_keeps_its_traceback_until_the_unit_is_done(raw, tmp_path, monkeypatch, caplog):
    in_process(monkeypatch)
    out, logs = str(tmp_path / "o"), tmp_path / "o" / "logs"
    worker.tracebacks.append("left by the questions of another unit")
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_video", lambda *_: {}["nothing"])
        done = run.curate([str(raw / "b.mp4")], out, recipes.smoke())
    (failed,) = done.failures
    (log,) = logs.iterdir()
    assert log.name == f"{failed.unit}.txt"
    assert failed.failure == f"KeyError: 'nothing' (unexpected error, traceback in {log})"
    assert failed.failure in caplog.text
    text = log.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "_commit_source" in text
    assert "another unit" not in text
    assert run.curate([str(raw / "b.mp4")], out, recipes.smoke()).failures == []
    assert list(logs.iterdir()) == []
