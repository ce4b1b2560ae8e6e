"""What switches of play change in a world: its frames, next to those of the plain code."""

from collections.abc import Callable

import numpy as np
import torch

from model.accelerate.spec import AccelerateSpec
from model.backbone.vae import to_signed
from model.evaluation.pictures import psnr
from model.play.engine import Start
from model.play.keys import parse_keys
from model.play.world import load_engine

_BLOCKS = 8
_KEYS = "W*24 W+LEFT*24 RIGHT*24 S*24"


def compare(checkpoint: str, accelerate: AccelerateSpec, log: Callable[[str], None]) -> list[float]:
    """Play a world's first start image with and without switches; log and return the PSNR of each block, dB.

    Infinite where all frames are equal. InputError for a switch that cannot be on here, or a world without a start image.
    """
    plain, switched = (_frames(checkpoint, spec) for spec in (AccelerateSpec(backend="eager"), accelerate))
    values = [float(psnr(a, b)) for a, b in zip(switched, plain, strict=True)]
    log(f"with these switches the first block differs by {_words(values[0])}, block {len(values)} by {_words(values[-1])}")
    return values


def _frames(checkpoint: str, spec: AccelerateSpec) -> list[torch.Tensor]:
    engine = load_engine(checkpoint, lambda _: None, accelerate=spec)
    session, _ = engine.start(Start(engine.info.start_images[0].picture))
    controls, length = parse_keys(_KEYS), engine.info.block_frames
    blocks = []
    for number in range(_BLOCKS):
        states = [controls[(number * length + i) % len(controls)] for i in range(length)]
        blocks.append(to_signed(torch.from_numpy(np.ascontiguousarray(session.generate(states).frames))))
        session.commit()
    return blocks


def _words(psnr_db: float) -> str:
    return "nothing" if np.isinf(psnr_db) else f"PSNR {psnr_db:.1f} dB"
