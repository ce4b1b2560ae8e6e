"""A clip or a source that kills its worker, under the local runner: the killer is put into the child by sitecustomize."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import attempts, chunked, ledger, recipes, run
from pipelines.attempts import Attempt, Poisoned

KILLER = """
import importlib.abc, importlib.machinery, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "curation.MODULE":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            {patch}
        spec.loader.exec_module = exec_module
        return spec

if "--multiprocessing-fork" in sys.argv:
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Patch a module of `curation` in the worker process only."""

    def patch(module, code):
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(KILLER.replace("MODULE", module).format(patch=code))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return patch


def notes(out):
    return [f.name for f in Path(out, "attempts").rglob("*.json")]


def test_a_clip_that_kills_its_worker_is_quarantined_and_the_job_ends_well(child, raw, tmp_path):
    out = str(tmp_path / "o")
    doomed = "s.start_s == 0 and u.endswith('b.mp4')"
    child("encode", f"real = module.encode; module.encode = lambda u, s, *a: os._exit(11) if {doomed} else real(u, s, *a)")
    done = run.curate([str(raw)], out, recipes.smoke())
    rows = ledger.clips(out).to_pylist()
    dead = [row for row in rows if (row["reject"] or "").startswith("quarantined")]
    assert [row["reject"] for row in dead] == ["quarantined: killed its worker 2 times"]
    assert (dead[0]["start_s"], Path(dead[0]["source_uri"]).name) == (0.0, "b.mp4")
    assert done.failures == []
    assert done.stored == done.kept > 0
    assert len(notes(out)) == 3


def test_a_source_that_kills_its_worker_is_quarantined(child, raw, tmp_path):
    out = str(tmp_path / "o")
    child(
        "video",
        "real = module.decode; module.decode = lambda u, *a, **k: os._exit(11) if u.endswith('b.mp4') else real(u, *a, **k)",
    )
    done = run.curate([str(raw)], out, recipes.smoke())
    status = {Path(v["uri"]).name: (v["status"], v["reason"]) for v in ledger.videos(out).to_pylist()}
    assert status["b.mp4"] == ("quarantined", "quarantined: killed its worker 2 times")
    assert status["a.mp4"][0] == "ok"
    assert done.stored == done.kept > 0
    assert done.failures == []


def test_a_chunk_that_kills_its_worker_is_left_out_and_its_source_is_not(child, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(chunked, "_LEAN_BYTES_PER_S", 1)
    smoke, source = recipes.smoke(), str(raw / "b.mp4")
    tiny = replace(smoke, partition=replace(smoke.partition, chunk_s=2.0))
    child(
        "chunks", "real = module.measure; module.measure = lambda u, f, *a: os._exit(11) if a[:1] == (2.0,) else real(u, f, *a)"
    )
    done = run.curate([source], str(tmp_path / "o"), tiny, phases=recipes.PHASES)
    notes_ = [record.note for record in done.records if record.note]
    assert notes_ == [f"{source} is measured in one pass: quarantined: killed its worker 2 times"]
    assert [record.decodes for record in done.records if record.phase == "partition"] == [{"scan": 1}]
    assert done.failures == []
    assert done.stored == done.kept > 0
    assert chunked._stored(done.out) == []


def test_an_attempt_that_ends_leaves_no_note(tmp_path):
    with Attempt(str(tmp_path), "score", "u") as attempt:
        assert len(notes(tmp_path)) == 1
        assert not attempt.careful
    with pytest.raises(RuntimeError), Attempt(str(tmp_path), "score", "u"):
        raise RuntimeError
    assert notes(tmp_path) == []


def test_a_worker_told_to_stop_leaves_no_note(tmp_path):
    Attempt(str(tmp_path), "score", "u").__enter__()
    attempts.withdraw()
    assert notes(tmp_path) == []


def die(out, row):
    """An attempt whose worker died on this row (None: before the first)."""
    attempt = Attempt(out, "score", "u")
    attempt.__enter__()
    if row:
        attempt.admit({"clip_id": row})
    attempts._open_notes.clear()


def test_a_clip_is_rejected_after_two_deaths_and_not_before(tmp_path):
    out = str(tmp_path)
    die(out, None)
    die(out, "c1")
    with Attempt(out, "score", "u") as attempt:
        assert attempt.careful
        assert attempt.admit({"clip_id": "c1"}) is None
    die(out, "c1")
    with Attempt(out, "score", "u") as attempt:
        assert attempt.admit({"clip_id": "c1"}) == "quarantined: killed its worker 2 times"
        assert attempt.admit({"clip_id": "c2"}) is None
    with Attempt(out, "score", "other") as attempt:
        assert not attempt.careful


def test_a_unit_that_dies_outside_its_clips_is_given_up(tmp_path):
    out = str(tmp_path)
    for _ in range(3):
        die(out, None)
    with (
        pytest.raises(Poisoned, match=r"killed its worker 3 times outside of any clip; see .*attempts/score"),
        Attempt(out, "score", "u"),
    ):
        pass
