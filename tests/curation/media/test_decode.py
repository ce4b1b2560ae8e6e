"""Times, resampling, orientation, and what a stored clip keeps of its source."""

import contextlib
import io
import itertools
import math
import os
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from curation.errors import UnreadableVideo
from curation.media import container, decode, seek
from curation.media.decode import Span, read_frames
from curation.media.encode import Encoding, encode
from curation.media.source import probe
from curation.worker_state import worker

RED, GREEN, BLUE, WHITE = (200, 30, 40), (30, 180, 60), (40, 50, 210), (230, 230, 230)
QUADRANTS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
ONE = 1 << 16
ALL, PLAIN = Span(0.0, 1e3), Encoding()


def painted(corners: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture of four flat quarters."""
    return np.kron(corners, np.ones((height // 2, width // 2, 1), np.uint8))


def corners(rgb: np.ndarray) -> np.ndarray:
    """The mean colour of each quarter's middle, [2, 2, 3]."""
    h, w = rgb.shape[0] // 2, rgb.shape[1] // 2
    middle = [[rgb[y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4] for x in (0, w)] for y in (0, h)]
    return np.array([[part.reshape(-1, 3).mean(0) for part in row] for row in middle])


def every(fps: float, count: int, first_s: float = 0.0) -> list[float]:
    return [first_s + k / fps for k in range(count)]


def stored(tmp_path, uri: str, span: Span = ALL, crop=None, how: Encoding = PLAIN) -> str:
    """The path of a clip as `encode` stores it."""
    path = tmp_path / "stored.mp4"
    path.write_bytes(encode(uri, span, crop, how).mp4)
    decode.clear_caches()
    return str(path)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


# Time


def test_irregular_times_are_kept_through_a_store(tmp_path, moving, write):
    times_s = np.cumsum([0.0, 0.013, 0.04, 0.2, 0.017, 0.05, 0.4, 0.011, 0.033, 0.08]).tolist()
    uri = write(tmp_path / "irregular.mp4", moving(10, 96, 64), times_s)
    assert read_frames(uri, Span(0, 9)).times_s == pytest.approx(times_s, abs=1e-6)
    again = read_frames(stored(tmp_path, uri), Span(0, 9))
    assert again.times_s == pytest.approx(times_s, abs=1.2e-5), "the stored clock ticks at 90 kHz"
    assert len(set(again.times_s)) == 10


def test_time_starts_at_the_first_frame_and_advances(tmp_path, moving, write):
    uri = write(tmp_path / "late.ts", moving(30, 96, 64), every(10, 30, first_s=7.3))
    times_s = [time_s for time_s, _ in decode.decode(uri)]
    assert times_s == pytest.approx(every(10, 30), abs=1e-6)
    assert all(before < after for before, after in itertools.pairwise(times_s))


def test_frames_that_do_not_advance_are_left_out_and_counted(clip, monkeypatch):
    real = seek.stamped_frames
    monkeypatch.setattr(
        seek, "stamped_frames", lambda *a: (f for k, f in enumerate(real(*a)) for _ in range(1 + (k in (7, 30))))
    )
    assert len(list(decode.decode(clip))) == 40
    assert worker.damage["frames not advancing"] == 2


def test_a_clock_that_restarts_is_not_passed_over(tmp_path, moving, write):
    part = Path(write(tmp_path / "part.ts", moving(30, 96, 64), every(10, 30))).read_bytes()
    (tmp_path / "both.ts").write_bytes(part + part)
    with pytest.raises(UnreadableVideo, match="30 of 60 frames go back in time: its clock restarts"):
        list(decode.decode(str(tmp_path / "both.ts")))


@pytest.mark.parametrize(
    ("span", "fps", "shown"),
    [
        (Span(1.0, 2.0), 10, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        (Span(0.7, 1.0), 10, [7, 8, 9]),
        (Span(1.0, 1.5), 4, [10, 12]),
        (Span(1.0, 1.2), 30, [10, 10, 10, 11, 11, 11]),
        (Span(1.05, 1.45), 10, [10, 11, 12, 13]),
        (Span(3.8, 4.2), 10, [38, 39, 39, 39]),
        (Span(3.7, math.inf), 10, [37, 38, 39]),
        (Span(3.75, math.inf), 4, [37, 39]),
        (Span(-0.2, 0.2), 10, [0, 1]),
        (Span(9.0, 9.5), 10, []),
        (Span(1.05, 1.09), 100, []),
    ],
)
def test_a_tick_shows_the_latest_frame_at_or_before_it(clip, span, fps, shown):
    frames = read_frames(clip, span, fps=fps)
    whole = read_frames(clip, Span(0, 9)).rgb
    ticks = [span.start_s + k / fps for k in range(len(shown))] if span.start_s >= 0 else [0.0, 0.1]
    assert frames.times_s == pytest.approx(ticks, abs=1e-6)
    assert np.array_equal(frames.rgb, whole[shown])


def test_a_read_is_kept_once_and_cannot_be_written_to(clip):
    frames = read_frames(clip, Span(1, 2), size=(64, 48))
    assert read_frames(clip, Span(1, 2), size=(64, 48)) is frames
    assert worker.decodes["read"] == 1
    assert frames.rgb.shape == (10, 48, 64, 3)
    with pytest.raises(ValueError, match="read-only"):
        frames.rgb[0] = 0
    read_frames(clip, Span(1, 2))
    assert worker.decodes["read"] == 2, "another size is another read"


def test_a_span_without_frames_is_an_empty_read(clip):
    frames = read_frames(clip, Span(100, 101), size=(64, 48))
    assert frames.times_s.shape == (0,)
    assert frames.rgb.shape == (0, 48, 64, 3)


def test_a_smaller_read_shows_the_same(clip):
    small, whole = read_frames(clip, Span(1, 1.1), size=(80, 48)).rgb[0], read_frames(clip, Span(1, 1.1)).rgb[0]
    assert psnr(small, whole.reshape(48, 2, 80, 2, 3).mean((1, 3))) > 32


def test_progress_is_told_for_whole_sources_only(clip, monkeypatch):
    progress: list[float] = []
    monkeypatch.setattr(worker, "on_decode", progress.append)
    list(decode.decode(clip, Span(1, 2)))
    assert progress == []
    list(decode.decode(clip))
    assert len(progress) == 40
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(0.98, abs=0.03)


# Orientation


MATRICES = {
    "as it is": ((ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), QUADRANTS),
    "turned left": ((0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), np.rot90(QUADRANTS)),
    "upside down": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), np.rot90(QUADRANTS, 2)),
    "turned right": ((0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), np.rot90(QUADRANTS, 3)),
    "mirrored": ((-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), QUADRANTS[:, ::-1]),
    "mirrored top down": ((ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), QUADRANTS[::-1]),
    "transposed": ((0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), QUADRANTS.transpose(1, 0, 2)),
    "transposed and turned": ((0, -ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), np.rot90(QUADRANTS, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_pictures_are_upright_when_read_and_when_stored(name, tmp_path, write):
    matrix, wanted = MATRICES[name]
    uri = write(tmp_path / "turned.mp4", [painted(QUADRANTS, 128, 64)] * 5, every(10, 5), matrix=matrix)
    read = read_frames(uri, Span(0, 1)).rgb
    assert read.shape[1:3] == ((128, 64) if matrix[0] == 0 else (64, 128))
    assert corners(read[2]) == pytest.approx(wanted.astype(float), abs=4)
    again = stored(tmp_path, uri)
    assert probe(again).quarter_turns == 0
    assert corners(read_frames(again, Span(0, 1)).rgb[2]) == pytest.approx(wanted.astype(float), abs=6)
    upper_left = stored(tmp_path, uri, crop=(0, 0, read.shape[2] // 2, read.shape[1] // 2))
    flat = read_frames(upper_left, Span(0, 1)).rgb[2].reshape(-1, 3)
    assert flat.mean(0) == pytest.approx(wanted[0, 0].astype(float), abs=6), "the crop is of the upright picture"


@pytest.mark.footage
def test_a_turned_and_mirrored_recording_equals_its_plain_twin_turned(footage):
    plain = read_frames(str(footage / "odd_media/sample_missing_stsd.mp4"), Span(0, 0.1)).rgb
    both = read_frames(str(footage / "odd_media/sample_rotate_and_reflect.mp4"), Span(0, 0.1)).rgb
    # The file's matrix is 0 1 / 1 0: x and y change places.
    assert np.array_equal(both, plain.transpose(0, 2, 1, 3))


# Storing


@pytest.mark.parametrize("preset", ["veryfast", "ultrafast"])
def test_frames_microseconds_apart_are_all_stored(tmp_path, moving, write, preset):
    burst = [0.2 + k * 2e-6 for k in range(12)]
    times_s = [0.0, 3e-6, 0.1, *burst, 0.3, 0.300005, 0.4]
    uri = write(tmp_path / "burst.nut", moving(18, 96, 64), times_s, "ffv1", clock=Fraction(1, 1_000_000))
    assert [time_s for time_s, _ in decode.decode(uri)] == pytest.approx(times_s, abs=1e-9)
    clip = encode(uri, Span(0, 1), None, Encoding(preset=preset))
    assert clip.times_s == pytest.approx(times_s, abs=13 / 90_000), "moved apart by as few ticks as it takes"
    assert (np.diff(clip.times_s) > 1e-5).all()
    path = tmp_path / "stored.mp4"
    path.write_bytes(clip.mp4)
    assert read_frames(str(path), Span(0, 1)).times_s == pytest.approx(clip.times_s, abs=1e-9)


def test_equal_input_gives_equal_bytes_whatever_the_number_of_threads(clip):
    first = encode(clip, Span(1, 3), (8, 8, 120, 70), Encoding(fps=8))
    container.set_threads(3)
    again = encode(clip, Span(1, 3), (8, 8, 120, 70), Encoding(fps=8))
    container.set_threads(1)
    assert first.mp4 == again.mp4
    assert (len(first.times_s), first.width, first.height) == (16, 120, 70)
    assert worker.decodes["encode"] == 2


def test_a_stored_clip_starts_at_zero_and_keeps_the_picture(clip, tmp_path):
    source = read_frames(clip, Span(1, 3))
    path = stored(tmp_path, clip, Span(1, 3))
    with av.open(path) as container:
        first = next(container.decode(video=0))
        assert (first.pts, first.key_frame) == (0, True)
        assert float(container.streams.video[0].duration * container.streams.video[0].time_base) == pytest.approx(2, abs=0.02)
    again = read_frames(path, Span(0, 9))
    assert again.times_s == pytest.approx(source.times_s - 1, abs=2e-5)
    assert min(psnr(*pair) for pair in zip(source.rgb, again.rgb, strict=True)) > 30


def test_a_crop_is_the_part_of_the_picture(clip, tmp_path):
    part = read_frames(stored(tmp_path, clip, crop=(32, 16, 64, 48)), Span(0, 1)).rgb
    assert psnr(part, read_frames(clip, Span(0, 1)).rgb[:, 16:64, 32:96]) > 30


def test_colour_tags_are_written(clip, tmp_path):
    with av.open(stored(tmp_path, clip)) as container:
        context = next(container.decode(video=0)), container.streams.video[0].codec_context
        assert [(c.color_range, c.colorspace, c.color_primaries, c.color_trc) for c in context] == [(1, 6, 1, 1)] * 2
        assert context[1].pix_fmt == "yuv420p"


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"colorspace": 5, "color_primaries": 6, "color_trc": 6, "color_range": 1},
        {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1},
        {"pix_fmt": "yuvj420p"},
        {"pix_fmt": "yuv420p10le"},
        {"pix_fmt": "yuv444p"},
        {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    ],
    ids=["untagged", "bt601", "bt709", "full range", "10 bit", "4:4:4", "rgb"],
)
def test_colours_are_right_and_stay(tags, tmp_path, write):
    uri = write(tmp_path / "flat.mkv", [painted(QUADRANTS, 128, 96)] * 4, every(10, 4), **tags)
    read = corners(read_frames(uri, Span(0, 1)).rgb[1])
    assert read == pytest.approx(QUADRANTS.astype(float), abs=4)
    assert corners(read_frames(stored(tmp_path, uri), Span(0, 1)).rgb[1]) == pytest.approx(read, abs=4)


@pytest.mark.parametrize(
    ("shape", "aspect", "how", "size"),
    [
        ((160, 96), None, Encoding(), (160, 96)),
        ((161, 97), None, Encoding(), (160, 96)),
        ((160, 96), None, Encoding(max_width=100), (100, 60)),
        ((163, 99), None, Encoding(), (162, 98)),
        ((160, 96), None, Encoding(max_width=79, max_height=33), (56, 32)),
        ((160, 96), Fraction(2), Encoding(), (160, 48)),
        ((160, 96), Fraction(1, 2), Encoding(), (80, 96)),
        ((160, 96), Fraction(1, 2), Encoding(max_height=48), (40, 48)),
    ],
)
def test_size_keeps_the_shape_is_even_and_never_grows(shape, aspect, how, size, tmp_path, moving, write):
    uri = write(tmp_path / "a.mp4", moving(3, *shape), every(10, 3), pix_fmt="yuv444p", aspect=aspect)
    clip = encode(uri, Span(0, 1), None, how)
    assert (clip.width, clip.height, len(clip.times_s)) == (*size, 3)
    with av.open(io.BytesIO(clip.mp4)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == size
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1), "stored pixels are square"


def test_a_stream_that_changes_size_is_stored_at_its_first_one(tmp_path, write):
    # Without B-frames: at a change of size the decoder drops what it still holds back to reorder.
    plain = {"options": {"bf": "0"}}
    write(tmp_path / "one.ts", [painted(QUADRANTS, 128, 96)] * 20, every(10, 20), **plain)
    write(tmp_path / "two.ts", [painted(QUADRANTS, 64, 48)] * 20, every(10, 20, first_s=2.0), **plain)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "two.ts").read_bytes())
    again = read_frames(stored(tmp_path, str(both)), Span(0, 9)).rgb
    assert again.shape == (40, 96, 128, 3)
    assert corners(again[35]) == pytest.approx(QUADRANTS.astype(float), abs=6)


def test_a_span_without_frames_cannot_be_stored(clip):
    for how in (Encoding(), Encoding(fps=10)):
        with pytest.raises(UnreadableVideo, match=r"no frame between 50\.000 s and 51\.000 s"):
            encode(clip, Span(50, 51), None, how)


def test_a_wrong_encoding_is_refused_with_its_value():
    with pytest.raises(ValueError, match="'nothing264' is not an encoder of this build; libx264 is"):
        Encoding(codec="nothing264")
    with pytest.raises(ValueError, match="at least 16 px, not 8x480"):
        Encoding(max_width=8)
    with pytest.raises(ValueError, match="fps must be positive or null, not 0"):
        Encoding(fps=0)


def test_a_forked_child_does_not_read_from_its_parents_open_decode(tmp_path, moving, write):
    """They would share one position in one file: both would see other bytes."""
    uri = write(tmp_path / "a.mp4", moving(300, 160, 120), (k / 10 for k in range(300)), options={"g": "20", "crf": "4"})

    def frames_in(*span):
        return [(time_s, zlib.crc32(frame.to_ndarray().tobytes())) for time_s, frame in decode.decode(uri, Span(*span))]

    before, after = frames_in(2, 3), frames_in(3, 30)
    decode.clear_caches()
    assert frames_in(2, 3) == before
    if not (pid := os.fork()):
        code = 9
        with contextlib.suppress(BaseException):
            code = int(frames_in(3, 30) != after)
            decode.clear_caches()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "1: the child saw other frames"
    assert frames_in(3, 30) == after
