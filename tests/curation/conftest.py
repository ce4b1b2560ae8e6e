"""Videos made on the spot, of textured moving pictures so that a wrong pixel or a wrong frame shows."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from curation.media import decode
from curation.worker_state import worker

CLOCK = Fraction(1, 90_000)


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    decode.clear_caches()
    worker.decodes.clear()
    worker.damage.clear()


def _moving(count: int, width: int, height: int) -> Iterator[np.ndarray]:
    """A camera that wanders over rough ground."""
    rng = np.random.default_rng(7)
    coarse = cv2.resize(rng.integers(0, 256, (48, 48, 3), np.uint8), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    ground = np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
    for k in range(count):
        x, y = int(190 + 3 * (k % 60) + 5 * np.sin(k)), int(150 + 140 * np.cos(k / 17))
        yield np.ascontiguousarray(ground[y : y + height, x : x + width])


def _write(
    path: str | Path,
    pictures: Iterable[np.ndarray],
    times_s: Iterable[float],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    clock: Fraction = CLOCK,
    matrix: tuple[int, ...] | None = None,
    aspect: Fraction | None = None,
    **context: int,
) -> str:
    """Encode RGB pictures shown at `times_s`; `context` sets colour tags of the codec."""
    with av.open(str(path), "w", options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=round(1 / clock) if clock > Fraction(1, 1000) else 25, options=options or {})
        for number, (picture, time_s) in enumerate(zip(pictures, times_s, strict=False)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
                stream.codec_context.time_base, stream.codec_context.thread_count = clock, 1
                stream.set_display_matrix(matrix)
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
                for name, value in context.items():
                    setattr(stream.codec_context, name, value)
            frame = frame.reformat(format=pix_fmt, dst_colorspace=context.get("colorspace"))
            frame.pts, frame.time_base = round(time_s / clock), clock
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="session")
def moving() -> Callable[[int, int, int], Iterator[np.ndarray]]:
    return _moving


@pytest.fixture(scope="session")
def write() -> Callable[..., str]:
    return _write


@pytest.fixture(scope="session")
def digest() -> Callable[[av.VideoFrame], str]:
    """A decoded picture's planes as a short name."""
    return lambda frame: hashlib.md5(frame.to_ndarray().tobytes()).hexdigest()


@pytest.fixture(scope="session")
def _clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    _write(path, _moving(40, 160, 96), (k / 10 for k in range(40)), options={"g": "12"})
    return path.read_bytes()


@pytest.fixture
def clip(_clip: bytes, tmp_path: Path) -> str:
    """Four seconds at 10 fps, with B-frames, 160 x 96; each test has its own copy."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(_clip)
    return str(path)
