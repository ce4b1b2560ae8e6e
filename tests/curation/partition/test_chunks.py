"""Chunks join to what one pass gives, bit for bit, or refuse."""

import math
from contextlib import suppress
from dataclasses import fields, replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from curation.errors import NotExact, UnreadableVideo
from curation.media import seek
from curation.media.source import probe
from curation.partition import chunks, scan
from curation.partition.chunks import ScanSettings, scan_chunk
from curation.partition.cuts import SceneSettings, cut_frames
from curation.partition.optical_flow import FlowSettings
from curation.worker_state import worker

DIS = ScanSettings(FlowSettings(backend="dis"))
COUNT, FPS = 180, 20
OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=40:scenecut=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=60"}

CASES = {
    "short_gop.mp4": {"options": {"g": "30"}},
    "long_gop.mkv": {"options": {"g": "250", "x264-params": "scenecut=0"}},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "late_start.mp4": {"options": {"g": "50"}, "first_s": 3.21},
    "irregular.mp4": {"options": {"g": "60"}, "irregular": True},
    "irregular.mkv": {"options": {"g": "60"}, "irregular": True},
    "fragments.mp4": {"options": {"g": "60"}, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "70"}},
    "wraps.ts": {"options": {"g": "60"}, "muxer": {"output_ts_offset": "95436"}},
    "plain.flv": {"options": {"g": "60"}},
    "refresh.mp4": {"options": REFRESH},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:keyint=50"}},
}


@pytest.fixture(autouse=True)
def fresh():
    scan.clear_caches()
    yield
    scan.clear_caches()


@pytest.fixture
def scenes(moving):
    """A wandering camera with two cuts, a flash and a stretch that stands still."""

    def pictures(count, width=160, height=120):
        for k, picture in enumerate(moving(count, width, height)):
            if k in (70, 71):
                yield np.full_like(picture, 250)
            elif k < 90 or k >= 150:
                yield picture
            elif k < 120:
                yield picture[::-1, ::-1].copy()
            else:
                yield np.full_like(picture, 90)

    return pictures


def frame_times(first_s=0.0, irregular=False):
    if not irregular:
        return [first_s + k / FPS for k in range(COUNT)]
    steps = np.random.default_rng(5).choice([0.011, 0.02, 0.05, 0.05, 0.09, 0.3], COUNT - 1)
    return np.round(np.cumsum([0.0, *steps]), 3).tolist()


def chunked(uri, *bounds_s):
    """Chunks between these times, each measured as by a process of its own, and stored in between."""
    parts = []
    for start_s, end_s in pairwise([0.0, *bounds_s, math.inf]):
        scan.clear_caches()
        parts.append(chunks.from_bytes(chunks.to_bytes(scan_chunk(uri, DIS, start_s, end_s))))
    return parts


def every(chunk_s, signals):
    return np.arange(chunk_s, signals.end_s - chunk_s / 2, chunk_s).tolist()


def assert_same(joined, whole):
    for field in fields(scan.Signals):
        ours, theirs = getattr(joined, field.name), getattr(whole, field.name)
        if isinstance(theirs, np.ndarray):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), field.name
            assert ours.tobytes() == theirs.tobytes(), field.name
        elif field.name == "viewport":
            assert (ours.picture, ours.view, ours.steps) == (theirs.picture, theirs.view, theirs.steps)
            assert np.array_equal(ours.static, theirs.static)
        else:
            assert ours == theirs, field.name
    cuts = [cut_frames(s.content, s.flow_match, s.layout_similarity, s.fps, SceneSettings()) for s in (joined, whole)]
    assert cuts[0] == cuts[1]


OFTEN = ("short_gop.mp4", "open_gop.ts", "irregular.mkv", "vp9.webm", "wraps.ts")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.exhaustive) for name in CASES]
)
def test_chunks_join_to_one_pass(name, tmp_path, scenes, write):
    case = dict(CASES[name])
    times_s = frame_times(**{key: case.pop(key) for key in ("first_s", "irregular") if key in case})
    uri = write(tmp_path / name, scenes(COUNT), times_s, **case)
    whole = scan.scan(uri, DIS)
    assert len(whole.pair_frame) > 60
    assert_same(scan.join_chunks(whole.source, chunked(uri, *every(2.3, whole))), whole)


