"""Deinterlace frames and map HDR to SDR, so that the rest of the code sees only progressive SDR pictures.

Both happen in the one decode, on the frames that need it, before anything else reads a picture. The result for a frame depends
only on it and its two neighbours, so spans read by seeking equal those of a decode from the start (`curation.media.seek`).
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np

from curation import scratch

HDR_TRANSFERS = {16: "pq", 18: "hlg"}
"""Transfer characteristics (ISO/IEC 23091-2) of HDR pictures: SMPTE ST 2084 and ARIB STD-B67."""

_BT2020 = 9  # primaries, by the same standard
# Graphics white of HDR in nits (BT.2408), which becomes white; the peak that games are graded to; the gammas of SDR (BT.1886)
# and of HLG.
_WHITE_NITS, _PEAK_NITS, _SDR_GAMMA, _HLG_GAMMA = 203.0, 1000.0, 2.4, 1.2
_LUT_SIZE = 33
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def repair_frames(
    frames: Iterator[av.VideoFrame], interlaced: bool, transfer: str | None, skip: int = 0
) -> Iterator[av.VideoFrame]:
    """Return the frames with the same stamps, without combing and in SDR.

    The first `skip` frames are dropped after deinterlacing: they serve only as neighbours of the frames after them.
    A frame that was interlaced has True as its `opaque`, because the filter clears every other mark of it.
    """
    if interlaced:
        frames = _run_filter(frames, _deinterlacer)
    for _ in range(skip):
        next(frames, None)
    if transfer:
        frames = _run_filter(frames, lambda frame: _sdr_mapper(frame, transfer))
    return frames


def _run_filter(frames: Iterator[av.VideoFrame], build: Callable[[av.VideoFrame], av.filter.Graph]) -> Iterator[av.VideoFrame]:
    """Pass frames through a filter graph that gives one for each, possibly later. It is rebuilt where the format changes."""
    graph: av.filter.Graph | None = None
    built_for: tuple[Any, ...] = ()
    waiting: deque[tuple[int | None, Fraction | None, bool]] = deque()
    for frame in frames:
        frame_format = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
        if graph is None or frame_format != built_for:
            if graph is not None:
                yield from _flush(graph, waiting)
            graph, built_for = build(frame), frame_format
        waiting.append((frame.pts, frame.time_base, bool(frame.interlaced_frame or frame.opaque)))
        graph.vpush(frame)
        yield from _pull_ready(graph, waiting)
    if graph is not None:
        yield from _flush(graph, waiting)


def _flush(graph: av.filter.Graph, waiting: deque[Any]) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _pull_ready(graph, waiting)


def _pull_ready(graph: av.filter.Graph, waiting: deque[Any]) -> Iterator[av.VideoFrame]:
    """Yield the frames that the graph has finished, with the stamps that they had before it."""
    while waiting:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        frame.pts, frame.time_base, was_interlaced = waiting.popleft()
        frame.opaque = was_interlaced or None
        yield frame


def _graph(frame: av.VideoFrame, steps: Iterable[tuple[str, dict[str, str]]]) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, *(graph.add(name, **options) for name, options in steps), graph.add("buffersink"))
    graph.configure()
    return graph


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    return _graph(frame, [("bwdif", {"mode": "send_frame", "parity": "auto", "deint": "interlaced"})])


def _sdr_mapper(frame: av.VideoFrame, transfer: str) -> av.filter.Graph:
    """Return a graph that maps HDR to BT.709 by a lookup table. The filter reads its file while the graph is built."""
    wide = frame.color_primaries == _BT2020
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        path = os.path.join(folder, "sdr.cube")
        with open(path, "w") as file:
            file.write(_sdr_table(transfer, wide))
        scale = {"flags": "bicubic+accurate_rnd+bitexact"}
        return _graph(
            frame,
            [
                ("scale", {**scale, "out_range": "full"}),
                ("format", {"pix_fmts": "gbrp10le"}),
                ("lut3d", {"file": path, "interp": "tetrahedral"}),
                ("scale", {**scale, "out_color_matrix": "bt709", "out_range": "limited"}),
                ("format", {"pix_fmts": "yuv420p"}),
                ("setparams", {"color_trc": "bt709", "color_primaries": "bt709", "colorspace": "bt709", "range": "limited"}),
            ],
        )


@cache
def _sdr_table(transfer: str, wide: bool) -> str:
    """Return the lookup table as text in the .cube format, red running fastest."""
    axis = np.linspace(0, 1, _LUT_SIZE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    rows = hdr_to_sdr(np.stack([red, green, blue], -1).reshape(-1, 3), transfer, wide)
    return f"LUT_3D_SIZE {_LUT_SIZE}\n" + "\n".join(f"{r:.6f} {g:.6f} {b:.6f}" for r, g, b in rows) + "\n"


def hdr_to_sdr(rgb_N3: np.ndarray, transfer: str, wide: bool = True) -> np.ndarray:
    """Convert HDR code values 0-1 [N, 3] to BT.709 code values 0-1 [N, 3].

    transfer: "pq" or "hlg". wide: the primaries are BT.2020, else BT.709. Brightness is compressed by BT.2390's curve, from a
    peak of 1000 nits to graphics white, on the largest of the three channels, so that hues stay. Colours that BT.709 cannot
    show are clipped.
    """
    nits = _pq_nits(rgb_N3) if transfer == "pq" else _hlg_nits(rgb_N3)
    brightest = np.maximum(nits.max(1, keepdims=True), 1e-6)
    light = nits * (_tone_map(brightest) / brightest) / _WHITE_NITS
    light = light @ _TO_BT709.T if wide else light
    return np.clip(light, 0, 1) ** (1 / _SDR_GAMMA)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_nits(code: np.ndarray) -> np.ndarray:
    """Return nits of ST 2084 (PQ) code values."""
    x = code ** (1 / _M2)
    return 10_000 * (np.maximum(x - _C1, 0) / (_C2 - _C3 * x)) ** (1 / _M1)


def _pq_code(nits: np.ndarray) -> np.ndarray:
    y = (nits / 10_000) ** _M1
    return ((_C1 + _C2 * y) / (1 + _C3 * y)) ** _M2


def _hlg_nits(code_N3: np.ndarray) -> np.ndarray:
    """Return nits of BT.2100's HLG code values on a display of 1000 nits."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code_N3 <= 0.5, code_N3**2 / 3, (np.exp((code_N3 - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return _PEAK_NITS * scene * np.maximum(luminance, 1e-9)[:, None] ** (_HLG_GAMMA - 1)


def _tone_map(nits: np.ndarray) -> np.ndarray:
    """Apply BT.2390's EETF: unchanged up to a knee, from there along a curve to graphics white."""
    peak, white = _pq_code(np.array(_PEAK_NITS)), _pq_code(np.array(_WHITE_NITS))
    max_lum, e1 = white / peak, np.minimum(_pq_code(nits) / peak, 1)
    knee = 1.5 * max_lum - 0.5
    t = np.maximum(e1 - knee, 0) / (1 - knee)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * max_lum
    return _pq_nits(np.where(e1 < knee, e1, curve) * peak)
