"""Damage footage by known amounts: the kinds of damage, and one scale of levels for all kinds.

A clip is the luma of its frames, uint8 [N, H, W], because the quality score uses nothing else. Each kind of damage has an
amount in its own unit. A *level* is the same damage for every kind: `AMOUNTS` has the amounts that give a GMSD of 0, 0.02,
0.04, 0.08 ... 0.20 on average over the tuning footage. So level 0.6 of blur and level 0.6 of noise are equally far from their
originals. GMSD (gradient magnitude similarity deviation: Xue, Zhang, Mou, Bovik, IEEE TIP 2014) agrees with human ratings over
many kinds of damage and takes a few lines of code. `python -m bench.shipped_weights.train_quality levels FOOTAGE...` prints the
amounts again.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np

from curation.media.container import WITH_QUANTISERS
from curation.quality.quantiser import coded_level

LumaClip = np.ndarray

_GMSD_C = 170.0  # the paper's constant, for luma 0 to 255
_PREWITT = np.array([[1, 0, -1]] * 3, np.float32) / 3
WORST_GMSD = 0.20
"""The GMSD of level 1. Worse footage exists, but no recipe would keep it."""


@dataclass(frozen=True)
class DamageKind:
    """One way to damage a clip: `apply(clip, amount, rng)`. `fault` is the fault that the quality score should name."""

    name: str
    fault: str
    unit: str
    apply: Callable[[LumaClip, float, np.random.Generator], LumaClip]
    mildest: float
    worst: float


def gmsd(reference_HW: np.ndarray, other_HW: np.ndarray) -> float:
    """Return the GMSD of two pictures uint8 [H, W]: 0 if they are equal, about 0.2 for the worst damage."""
    a, b = (_gradient_strength(picture) for picture in (reference_HW, other_HW))
    return float(((2 * a * b + _GMSD_C) / (a * a + b * b + _GMSD_C)).std())


def _gradient_strength(picture_HW: np.ndarray) -> np.ndarray:
    half = cv2.resize(picture_HW.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.hypot(cv2.filter2D(half, -1, _PREWITT), cv2.filter2D(half, -1, _PREWITT.T))


def encode_decode(clip: LumaClip, codec: str, options: dict[str, str], fps: int = 25) -> LumaClip:
    """Encode and decode a clip, or RGB pictures [N, H, W, 3]. Odd sides are padded for the codec and cut afterwards."""
    return encode_decode_levels(clip, codec, options, fps)[0]


def encode_decode_levels(clip: LumaClip, codec: str, options: dict[str, str], fps: int = 25) -> tuple[LumaClip, np.ndarray]:
    """Do the same, and return what `coded_level` says of each frame, [N]; NaN where the decoder exports no quantiser."""
    height, width = clip.shape[1:3]
    padded = np.pad(clip, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))[: clip.ndim], mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = padded.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count, stream.codec_context.time_base = "yuv420p", 1, Fraction(1, fps)
        for number, picture in enumerate(padded):
            frame = _yuv_frame(picture) if clip.ndim == 4 else av.VideoFrame.from_ndarray(_with_gray_chroma(picture), "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as container:
        context = container.streams.video[0].codec_context
        context.thread_count, context.options = 1, dict(WITH_QUANTISERS)
        form = "rgb24" if clip.ndim == 4 else "yuv420p"
        pictures, levels = [], []
        for frame in container.decode(video=0):
            pictures.append(frame.to_ndarray(format=form)[: frame.height])
            levels.append(coded_level(frame))
    return np.stack(pictures)[:, :height, :width], np.array(levels, np.float64)


def _yuv_frame(rgb: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuv420p")


def _with_gray_chroma(luma_HW: np.ndarray) -> np.ndarray:
    height, width = luma_HW.shape
    return np.concatenate([luma_HW, np.full((height // 2, width), 128, np.uint8)])


def encoder_options(kind: str, amount: float) -> tuple[str, dict[str, str]]:
    """Return the codec and its options for an amount of a kind that is a codec: x264, vp9, or mpeg4 (quantiser 1 to 31)."""
    if kind == "x264":
        return "libx264", {"crf": f"{amount:.1f}", "preset": "veryfast"}
    if kind == "vp9":
        return "libvpx-vp9", {"crf": f"{amount:.0f}", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    return "mpeg4", {"qmin": f"{amount:.0f}", "qmax": f"{amount:.0f}", "b": "20M", "bt": "20M", "g": "50"}


def _codec(kind: str) -> Callable[[LumaClip, float, np.random.Generator], LumaClip]:
    return lambda clip, amount, _: encode_decode(clip, *encoder_options(kind, amount))


def _blur(clip: LumaClip, sigma: float, _: np.random.Generator) -> LumaClip:
    return np.stack([cv2.GaussianBlur(luma, (0, 0), sigma) for luma in clip])


def _noise(clip: LumaClip, sigma: float, rng: np.random.Generator) -> LumaClip:
    noise = rng.standard_normal(clip.shape, np.float32)
    return np.clip(np.rint(clip + sigma * noise), 0, 255).astype(np.uint8)


def _bands(clip: LumaClip, step: float, _: np.random.Generator) -> LumaClip:
    """Quantise luma to steps of this many levels."""
    return np.clip((np.floor(clip / step) + 0.5) * step, 0, 255).astype(np.uint8)


def _blocks(clip: LumaClip, coarseness: float, _: np.random.Generator) -> LumaClip:
    """Store each picture as JPEG with a quality of 100 - coarseness, which shows blocks of 8 px."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(100 - coarseness)]
    jpegs = [cv2.imencode(".jpg", luma, quality)[1] for luma in clip]
    return np.stack([np.asarray(cv2.imdecode(picture, cv2.IMREAD_GRAYSCALE)) for picture in jpegs])


