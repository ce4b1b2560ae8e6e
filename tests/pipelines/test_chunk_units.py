"""A long source gives the same results in chunks as in one pass, whatever happens to the chunks. The chunks here are short."""

import ctypes
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curation import source_files, storage
from curation.captions.embeddings import EncoderSettings
from curation.output_folder import OutputFolder
from curation.partition import chunks, scan
from pipelines import chunk_units, ledger, phases, recipes, run, source_manifest, units

SMOKE = replace(recipes.smoke(), relate=recipes.Relate(EncoderSettings("none")))


def in_chunks_of(chunk_s):
    return replace(SMOKE, partition=replace(SMOKE.partition, chunk_s=chunk_s))


TINY = in_chunks_of(2.0)


@pytest.fixture(autouse=True)
def lean(monkeypatch):
    """Let every source count as one that may be long, whatever its size."""
    monkeypatch.setattr(chunk_units, "_OPENED_BYTES_PER_S", 1)
    monkeypatch.setattr(chunk_units, "_MIN_BYTES_PER_S", 1)
    scan.clear_caches()


@pytest.fixture
def here(monkeypatch):
    """Run units and read durations in this process: it is faster, and calls can be counted."""
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))
    monkeypatch.setattr(source_manifest, "declared_durations_s", lambda uris: [source_manifest._duration_s(u) for u in uris])


@pytest.fixture(scope="module")
def one_pass(raw, tmp_path_factory):
    """The output of a run without chunks."""
    return run.curate([str(raw)], str(tmp_path_factory.mktemp("one") / "o"), in_chunks_of(None), phases=recipes.PHASES)


def shards_of(out):
    return {f.name: f.read_bytes() for f in sorted((Path(out) / "shards").iterdir())}


def assert_same(done, one_pass):
    assert ledger.clips(done.out).to_pylist() == ledger.clips(one_pass.out).to_pylist()
    assert ledger.videos(done.out).to_pylist() == ledger.videos(one_pass.out).to_pylist()
    assert shards_of(done.out) == shards_of(one_pass.out)
    for kind in ("thumbs", "signals"):
        names = ledger.clips(done.out)["unit_id"].to_pylist()
        assert list(ledger.sidecars(done.out, kind, names)) == list(ledger.sidecars(one_pass.out, kind, names))
    assert chunk_units._stored_names(done.out) == []
    assert done.failures == []


def decodes(done):
    counts = {}
    for record in done.records:
        for name, count in record.decodes.items():
            counts[name] = counts.get(name, 0) + count
    return counts


def test_chunks_that_two_workers_share_give_the_rows_and_shards_of_one_pass(one_pass, raw, tmp_path):
    done = run.curate([str(raw)], str(tmp_path / "o"), TINY, workers=2)
    assert_same(done, one_pass)
    assert decodes(done) == {"scan chunk": 8 + 3, "encode": done.kept}
    assert decodes(one_pass) == {"scan": 2, "encode": done.kept}
    again = run.curate([str(raw)], str(tmp_path / "o"), TINY, workers=2)
    assert again.records == []


def test_one_process_makes_one_pass(here, raw, tmp_path):
    assert decodes(run.curate([str(raw / "b.mp4")], str(tmp_path / "o"), TINY))["scan"] == 1


def test_phase_by_phase_and_with_another_length_in_between(here, one_pass, raw, tmp_path):
    out = str(tmp_path / "o")
    run.curate([str(raw)], out, in_chunks_of(3.0), phases=["scan"])
    assert len(chunk_units._stored_names(out)) == 5 + 2
    run.curate([str(raw)], out, TINY, phases=["scan"])
    assert len(chunk_units._stored_names(out)) == 5 + 2 + 8 + 3
    done = run.curate([str(raw)], out, in_chunks_of(3.0), phases=["partition"])
    assert decodes(done) == {}
    assert chunk_units._stored_names(out) == []
    assert_same(run.curate([str(raw)], out, TINY), one_pass)


def test_a_run_that_stopped_among_the_chunks_goes_on_with_the_rest(here, one_pass, raw, tmp_path, monkeypatch):
    real, out = phases.work, str(tmp_path / "o")
    left = [5]

    def stop(phase, unit, on_progress=None):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(phase, unit, on_progress)

    monkeypatch.setattr(phases, "work", stop)
    with pytest.raises(KeyboardInterrupt):
        run.curate([str(raw)], out, TINY, phases=recipes.PHASES)
    assert len(chunk_units._stored_names(out)) == 5
    left[0] = 1000
    done = run.curate([str(raw)], out, TINY, phases=recipes.PHASES)
    assert decodes(done)["scan chunk"] == 6
    assert_same(done, one_pass)


@pytest.mark.parametrize(
    "harm", ["garbage", *(pytest.param(harm, marks=pytest.mark.exhaustive) for harm in ("lost", "of another pass"))]
)
def test_chunks_that_came_to_harm_cost_a_pass_and_nothing_else(harm, here, one_pass, raw, tmp_path):
    out = str(tmp_path / "o")
    run.curate([str(raw)], out, TINY, phases=["scan"])
    first = OutputFolder(out).chunk(str(min(chunk_units._stored_names(out))))
    if harm == "lost":
        storage.delete(first)
    elif harm == "garbage":
        storage.put(first, b"x")
    else:
        chunk = chunks.from_bytes(storage.read(first))
        storage.put(first, chunks.to_bytes(replace(chunk, after=chunk.after + 1)))
    done = run.curate([str(raw)], out, TINY)
    assert decodes(done)["scan"] == 1
    assert_same(done, one_pass)


