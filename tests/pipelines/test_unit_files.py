"""Files of units, packed into segments and read back: nothing may be lost, doubled or mixed up, whoever is killed when."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from curation import storage
from curation.schema import CLIP, columns
from pipelines import ledger, unit_files
from pipelines import segments as segment_module
from pipelines.ledger import Record
from pipelines.unit_files import UnitFiles

SCORES = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject", "error"))
CLIPS = columns(CLIP, ("clip_id", "video_id", "unit_id", "index", "start_s", "end_s", "action_spans", "reject", "error"))
STORED = columns(CLIP, ("clip_id", "video_id", "unit_id", "shard", "reject", "error"))
SCORE, PARTITION = "clips/score", "clips/partition"


def name(number):
    """Names that are spread over the whole range, as hashes are, and not in order of their numbers."""
    return f"{(number * 7919 + 5) % 65536:04x}{number:012x}-{number:016x}-0of1"


def write(out, numbers, reject=None, clips=2, phase="score", schema=SCORES):
    for number in numbers:
        video_id = name(number).partition("-")[0]
        rows = [
            {
                "clip_id": f"c{number}-{index}",
                "video_id": video_id,
                "index": index,
                "start_s": float(index),
                "end_s": index + 1.0,
                "action_spans": [{"start_s": 0.5, "end_s": 1.0, "kind": "regime", "name": "forward"}] if index else [],
                "reject": reject,
            }
            for index in range(clips if number % 5 else 0)  # every fifth unit has no rows
        ]
        ledger.write_clips(out, phase, name(number), rows, schema, Record(phase, name(number), rows=len(rows)))


def content(out, folder=SCORE):
    files = unit_files.of(out)
    return {unit: (files.read(folder, unit).to_pylist(), files.read_record(folder, unit)) for unit in files.names(folder)}


def scanned(out, folder=SCORE):
    """The same by `scan`."""
    seen = {}
    for piece in UnitFiles(out).scan(folder):
        for unit in piece.units:
            assert unit not in seen, "a unit is in one piece only"
            seen[unit] = piece.unit(unit).to_pylist()
    return seen


def pack(out, folder=SCORE):
    with unit_files.pinned(out) as files:
        packed = files.pack(folder)
        files.remove_unused()
    return packed


def stored(out):
    return Counter(str(path.relative_to(out).parent) for path in Path(out).rglob("*.*") if path.is_file())


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "o")


def test_packed_units_are_what_their_files_were(out):
    write(out, range(20))
    before = content(out)
    assert pack(out) == 20
    assert stored(out) == {f"segments/{SCORE}": 2, "manifests": 1}
    assert content(out) == before
    assert scanned(out) == {unit: rows for unit, (rows, _) in before.items()}
    assert [record.unit for record in ledger.records(out)] == sorted(before)


def test_units_without_rows_stay_committed(out):
    write(out, [0, 5])
    pack(out)
    assert UnitFiles(out).names(SCORE) == sorted([name(0), name(5)])
    assert ledger.read_unit(out, "score", name(0)) == []
    with pytest.raises(FileNotFoundError):
        ledger.read_unit(out, "score", name(1))


def test_files_and_segments_are_read_together(out):
    write(out, range(10))
    pack(out)
    write(out, range(10, 25))
    pack(out)
    write(out, range(25, 30))
    assert UnitFiles(out).names(SCORE) == sorted(name(number) for number in range(30))
    assert scanned(out) == {unit: rows for unit, (rows, _) in content(out).items()}
    assert sum(map(len, scanned(out).values())) == 2 * 24


def test_a_packed_unit_that_is_deleted_is_gone_and_can_be_done_again(out):
    write(out, range(20))
    pack(out)
    unit_files.of(out).delete({SCORE: [name(3), name(4)]})
    assert UnitFiles(out).names(SCORE) == sorted(name(number) for number in range(20) if number not in (3, 4))
    assert name(3) not in scanned(out)
    with pytest.raises(FileNotFoundError):
        ledger.read_unit(out, "score", name(3))
    write(out, [3], reject="too dark", clips=1)
    again = content(out)
    assert [row["reject"] for row in again[name(3)][0]] == ["too dark"]
    pack(out)
    assert content(out) == again
    assert scanned(out) == {unit: rows for unit, (rows, _) in again.items()}
    assert unit_files.newest_manifest(out).dropped.get(SCORE) is None, "nothing deleted is left in a segment"


def test_all_units_of_a_segment_can_be_deleted(out):
    write(out, range(6))
    pack(out)
    unit_files.of(out).delete({SCORE: [name(number) for number in range(6)]})
    assert UnitFiles(out).names(SCORE) == []
    assert scanned(out) == {}
    write(out, range(6), reject="new")
    pack(out)
    assert {row["reject"] for rows in scanned(out).values() for row in rows} == {"new"}


def test_clips_can_be_removed_from_a_packed_unit(out):
    write(out, range(3))
    pack(out)
    ledger.remove_clips(out, "score", name(1), ["c1-0"])
    assert [row["clip_id"] for row in ledger.read_unit(out, "score", name(1))] == ["c1-1"]
    assert {record.unit for record in ledger.records(out)} == {name(number) for number in range(3)}


def test_many_small_segments_become_one(out, monkeypatch):
    monkeypatch.setattr(unit_files, "_MAX_SMALL_SEGMENTS", 3)
    for start in range(0, 40, 10):
        write(out, range(start, start + 10))
        pack(out)
        if start == 10:
            unit_files.of(out).delete({SCORE: [name(1), name(12)]})
    assert stored(out) == {f"segments/{SCORE}": 2, "manifests": 1}
    (segment,) = unit_files.newest_manifest(out).segments[SCORE]
    assert (segment.units, unit_files.newest_manifest(out).dropped.get(SCORE, frozenset())) == (38, frozenset())
    assert sorted(scanned(out)) == sorted(name(number) for number in range(40) if number not in (1, 12))


def test_merged_segments_are_cut_by_size(out, monkeypatch):
    monkeypatch.setattr(unit_files, "_MAX_SMALL_SEGMENTS", 1)
    monkeypatch.setattr(unit_files, "_SEGMENT_BYTES", 1500)
    for start in (0, 30):
        write(out, range(start, start + 30))
        pack(out)
    segments = unit_files.newest_manifest(out).segments[SCORE]
    assert len(segments) > 1
    assert all(a.last < b.first for a, b in pairwise(segments)), "each holds a range of names"
    assert len(scanned(out)) == 60


def test_a_unit_lies_within_few_segments_however_often_units_were_packed(out, monkeypatch):
    """Each pack covers all names, so a reader would look for a unit in as many segments as there were packs."""
    monkeypatch.setattr(segment_module, "_MAX_DEPTH", 4)
    monkeypatch.setattr(unit_files, "_MAX_SMALL_SEGMENTS", 1)
    monkeypatch.setattr(unit_files, "_SMALL_BYTES", 1)
    monkeypatch.setattr(unit_files, "_SEGMENT_BYTES", 1500)
    written, real = 0, unit_files.write_segment

    def write_segment(out, folder, piece, number):
        nonlocal written
        written += len(piece.units)
        return real(out, folder, piece, number)

    monkeypatch.setattr(unit_files, "write_segment", write_segment)
    depths = []
    for start in range(0, 400, 10):
        write(out, range(start, start + 10))
        pack(out)
        segments = unit_files.newest_manifest(out).segments[SCORE]
        depths.append(max(sum(a.first <= b.first <= a.last for a in segments) for b in segments))
    assert (max(depths), max(depths[:4])) == (4, 4), depths
    assert len(segments) > 10, "not all in one"
    assert written < 400 * 8, "rows are written again a few times only"
    assert sorted(scanned(out)) == sorted(name(number) for number in range(400))


def test_ranges_in_order_read_each_row_group_once(out, monkeypatch):
    monkeypatch.setattr(segment_module, "_MAX_ROW_GROUP", 16)
    monkeypatch.setattr(segment_module, "_ROW_GROUP_BYTES", 1)
    write(out, range(90))
    pack(out)
    whole, names, groups = scanned(out), sorted(name(number) for number in range(90)), []
    real = segment_module.SegmentFile._read_groups
    monkeypatch.setattr(
        segment_module.SegmentFile,
        "_read_groups",
        lambda self, first, last, _: (groups.extend(range(first, last)), real(self, first, last, _))[1],
    )
    reader, seen = UnitFiles(out), {}
    for low, high in zip(["", *names[3::3]], [*names[3::3], None], strict=True):
        for piece in reader.scan(SCORE, None, low, high):
            seen |= {unit: piece.unit(unit).to_pylist() for unit in piece.units}
    assert seen == whole
    assert groups == sorted(set(groups))
    assert len(groups) > 5


def test_units_with_much_data_are_packed_by_their_bytes(out, monkeypatch):
    """4,096 units of long sources have more thumbnails than a column of Arrow, or a worker's memory, can hold."""
    monkeypatch.setattr(unit_files, "_PACKED_AT_ONCE", 10_000)
    monkeypatch.setattr(unit_files, "_FIRST_FILES", 2)
    rng, segments, most = np.random.default_rng(0), 0, 0
    pictures = {}
    for number in range(30):
        size = 9000 if number % 10 == 7 else 900
        pictures[name(number)] = [{"clip_id": f"c{number}", "times_s": [0.0], "jpegs": [rng.bytes(size)]}]
        ledger.write_sidecar(out, "thumbs", name(number), pictures[name(number)], ledger.THUMBS)
    real = unit_files.write_segment

    def write_segment(out, folder, piece, number):
        nonlocal segments, most
        segments += 1
        most = max(most, piece.table.nbytes)
        return real(out, folder, piece, number)

    monkeypatch.setattr(unit_files, "write_segment", write_segment)
    assert pack(out, "sidecar/thumbs") == 30
    assert (segments, most < 30_000) == (len(unit_files.newest_manifest(out).segments["sidecar/thumbs"]), True)
    assert 3 <= segments <= 10
    read = UnitFiles(out)
    assert {unit: read.read("sidecar/thumbs", unit).to_pylist() for unit in read.names("sidecar/thumbs")} == pictures