def _upscale(clip: LumaClip, factor: float, _: np.random.Generator) -> LumaClip:
    return upscale(clip, factor, cv2.INTER_CUBIC)


def upscale(clip: LumaClip, factor: float, interpolation: int) -> LumaClip:
    """Shrink pictures by a factor and enlarge them to their size again."""
    height, width = clip.shape[1:]
    small = max(2, round(width / factor)), max(2, round(height / factor))
    shrunk = [cv2.resize(luma, small, interpolation=cv2.INTER_AREA) for luma in clip]
    return np.stack([cv2.resize(luma, (width, height), interpolation=interpolation) for luma in shrunk])


KINDS = {
    kind.name: kind
    for kind in (
        DamageKind("x264", "compressed", "CRF", _codec("x264"), 16, 51),
        DamageKind("vp9", "compressed", "CRF", _codec("vp9"), 10, 63),
        DamageKind("mpeg4", "compressed", "quantiser", _codec("mpeg4"), 1, 31),
        DamageKind("blur", "blurred", "px", _blur, 0.3, 8),
        DamageKind("noise", "noisy", "luma", _noise, 1, 80),
        DamageKind("bands", "banded", "luma", _bands, 2, 128),
        DamageKind("blocks", "blocky", "100 - quality", _blocks, 2, 99),
        DamageKind("upscale", "upscaled", "times", _upscale, 1.05, 12),
    )
}

KNOTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
# Amounts at these levels. vp9 and mpeg4 reach their worst before level 0.6.
AMOUNTS = {
    "x264": (16.0, 24.5, 29.0, 34.9, 39.1, 43.1, 47.6),
    "vp9": (10.0, 37.4, 47.4, 60.2, 67.0),
    "mpeg4": (1.0, 6.2, 10.4, 20.7, 37.0),
    "blur": (0.3, 0.81, 1.18, 1.82, 2.52, 3.45, 4.95),
    "noise": (1.0, 4.5, 6.8, 11.0, 15.5, 21.0, 28.5),
    "bands": (2.0, 8.0, 11.9, 17.4, 25.8, 36.0, 48.1),
    "blocks": (2.0, 68.0, 80.4, 87.9, 91.4, 94.0, 96.2),
    "upscale": (1.05, 1.87, 2.57, 3.77, 5.16, 7.38, 11.43),
}


def amount_of(kind: DamageKind, level: float) -> float:
    """Return the amount that gives a level, in the kind's unit, or NaN beyond the worst of the kind."""
    amount = float(np.interp(level, KNOTS[: len(AMOUNTS[kind.name])], AMOUNTS[kind.name], right=np.nan))
    return amount if amount <= kind.worst else float("nan")


def level_of(kind: DamageKind, amount: float) -> float:
    """Return the level that an amount gives."""
    return float(np.interp(amount, AMOUNTS[kind.name], KNOTS[: len(AMOUNTS[kind.name])]))


def apply_damage(clip: LumaClip, kind: DamageKind, level: float, seed: int) -> LumaClip:
    """Damage a clip to a level of a kind. Level 0 returns the clip itself."""
    return clip if level == 0 else kind.apply(clip, amount_of(kind, level), np.random.default_rng(seed))
