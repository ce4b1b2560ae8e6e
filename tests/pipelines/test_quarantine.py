"""A clip or a source that kills its worker, under the local runner: sitecustomize puts the killer into the child."""

from dataclasses import replace
from pathlib import Path

from pipelines import chunk_units, ledger, recipes, run


def test_a_clip_that_kills_its_worker_is_quarantined_and_the_job_ends_well(child, raw, tmp_path):
    out = str(tmp_path / "o")
    doomed = "s.start_s == 0 and u.endswith('b.mp4')"
    child(
        "curation.media.encode",
        f"real = module.encode; module.encode = lambda u, s, *a: os._exit(11) if {doomed} else real(u, s, *a)",
    )
    done = run.curate([str(raw)], out, recipes.smoke())
    rows = ledger.clips(out).to_pylist()
    dead = [row for row in rows if (row["reject"] or "").startswith("quarantined")]
    assert [row["reject"] for row in dead] == ["quarantined: killed its worker 2 times"]
    assert (dead[0]["start_s"], Path(dead[0]["source_uri"]).name) == (0.0, "b.mp4")
    assert done.failures == []
    assert done.stored == done.kept > 0


def test_a_source_that_kills_its_worker_is_quarantined(child, raw, tmp_path):
    out = str(tmp_path / "o")
    child(
        "curation.media.decode",
        "real = module.decode; module.decode = lambda u, *a, **k: os._exit(11) if u.endswith('b.mp4') else real(u, *a, **k)",
    )
    done = run.curate([str(raw)], out, recipes.smoke())
    status = {Path(v["uri"]).name: (v["status"], v["reason"]) for v in ledger.videos(out).to_pylist()}
    assert status["b.mp4"] == ("quarantined", "quarantined: killed its worker 2 times")
    assert status["a.mp4"][0] == "ok"
    assert done.stored == done.kept > 0
    assert done.failures == []


def test_a_chunk_that_kills_its_worker_is_left_out_and_its_source_is_not(child, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_units, "_MIN_BYTES_PER_S", 1)
    smoke, source = recipes.smoke(), str(raw / "b.mp4")
    tiny = replace(smoke, partition=replace(smoke.partition, chunk_s=2.0))
    child(
        "curation.partition.chunks",
        "real = module._measure; module._measure = lambda s, f, a, *b: os._exit(11) if 2 <= a < 4 else real(s, f, a, *b)",
    )
    done = run.curate([source], str(tmp_path / "o"), tiny, phases=recipes.PHASES)
    notes_ = [record.note for record in done.records if record.note]
    assert notes_ == [f"{source} is measured in one pass: quarantined: killed its worker 2 times"]
    assert [record.decodes for record in done.records if record.phase == "partition"] == [{"scan": 1}]
    assert done.failures == []
    assert done.stored == done.kept > 0
    assert chunk_units._stored_names(done.out) == []
