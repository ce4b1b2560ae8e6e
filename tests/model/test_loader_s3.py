"""Loader workers on s3:// over connections that stay open: the same batches as from a disk, whatever their number."""

import os
import subprocess
import sys
from itertools import islice

import pytest

from curation import shards, storage
from model.data.captions import CaptionMix

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.data.loader import Batches, DataSettings, Windows  # noqa: E402

SETTINGS = DataSettings(frames=5, fps=10.0, size=(48, 32), camera_dropout=0.0, captions=CaptionMix(dropout=0.0))
BATCHES = 24


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    """Six clips whose bytes differ."""
    folder = str(tmp_path_factory.mktemp("data"))
    samples = [made.clip(video, i, 30 * i, 30) for video in "ab" for i in (0, 1, 2)]
    shards.put_index(folder, "000000", shards.put_tar(folder, "000000", samples))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_batches_from_s3_are_those_from_disk(workers, out, front):
    if workers and "ray" in sys.modules and "LOADS_IN_ITS_OWN_PROCESS" not in os.environ:
        # Ray's threads, left by another file of tests, may hold locks when the loader forks; its children then wait for ever.
        name = f"{__file__}::test_batches_from_s3_are_those_from_disk[{workers}]"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        subprocess.run(command, check=True, env=os.environ | {"LOADS_IN_ITS_OWN_PROCESS": "1"}, timeout=250)
        return
    for entry in storage.list_files(out):
        storage.put(f"{front.uri}/{os.path.relpath(entry.uri, out)}", storage.read(entry.uri))
    # Both read indexes, so the connection pool holds connections when it forks.
    here, there = Windows([out], SETTINGS), Windows([front.uri], SETTINGS)
    before = front.asked["GET range"]
    loaded = Batches(there, 2, workers=workers)
    for ours, theirs in islice(zip(Batches(here, 2, workers=0), loaded, strict=False), BATCHES):
        assert theirs["replaced"] == []
        assert (theirs["key"], theirs["text"]) == (ours["key"], ours["text"])
        for name in ("video", "pose", "intrinsics"):
            assert torch.equal(theirs[name], ours[name]), name
    del loaded
    assert front.asked["GET range"] - before >= BATCHES * 2 * 3, "video, camera and json of every sample"
