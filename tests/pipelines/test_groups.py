"""Units are planned, done and packed in groups, so that memory does not depend on how many sources there are."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from curation import shards, source_files, storage
from curation.output_folder import OutputFolder
from pipelines import chunk_units, compact, ledger, phases, planning, recipes, run, sources, unit_files
from pipelines.ledger import Record

SMOKE = recipes.smoke()
RECIPE = replace(SMOKE, shard=replace(SMOKE.shard, clips_per_shard=2))


@pytest.fixture(scope="module")
def raw(make_video, tmp_path_factory):
    """Five recordings, a copy of the first, which is listed last, and a file that is no video."""
    folder = tmp_path_factory.mktemp("raw")
    for seed in range(5):
        make_video(folder / f"{seed}.mp4", seconds=4, seed=40 + seed)
    shutil.copyfile(folder / "0.mp4", folder / "z.mp4")
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def groups(monkeypatch):
    """Small groups, and no worker processes. Returns how many units were given to workers at once, by phase."""
    given = []

    def do(phase, todo, show):
        given.append((phase.name, len(todo)))
        return (phases.work(phase, unit) for unit in todo)

    monkeypatch.setattr(run.runners, "run_local", do)
    monkeypatch.setattr(sources, "GROUP", 2)
    monkeypatch.setattr(planning, "_SHARDS_AT_ONCE", 1)
    monkeypatch.setattr(compact, "MIN_UNITS", 1)
    monkeypatch.setattr(ledger, "_UNITS_PER_PART", 2)
    return given


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """What a run in one group makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))
        return content(run.curate([str(raw)], str(tmp_path_factory.mktemp("whole") / "o"), RECIPE).out)


def content(out):
    """Return the ledger, the plan, and the bytes of all shards."""
    tars = {name: storage.read(OutputFolder(out).tar(name)) for name in shards.list_committed(out)}
    return ledger.clips(out).to_pylist(), ledger.videos(out).to_pylist(), shards.read_plan(out).to_pylist(), tars


def test_small_groups_make_the_same_output(raw, whole, groups, tmp_path):
    done = run.curate([str(raw)], str(tmp_path / "o"), RECIPE)
    assert done.finished
    assert content(done.out) == whole
    assert len(whole[3]) >= 2
    assert max(count for _, count in groups) == 3, "two videos, one of them twice"
    assert [phase for phase, _ in groups].count("partition") == 4
    assert [phase for phase, _ in groups].count("shard") == len(whole[3])
    assert sum(count for _, count in groups) == done.work.units == len(done.records)
    assert unit_files.newest_manifest(done.out).number > 4, "packed after each group"
    again = run.curate([str(raw)], done.out, RECIPE)
    assert again.records == []
    assert again.before == {"partition": 7, "score": 7, "annotate": 5, "caption": 5, "relate": 5, "shard": len(whole[3])}


@pytest.mark.parametrize(
    "last", [3, 8, 19, 29, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (0, 1, 6, 11, 14, 24))]
)
def test_a_run_stopped_in_any_group_goes_on(raw, whole, groups, tmp_path, monkeypatch, last):
    """Only what was committed counts: the run stops before the unit with this number."""
    done, real = 0, run.runners.run_local

    def stop(phase, todo, show):
        nonlocal done
        for unit in todo:
            if done == last:
                raise KeyboardInterrupt
            done += 1
            yield from real(phase, [unit], show)

    with monkeypatch.context() as patch:
        patch.setattr(run.runners, "run_local", stop)
        with pytest.raises(KeyboardInterrupt):
            run.curate([str(raw)], str(tmp_path / "o"), RECIPE)
    resumed = run.curate([str(raw)], str(tmp_path / "o"), RECIPE)
    assert resumed.finished
    assert resumed.work.units == 2 * 7 + 3 * 5 + len(whole[3]) - last
    assert content(resumed.out) == whole


def test_a_copy_in_a_later_group_has_the_original_of_an_earlier_one(raw, groups, tmp_path, monkeypatch):
    """Also where the original could not be measured now: the next run does that."""
    real = run.runners.run_local

    def lose_the_first(phase, todo, show):
        for unit in todo:
            lost = phase.name == "partition" and unit.uri.endswith("/0.mp4")
            yield from [Record(phase.name, unit.name, failure="OSError: gone")] if lost else real(phase, [unit], show)

    with monkeypatch.context() as patch:
        patch.setattr(run.runners, "run_local", lose_the_first)
        done = run.curate([str(raw)], str(tmp_path / "o"), RECIPE)
    assert not done.finished
    copies = [(row["uri"], row["duplicate_of"]) for row in ledger.videos(done.out).to_pylist() if row["duplicate_of"]]
    assert [tuple(Path(uri).name for uri in pair) for pair in copies] == [("z.mp4", "0.mp4")]
    again = run.curate([str(raw)], done.out, RECIPE)
    assert again.finished
    assert again.before["partition"] == 5, "the copy is done again"
    assert len([record for record in again.records if record.phase == "partition"]) == 2


def test_only_the_first_of_copies_in_two_groups_is_cut_into_chunks(raw, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_units, "_OPENED_BYTES_PER_S", 1)
    monkeypatch.setattr(chunk_units, "_MIN_BYTES_PER_S", 1)
    recipe = replace(RECIPE, partition=replace(RECIPE.partition, chunk_s=1.0))
    entries = source_files.find_sources([str(raw)])
    units = [unit for group in chunk_units.pending_chunks(entries, str(tmp_path / "o"), recipe) for unit in group.units]
    assert {Path(unit.uri).name for unit in units} == {f"{seed}.mp4" for seed in range(5)}


def test_a_category_is_limited_over_all_groups(raw, groups, tmp_path):
    """The rarest category decides, and what is planned already counts first."""
    balanced = replace(RECIPE, shard=replace(RECIPE.shard, max_category_ratio=1.0))
    out = str(tmp_path / "o")
    run.curate([str(raw)], out, balanced, phases=("partition", "score", "annotate", "caption", "relate"))
    rows = ledger.clips(out).to_pylist()
    kept = [row["clip_id"] for row in rows if not (row["reject"] or row["error"])]
    categories = dict(zip(kept, ["jump", "shoot"] + ["jump"] * len(kept), strict=False))
    real = ledger.scan

    def scan(*args, **options):
        for part in real(*args, **options):
            clips = part.clips.to_pylist()
            for row in clips:
                row["interaction_category"] = categories.get(row["clip_id"])
            yield replace(part, clips=part.clips.from_pylist(clips, schema=part.clips.schema))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning.ledger, "scan", lambda out, columns=None, **o: scan(out, columns, **o))
        assert planning.plan_shards(out, balanced, []) is None
    assert [row["clip_id"] for row in shards.read_plan(out).to_pylist()] == kept[:2]
