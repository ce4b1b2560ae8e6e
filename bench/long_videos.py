"""Long videos for benchmarks, made cheaply: the packets of a short clip are repeated, with later time stamps."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

# Names of the containers with the options of their muxers. "apart": all audio lies behind all video.
CONTAINERS: dict[str, dict[str, str]] = {
    "index_last.mp4": {},
    "index_first.mp4": {"movflags": "faststart"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "apart.mp4": {},
    "plain.mkv": {},
    "plain.ts": {},
}
_RATE_HZ = 48_000


def write_clip(path: Path, seconds: float, fps: int, bits_per_s: int, size: tuple[int, int] = (160, 120)) -> None:
    """Write a clip of a scrolling texture under noise, with a key frame every two seconds, and noise to hear at 128 kbit/s."""
    rng = np.random.default_rng(1)
    width, height = size
    world = cv2.resize(rng.integers(0, 256, (30, 160, 3), np.uint8), (4 * width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(600):
        x, y, w, h = rng.integers((4 * width, height, width // 4, height // 4))
        cv2.rectangle(world, (x, y), (x + w, y + h), rng.integers(0, 256, 3).tolist(), -1)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=fps, options={"preset": "veryfast", "g": str(2 * fps)})
        video.bit_rate = bits_per_s
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = output.add_stream("aac", rate=_RATE_HZ, layout="stereo")
        audio.bit_rate = 128_000
        for index in range(round(seconds * fps)):
            view = np.ascontiguousarray(np.roll(world, (-3 * index) % (4 * width), axis=1)[:, :width])
            grain = rng.integers(-12, 13, view.shape)
            frame = av.VideoFrame.from_ndarray(np.clip(view + grain, 0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(video.encode(frame))
        for start in range(0, round(seconds * _RATE_HZ), 1024):
            noise = rng.normal(0, 0.1, (2, 1024)).astype(np.float32)
            sound = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = _RATE_HZ, start, Fraction(1, _RATE_HZ)
            output.mux(audio.encode(sound))
        output.mux(video.encode())
        output.mux(audio.encode())


def write_long_video(path: Path, clip: Path, seconds: float, clip_s: float, options: dict[str, str] | None = None) -> None:
    """Repeat a clip of `clip_s` seconds until `seconds` are full. A name with "apart" puts all audio behind all video."""
    rounds = max(1, round(seconds / clip_s))
    with av.open(str(clip)) as source:
        # A packet of sound over the clip's end would come after the first one of the next round.
        packets = [packet for packet in source.demux() if packet.dts is not None and _fits(packet, clip_s)]
        with av.open(str(path), "w", options=options or {}) as target:
            copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
            for kinds in [("video",), ("audio",)] if "apart" in path.name else [("video", "audio")]:
                chosen = [(packet, bytes(packet)) for packet in packets if packet.stream.type in kinds]
                for number in range(rounds):
                    for packet, data in chosen:
                        target.mux(_later(packet, data, number * clip_s, copies[packet.stream.index]))


def _fits(packet: "av.Packet[Any]", clip_s: float) -> bool:
    if packet.stream.type == "video":
        return True
    dts, duration, time_base = packet.dts or 0, packet.duration or 0, packet.time_base or Fraction(1)
    return dts >= 0 and (dts + duration) * time_base <= clip_s


def _later(packet: "av.Packet[Any]", data: bytes, seconds: float, stream: av.stream.Stream) -> "av.Packet[Any]":
    """Return a copy of a packet, for another stream, with later time stamps."""
    copy, time_base = av.Packet(data), packet.time_base or Fraction(1)
    shift = round(seconds / time_base)
    copy.pts, copy.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
    copy.duration, copy.time_base = packet.duration or 0, time_base
    copy.is_keyframe, copy.stream = packet.is_keyframe, stream
    return copy
