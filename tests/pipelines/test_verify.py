"""An output is verified: each kind of damage is found, and what can be mended is, without a change of any shard's bytes."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from curation import shards, storage
from curation.errors import InputError
from curation.schema import CLIP, columns
from pipelines import cli, compact, dead_letters, ledger, recipes, run, unit_files
from pipelines.ledger import Record
from pipelines.retry import clear_reasons
from pipelines.verify import repair, verify


@pytest.fixture(scope="module")
def curated(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "o"
    run.curate([str(raw)], str(out), recipes.smoke())
    return out


@pytest.fixture(params=["files of units", "segments"])
def out(request, curated, tmp_path):
    """A copy of the output, with its units in files of their own or packed."""
    copy = tmp_path / "o"
    shutil.copytree(curated, copy)
    if request.param == "segments":
        compact.compact(str(copy))
        assert not list((copy / "clips" / "score").iterdir())
    return copy


def kinds(out, deep=False):
    return {(problem.kind, problem.remedy) for problem in verify(str(out), deep).problems}


def tree(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


def test_a_whole_output_has_nothing_wrong(out):
    for deep in (False, True):
        result = verify(str(out), deep)
        assert result.problems == []
        assert (result.sources, result.lost) == ({"ok": 2, "unreadable": 1, "duplicate": 1}, 1)
        assert result.kept == result.stored > 0
        assert result.waiting == 0
        assert (result.bytes_read > 0) == deep


def test_a_damaged_tar_is_found_by_its_hash_and_made_again_with_the_same_bytes(out, raw):
    before = tree(out / "shards")
    flip(out / "shards" / "000000.tar", -2000)
    assert kinds(out) == set(), "its size is right"
    assert kinds(out, deep=True) == {("shard damaged", "make again")}
    result, mended = repair(str(out), deep=True)
    assert len(result.problems) == mended == 1
    assert shards.list_committed(str(out)) == []
    assert {path.name for path in (out / "trash").rglob("*.*")} >= {"000000.tar", "000000.parquet"}
    run.curate([str(raw)], str(out), recipes.smoke())
    assert tree(out / "shards") == before
    assert kinds(out, deep=True) == set()


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_tar_that_is_gone_or_short_is_found_by_its_size(out, damage):
    tar = out / "shards" / "000000.tar"
    tar.unlink() if damage == "gone" else tar.write_bytes(tar.read_bytes()[:3000])
    assert kinds(out) == {("shard damaged", "make again")}


def test_what_killed_runs_leave_is_moved_away(out):
    (out / "shards" / "000007.tar").write_bytes(b"x")
    (out / "clips" / "score").mkdir(exist_ok=True)
    (out / "clips" / "score" / ".half.tmp").write_bytes(b"x")
    (out / "segments" / "clips" / "score").mkdir(parents=True, exist_ok=True)
    (out / "segments" / "clips" / "score" / "000009-x.parquet").write_bytes(b"x")
    ledger.write_sidecar(str(out), "thumbs", "0-0-0of1", [], ledger.THUMBS)
    ledger.write_video(str(out), "0-0-0of1", {"video_id": "0", "uri": "u", "status": "ok"})
    schema = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject", "error"))
    ledger.write_clips(str(out), "score", "0-0-0of1", [], schema, Record("score", "0-0-0of1"))
    unit = unit_files.UnitFiles(str(out)).names("clips/partition")[0]
    (out / "sidecar" / "chunks").mkdir()
    (out / "sidecar" / "chunks" / f"{unit}.npz").write_bytes(b"x")
    assert kinds(out) == {("left over", "move to trash"), ("orphan", "move to trash")}
    result, mended = repair(str(out))
    assert len(result.problems) == mended == 7
    assert kinds(out, deep=True) == set()
    assert len([path for path in (out / "trash").rglob("*") if path.is_file()]) == 7


def test_packed_orphans_are_taken_out_of_their_segment(out):
    schema = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject", "error"))
    ledger.write_clips(str(out), "score", "0-0-0of1", [], schema, Record("score", "0-0-0of1"))
    compact.compact(str(out))
    assert kinds(out) == {("orphan", "move to trash")}
    repair(str(out))
    assert kinds(out) == set()


def test_rows_and_shards_that_disagree_are_found(out):
    files = unit_files.UnitFiles(str(out))
    (name,) = files.names("clips/shard")
    rows = ledger.read_unit(str(out), "shard", name)
    table = files.read("clips/shard", name)
    ledger.remove_clips(str(out), "shard", name, [rows[0]["clip_id"]])
    assert kinds(out) == {("ledger disagrees", "none")}
    files.delete({"clips/shard": [name]})
    files.put("clips/shard", name, shards.to_parquet(table))
    assert kinds(out) == set()
    dataset = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(dataset | {"shards": []}))
    assert kinds(out) == {("dataset.json outdated", "run again")}


def test_a_clip_of_no_row_and_a_clip_in_two_shards_are_found(out):
    index = shards.read_index(str(out), "000000")
    shards.put_index(str(out), "000001", index)
    shutil.copy(out / "shards" / "000000.tar", out / "shards" / "000001.tar")
    found = kinds(out)
    assert ("twice", "none") in found
    assert ("dataset.json outdated", "run again") in found
    for path in (out / "shards").glob("000001.*"):
        path.unlink()
    unit = next(
        u for u in unit_files.UnitFiles(str(out)).names("clips/partition") if ledger.read_unit(str(out), "partition", u)
    )
    unit_files.of(str(out)).delete({"clips/partition": [unit]})
    assert ("ledger disagrees", "none") in kinds(out)


def test_a_damaged_or_lost_segment_is_found(curated, tmp_path):
    out = tmp_path / "o"
    shutil.copytree(curated, out)
    compact.compact(str(out))
    rows = next(path for path in (out / "segments" / "clips" / "partition").iterdir() if ".units." not in path.name)
    data = rows.read_bytes()
    flip(rows, 40)
    assert kinds(out) == {("unreadable", "none")}
    assert kinds(out, deep=True) == {("segment damaged", "none")}
    rows.write_bytes(data[:-1])
    assert kinds(out) == {("segment damaged", "none")}
    rows.unlink()
    assert kinds(out) == {("segment damaged", "none")}
    rows.write_bytes(data)
    assert kinds(out, deep=True) == set()


def test_an_output_that_is_being_written_is_not_verified(out):
    (out / "lock.json").write_text(json.dumps({"host": "another", "pid": 7, "token": "x"}))
    with pytest.raises(InputError, match="a run is writing there"):
        verify(str(out))
    with pytest.raises(InputError, match="another run"):
        repair(str(out))


def test_the_command_prints_a_table_and_exits_with_1(out, monkeypatch, capsys):
    def gamecraft(*words):
        monkeypatch.setattr(sys, "argv", ["gamecraft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().out

    status, said = gamecraft("verify", out)
    assert (status, said.splitlines()[-1]) == (0, "nothing is wrong")
    assert "4 sources (1 duplicate, 2 ok, 1 unreadable)" in said
    (out / "shards" / "000007.tar").write_bytes(b"x")
    status, said = gamecraft("verify", out)
    assert status == 1
    assert "left over" in said
    assert "shards/000007.tar" in said
    assert "`gamecraft verify OUT --repair`" in said
    assert gamecraft("verify", out, "--repair")[0] == 0
    assert gamecraft("verify", out, "--deep")[0] == 0
    assert gamecraft("verify", out / "shards")[0] == 2


def test_each_source_that_failed_has_a_letter_until_it_is_cleared(curated, tmp_path, raw):
    out = tmp_path / "o"
    shutil.copytree(curated, out)
    ((phase, unit),) = dead_letters.list_letters(str(out))
    assert phase == "partition"
    letter = json.loads((out / "dead" / phase / f"{unit}.json").read_text())
    (failure,) = letter["failures"]
    assert (failure["operator"], failure["clip_id"]) == ("scan_source", None)
    assert "UnreadableVideo" in failure["reason"]
    assert letter["sources"] == [str(raw / "broken.mp4")]
    assert letter["node"]
    assert unit in unit_files.UnitFiles(str(out)).names("clips/partition")
    assert [row.phase for row in clear_reasons(str(out), "*no known container*")] == ["partition"]
    assert dead_letters.list_letters(str(out)) == []


def test_a_letter_of_a_unit_that_is_no_longer_there_goes(curated, tmp_path):
    out = tmp_path / "o"
    shutil.copytree(curated, out)
    row = {"video_id": "0", "clip_id": "c", "error": "encode_clip: ValueError: no (shards.py:9)", "source_uri": "/a"}
    dead_letters.write(str(out), Record("annotate", "0-0-0of1"), [row, {"reject": "too dark: 3"}], ["Traceback"])
    letter = json.loads(storage.read(str(out / "dead" / "annotate" / "0-0-0of1.json")))
    assert letter["failures"] == [{"video_id": "0", "clip_id": "c", "operator": "encode_clip", "reason": row["error"]}]
    assert letter["tracebacks"] == ["Traceback"]
    dead_letters.delete_outdated(str(out))
    assert [phase for phase, _ in dead_letters.list_letters(str(out))] == ["partition"]
