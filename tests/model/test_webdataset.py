"""`curation.shards.open` held against our own loader: the same clips, pictures, poses and texts."""

import numpy as np
import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")

from model.data.captions import CaptionMix, caption  # noqa: E402
from model.data.loader import DataSettings, Windows, read_sample  # noqa: E402
from model.data.poses import chain_cameras  # noqa: E402

SETTINGS = DataSettings(frames=5, fps=10.0, size=(64, 48), camera_dropout=0.0, captions=CaptionMix(dropout=0.0))


def test_both_readers_give_the_same_clips(made, tmp_path):
    out = str(tmp_path)
    clips = [made.clip("a", i, 30 * i, 30, scale=1 + i) for i in range(3)]
    for name, samples in (("000000", clips[:2]), ("000001", clips[2:])):
        shards.put_index(out, name, shards.put_tar(out, name, samples))
    read = {clip["__key__"]: clip for clip in shards.open(out)}
    loader = Windows([out], SETTINGS)
    assert {window.clips[0].clip_id for window in loader.windows} == set(read)
    for window in loader.windows:
        ours, theirs = read_sample(window, SETTINGS, epoch=0), read[window.clips[0].clip_id]
        times_s = window.start_s + np.arange(5) / 10
        frames = np.searchsorted(theirs["times_s"], times_s + 5e-4, side="right") - 1
        video = torch.from_numpy(theirs["mp4"][frames]).permute(3, 0, 1, 2)
        # Both let FFmpeg convert colours; scaling by one may round otherwise.
        assert (ours["video"].int() - video.int()).abs().max() <= 2
        poses = chain_cameras([theirs["camera.npz"]], [theirs["times_s"][frames]])
        torch.testing.assert_close(ours["pose"], torch.from_numpy(poses.pose).float(), atol=1e-6, rtol=0)
        assert ours["text"] in {
            caption(theirs["json"], SETTINGS.captions, *draws) for draws in np.random.default_rng(0).random((99, 2))
        }
