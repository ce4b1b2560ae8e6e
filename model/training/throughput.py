"""How much of what the hardware can do a step does (MFU): the model's own operations, without those done twice for memory.

L tokens of a video, S of a text, D width.
"""

import time

import torch

from model.config import BackboneConfig

# Dense bfloat16 operations a second, by the makers' data sheets.
_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}
_TRIES, _SIDE = 3, 1024


def operations(config: BackboneConfig, tokens: int, text_tokens: int) -> float:
    """Of a forward and a backward pass over one sample: multiply-adds count two, a backward pass twice a forward pass."""
    width, layers = config.width, config.num_layers
    linear = tokens * (6 * width**2 + 2 * width * config.ffn_dim) + text_tokens * 2 * width**2
    attention = 2 * tokens * (tokens + text_tokens) * width
    cells = config.patch_size[1] * config.patch_size[2]
    ends = tokens * cells * (config.in_channels + config.out_channels) * width
    return 3 * 2.0 * (layers * (linear + attention) + ends)


def tokens(config: BackboneConfig, latents_Thw: tuple[int, int, int]) -> int:
    """How many tokens latents of that size are."""
    frames, rows, columns = latents_Thw
    return frames * (rows // config.patch_size[1]) * (columns // config.patch_size[2])


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that the device is sold for; of one that is not in the table, what a matrix product of this type
    reaches now.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, value in _PEAK.items():
            if part in name:
                return value
    a, best = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device), float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2.0 * _SIDE**3 / best