def test_the_place_of_a_seam_does_not_matter(tmp_path, scenes, write):
    uri = write(tmp_path / "a.mp4", scenes(COUNT), frame_times(), options={"g": "30"})
    whole = scan.scan(uri, DIS)
    assert len(cut_frames(whole.content, whole.flow_match, whole.layout_similarity, whole.fps, SceneSettings())) > 1
    for seam_s in (3.55, 4.5):  # in the flash; on a cut
        assert_same(scan.join_chunks(whole.source, chunked(uri, seam_s)), whole)


def test_pairs_come_on_a_grid_of_the_source(tmp_path, moving, write):
    uri = write(tmp_path / "a.mp4", moving(60, 64, 64), (k / 30 for k in range(60)))
    for pairs_per_s, gap in ((10.0, 3), (240.0, 1)):
        signals = scan.scan(uri, ScanSettings(FlowSettings(backend="dis", pairs_per_s=pairs_per_s)))
        assert signals.pair_frame.tolist() == list(range(1, 60, gap))


def far(uri, monkeypatch):
    """Chunks of a source as if it were long: its start is not near."""
    monkeypatch.setattr(seek, "_NEAR_S", 2.0)
    return chunked(uri, 6.0)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("refresh.ts", {"options": REFRESH}),
        ("plain.avi", {"codec": "mpeg4", "options": {"g": "60"}, "clock": Fraction(1, FPS)}),
    ],
)
def test_a_source_that_is_entered_at_its_start_only_is_refused_before_it_is_decoded(
    name, case, tmp_path, moving, write, monkeypatch
):
    uri = write(tmp_path / name, moving(COUNT, 128, 80), frame_times(), **case)
    with pytest.raises(NotExact, match="can only be decoded from its start"):
        far(uri, monkeypatch)
    assert worker.decodes["scan chunk"] == 0


def test_a_source_that_can_be_entered_is_not_decoded_from_its_start(tmp_path, scenes, write, monkeypatch):
    uri = write(tmp_path / "a.mp4", scenes(COUNT), frame_times(), options={"g": "20", "x264-params": "scenecut=0"})
    assert far(uri, monkeypatch)[1].before[0, 0] == pytest.approx(5.7)
    passed, real = [], seek.stamped_frames
    monkeypatch.setattr(seek, "stamped_frames", lambda *a: (passed.append(frame.pts) or frame for frame in real(*a)))
    scan_chunk(uri, DIS, 7.5, math.inf)
    assert min(passed[1:]) / 90_000 >= 3.5, "the first one is the probe's"


def test_a_damaged_source_is_refused(tmp_path, moving, write):
    uri = write(tmp_path / "a.mkv", moving(120, 128, 96), (k / 10 for k in range(120)), options={"g": "10"})
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2500] = np.random.default_rng(1).bytes(2500)
    (tmp_path / "a.mkv").write_bytes(bytes(data))
    with pytest.raises(NotExact, match="is damaged: damaged packets"):
        chunked(uri, 4.0, 8.0)


def test_stills_and_sources_that_end_early_are_refused(tmp_path, moving, write):
    uri = write(tmp_path / "stills.mp4", moving(12, 64, 64), (2.0 * k for k in range(12)))
    with pytest.raises(NotExact, match="too few frames within 3 s before"):
        scan_chunk(uri, DIS, 12.0, math.inf)
    with pytest.raises(NotExact, match="too few frames at the end"):
        scan_chunk(uri, DIS, 0.0, 23.0)
    with pytest.raises(NotExact, match="too few frames within 3 s before"):
        scan_chunk(uri, DIS, 30.0, math.inf)


def test_a_hole_in_time_is_joined_or_refused(tmp_path, scenes, write):
    times_s = [k / FPS + (3600 if k >= 100 else 0) for k in range(COUNT)]
    uri = write(tmp_path / "hole.mp4", scenes(COUNT), times_s, options={"g": "20"})
    whole = scan.scan(uri, DIS)
    assert [(part.first, part.last) for part in whole.segments] == [(0, 100), (100, COUNT)]
    assert_same(scan.join_chunks(whole.source, chunked(uri, 2.5, 3608.5)), whole)
    for bounds_s in (
        (4.0, 2000.0),
        (2000.0, 3000.0),
        (3605.0,),
    ):  # a seam in the hole, a chunk without a frame, a seam at its end
        with pytest.raises(NotExact, match=r"can only be decoded|too few frames"):
            chunked(uri, *bounds_s)


