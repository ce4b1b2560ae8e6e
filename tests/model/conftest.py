"""Shards to train on: clips whose frames show their number, cameras that walk ahead."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from curation.cameras.camera import Camera, to_npz
from curation.shards import Sample

FPS = 30


def mp4(frames, first=0, size=(64, 48), every=1 / FPS, **options):
    """Encode frames that show their number in the source: sixteens on the left, ones on the right."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "0", "preset": "ultrafast"} | options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 8
        stream.codec_context.time_base = Fraction(1, 90_000)
        for i in range(frames):
            picture = np.empty((*size[::-1], 3), np.uint8)
            picture[:, : size[0] // 2], picture[:, size[0] // 2 :] = (20 + 14 * part for part in divmod(first + i, 16))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(i * every * 90_000), Fraction(1, 90_000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def walk(frames, scale=1.0):
    """Walk ahead by 0.1 a frame in the data set's unit, whatever the unit of the poses."""
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 2, 3] = 0.1 * np.arange(frames) / scale
    inner = np.tile([40.0, 40.0, 32.0, 24.0], (frames, 1))
    known = np.ones(frames, bool), np.zeros(frames, np.float32), np.arange(0)
    return Camera(pose, inner, np.arange(frames) / FPS, (64, 48), (0, 0, 64, 48), *known, scale, "speed")


def clip(video, index, start_frame, frames, status="ok", scale=1.0, **meta):
    row = {
        "video_id": video,
        "index": index,
        "start_s": start_frame / FPS,
        "end_s": (start_frame + frames) / FPS,
        "stored_width": 64,
        "stored_height": 48,
        "stored_frames": frames,
        "camera_status": status,
        "caption_short": f"{video} {index}",
        **meta,
    }
    members = {"mp4": mp4(frames, start_frame), "camera.npz": to_npz(walk(frames, scale))}
    return Sample(f"{video}{index:02d}", row, members)


class Made:
    """Functions with which tests make clips."""

    mp4, walk, clip = staticmethod(mp4), staticmethod(walk), staticmethod(clip)


@pytest.fixture(scope="session")
def made():
    return Made
