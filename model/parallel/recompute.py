"""Recomputation and compilation of each block of an expert. Parameter names stay as they are."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.backbone.attention import AttentionLayout, Past
from model.backbone.dit import Expert, WantedKeys


def recompute_blocks(expert: Expert) -> Expert:
    """Keep only the blocks' inputs for the backward pass and compute the rest again there, in place: a third more work."""
    for block in expert.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return expert


def compile_blocks(expert: Expert, backend: str | Callable[..., Any] = "inductor") -> Expert:
    """Compile each block, in place; after `recompute_blocks`, before FSDP2. Blocks are alike, so one compilation serves all."""
    for block in expert.blocks:
        block.forward = torch.compile(block.forward, backend=backend)
    return expert


def compile_steady_blocks(expert: Expert, backend: str | Callable[..., Any] = "inductor") -> Expert:
    """Compile each block for the passes of play that are repeated for ever, in place: two graphs, of denoising and of commits.

    Passes while the window fills, and what the last block does of a commit, are run by the plain code: they have other shapes,
    or almost nothing to do.
    """
    for block in expert.blocks:
        compiled = torch.compile(block.forward, backend=backend, dynamic=False)
        block.forward = partial(_run_steady, block.forward, compiled)
    return expert


def _run_steady(
    plain: Callable[..., Any],
    compiled: Callable[..., Any],
    x_BLD: Tensor,
    text: Any,
    scales_BT6D: Tensor,
    layout: AttentionLayout,
    past: Past | None = None,
    vlm_context_BUV: Tensor | None = None,
    keys: WantedKeys = "none",
) -> Any:
    forward = compiled if layout.steady and keys != "only" else plain
    return forward(x_BLD, text, scales_BT6D, layout, past, vlm_context_BUV, keys)
