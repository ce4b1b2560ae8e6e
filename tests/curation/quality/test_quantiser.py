import av
import numpy as np
import pytest

from bench import degrade
from curation.media import decode
from curation.quality.embedded_backend import with_coding
from curation.quality.iqa import FAULTS
from curation.quality.quantiser import coded_level

COMPRESSED = 1 + FAULTS.index("compressed")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (140, 200), np.uint8).repeat(2, 0).repeat(2, 1)
    return np.stack([rough[k : k + 128, 2 * k : 2 * k + 192] for k in range(8)])


@pytest.mark.parametrize(("kind", "off_by"), [("vp9", 0.12), ("mpeg4", 0.03)])
def test_the_level_follows_the_quantiser(clip, kind, off_by):
    for level in (0.1, 0.25, 0.45):
        amount = degrade.amount_of(degrade.KINDS[kind], level)
        _, levels = degrade.encode_decode_levels(clip, *degrade.encoder_options(kind, amount))
        assert levels.mean() == pytest.approx(level, abs=off_by)


def test_what_no_decoder_gave_has_no_level(clip):
    assert coded_level(av.VideoFrame.from_ndarray(clip[0], "gray")) is None


def test_a_scan_gets_the_quantiser(clip, tmp_path):
    file = tmp_path / "clip.mkv"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("mpeg4", rate=25, options={"qmin": "20", "qmax": "20", "b": "20M", "bt": "20M"})
        stream.height, stream.width = clip.shape[1:]
        for luma in clip:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(luma, "gray").reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    assert [coded_level(frame) for _, frame in decode.decode(str(file))] == [pytest.approx(0.4, abs=0.05)] * len(clip)


def test_a_coarse_quantiser_counts_where_the_picture_looks_less_compressed():
    row = np.array([0.8, 0.05, 0.15, 0, 0, 0, 0], np.float32)
    coarse = with_coding(row, 0.5)
    assert coarse[COMPRESSED] == pytest.approx(0.5)
    assert coarse[0] == pytest.approx(0.35)
    assert coarse.sum() == pytest.approx(1)
    assert with_coding(row, 1.0)[0] == 0
    assert with_coding(row, 1.0).sum() == pytest.approx(1)
    for level in (None, 0.0, 0.04):
        assert np.array_equal(with_coding(row, level), row)
    assert np.isnan(with_coding(np.full_like(row, np.nan), 0.5)).all()


def test_the_quantiser_of_h264_says_nothing(clip):
    _, levels = degrade.encode_decode_levels(clip, *degrade.encoder_options("x264", 40))
    assert np.isnan(levels).all()