def test_segments_with_much_data_are_merged_by_their_bytes(out, monkeypatch):
    monkeypatch.setattr(unit_files, "_MERGED_AT_ONCE", 2500)
    rng, pictures = np.random.default_rng(0), {}
    for number in range(12):
        monkeypatch.setattr(unit_files, "_MAX_SMALL_SEGMENTS", 3 if number == 11 else 100)
        pictures[name(number)] = [{"clip_id": f"c{number}", "times_s": [0.0], "jpegs": [rng.bytes(1000)]}]
        ledger.write_sidecar(out, "thumbs", name(number), pictures[name(number)], ledger.THUMBS)
        pack(out, "sidecar/thumbs")
    segments = unit_files.newest_manifest(out).segments["sidecar/thumbs"]
    assert [segment.units for segment in segments] == [3, 3, 3, 3]
    assert all(a.last < b.first for a, b in pairwise(segments))
    read = UnitFiles(out)
    assert {unit: read.read("sidecar/thumbs", unit).to_pylist() for unit in read.names("sidecar/thumbs")} == pictures


def test_units_of_other_columns_stay_apart(out):
    """Rows of an older release lack columns. They must not get null ones: a null would hide an earlier phase's value."""
    older = columns(CLIP, ("clip_id", "video_id", "unit_id", "reject"))
    write(out, range(4))
    write(out, range(4, 8), schema=older)
    before = content(out)
    pack(out)
    assert content(out) == before
    assert set(content(out)[name(6)][0][0]) == set(older.names)
    assert len(unit_files.newest_manifest(out).segments[SCORE]) == 2


