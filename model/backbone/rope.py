"""Rotary positions of video tokens: frame, row and column each rotate a part of a head's pairs (Wan2.2; RoFormer).

B batch, L tokens, N heads, P pairs of a head (half its width).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Cosines and sines of tokens, [L, P] each.
Rotary = tuple[Tensor, Tensor]
_THETA = 10_000.0


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Return how much of a head's width belongs to frame, row and column; 44, 42, 42 of 128."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary(
    frames: Sequence[int], rows: int, columns: int, head_dim: int, positions: int, device: torch.device | None = None
) -> Rotary:
    """Return cosines and sines, float32 [L, P] each, of tokens in order frame, row, column.

    frames: position of each frame. positions: how many an axis has; ValueError where that is too few. Angles are computed in
    float64.
    """
    if max(max(frames) + 1, rows, columns) > positions:
        raise ValueError(
            f"frames {min(frames)} to {max(frames) + 1}, {rows}x{columns} tokens: an axis has {positions} positions"
        )
    places = torch.tensor(list(frames), device=device), torch.arange(rows, device=device), torch.arange(columns, device=device)
    sizes, parts = (len(frames), rows, columns), []
    for axis, width in enumerate(axis_widths(head_dim)):
        frequency = _THETA ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        shape = [1, 1, 1, -1]
        shape[axis] = sizes[axis]
        parts.append((places[axis].double()[:, None] * frequency).view(shape).expand(*sizes, -1))
    angles_LP = torch.cat(parts, -1).reshape(-1, head_dim // 2)
    return angles_LP.cos().float(), angles_LP.sin().float()


def rotate(x_BLNH: Tensor, rotary_LP: Rotary) -> Tensor:
    """Rotate neighbouring pairs by (cos, sin), computed in float32 whatever the dtype of the input."""
    cos, sin = (part[None, :, None] for part in rotary_LP)
    even, odd = x_BLNH.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x_BLNH)
