"""Two copies of one recording, and two recordings that only look the same."""

import av
import numpy as np
import pytest

from curation import source_files
from curation.source_files import content_id, same_bytes
from curation.storage import Entry
from pipelines import duplicates, ledger, recipes, units
from pipelines.sources import pending_sources


@pytest.fixture(autouse=True)
def nothing_known():
    source_files.same_bytes.cache_clear()
    source_files.whole_id.cache_clear()
    duplicates._digest_cache.clear()


def entries(*paths):
    return source_files.find_sources(map(str, paths))


def pair(folder):
    """Write two raw recordings of one seed that differ for a moment, between the blocks that identify a source."""
    data = bytearray(np.random.default_rng(3).bytes(5 << 20))
    (folder / "a.y4m").write_bytes(data)
    at = (1 << 20) + (150 << 10)
    data[at : at + 20_000] = bytes(20_000)
    (folder / "b.y4m").write_bytes(data)
    return entries(folder / "a.y4m", folder / "b.y4m")


def remux(source, target):
    with av.open(str(source)) as input_, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(input_.streams.video[0])
        for packet in input_.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target


def described(found):
    return [
        (unit.uri.rpartition("/")[2], unit.duplicate_of and unit.duplicate_of.rpartition("/")[2], unit.reason) for unit in found
    ]


def commit(out, found):
    """Commit the units as `partition` does."""
    for unit in found:
        of = {"status": "duplicate" if unit.duplicate_of else "ok", "duplicate_of": unit.duplicate_of}
        name = units.UnitName.parse(unit.name)
        ledger.write_video(out, unit.name, {"video_id": name.video_id, "uri": unit.uri, "token": unit.token, **of})
        schema = ledger.columns(ledger.CLIP, ("clip_id", "video_id", "unit_id", "reject", "error"))
        ledger.write_clips(out, "partition", unit.name, [], schema, ledger.Record("partition", unit.name))


def test_recordings_that_differ_in_a_moment_are_two_sources(tmp_path):
    a, b = pair(tmp_path)
    assert content_id(a) == content_id(b)
    assert not same_bytes(a, b)
    out, recipe = str(tmp_path / "out"), recipes.smoke()
    found = pending_sources([a, b], out, recipe)
    assert described(found) == [("a.y4m", None, None), ("b.y4m", None, None)]
    ids = [units.UnitName.parse(unit.name).video_id for unit in found]
    assert ids == [content_id(a), source_files.whole_id(b)]
    commit(out, found[:1])
    (later,) = pending_sources([a, b], out, recipe)
    assert later == found[1], "the same name in one run and in two"


def test_the_same_bytes_are_one_source_and_a_copy_of_the_second_is_its_copy(tmp_path):
    pair(tmp_path)
    for name, of in (("c", "a"), ("d", "b")):
        (tmp_path / f"{name}.y4m").write_bytes((tmp_path / f"{of}.y4m").read_bytes())
    found = pending_sources(entries(tmp_path), str(tmp_path / "out"), recipes.smoke())
    copies = [("c.y4m", "a.y4m", "the same bytes"), ("d.y4m", "b.y4m", "the same bytes")]
    assert described(found)[2:] == copies
    commit(str(tmp_path / "out"), found[:2])
    assert described(pending_sources(entries(tmp_path), str(tmp_path / "out"), recipes.smoke())) == copies


def test_what_can_no_longer_be_compared_says_so(tmp_path):
    a, b = pair(tmp_path)
    out = str(tmp_path / "out")
    commit(out, pending_sources([a], out, recipes.smoke()))
    (tmp_path / "a.y4m").unlink()
    assert described(pending_sources([b], out, recipes.smoke())) == [("b.y4m", "a.y4m", duplicates.SAME_SAMPLES)]


def test_links_and_equal_etags_are_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x" * 100)
    (tmp_path / "b.mp4").hardlink_to(tmp_path / "a.mp4")
    monkeypatch.setattr(source_files, "read", lambda *_: pytest.fail("read"))
    assert same_bytes(*entries(tmp_path))
    assert same_bytes(Entry("s3://x/a", 5, "5-abc"), Entry("s3://x/b", 5, "5-abc"))
    assert not same_bytes(Entry("s3://x/a", 5, "5-abc"), Entry("s3://x/b", 6, "6-abd"))


def test_a_remux_is_the_same_recording(tmp_path, make_video):
    make_video(tmp_path / "session.mkv", seconds=3, seed=4)
    remux(tmp_path / "session.mkv", tmp_path / "session.mp4")
    remux(tmp_path / "session.mkv", tmp_path / "renamed.mov")
    make_video(tmp_path / "other.mp4", seconds=3, seed=5)
    out = str(tmp_path / "out")
    sources = entries(tmp_path)
    found = pending_sources(sources, out, recipes.smoke())
    assert described(found) == [
        ("other.mp4", None, None),
        ("renamed.mov", None, None),
        ("session.mkv", "renamed.mov", "the same video packets"),
        ("session.mp4", "renamed.mov", "the same video packets"),
    ]
    committed = [entry for entry in sources if entry.uri.endswith("session.mp4")]
    commit(out, pending_sources(committed, out, recipes.smoke()))
    later = {name: of for name, of, _ in described(pending_sources(sources, out, recipes.smoke()))}
    assert later == {"other.mp4": None, "renamed.mov": "session.mp4", "session.mkv": "session.mp4"}, "what is curated stays"


def test_files_of_one_kind_or_other_sizes_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_digest_all", lambda *_: pytest.fail("opened"))
    same_kind = [Entry("a.mp4", 1000, "1"), Entry("b.mp4", 1001, "2")]
    far_apart = [Entry("a.mkv", 10 << 20, "1"), Entry("b.mp4", 20 << 20, "2")]
    assert duplicates.find_remuxes(same_kind, []) == {}
    assert duplicates.find_remuxes(far_apart, []) == {}
