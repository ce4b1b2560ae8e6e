import gc
import hashlib
import json
import tarfile

import pytest
import webdataset as wds

from curation import shards, storage
from curation.shards import Sample


def sample(i, size=2000):
    return Sample(f"clip{i:02d}", {"index": i, "caption": "für"}, {"mp4": bytes([i]) * size, "camera.npz": b"npz"})


def commit(out, name, samples):
    index = shards.put_tar(out, name, samples)
    shards.put_index(out, name, index)
    return index


def test_a_sample_survives_its_members():
    assert shards.decode_sample(shards.encode_sample(sample(3))) == sample(3)


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in "ab":
        commit(str(tmp_path / name), "000000", [sample(i) for i in range(3)])
    files = [{f.name: f.read_bytes() for f in (tmp_path / name / "shards").iterdir()} for name in "ab"]
    assert files[0] == files[1]
    assert set(files[0]) == {"000000.tar", "000000.parquet"}


def test_the_index_finds_each_member_and_names_the_tar_by_its_hash(tmp_path):
    out = str(tmp_path)
    commit(out, "000007", [sample(1), sample(2)])
    index = shards.read_index(out, "000007")
    assert shards.read_member(out, index, "clip02", "mp4") == b"\x02" * 2000
    assert json.loads(shards.read_member(out, index, "clip01", "json"))["caption"] == "für"
    sha = hashlib.sha256((tmp_path / "shards/000007.tar").read_bytes()).hexdigest()
    assert set(index["tar_sha256"].to_pylist()) == {sha}
    with pytest.raises(KeyError, match=r"no clip09\.mp4 in 000007\.tar"):
        shards.read_member(out, index, "clip09", "mp4")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
def test_plain_tar_and_webdataset_read_it(tmp_path):
    out = str(tmp_path)
    commit(out, "000000", [sample(i) for i in range(3)])
    with tarfile.open(tmp_path / "shards/000000.tar") as tar:
        assert tar.getnames()[:3] == ["clip00.camera.npz", "clip00.json", "clip00.mp4"]
    read = list(wds.WebDataset([str(tmp_path / "shards/000000.tar")], shardshuffle=False))
    gc.collect()
    assert [r["__key__"] for r in read] == ["clip00", "clip01", "clip02"]
    assert read[1]["mp4"] == b"\x01" * 2000
    assert list(shards.read_samples(out, "000000")) == [sample(i) for i in range(3)]


def test_a_tar_without_an_index_does_not_count(tmp_path):
    shards.put_tar(str(tmp_path), "000000", [sample(1)])
    assert shards.list_committed(str(tmp_path)) == []


def test_the_second_writer_adopts_the_first_ones_tar(tmp_path):
    out = str(tmp_path)
    shards.put_tar(out, "000000", [sample(1)])
    index = commit(out, "000000", [sample(1, size=10), sample(2)])
    assert set(index["clip_id"].to_pylist()) == {"clip01"}
    assert shards.read_member(out, index, "clip01", "mp4") == b"\x01" * 2000
    assert [p.name for p in (tmp_path / "shards").iterdir() if p.name.startswith(".")] == []


def test_a_committed_index_is_never_replaced(tmp_path):
    out = str(tmp_path)
    commit(out, "000000", [sample(1)])
    before = storage.read(storage.join(out, "shards/000000.parquet"))
    shards.put_index(out, "000000", shards.INDEX.empty_table())
    assert storage.read(storage.join(out, "shards/000000.parquet")) == before


def test_an_empty_shard_is_a_shard(tmp_path):
    assert len(commit(str(tmp_path), "000000", [])) == 0
    assert list(shards.read_samples(str(tmp_path), "000000")) == []


def test_an_unknown_schema_version_is_refused_with_advice(tmp_path):
    shards.write_dataset(str(tmp_path), {"recipe": {}})
    assert shards.read_dataset(str(tmp_path))["recipe"] == {}
    (tmp_path / "dataset.json").write_text('{"schema_version": 2}')
    assert shards.read_dataset(str(tmp_path)) == {"schema_version": 2}
    (tmp_path / "dataset.json").write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match=r"schema version 99; this code reads 2, 3 and 4\. Use the gamecraft release"):
        shards.read_dataset(str(tmp_path))
    assert shards.read_dataset(str(tmp_path / "nothing")) is None
