"""The files of a recording: a video that is encoded picture by picture, and names that are given when all is written."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_PRESET = "veryfast"  # "medium" records a third slower, and the file is no smaller

Encode = Callable[[NDArray[np.uint8]], None]


@contextlib.contextmanager
def encoder(path: Path, size: tuple[int, int], fps: Fraction, crf: int, gop: int) -> Iterator[Encode]:
    """Yield a function that appends an RGB picture to a video. size: width and height, px. gop: frames of a group of pictures.

    One thread and no CPU-specific code: equal pictures give equal bytes, and the other cores are left to the game.
    """
    options = {"crf": str(crf), "preset": _PRESET, "x264-params": "cpu-independent=1"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        numbers = itertools.count()

        def encode(picture: NDArray[np.uint8]) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = next(numbers), 1 / fps
            container.mux(stream.encode(frame))

        yield encode
        container.mux(stream.encode(None))


@contextlib.contextmanager
def staged(paths: Sequence[Path]) -> Iterator[dict[Path, Path]]:
    """Yield a temporary path in the same folder for each path. They are renamed at the end, in order; removed after an error.

    paths: the truth file last. An older one is removed first: a newer video must not be paired with it.
    """
    parts = {path: path.with_name(f".part-{os.getpid()}-{path.name}") for path in paths}
    try:
        yield parts
        paths[-1].unlink(missing_ok=True)
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
