"""A span equals the slice of the sequential decode, in times and pixels, in every container and way of coding."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from curation.media import decode, seek
from curation.media.decode import Span, read_frames
from curation.media.source import probe

COUNT, FPS = 270, 20
_SLOW = Fraction(1, FPS)
_OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=40:scenecut=0"}
_REFRESH = {"x264-params": "intra-refresh=1:keyint=60"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "70"}
_MPEG2 = {"g": "30", "bf": "2", "b": "4M"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:open-gop=1:keyint=50:bframes=3:pools=1"}

CASES = {
    "short_gop.mp4": {"options": {"g": "30"}},
    "long_gop.mp4": {"options": {"g": "250", "x264-params": "scenecut=0"}},
    "open_gop.mp4": {"options": _OPEN_GOP},
    "open_gop.ts": {"options": _OPEN_GOP},
    "late_start.mp4": {"options": {"g": "50"}, "first_s": 3.21},
    "irregular.mp4": {"options": {"g": "60"}, "irregular": True},
    "irregular.mkv": {"options": {"g": "60"}, "irregular": True},
    "fragments.mp4": {"options": {"g": "60"}, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": _VP9},
    "short_gop.ts": {"options": {"g": "60"}},
    "long_gop.ts": {"options": {"g": "250"}},
    "wraps.ts": {"options": {"g": "60"}, "muxer": {"output_ts_offset": "95436"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": _MPEG2, "clock": Fraction(1, 25)},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "60", "bf": "2", "b": "2M"}, "clock": _SLOW},
    "h264.avi": {"options": {"g": "60"}, "clock": _SLOW},
    "plain.flv": {"options": {"g": "60"}},
    "refresh.ts": {"options": _REFRESH},
    "refresh.mp4": {"options": _REFRESH},
    "refresh.flv": {"options": _REFRESH},
    "elementary.h264": {"options": {"g": "60"}, "clock": _SLOW, "fps": 25},
    "open_gop_hevc.mp4": {"codec": "libx265", "options": _X265},
}


def spans(times_s: list[float], seed: int) -> list[Span]:
    """Starts on a frame and between frames, before 0 and near the end; empty, one frame long, seconds long."""
    rng = random.Random(seed)
    ends = (0.0, 0.04, 0.7, 2.5)
    starts = [-1.0, 0.0, times_s[-1], times_s[-1] + 1e-4, times_s[-1] + 100.0]
    starts += [rng.choice(times_s) for _ in range(5)] + [rng.uniform(0, times_s[-1]) for _ in range(5)]
    return [Span(start, start + rng.choice(ends)) for start in starts] + [Span(-5.0, 1e9)]


def frame_times(first_s=0.0, irregular=False, clock=None, fps=None) -> list[float]:
    if not irregular:
        rate = 1 / clock if clock else FPS
        return [float(first_s + k / rate) for k in range(COUNT)]
    rng, times = random.Random(5), [0.0]
    while len(times) < COUNT:
        times.append(round(times[-1] + rng.choice([0.011, 0.02, 0.05, 0.05, 0.09, 0.3]), 3))
    return times


def slices_equal(uri: str, digest) -> list[float]:
    """Compare every span with the slice of the whole; the times of all frames."""
    whole = [(time_s, digest(frame)) for time_s, frame in decode.decode(uri)]
    times_s = [time_s for time_s, _ in whole]
    for span in spans(times_s, seed=11):
        got = [(time_s, digest(frame)) for time_s, frame in decode.decode(uri, span)]
        assert got == [item for item in whole if span.start_s <= item[0] < span.end_s], span
    return times_s


@pytest.mark.parametrize("name", CASES)
def test_a_span_is_the_slice_of_the_whole(name, tmp_path, moving, write, digest):
    case = dict(CASES[name])
    given = frame_times(
        **{key: case.pop(key) for key in ("first_s", "irregular", "fps") if key in case}, clock=case.get("clock")
    )
    uri = write(tmp_path / name, moving(COUNT, 128, 80), given, **case)
    rate = CASES[name].get("fps")
    wanted = [k / rate for k in range(COUNT)] if rate else [time_s - given[0] for time_s in given]
    assert slices_equal(uri, digest) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.footage
@pytest.mark.parametrize(
    "name",
    [
        "odd_media/no_duration.webm",
        "odd_media/sample-with-large-length.avi",
        "odd_media/sample.flv",
        "odd_media/test_non_zero_start.mp4",
        "odd_media/unordered.mov",
        "gameplay_real/cubeforjake.mp4",
    ],
)
def test_the_same_on_footage(name, footage, digest):
    assert slices_equal(str(footage / name), digest)[0] == 0


def test_an_intra_refresh_stream_is_read_from_its_start(tmp_path, moving, write):
    uri = write(tmp_path / "refresh.ts", moving(200, 128, 80), frame_times()[:200], options=_REFRESH)
    key_frames = sum(frame.key_frame for _, frame in decode.decode(uri))
    assert key_frames == 1, "a stream with more key frames would not show what this file is about"


def test_a_container_that_refuses_to_seek_is_read_from_its_start(clip, monkeypatch):
    monkeypatch.setattr(seek, "_seek", lambda *_: False)
    times_s = [time_s for time_s, _ in decode.decode(clip, Span(2.0, 2.5))]
    assert times_s == pytest.approx([2.0, 2.1, 2.2, 2.3, 2.4])


def test_a_seek_does_not_decode_what_lies_long_before(tmp_path, moving, write, monkeypatch):
    uri = write(tmp_path / "a.mp4", moving(COUNT, 64, 64), frame_times(), options={"g": "30", "x264-params": "scenecut=0"})
    probe(uri)
    passed, real = [], seek.stamped_frames
    monkeypatch.setattr(seek, "stamped_frames", lambda *a: (passed.append(frame.pts) or frame for frame in real(*a)))
    assert len(list(decode.decode(uri, Span(11.0, 12.0)))) == 20
    assert len(passed) <= 20 + 30 + 1


@pytest.mark.parametrize("name", ["long.avi", "long.mp4", "refresh.ts"])
@pytest.mark.parametrize("fps", [None, 7.0])
def test_spans_in_order_cost_one_decode_and_are_the_same_as_alone(tmp_path, write, moving, monkeypatch, fps, name):
    options = _REFRESH if name == "refresh.ts" else {"g": "20"}
    uri = write(tmp_path / name, moving(60, 96, 64), [k / 15 for k in range(60)], options=options)
    spans = [Span(a, b) for a, b in itertools.pairwise([0.0, 0.9, 1.0, 2.2, 3.0, 9.0])]
    apart = []
    for span in spans:
        decode.clear_caches()
        apart.append(read_frames(uri, span, fps))
    decode.clear_caches()
    opened = []
    real = decode._open_at
    monkeypatch.setattr(decode, "_open_at", lambda *where: opened.append(where) or real(*where))
    for span, alone in zip(spans, apart, strict=True):
        together = read_frames(uri, span, fps)
        assert np.array_equal(together.times_s, alone.times_s)
        assert np.array_equal(together.rgb, alone.rgb)
    assert len(opened) == 1
    read_frames(uri, Span(0.5, 0.9), fps)
    assert len(opened) == 2, "a span before the last one starts anew"


def test_a_span_far_ahead_is_sought(tmp_path, write, moving, monkeypatch):
    uri = write(tmp_path / "a.mp4", moving(90, 64, 64), [k / 15 for k in range(90)], options={"g": "15"})
    opened = []
    real = decode._open_at
    monkeypatch.setattr(decode, "_open_at", lambda *where: opened.append(where[1]) or real(*where))
    for start_s in (0.0, 1.0, 4.0):
        read_frames(uri, Span(start_s, start_s + 0.5))
    assert opened == [0.0, 4.0]