def test_what_is_no_video_says_so(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"")
    with pytest.raises(UnreadableVideo):
        scan_chunk(str(tmp_path / "x.mp4"), DIS, 0.0, 5.0)


def test_chunks_that_do_not_belong_together_are_refused(tmp_path, scenes, write):
    uri = write(tmp_path / "a.mp4", scenes(COUNT), frame_times(), options={"g": "30"})
    source, (a, b, c) = probe(uri), chunked(uri, 4.0, 8.0)
    moved = b.before.copy()
    moved[2, 1] += 1
    for parts, reason in (
        ([a, b], "lacks a chunk"),
        ([b, c], "lacks a chunk"),
        ([a, c], "decodes differently"),
        ([a, replace(b, before=moved), c], "decodes differently"),
        ([a, replace(b, flow="raft"), c], "measured with different settings"),
        ([a, replace(b, arrays={}), c], "measured with different settings"),
    ):
        with pytest.raises(NotExact, match=reason):
            scan.join_chunks(source, parts)


def test_adopted_chunks_stand_for_the_pass(clip):
    scan.use_chunks(clip, DIS, chunked(clip, 2.0))
    worker.decodes.clear()
    assert len(scan.scan(clip, DIS).times_s) == 40
    assert worker.decodes == {}
    scan.clear_caches()
    scan.scan(clip, DIS)
    assert worker.decodes == {"scan": 1}


def test_half_a_file_is_no_chunk(clip):
    data = chunks.to_bytes(scan_chunk(clip, DIS, 0.0, 2.0))
    for bad in (b"", data[: len(data) // 2], b"x" * 500):
        with pytest.raises(NotExact, match="cannot be read"):
            chunks.from_bytes(bad)


SUFFIXES = {".mp4", ".webm", ".mkv", ".ts", ".avi", ".flv", ".mov", ".gif"}
REFUSED = {
    "-video-with-dash-.mp4": "too few frames",  # one a second
    "decord_corrupted.mp4": "is damaged",
    "sample-with-large-length.avi": "only be decoded from its start",
    "testsrc2_mpeg4.avi": "only be decoded from its start",
}


LONGEST_S = 6.0


def beginning(path, folder):
    """The first seconds of a long video, its packets as they are, in a container of the same kind; a short one itself."""
    with av.open(str(path), metadata_errors="ignore") as source:
        if not source.duration or source.duration / av.time_base <= 1.5 * LONGEST_S or not source.streams.video:
            return path
        stream = source.streams.video[0]
        with av.open(str(folder / path.name), "w") as target:
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is None or packet.dts * packet.time_base > LONGEST_S:
                    break
                packet.stream = copy
                target.mux(packet)
    return folder / path.name


@pytest.mark.exhaustive
@pytest.mark.footage
@pytest.mark.parametrize("files", ["gameplay_real/*", "odd_media/*", "real_clips/*", "scene_cuts/*", "vizdoom/*"])
def test_all_footage_joins_to_one_pass_or_is_refused_for_a_reason(files, footage, tmp_path):
    for path in sorted(path for path in footage.glob(files) if path.suffix in SUFFIXES):
        scan.clear_caches()
        with suppress(av.FFmpegError):  # what cannot be opened is refused below
            path = path if path.name in REFUSED else beginning(path, tmp_path)
        try:
            whole = scan.scan(str(path), DIS)
        except UnreadableVideo:
            continue
        bounds_s = every(max(2.0, whole.end_s / 6), whole)
        if path.name in REFUSED:
            with pytest.raises(NotExact, match=REFUSED[path.name]):
                scan.join_chunks(whole.source, chunked(str(path), *(bounds_s or [whole.end_s / 2])))
        else:
            assert_same(scan.join_chunks(whole.source, chunked(str(path), *bounds_s)), whole)
