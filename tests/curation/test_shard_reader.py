"""Shards by WebDataset and wids: the same clips as by our own reading, from a folder or S3, split and in spawned workers."""

import io
import json
import os
import tarfile
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import av
import numpy as np
import pytest

from curation import shard_reader, shards, storage
from curation.cameras.camera import Camera, to_npz
from curation.errors import InputError
from curation.shards import Sample

CLIPS = 6


def mp4(number, frames=12, fps=10, times=None):
    """A clip whose frame k is of the grey 20 + 10 * k + number."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=fps, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(frames):
            grey = np.full((16, 32, 3), 20 + 10 * k + number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[k] if times else k / fps)), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def camera(frames=12):
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 2, 3] = np.arange(frames)
    return Camera(
        pose=pose,
        intrinsics=np.tile([20.0, 20.0, 16.0, 8.0], (frames, 1)),
        times_s=np.arange(frames) / 10,
        size=(32, 16),
        viewport=(0.0, 0.0, 32.0, 16.0),
        valid=np.ones(frames, bool),
        residual_px=np.zeros(frames, np.float32),
        keyframes=np.arange(frames),
        scale_to_unit=1.0,
        scale_source="video",
    )


def sample(number):
    members = {"mp4": mp4(number)} | ({"camera.npz": to_npz(camera())} if number % 2 else {})
    return Sample(f"clip{number:02d}", {"index": number, "caption_short": "für"}, members)


def commit(out, groups):
    for shard, numbers in enumerate(groups):
        name = f"{shard:06d}"
        shards.put_index(out, name, shards.put_tar(out, name, [sample(n) for n in numbers]))
    shards.write_wids_index(out, {f"{shard:06d}": len(numbers) for shard, numbers in enumerate(groups)})


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Three shards of one, two and three clips, and an empty one, in a folder with a name that urls would read otherwise."""
    folder = str(tmp_path_factory.mktemp("data") / "a b:c#{1..2}%41")
    commit(folder, [[0], [1, 2], [3, 4, 5], []])
    return folder


def keys(dataset):
    return [read["__key__"] for read in dataset]


def test_it_gives_what_our_own_reading_gives(out):
    own = [each for shard in shards.list_committed(out) for each in shards.read_samples(out, shard)]
    read = list(shards.open(out, decode=False))
    assert [each["__key__"] for each in read] == [each.clip_id for each in own] == [f"clip{n:02d}" for n in range(CLIPS)]
    for theirs, ours in zip(read, own, strict=True):
        assert json.loads(theirs["json"]) == ours.meta
        assert {name: data for name, data in theirs.items() if not name.startswith("__") and name != "json"} == ours.members


def test_members_are_decoded(out):
    for number, read in enumerate(shards.open(out)):
        assert read["json"] == {"index": number, "caption_short": "für"}
        assert read["mp4"].shape == (12, 16, 32, 3)
        assert np.abs(read["mp4"][:, 8, 16, 1].astype(int) - (20 + 10 * np.arange(12) + number)).max() <= 2
        assert read["times_s"] == pytest.approx(np.arange(12) / 10, abs=1e-4)
        assert ("camera.npz" in read) == bool(number % 2)
        if number % 2:
            assert np.array_equal(read["camera.npz"].pose, camera().pose)


def test_it_is_a_webdataset_that_can_be_extended(out):
    webdataset = import_module("webdataset")
    dataset = shards.open(out)
    assert isinstance(dataset, webdataset.WebDataset)
    pairs = dataset.to_tuple("__key__", "json").map_tuple(str, lambda clip: clip["index"])
    assert list(pairs) == [(f"clip{n:02d}", n) for n in range(CLIPS)]


@pytest.mark.parametrize("fps", [10, 5, 3, 100])
def test_frames_at_a_rate_are_the_first_after_its_ticks(fps):
    frames, times_s = shard_reader.decode_video(mp4(0), fps)
    expected = {10: range(12), 100: range(12), 5: range(0, 12, 2), 3: (0, 4, 7, 10)}[fps]
    assert times_s == pytest.approx([k / 10 for k in expected], abs=1e-4)
    assert len(frames) == len(times_s)


def test_frames_after_a_gap_do_not_make_up_for_it():
    _, times_s = shard_reader.decode_video(mp4(0, times=[0, 0.1, 5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7, 5.8, 5.9]), 2)
    assert times_s == pytest.approx([0, 5.0, 5.5], abs=1e-4)


def test_several_outputs_and_single_tars(out):
    tar = storage.join(out, "shards", "000001.tar")
    assert keys(shards.open(tar, decode=False)) == ["clip01", "clip02"]
    every = [f"clip{n:02d}" for n in range(CLIPS)]
    as_uri = (Path(out) / "shards" / "000000.tar").as_uri()
    assert keys(shards.open([tar, out, as_uri], decode=False)) == ["clip01", "clip02", *every, "clip00"]


def test_nodes_share_the_shards(out, monkeypatch):
    read = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        read.append(keys(shards.open(out, decode=False)))
    assert sorted(key for each in read for key in each) == [f"clip{n:02d}" for n in range(CLIPS)]
    assert [len(each) for each in read] == [1, 2, 3]


def test_a_node_without_a_shard_says_so(tmp_path, monkeypatch):
    commit(str(tmp_path), [[0]])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="No samples found in dataset; perhaps you have fewer shards than workers"):
        keys(shards.open(str(tmp_path), decode=False))
    assert keys(shards.open(str(tmp_path), decode=False, empty_check=False)) == []