def test_chunks_are_parsed_by_the_thread_that_asks(here, raw, tmp_path, monkeypatch):
    parsed, real = [], chunks.from_bytes
    monkeypatch.setattr(chunks, "from_bytes", lambda data: parsed.append(threading.current_thread()) or real(data))
    run.curate([str(raw)], str(tmp_path / "o"), TINY, phases=["scan", "partition"])
    assert set(parsed) == {threading.current_thread()}


def test_a_chunk_that_fails_is_said_and_costs_a_pass(here, one_pass, raw, tmp_path, monkeypatch, caplog):
    real = chunk_units.put_chunk

    def put_chunk(out, name, chunk):
        if 4 <= chunk.start_s < 5:
            raise OSError("no space left")
        real(out, name, chunk)

    monkeypatch.setattr(chunk_units, "put_chunk", put_chunk)

    done = run.curate([str(raw)], str(tmp_path / "o"), TINY, phases=recipes.PHASES)
    assert decodes(done)["scan"] == 2
    assert caplog.text.count("no space left") == 1
    assert_same(done, one_pass)


def test_a_source_that_cannot_be_chunked_is_said_so_once(here, raw, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(chunks, "open_part", lambda *_: nullcontext(None))
    done = run.curate([str(raw / "b.mp4")], str(tmp_path / "o"), TINY, phases=recipes.PHASES)
    assert decodes(done) == {"scan": 1, "encode": done.kept}
    assert caplog.text.count("is measured in one pass: can only be decoded from its start") == 1
    assert len(units.list_committed(done.out, "scan")) == 3
    assert run.curate([str(raw / "b.mp4")], str(tmp_path / "o"), TINY, phases=recipes.PHASES).records == []


def spans(found):
    return [(unit.start_s, unit.end_s) for unit in found]


@pytest.mark.parametrize(
    ("duration_s", "mb", "count", "length_s"),
    [
        (10_800.0, 324, 36, 300.0),  # three hours of AV1 at 240 kbit/s
        (10_799.9, 27_000, 36, 299.997),  # and of H.264 at 20 Mbit/s
        (899.0, 100, 3, 299.667),
        (880.0, 100, 2, 440.0),
        (599.98, 100, 2, 299.99),
        (560.0, 100, 0, None),
        (1e9, 100, 66, 303.03),  # a container that declares 32 years
    ],
)
def test_all_chunks_of_a_source_are_equally_long(duration_s, mb, count, length_s, tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_units, "_OPENED_BYTES_PER_S", 50_000)
    monkeypatch.setattr(chunk_units, "_MIN_BYTES_PER_S", 5_000)
    entry = storage.Entry("/a.mp4", mb * 1_000_000, "1-2")
    monkeypatch.setattr(source_manifest, "identify", lambda *_: {entry: source_manifest.Identified("0" * 16, duration_s)})
    found = pending_chunks([entry], str(tmp_path), SMOKE)
    assert len(found) == count
    if count:
        starts_s = [start_s for start_s, _ in spans(found)]
        assert [end_s for _, end_s in spans(found)] == [*starts_s[1:], None]
        last_s = min(duration_s, mb * 1_000_000 / chunk_units._MIN_BYTES_PER_S)
        assert np.diff([*starts_s, last_s]) == pytest.approx(length_s, abs=2e-3)
        assert [units.Unit.from_json(unit.to_json()) for unit in found] == found


def pending_chunks(entries, out, recipe):
    return [unit for group in chunk_units.pending_chunks(entries, out, recipe) for unit in group.units]


def test_only_large_files_are_asked_how_long_they_are(raw, tmp_path, monkeypatch):
    entries, asked = source_files.find_sources([str(raw)]), []
    monkeypatch.setattr(source_manifest, "declared_durations_s", lambda uris: asked.extend(uris) or [600.0 for _ in uris])
    size = {Path(entry.uri).name: entry.size for entry in entries}
    assert size["b.mp4"] < 0.8 * size["a.mp4"]
    monkeypatch.setattr(chunk_units, "_OPENED_BYTES_PER_S", size["a.mp4"] / 50)
    monkeypatch.setattr(chunk_units, "_MIN_BYTES_PER_S", size["a.mp4"] / 50)
    found = pending_chunks(entries, str(tmp_path), in_chunks_of(20.0))
    assert [Path(uri).name for uri in asked] == ["a.mp4"], "its copy is a duplicate, the rest is small"
    assert spans(found) == [(0.0, 25.0), (25.0, None)], "as many as its size makes likely, not as it declares"
    assert pending_chunks(entries, str(tmp_path), in_chunks_of(26.0)) == []


def test_a_file_that_kills_whoever_opens_it_leaves_the_driver_alone(raw, monkeypatch):
    uris = [str(raw / name) for name in ("a.mp4", "broken.mp4")]
    assert source_manifest.declared_durations_s(uris) == [pytest.approx(16.0), 0.0]
    assert source_manifest.declared_durations_s([]) == []
    monkeypatch.setattr(source_manifest, "_duration_s", ctypes.string_at)
    assert source_manifest.declared_durations_s([0, 0]) == [0.0, 0.0], "a segmentation fault"
