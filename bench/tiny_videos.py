"""Small videos for benchmarks of runs: sharp, moving, different for every seed, and made in a tenth of a second."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

SIZE = (160, 120)


def write_tiny_video(path: Path, seed: int, seconds: float = 5.0, fps: int = 15) -> None:
    """Write a video of a scrolling texture of boxes, which the recipe `smoke` keeps."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    world = cv2.resize(rng.integers(0, 256, (15, 40, 3), np.uint8), (2 * width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(300):
        x, y, w, h = rng.integers((2 * width, height, 40, 30))
        cv2.rectangle(world, (x, y), (x + w, y + h), rng.integers(0, 256, 3).tolist(), -1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(round(seconds * fps)):
            view = np.ascontiguousarray(np.roll(world, -3 * index, axis=1)[:, :width])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