def test_shuffling_gives_each_clip_once_in_an_order_of_the_seed(out):
    orders = [keys(shards.open(out, decode=False, shuffle=10, seed=seed)) for seed in (1, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == [f"clip{n:02d}" for n in range(CLIPS)] for order in orders)


def test_s3_is_read_by_our_storage(s3):
    commit(f"{s3.uri}/out", [[0], [1]])
    read = list(shards.open(f"{s3.uri}/out"))
    assert [each["__key__"] for each in read] == ["clip00", "clip01"]
    assert read[1]["mp4"].shape == (12, 16, 32, 3)
    with pytest.raises(ValueError, match="can be read here, not written"):
        import_module("webdataset").gopen(f"{s3.uri}/x.tar", "wb")


def test_a_handler_of_the_users_own_is_kept(monkeypatch):
    schemes = import_module("webdataset.gopen").gopen_schemes
    assert schemes["s3"] is shard_reader._open_s3
    monkeypatch.setitem(schemes, "s3", print)
    import_module("importlib").reload(shard_reader)
    assert schemes["s3"] is print


@pytest.mark.parametrize("decode", [True, False])
def test_a_spawned_worker_can_open_s3(s3, decode):
    torch_data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    commit(f"{s3.uri}/out", [[0], [1]])
    dataset = shards.open(f"{s3.uri}/out", decode=decode)
    loader = torch_data.DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert keys(loader) == ["clip00", "clip01"]


def test_workers_of_a_data_loader_share_the_shards(out):
    torch_data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    loader = torch_data.DataLoader(shards.open(out, fps=5), batch_size=None, num_workers=2)
    read = {each["__key__"]: each["mp4"].shape for each in loader}
    assert read == {f"clip{n:02d}": (6, 16, 32, 3) for n in range(CLIPS)}


def damaged(out):
    """A shard whose second clip has no video worth the name."""
    good, bad = sample(0), Sample("clip01", {"index": 1}, {"mp4": b"not a video"})
    shards.put_index(out, "000000", shards.put_tar(out, "000000", [good, bad, sample(2)]))


def test_a_clip_that_cannot_be_decoded_is_named_and_can_be_left_out(tmp_path):
    damaged(str(tmp_path))
    with pytest.raises(ValueError, match="clip clip01: mp4: cannot be decoded: Invalid data"):
        list(shards.open(str(tmp_path)))
    handler = import_module("webdataset").ignore_and_continue
    assert keys(shards.open(str(tmp_path), handler=handler)) == ["clip00", "clip02"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": 0}, "fps must be over 0"),
        ({"fps": 5, "decode": False}, "needs decode=True"),
        ({"shuffle": -1}, "not be negative"),
    ],
)
def test_options_that_cannot_work_are_refused(out, options, words):
    with pytest.raises(InputError, match=words):
        shards.open(out, **options)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no committed shard in .*; make some with `gamecraft curate`"):
        shards.open(str(tmp_path))
    with pytest.raises(InputError, match="there is no such shard"):
        shards.open(str(tmp_path / "000000.tar"))
    (tmp_path / "dataset.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema version 99"):
        shards.open(str(tmp_path))
    with pytest.raises(InputError, match="only paths, file:// and s3://"):
        shards.open("http://host/out")


def test_an_uncommitted_tar_does_not_count(out, tmp_path):
    commit(str(tmp_path), [[0]])
    shards.put_tar(str(tmp_path), "000001", [sample(1)])
    assert keys(shards.open(str(tmp_path), decode=False)) == ["clip00"]


# wids


def test_wids_reads_any_clip_by_its_number(tmp_path, capsys):
    wids = pytest.importorskip("wids", reason='wids is in the extra "dev"')
    out = str(tmp_path / "out")
    commit(out, [[0], [1, 2], [], [3, 4, 5]])
    dataset = wids.ShardListDataset(
        f"{out}/index.json", cache_dir=str(tmp_path / "cache"), transformations=[shard_reader.decode_sample]
    )
    assert len(dataset) == CLIPS
    streamed = list(shards.open(out))
    for number in (5, 0, 2, 3, 1, 4):
        clip = dataset[number]
        assert clip["__key__"] == streamed[number]["__key__"]
        assert clip[".json"] == streamed[number]["json"]
        assert np.array_equal(clip[".mp4"], streamed[number]["mp4"])
        assert np.array_equal(clip[".times_s"], streamed[number]["times_s"])
        assert (".camera.npz" in clip) == ("camera.npz" in streamed[number])
    dataset.close()


def test_the_index_of_wids_is_the_same_for_the_same_shards(tmp_path):
    for name in "ab":
        shards.write_wids_index(str(tmp_path / name), {"000001": 2, "000000": 1, "000002": 0})
    a, b = ((tmp_path / name / "index.json").read_bytes() for name in "ab")
    assert a == b
    assert json.loads(a) == {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [{"url": "shards/000000.tar", "nsamples": 1}, {"url": "shards/000001.tar", "nsamples": 2}],
    }
    assert shards.list_committed(str(tmp_path / "a")) == []


def test_a_folder_that_cannot_be_written_is_still_read(out):
    folder = Path(out) / "shards"
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        assert len(keys(shards.open(out, decode=False))) == CLIPS
    finally:
        folder.chmod(mode)
    assert os.access(folder, os.R_OK)
    with tarfile.open(folder / "000002.tar") as tar:
        assert tar.getnames()[0] == "clip03.camera.npz"
