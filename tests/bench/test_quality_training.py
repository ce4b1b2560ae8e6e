"""The training material of the quality network, from pictures and a recording that the test makes."""

import cv2
import numpy as np
import pytest

from bench import degrade
from bench.shipped_weights import train_quality
from bench.shipped_weights.boxes import FRAMES
from bench.shipped_weights.material import MAX_WINDOW, Material
from curation.quality.iqa import FAULTS, PATCH


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    folder, rng = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    for number, side in enumerate((64, 64, 700, 900)):
        picture = cv2.resize(rng.integers(0, 256, (side // 4, side // 3), np.uint8), (side * 4 // 3, side))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    clip = np.stack([rng.integers(0, 256, (90, 160), np.uint8)] * 20)
    (folder / "play.mp4").write_bytes(_mp4(clip))
    return Material([folder])


def _mp4(clip):
    import io

    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.height, stream.width = clip.shape[1:]
        for luma in clip:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(luma, "gray")))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_pictures_textures_and_recordings_are_told_apart(material):
    assert [len(found) for found in (material.pictures, material.textures, material.recordings)] == [2, 2, 1]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_a_snippet_is_a_window_of_moving_pictures_and_follows_from_its_seed(material, times, plain):
    for seed in range(6):
        once, again = (material.draw(np.random.default_rng(seed), times, plain) for _ in range(2))
        assert np.array_equal(once, again)
        assert (once.dtype, len(once)) == (np.uint8, FRAMES)
        assert all(PATCH <= side <= most * times for side, most in zip(once.shape[:0:-1], MAX_WINDOW, strict=True))


def test_damage_on_top_of_what_was_stored_is_never_less(material):
    rows = [row for number in range(2) for row in _snippet(material, number)]
    assert {row[3] for row in rows} >= set(range(len(FAULTS)))
    for number in range(2):
        levels = [row[2] for row in rows if row[4] == number]
        assert levels[0] == min(levels)
        assert max(levels) <= 1


def _snippet(material, number):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_quality, "_material", lambda _: material)
        return train_quality._snippet_rows((), 3, False, number)


def test_footage_made_smaller_after_coding_counts_for_what_can_still_be_measured():
    rng = np.random.default_rng(0)
    clip = np.stack([cv2.GaussianBlur(rng.integers(0, 256, (128, 192), np.uint8), (0, 0), 1.5)] * 2)
    small = train_quality._halve(clip)
    assert small.shape == (2, 64, 96)
    worse = train_quality._halve(degrade.apply_damage(clip, degrade.KINDS["blocks"], 0.8, 0))
    assert degrade.gmsd(small[0], worse[0]) < degrade.gmsd(
        clip[0], degrade.apply_damage(clip, degrade.KINDS["blocks"], 0.8, 0)[0]
    )
