"""Fields, HDR and tracks: the picture that is decoded is the one to see, wherever the decode begins."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from curation.media import decode
from curation.media.decode import Span, read_frames
from curation.media.encode import Encoding, encode
from curation.media.repair import hdr_to_sdr
from curation.media.source import probe
from curation.partition import scan
from curation.partition.chunks import ScanSettings, scan_chunk
from curation.partition.optical_flow import FlowSettings
from curation.quality.iqa import combed_share, combing
from curation.quality.luminance import QualityLimits, reject_reason

DIS = ScanSettings(FlowSettings(backend="dis"))
INTERLACED = {"options": {"preset": "ultrafast", "g": "10", "x264-params": "tff=1"}, "flags": 1 << 18 | 1 << 29}
COUNT = 60


def panned(count, width=160, height=96):
    """A camera that pans over smooth ground by 6 px a picture."""
    coarse = np.random.default_rng(7).integers(0, 256, (height // 12, (width + 6 * count) // 12 + 1, 3), np.uint8)
    ground = cv2.resize(coarse, None, fx=12, fy=12, interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(ground[:, 6 * k : 6 * k + width]) for k in range(count)]


def woven(count=COUNT):
    """Frames of two fields, the lower one from a twentieth of a second later."""
    pictures = panned(2 * count)
    for upper, lower in zip(pictures[::2], pictures[1::2], strict=True):
        frame = upper.copy()
        frame[1::2] = lower[1::2]
        yield frame


@pytest.fixture(autouse=True)
def fresh_caches():
    scan.clear_caches()
    yield
    scan.clear_caches()


@pytest.fixture
def interlaced(tmp_path, write):
    return write(tmp_path / "fields.mp4", woven(), (k / 10 for k in range(COUNT)), **INTERLACED)


def test_interlaced_footage_is_deinterlaced_and_says_so(interlaced):
    signals = scan.scan(interlaced, DIS)
    assert probe(interlaced).interlaced
    assert signals.notes == ["interlaced: deinterlaced"]
    assert signals.deinterlaced.all()
    assert combed_share(signals.combing) == 0
    shown, fields = read_frames(interlaced, Span(1.0, 3.0)).rgb, list(woven())[10:30]
    moments = np.array(panned(2 * COUNT), int)
    for frames, one_moment in ((shown, True), (fields, False)):
        off = sorted(np.abs(np.array(frames, int) - moments[20 + later : 60 : 2]).mean() for later in (0, 1))
        assert (off[0] < 0.7 * off[1]) == one_moment, off


def test_deinterlaced_spans_equal_the_whole(interlaced, digest):
    whole = {round(time_s, 6): digest(frame) for time_s, frame in decode.decode(interlaced)}
    assert len(whole) == COUNT
    for start_s in (0.0, 0.1, 0.95, 1.0, 1.1, 2.0, 3.5, 5.5):
        decode.clear_caches()
        frames = [(round(t, 6), digest(frame)) for t, frame in decode.decode(interlaced, Span(start_s, start_s + 0.5))]
        assert len(frames) == 5
        assert all(whole[time_s] == name for time_s, name in frames), start_s


def test_chunks_of_interlaced_footage_join_to_one_pass(interlaced):
    whole = scan.scan(interlaced, DIS)
    scan.clear_caches()
    parts = [scan_chunk(interlaced, DIS, 0.0, 4.0), scan_chunk(interlaced, DIS, 4.0, float("inf"))]
    joined = scan.join_chunks(whole.source, parts)
    for name in ("content", "luma_bins", "cells", "iqa_rows", "combing", "deinterlaced"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name


def test_progressive_footage_passes_untouched(clip):
    source = probe(clip)
    assert (source.interlaced, source.transfer, source.other_tracks) == (False, None, ())
    signals = scan.scan(clip, DIS)
    assert signals.notes == []
    assert not signals.deinterlaced.any()


def test_fields_that_are_not_marked_are_found_and_rejected(tmp_path, write):
    uri = write(tmp_path / "combed.mp4", woven(), (k / 10 for k in range(COUNT)), options={"crf": "12"})
    signals = scan.scan(uri, DIS)
    assert combed_share(signals.combing) == 1
    assert signals.notes == ["looks interlaced and is not marked so: 100% of its samples are combed"]
    words = reject_reason({"combed": 1.0, "iqa": 0.9}, QualityLimits())
    assert words == "combed, though not marked as interlaced: share of samples 1 > 0.2"


def test_lines_that_are_there_are_no_combing():
    scanlines = np.tile(np.array([[200], [60]], np.uint8), (60, 160))
    dither = np.indices((120, 160)).sum(0).astype(np.uint8) % 2 * 140 + 60
    noise = np.random.default_rng(1).integers(0, 256, (120, 160), np.uint8)
    for picture in (scanlines, dither, noise, np.full((2, 2), 90, np.uint8)):
        assert combing(picture) < 0.002
    fields = np.full((120, 160), 60, np.uint8)
    fields[::2, 40:80], fields[1::2, 50:90] = 200, 200
    assert combing(fields) > 0.05
    assert combed_share(np.zeros(0)) is None


PQ_CODES = (0.0, 0.2, 0.4, 0.58, 0.7)


def hdr(path, transfer):
    """Five flat stripes of PQ or HLG codes, BT.2020, ten bits."""
    levels = np.repeat(np.round(64 + 876 * np.array(PQ_CODES)), 32)
    planes = np.full((96 * 3 // 2, 160), 512, np.uint16)
    planes[:96] = levels
    with av.open(str(path), "w") as output:
        stream = output.add_stream(
            "libx265", rate=10, options={"x265-params": "log-level=none", "preset": "ultrafast", "crf": "4"}
        )
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for k in range(10):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p10le")
            frame.pts, frame.time_base = k, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(("transfer", "name"), [(16, "pq"), (18, "hlg")])
def test_hdr_is_mapped_to_sdr_and_says_so(tmp_path, transfer, name):
    uri = hdr(tmp_path / "hdr.mp4", transfer)
    assert probe(uri).transfer == name
    stripes = read_frames(uri, Span(0, 1)).rgb[3].reshape(96, 5, 32, 3)[:, :, 8:24].mean((0, 2))
    wanted = 255 * hdr_to_sdr(np.repeat(np.array(PQ_CODES)[:, None], 3, 1), name)
    assert stripes == pytest.approx(wanted, abs=4)
    assert scan.scan(uri, DIS).notes == [f"HDR ({name.upper()}): its pictures are mapped to SDR"]
    (tmp_path / "stored.mp4").write_bytes(encode(uri, Span(0, 1), None, Encoding()).mp4)
    stored = read_frames(str(tmp_path / "stored.mp4"), Span(0, 1)).rgb[3].reshape(96, 5, 32, 3)[:, :, 8:24].mean((0, 2))
    assert stored == pytest.approx(wanted, abs=6)
    assert probe(str(tmp_path / "stored.mp4")).transfer is None


def test_graphics_white_is_nearly_white_and_order_and_hue_stay():
    grey = hdr_to_sdr(np.linspace(0, 1, 101)[:, None].repeat(3, 1), "pq")[:, 0]
    assert (np.diff(grey) >= 0).all()
    assert 0.85 < grey[58] < 0.95, "203 nits; above them there is room for lights"
    assert grey[75] == pytest.approx(1, abs=1e-3), "1000 nits"
    red, green, blue = hdr_to_sdr(np.array([[0.5, 0.45, 0.45]]), "pq")[0]
    assert red > green
    assert green == pytest.approx(blue, abs=0.05)


def tracks(path, *wanted):
    """A file of several video tracks: codec, size, whether it is the default one."""
    with av.open(str(path), "w") as output:
        streams = []
        for codec, (width, height), default in wanted:
            stream = output.add_stream(codec, rate=10)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
            streams.append(stream)
        for k in range(10):
            for stream in streams:
                picture = np.full((stream.height, stream.width, 3), 20 * k, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = k, Fraction(1, 10)
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode())
    return str(path)


PREVIEW, GAME = ("mjpeg", (80, 48)), ("libx264", (160, 96))


@pytest.mark.parametrize(
    ("name", "wanted", "left"),
    [
        ("preview.mkv", [(*PREVIEW, False), (*GAME, True)], "mjpeg 80x48"),
        ("preview.mp4", [(*PREVIEW, False), (*GAME, True)], "mjpeg 80x48"),
        ("both.mkv", [("libx264", (80, 48), True), (*GAME, True)], "h264 80x48"),
        ("neither.mkv", [("libx264", (80, 48), False), (*GAME, False)], "h264 80x48"),
        ("last.mkv", [(*GAME, True), (*PREVIEW, False)], "mjpeg 80x48"),
    ],
)
def test_the_recording_is_taken_and_not_its_preview(tmp_path, name, wanted, left):
    uri = tracks(tmp_path / name, *wanted)
    source = probe(uri)
    assert (source.codec, source.width, source.height) == ("h264", 160, 96)
    assert len(list(decode.decode(uri))) == 10
    assert scan.scan(uri, DIS).notes == [f"video tracks not taken: {left}"]


@pytest.mark.footage
def test_a_track_without_frames_is_not_taken(footage):
    source = probe(str(footage / "odd_media/sample_empty_track.mp4"))
    assert source.other_tracks == ("h264 1080x720",)
