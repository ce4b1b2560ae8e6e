"""Rotary positions of video tokens: frame, row and column each rotate a part of a head's pairs (Wan2.2; RoFormer).

B batch, L tokens, N heads, P pairs of a head (half its width).
"""

import torch
from torch import Tensor

_THETA = 10_000.0


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Return how much of a head's width belongs to frame, row and column; 44, 42, 42 of 128."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def angles(sizes: tuple[int, int, int], first_frame: int, head_dim: int, positions: int, device: torch.device) -> Tensor:
    """Return the angles of tokens in order frame, row, column, float64 [L, P] in rad.

    first_frame: position of the first frame, for a block that continues a stream. positions: how many an axis has; ValueError
    where that is too few.
    """
    frames, rows, columns = sizes
    if max(first_frame + frames, rows, columns) > positions:
        raise ValueError(
            f"frames {first_frame} to {first_frame + frames}, {rows}x{columns} tokens: an axis has {positions} positions"
        )
    starts = (first_frame, 0, 0)
    parts = []
    for axis, width in enumerate(axis_widths(head_dim)):
        frequency = _THETA ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        position = torch.arange(starts[axis], starts[axis] + sizes[axis], dtype=torch.float64, device=device)
        shape = [1, 1, 1, -1]
        shape[axis] = sizes[axis]
        parts.append((position[:, None] * frequency).view(shape).expand(*sizes, -1))
    return torch.cat(parts, -1).reshape(frames * rows * columns, head_dim // 2)


def rotate(x_BLNH: Tensor, rotary_LP: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring pairs by (cos, sin), computed in float32 whatever the dtype of the input."""
    cos, sin = (part[None, :, None] for part in rotary_LP)
    even, odd = x_BLNH.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x_BLNH)
