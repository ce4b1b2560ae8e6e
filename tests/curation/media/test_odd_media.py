"""Sources that are no videos, broken ones and odd ones: a reason or frames, never another error, a hang or a leak."""

import gc
import os
import random
import resource
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from curation import source_files
from curation.errors import UnreadableVideo
from curation.media import container, decode
from curation.media.decode import Span, read_frames
from curation.media.encode import Encoding, encode
from curation.media.source import probe
from curation.worker_state import worker

NO_HEADER = "cannot be opened: no known container, or its header is missing or damaged"
SECOND = [k / 10 for k in range(10)]


def reason(path) -> str:
    with pytest.raises(UnreadableVideo) as caught:
        probe(str(path))
    return str(caught.value)


def named(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


UNREADABLE = {
    "chunk_out_of_range.mp4": NO_HEADER,
    "invalid-bitstream.webm": "no frame could be decoded",
    "sample_audio_only.mp4": "holds no video stream",
    "test_case_1185230.mp4": "no frame could be decoded",
    "SOURCE.txt": "is text, not a video",
}
ODD_FRAMES = {"decord_corrupted.mp4": 49, "sample-with-large-length.avi": 58, "-video-with-dash-.mp4": 5, "minimal.mp4": 1}


@pytest.mark.footage
def test_every_odd_file_gives_frames_or_a_reason(footage):
    paths = sorted((footage / "odd_media").iterdir())
    assert len(paths) >= 30
    for path in paths:
        if path.name in UNREADABLE:
            assert reason(path) == UNREADABLE[path.name], path.name
            continue
        source = probe(str(path))
        clip = encode(str(path), Span(0, 0.3), None, Encoding(max_width=160, max_height=160))
        assert len(clip.times_s) >= 1, path.name
        assert read_frames(str(path), Span(0, 0.1)).rgb.shape[1:3] == (source.height, source.width), path.name


@pytest.mark.footage
@pytest.mark.parametrize(("name", "count"), ODD_FRAMES.items())
def test_odd_files_give_all_their_frames(name, count, footage):
    assert len(list(decode.decode(str(footage / "odd_media" / name)))) == count


def test_what_is_no_video_is_refused_by_what_it_is(tmp_path, moving, write):
    picture = next(moving(1, 64, 48))
    for name, codec in (("still.png", "png"), ("still.jpg", "mjpeg")):
        with av.open(str(tmp_path / name), "w", format="image2") as output:
            stream = output.add_stream(codec, rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "rgb24"
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture).reformat(format=stream.pix_fmt)))
            output.mux(stream.encode())
        assert reason(tmp_path / name) == "is a picture, not a video"
        assert reason((tmp_path / name).rename(tmp_path / f"{name}.mp4")) == "is a picture, not a video"
    assert reason(named(tmp_path / "notes.txt", b"Meeting at ten.\n" * 200)) == "is text, not a video"
    assert reason(named(tmp_path / "notes.mp4", b"Meeting at ten.\n" * 200)) == NO_HEADER
    assert reason(named(tmp_path / "empty.mp4", b"")) == NO_HEADER
    with pytest.raises(IsADirectoryError):
        probe(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        probe(str(tmp_path / "absent.mp4"))


def test_a_recording_in_parts_says_how_they_are_joined(clip, tmp_path):
    folder = tmp_path / "fg_123"
    folder.mkdir()
    with (
        av.open(clip) as source,
        av.open(str(folder / "session.mpd"), "w", format="dash", options={"seg_duration": "1"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    assert [entry.uri for entry in source_files.find_sources([str(tmp_path)])] == [clip, str(folder / "session.mpd")], (
        "not passed over"
    )
    words = reason(folder / "session.mpd")
    assert words.startswith("is a recording in parts (DASH); join them in its folder")
    subprocess.run(words.rpartition("result: ")[2], shell=True, cwd=folder, check=True)
    assert len(list(decode.decode(str(folder / "a.mp4")))) == 40


def test_a_playlist_is_refused_and_reaches_no_network(clip, tmp_path):
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n"
    far = named(tmp_path / "far.m3u8", f"{head}http://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n".encode())
    assert reason(far).startswith(("is a playlist", "cannot be opened"))
    near = named(tmp_path / "near.ffconcat", f"ffconcat version 1.0\nfile {os.path.basename(clip)}\n".encode())
    assert reason(near) == "is a playlist, not a video; name the files that it lists"


def test_random_bytes_have_a_reason(tmp_path):
    for seed in range(12):
        data = random.Random(seed).randbytes(30_000)
        for suffix in ("mp4", "ts", "h264", "avi"):
            assert reason(named(tmp_path / f"{seed}.{suffix}", data)) in (
                NO_HEADER,
                "no frame could be decoded",
                "holds no video stream",
                "its codec is not known to this decoder",
            )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read as somebody else")
def test_a_file_that_may_not_be_read_says_nothing_about_its_footage(clip, tmp_path):
    os.chmod(clip, 0)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match="Permission denied"):
            probe(str(clip))
    finally:
        os.seteuid(0)


def test_only_sound_and_a_cover_picture_is_no_video(tmp_path, moving):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        sound, cover = output.add_stream("aac", rate=44100), output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(next(moving(1, 64, 48))).reformat(format="yuvj420p")))
        output.mux(cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        output.mux(sound.encode(silence))
        output.mux(sound.encode())
    assert reason(path) == "holds no video stream"


def test_a_file_cut_short_gives_what_is_left_or_a_reason(tmp_path, moving, write):
    whole = write(tmp_path / "whole.mp4", moving(60, 128, 96), (k / 10 for k in range(60)))
    data = Path(whole).read_bytes()
    assert reason(named(tmp_path / "no_moov.mp4", data[: len(data) // 2])) == NO_HEADER
    streamed = write(
        tmp_path / "s.mp4",
        moving(60, 128, 96),
        (k / 10 for k in range(60)),
        options={"g": "10"},
        muxer={"movflags": "faststart"},
    )
    data = Path(streamed).read_bytes()
    left = list(decode.decode(str(named(tmp_path / "half.mp4", data[: len(data) // 2]))))
    assert 15 < len(left) < 50


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_damage_in_the_middle_is_counted_and_what_follows_is_kept(suffix, tmp_path, moving, write):
    uri = write(tmp_path / f"a.{suffix}", moving(80, 128, 96), (k / 10 for k in range(80)), options={"g": "10"})
    data, noise = bytearray(Path(uri).read_bytes()), random.Random(1).randbytes(2500)
    data[len(data) // 2 : len(data) // 2 + len(noise)] = noise
    times_s = [time_s for time_s, _ in decode.decode(str(named(tmp_path / f"b.{suffix}", bytes(data))))]
    assert times_s[-1] == pytest.approx(7.9, abs=1e-6)
    assert len(times_s) > 60
    assert worker.damage["damaged packets"] > 0


def test_a_container_that_breaks_off_gives_up_what_the_decoder_held(clip, monkeypatch):
    def broken(container, stream):
        packets = list(container.demux(stream))
        yield from packets[:30]
        raise av.InvalidDataError(1, "broken")

    real = container._packets
    monkeypatch.setattr(container, "_packets", lambda c, s: real(Broken(c, broken), s))
    times_s = [time_s for time_s, _ in decode.decode(clip)]
    assert len(times_s) == 30, "all pictures of the packets that came, the held back ones too"


class Broken:
    """A container whose packets are somebody else's idea."""

    def __init__(self, container, demux) -> None:
        self._container, self._demux = container, demux

    def demux(self, stream):
        return self._demux(self._container, stream)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (64, 1), (1, 200)])
def test_tiny_pictures_and_a_single_frame(shape, tmp_path, moving, write):
    uri = write(tmp_path / "tiny.mp4", moving(1, *shape), [0.0], pix_fmt="yuv444p")
    frames = read_frames(uri, Span(0, 1))
    assert frames.rgb.shape == (1, shape[1], shape[0], 3)
    assert frames.times_s.tolist() == [0.0]
    clip = encode(uri, Span(0, 1), None, Encoding())
    assert (len(clip.times_s), clip.width % 2, clip.height % 2) == (1, 0, 0)
    assert probe(str(named(tmp_path / "stored.mp4", clip.mp4))).width == clip.width


def test_an_animated_gif_is_a_video(tmp_path, moving, write):
    uri = write(tmp_path / "a.gif", moving(10, 64, 48), SECOND, codec="gif", pix_fmt="rgb8")
    assert read_frames(uri, Span(0, 2)).times_s == pytest.approx(SECOND, abs=0.011)


def test_nothing_stays_open(clip, tmp_path):
    garbage = str(named(tmp_path / "garbage.mp4", random.Random(2).randbytes(5000)))
    text = str(named(tmp_path / "notes.txt", b"some words\n" * 100))

    def once() -> None:
        decode.clear_caches()
        next(decode.decode(clip))
        read_frames(clip, Span(2, 2.2))
        for bad in (garbage, text):
            with pytest.raises(UnreadableVideo):
                probe(bad)

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        once()
    assert len(os.listdir("/proc/self/fd")) <= before


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def test_a_long_decode_holds_no_pictures(tmp_path, moving, write):
    few, count = list(moving(60, 160, 90)), 1200
    uri = write(tmp_path / "long.mp4", (few[k % 60] for k in range(count)), (k / 10 for k in range(count)))
    held = [resident_mib() for _ in decode.decode(uri)]
    assert len(held) == count
    assert max(held[200:]) - held[200] < 4, "a thousand pictures would be 21 MiB"
