"""Reasons that are cleared, and what the next run does then."""

from pathlib import Path

import pytest

from curation import shards, storage
from curation.errors import UnreadableVideo
from curation.media import decode as video
from curation.media import encode
from pipelines import ledger, phases, recipes, run
from pipelines.retry import clear_reasons


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))


@pytest.fixture
def curate(make_video, tmp_path):
    """Two sources in a folder, curated as often as it is called."""
    (tmp_path / "in").mkdir()
    for seed, name in enumerate(("a.mp4", "b.mp4"), start=41):
        make_video(tmp_path / "in" / name, seconds=7, seed=seed)
    return lambda: run.curate([str(tmp_path / "in")], str(tmp_path / "o"), recipes.smoke())


def status(out):
    return {Path(v["uri"]).name: v["status"] for v in ledger.videos(out).to_pylist()}


def stored(out):
    return [s.clip_id for name in shards.list_committed(out) for s in shards.read_samples(out, name)]


def refuse(monkeypatch, name, error):
    """Let a source fail, as with a decoder whose bug has been fixed since."""
    real = video.decode

    def decode(uri, *rest, **more):
        if uri.endswith(name):
            raise error
        return real(uri, *rest, **more)

    monkeypatch.setattr(video, "decode", decode)


def test_a_source_that_could_not_be_read_is_measured_again(curate, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        refuse(patch, "a.mp4", UnreadableVideo("no frame could be decoded"))
        out = curate().out
    assert status(out) == {"a.mp4": "unreadable", "b.mp4": "ok"}
    before = stored(out)
    (taken,) = clear_reasons(out)
    assert (taken.phase, taken.clip_id, taken.uri) == ("partition", "", f"{tmp_path}/in/a.mp4")
    assert taken.reason == "unreadable: no frame could be decoded"
    done = curate()
    assert status(out) == {"a.mp4": "ok", "b.mp4": "ok"}
    assert set(stored(out)) > set(before)
    assert done.kept == done.stored


def test_a_clip_that_its_shard_lacks_goes_into_a_later_one(curate, monkeypatch):
    real = encode.encode

    def fail(uri, *rest):
        if uri.endswith("a.mp4"):
            raise ValueError("an encoder's bug")
        return real(uri, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode", fail)
        out = curate().out
    files = {entry.uri: storage.read(entry.uri) for entry in storage.list_files(f"{out}/shards")}
    lost = {row["clip_id"] for row in ledger.clips(out).to_pylist() if row["error"]}
    assert lost
    assert {taken.clip_id for taken in clear_reasons(out, reason="*encoder's bug*")} == lost
    curate()
    after = {entry.uri: storage.read(entry.uri) for entry in storage.list_files(f"{out}/shards")}
    assert {uri: after[uri] for uri in files} == files
    assert lost < set(stored(out))
    assert len(stored(out)) == len(set(stored(out))) == len(ledger.clips(out))


def test_only_what_is_asked_for_is_taken_back(curate, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        refuse(patch, ".mp4", UnreadableVideo("no frame could be decoded"))
        out = curate().out
    assert clear_reasons(out, reason="*something else*") == []
    assert [taken.uri for taken in clear_reasons(out, source="*/b.mp4")] == [f"{tmp_path}/in/b.mp4"]
    assert status(out) == {"a.mp4": "unreadable"}


def test_what_is_known_of_a_source_that_is_gone_stays(curate, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        refuse(patch, "a.mp4", UnreadableVideo("no frame could be decoded"))
        out = curate().out
    (tmp_path / "in" / "a.mp4").unlink()
    assert clear_reasons(out) == []
    assert status(out) == {"a.mp4": "unreadable", "b.mp4": "ok"}


def test_what_a_rule_rejected_is_taken_back_only_by_its_reason(raw, tmp_path):
    out = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke()).out
    dark = {row["clip_id"] for row in ledger.clips(out).to_pylist() if (row["reject"] or "").startswith("too dark")}
    assert [taken.reason.partition(":")[0] for taken in clear_reasons(out)] == ["unreadable"]
    assert {taken.clip_id for taken in clear_reasons(out, reason="too dark*")} == dark
    assert {row["reject"] for row in ledger.clips(out).to_pylist() if row["clip_id"] in dark} == {None}
    again = run.curate([str(raw)], out, recipes.smoke())
    assert {row["clip_id"] for row in ledger.clips(again.out).to_pylist() if row["reject"]} == dark
