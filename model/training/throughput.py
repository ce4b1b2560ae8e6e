"""Model FLOPs utilisation (MFU): the model's own operations, without recomputation, over what the hardware can do.

L tokens of a video, S of a text, D width.
"""

import time

import torch

from model.config import BackboneConfig

# Dense bfloat16 operations a second, from the makers' data sheets.
_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}
_TRIES, _SIDE = 3, 1024


def training_flops(config: BackboneConfig, tokens: int, text_tokens: int) -> float:
    """Count the operations of a forward and a backward pass over one sample.

    A multiply-add counts as two operations, a backward pass as two forward passes.
    """
    return 3 * forward_flops(config, tokens, tokens, text_tokens)


def forward_flops(config: BackboneConfig, tokens: int, keys: int, text_tokens: int) -> float:
    """Count the operations of a forward pass over so many tokens, each of which sees so many keys of the video."""
    width, layers = config.width, config.num_layers
    linear = tokens * (6 * width**2 + 2 * width * config.ffn_dim) + text_tokens * 2 * width**2
    attention = 2 * tokens * (keys + text_tokens) * width
    cells = config.patch_size[1] * config.patch_size[2]
    ends = tokens * cells * (config.in_channels + config.out_channels) * width
    return 2.0 * (layers * (linear + attention) + ends)


def count_tokens(config: BackboneConfig, latents_Thw: tuple[int, int, int]) -> int:
    """Count the tokens of latents with this many frames, rows and columns."""
    frames, rows, columns = latents_Thw
    return frames * (rows // config.patch_size[1]) * (columns // config.patch_size[2])


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a device: from the table, or else measured now on a matrix product of this dtype."""
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