def test_a_unit_is_found_in_any_row_group(out, monkeypatch):
    monkeypatch.setattr(segment_module, "_MAX_ROW_GROUP", 16)
    monkeypatch.setattr(segment_module, "_ROW_GROUP_BYTES", 1)
    write(out, range(60), phase="partition", schema=CLIPS)
    before = content(out, PARTITION)
    pack(out, PARTITION)
    assert content(out, PARTITION) == before
    names = sorted(before)
    some = [piece.units for piece in UnitFiles(out).scan(PARTITION, ("clip_id",), names[7], names[31])]
    assert [list(units) for units in some] == [names[7:31]]


def test_a_run_that_is_killed_before_the_manifest_leaves_all_files(out, monkeypatch):
    write(out, range(10))
    before = content(out)
    with monkeypatch.context() as patch:
        patch.setattr(UnitFiles, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(out)
    assert content(out) == before
    pack(out)
    assert (content(out), stored(out)) == (before, {f"segments/{SCORE}": 2, "manifests": 1})


def test_a_run_that_is_killed_after_the_manifest_leaves_no_unit_twice(out, monkeypatch):
    write(out, range(10))
    before = content(out)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_all", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pack(out)
    assert stored(out)[SCORE] == 10
    assert (content(out), len(scanned(out))) == (before, 10)
    with unit_files.pinned(out) as files:
        assert files.count_files(SCORE) == 0
        files.remove_replaced(SCORE)
    assert stored(out)[SCORE] == 0
    assert content(out) == before


def test_a_reader_whose_files_are_packed_while_it_reads_loses_nothing(out):
    write(out, range(20))
    before = content(out)
    reader = UnitFiles(out)
    listed = reader.names(SCORE)
    pack(out)
    assert {unit: reader.read(SCORE, unit).to_pylist() for unit in listed} == {u: rows for u, (rows, _) in before.items()}
    reader = UnitFiles(out, unit_files.Manifest())
    reader._listed[SCORE] = dict.fromkeys(listed)
    rows = {unit: piece.unit(unit).to_pylist() for piece in reader.scan(SCORE) for unit in piece.units}
    assert rows == {unit: rows for unit, (rows, _) in before.items()}


def test_a_worker_reads_by_the_manifest_of_its_phase(out, monkeypatch):
    write(out, range(20))
    pack(out)
    number = unit_files.newest_manifest(out).number
    reads = []
    real = storage.read
    try:
        unit_files.use(out, number)
        monkeypatch.setattr(storage, "read", lambda uri, *rest: reads.append(uri) or real(uri, *rest))
        assert all(len(ledger.read_unit(out, "score", name(n))) == (2 if n % 5 else 0) for n in range(20))
        assert len(reads) == 3, "the units, the footer, and one row group for all of them"
        unit_files.use(out, number)
        ledger.read_unit(out, "score", name(1))
        assert len(reads) == 3
    finally:
        unit_files._pinned.clear()


def test_a_run_reads_each_file_once(out, monkeypatch):
    write(out, range(10))
    write(out, range(10), phase="partition", schema=CLIPS)
    reads = Counter()
    real = storage.read
    monkeypatch.setattr(storage, "read", lambda uri, *rest: reads.update([uri]) or real(uri, *rest))
    with unit_files.pinned(out) as files:
        for _ in range(3):
            ledger.clips(out)
        write(out, range(10, 12))
        files.refresh()
        ledger.clips(out)
    assert len(reads) == 22
    assert set(reads.values()) == {1}


def test_the_ledger_in_parts_is_the_whole_ledger(out, monkeypatch):
    write(out, range(60), phase="partition", schema=CLIPS)
    write(out, range(0, 60, 2), reject="too dark")
    for shard in range(6):  # each with clips of sources all over the range of ids
        ids = [(f"c{number}-0", name(number).partition("-")[0]) for number in range(shard, 60, 6) if number % 5]
        rows = [{"clip_id": clip, "video_id": video, "shard": f"{shard:06d}"} for clip, video in ids]
        ledger.write_clips(out, "shard", f"{shard:06d}", rows, STORED, Record("shard", f"{shard:06d}", rows=len(rows)))
    whole = ledger.clips(out).to_pylist()
    assert Counter(row["shard"] for row in whole) == {None: 48, **{f"{shard:06d}": 8 for shard in range(6)}}
    assert len(whole) == 96
    assert sum(row["reject"] == "too dark" for row in whole) == 48
    pack(out)
    monkeypatch.setattr(ledger, "_UNITS_PER_PART", 7)
    parts = list(ledger.scan(out))
    assert len(parts) == 9
    assert [row for part in parts for row in part.clips.to_pylist()] == whole
    assert not any(part.records for part in parts)
    assert sum(len(part.records) for part in ledger.scan(out, records=True)) == 96
    assert sum(len(part.phases["shard"]) for part in parts) == 48
    slim = [row for part in ledger.scan(out, ("reject",), skip=2) for row in part.clips.to_pylist()]
    assert [row["clip_id"] for row in slim] == [row["clip_id"] for part in parts[2:] for row in part.clips.to_pylist()]
    assert set(slim[0]) == {"clip_id", "video_id", "unit_id", "index", "reject"}


def test_another_run_that_wrote_the_next_manifest_is_noticed(out):
    write(out, range(4))
    late = UnitFiles(out)
    assert late.count_files(SCORE) == 4
    late._tail(SCORE)
    pack(out)
    with pytest.raises(FileExistsError, match=r"manifests/000001\.json: another run has written it"):
        late.commit({SCORE: ()}, {})


def test_units_on_s3_are_packed_and_deleted_by_few_requests(front):
    out = f"{front.uri}/o"
    write(out, range(30))
    before = content(out)
    front.asked.clear()
    pack(out)
    assert front.asked["POST"] == 1
    assert front.asked["DELETE"] == 0
    assert content(out) == before
    assert [entry.uri for entry in storage.list_files(f"{out}/clips")] == []
