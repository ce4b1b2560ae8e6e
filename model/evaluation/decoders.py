"""Quality next to speed of two decoders of the same latents, such as a tiny one and Wan's.

B batch, C latent channels, T latents, h w latent rows and columns.
"""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from model.backbone.stream_decoders import StreamDecoder
from model.evaluation.pictures import psnr


class DecoderComparison(NamedTuple):
    """How near the frames of a decoder are to those of another, and the time of each for a latent."""

    psnr: float  # dB, mean over latents
    worst_psnr: float  # dB, of the worst latent
    seconds: float  # median for a latent, of the decoder
    reference_seconds: float  # likewise, of the other


def compare_decoders(decoder: StreamDecoder, reference: StreamDecoder, latents_BCThw: Tensor) -> DecoderComparison:
    """Decode latents one by one with both, each a fresh stream. The reference counts as the truth.

    The time of the first latent, which is one frame and warms up, is left out where there are more.
    """
    seconds: list[tuple[float, float]] = []
    decibels = []
    for latent in latents_BCThw.split(1, 2):
        (ours, a_s), (theirs, b_s) = (_timed(each, latent) for each in (decoder, reference))
        decibels.append(float(psnr(ours, theirs)))
        seconds.append((a_s, b_s))
    ours_s, theirs_s = (sorted(each)[len(each) // 2] for each in zip(*seconds[1:] or seconds, strict=True))
    return DecoderComparison(sum(decibels) / len(decibels), min(decibels), ours_s, theirs_s)


def _timed(decoder: StreamDecoder, latent: Tensor) -> tuple[Tensor, float]:
    _wait(latent)
    began = time.perf_counter()
    frames = decoder.decode(latent)
    _wait(latent)
    return frames, time.perf_counter() - began


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
