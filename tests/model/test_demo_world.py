"""Evaluation of the demo world: which windows are held out, what counts, how pictures are compared."""

from dataclasses import replace

import numpy as np
import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("vizdoom", reason="the extra `demo` is not installed")

from bench import demo_footage, demo_world  # noqa: E402
from model.recipes import demo  # noqa: E402
from synth.doom.map_splits import HELD_OUT  # noqa: E402

DATA = replace(demo().data, fps=10.0, size=(48, 32))


def test_maps_to_train_on_and_held_out_are_not_the_same():
    maps = {kind: {name for take in demo_footage.takes(kind) for _, name, _ in take.maps} for kind in ("train", "held-out")}
    assert maps["held-out"] == set(HELD_OUT) & maps["held-out"]
    assert not maps["train"] & HELD_OUT
    assert len(maps["train"]) == 44


def test_held_out_windows_have_one_direction_and_do_not_overlap(made, tmp_path, monkeypatch):
    """A clip of 29 frames at 10 fps that walks ahead holds three windows of nine; its first frame is of one grey."""
    monkeypatch.setattr(demo_world, "FRAMES", 9)
    samples = [made.clip("a", 0, 0, 90), made.clip("b", 0, 30, 30)]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", samples))
    clips = demo_world.held_out_clips([str(tmp_path)], DATA)
    assert clips.directions == ["forward"] * 4
    assert {one["key"] for one in clips.samples} == {"a00@0.000+1", "a00@0.000+10", "a00@0.000+19", "b00@0.000+0"}
    for one in clips.samples:
        assert one["video"].shape == (3, 9, 32, 48)
        torch.testing.assert_close(one["pose"][:, 2, 3], 0.3 * torch.arange(9), atol=1e-4, rtol=0)


def test_shares_are_by_direction_and_by_turn_and_walk():
    """Videos of a grating that moves to the left: the view turns to the right."""
    columns = np.arange(64)[None] - 2 * np.arange(9)[:, None]
    stripes = (127 + 100 * np.sin(columns / 3)).astype(np.uint8)
    rows = np.linspace(0.5, 1, 48)[None, :, None]
    right = torch.from_numpy((stripes[::-1].copy()[:, None] * rows).astype(np.uint8)).expand(3, -1, -1, -1)
    found = demo_world.accuracy(["right", "left"], torch.stack([right, right]))
    assert (found["right"].share, found["left"].share) == (1, 0)
    assert (found["turn"].share, found["turn"].clips) == (0.5, 2)


def test_pictures_are_compared_behind_the_first_frame():
    real = torch.randint(0, 255, (2, 3, 5, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    off = real.clone()
    off[:, :, 0] = 0
    assert demo_world.fidelity(off, real)["psnr_db"] == pytest.approx(78.1, abs=0.1), "as good as equal"
    darker = (real.float() * 0 + 100).byte()
    lighter = darker + 10
    assert demo_world.fidelity(lighter, darker)["psnr_db"] == pytest.approx(20 * np.log10(25.5), abs=0.01)
