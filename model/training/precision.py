"""The dtype in which the blocks of an expert compute: set by the recipe, or measured. A run keeps the one it began with."""

import time
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn import functional

from model.training import checkpoint

AUTO = "auto"
_TRIES = 3


class Precision(NamedTuple):
    """A dtype, by its name in torch, and for the log the reason why it was chosen."""

    name: str
    reason: str


def choose(setting: str, folder: str, device: torch.device) -> Precision:
    """Return the precision of the run in `folder`: the recipe's setting, unless that is auto.

    Auto means the one that the run began with, and for a new run the faster one. All ranks use what rank 0 measured.
    """
    if setting != AUTO:
        return Precision(setting, "set by the recipe")
    path = checkpoint.latest(folder)
    stored = checkpoint.read_state(path)["spec"].get("precision") if path else None
    if stored:
        return Precision(stored, "as when the run began")
    chosen = [_faster(device) if not dist.is_initialized() or dist.get_rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(chosen, src=0)
    assert chosen[0] is not None
    return chosen[0]


def _faster(device: torch.device) -> Precision:
    """Return the faster precision on this device, float32 where both are equal since it is safer.

    Processor cores without bfloat16 units emulate it, ten times slower than float32.
    """
    seconds = {dtype: measure(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    return Precision(
        "bfloat16" if ratio < 1 else "float32", f"measured: bfloat16 takes {ratio:.2f} times as long on this device"
    )


def measure(dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds of one matrix product and one attention, forward, best of three after one to warm up."""
    side, tokens = (4096, 4096) if device.type == "cuda" else (256, 128)
    a = torch.ones(side, side, dtype=dtype, device=device)
    q = torch.ones(1, 4, tokens, 64, dtype=dtype, device=device)
    best = float("inf")
    for attempt in range(1 + _TRIES):
        began = time.perf_counter()
        float((a @ a)[0, 0] + functional.scaled_dot_product_attention(q, q, q)[0, 0, 0, 0])  # waits for the device
        if attempt:
            best = min(best, time.perf_counter() - began)
    return best
