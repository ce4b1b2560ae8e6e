"""What names a source is read once, whoever is killed when, and for the listed version only."""

import os

import pytest

from curation import source_files, storage
from curation.storage import Entry
from pipelines import recipes, source_manifest, sources, unit_files
from pipelines.source_manifest import identify


@pytest.fixture
def entries(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number]) * (1000 + number))
    return storage.list_files(str(tmp_path))


@pytest.fixture
def read(monkeypatch):
    """The uris of sources that are read."""
    uris, real = [], source_files.content_id
    monkeypatch.setattr(source_files, "content_id", lambda entry: uris.append(entry.uri) or real(entry))
    return uris


def test_a_source_is_identified_once(entries, read, tmp_path):
    out = str(tmp_path / "o")
    first = identify(out, entries[:3])
    assert [first[entry].video_id for entry in entries[:3]] == [source_files.content_id(entry) for entry in entries[:3]]
    read.clear()
    assert identify(out, entries) == {**first, **{e: identify(out, [e])[e] for e in entries[3:]}}
    assert sorted(read) == [entry.uri for entry in entries[3:]]


def test_a_changed_source_is_identified_anew(entries, read, tmp_path):
    out, entry = str(tmp_path / "o"), entries[0]
    before = identify(out, [entry])[entry].video_id
    with open(entry.uri, "ab") as file:
        file.write(b"more")
    (changed,) = storage.list_files(entry.uri)
    assert identify(out, [changed])[changed].video_id != before
    assert len(read) == 2


def test_a_group_that_is_done_is_kept_when_the_next_one_dies(entries, read, tmp_path, monkeypatch):
    out = str(tmp_path / "o")
    monkeypatch.setattr(source_manifest, "_GROUP", 2)
    real = source_manifest._identify_group

    def dies(out, group, probed_bytes):
        if entries[2] in group:
            raise KeyboardInterrupt
        return real(out, group, probed_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(source_manifest, "_identify_group", dies)
        with pytest.raises(KeyboardInterrupt):
            identify(out, entries)
    read.clear()
    assert len(identify(out, entries)) == 5
    assert sorted(read) == [entry.uri for entry in entries[2:]]


def test_a_source_that_cannot_be_read_gets_no_row_and_is_tried_again(entries, read, tmp_path):
    out, gone = str(tmp_path / "o"), entries[0]
    os.rename(gone.uri, f"{gone.uri}.away")
    found = identify(out, entries)
    assert found[gone].problem == f"{gone.uri}: No such file or directory"
    os.rename(f"{gone.uri}.away", gone.uri)
    read.clear()
    assert identify(out, entries)[gone].problem is None
    assert read == [gone.uri]


def test_lengths_are_asked_for_once_and_of_large_sources_only(entries, tmp_path, monkeypatch):
    out, asked = str(tmp_path / "o"), []
    monkeypatch.setattr(source_manifest, "declared_durations_s", lambda uris: asked.extend(uris) or [60.0 for _ in uris])
    identify(out, entries[:1])
    found = identify(out, entries, 1002)
    assert [found[entry].duration_s for entry in entries] == [None, None, 60.0, 60.0, 60.0]
    assert identify(out, entries, 1002) == found
    assert sorted(asked) == [entry.uri for entry in entries[2:]]


def test_groups_go_to_the_cluster_of_the_run(entries, tmp_path):
    out, tasks = str(tmp_path / "o"), []
    with unit_files.pinned(out) as files:
        files.run_tasks = lambda function, of: [tasks.append(task) or function(*task) for task in of]
        found = identify(out, entries)
    assert [len(group) for _, group, _ in tasks] == [5]
    assert len(found) == 5


def test_both_phases_of_a_source_use_one_reading(entries, read, tmp_path):
    out, recipe = str(tmp_path / "o"), recipes.smoke()
    for _ in range(2):
        assert len(sources.pending_sources(entries, out, recipe)) == 5
    assert len(read) == 5
    assert isinstance(entries[0], Entry)
