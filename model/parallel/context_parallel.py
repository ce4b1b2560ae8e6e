"""Ulysses context parallel around an expert: the ranks of a group share the tokens of one sample (arXiv 2309.14509).

Between the first and the last block a rank holds an equal part of *every frame's* tokens, so that noise levels stay per frame.
For self-attention the ranks exchange tokens against heads: each rank then has all tokens, with its share of the heads.

Gradients are correct under the mean over *all* ranks, which FSDP2 takes anyway. In a group each rank computes the same loss
from the gathered tokens. The backward pass of `_Gather` returns the rank's own part times the group's size, so gradients of
blocks and embeddings are summed over the parts of a group. Gradients of what comes after the blocks are equal on each rank and
averaged.

B batch, T latent frames, S tokens a frame (s on this rank), L = T x S, l = T x s, D width, N heads (n on this rank),
H head width, R ranks.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single, wait_tensor
from torch.distributed.device_mesh import DeviceMesh

from curation.errors import InputError
from model.backbone.attention import Attend
from model.backbone.dit import Expert


def parallelize(expert: Expert, mesh: DeviceMesh) -> Expert:
    """Divide each sample's tokens among the ranks of a mesh of one dimension, in place; call it before FSDP2.

    InputError where the heads do not divide among the ranks. The forward pass raises it where the tokens of a frame do not.
    """
    ranks, heads = mesh.size(), expert.config.num_attention_heads
    if heads % ranks:
        raise InputError(f"context parallel over {ranks} ranks needs heads that divide among them, not {heads}")
    group = mesh.get_group()
    for block in expert.blocks:
        block.attn1.attend = partial(_attend_exchanged, block.attn1.attend, group)
        block.register_forward_pre_hook(partial(_take_own_positions, group))
    expert.blocks[0].register_forward_pre_hook(partial(_take_own_tokens, group))
    expert.blocks[-1].register_forward_hook(partial(_gather_tokens, group))
    return expert


def _take_own_positions(group: dist.ProcessGroup, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reduce a block's rotary positions to those of this rank's tokens. Masks and caches are not divided yet."""
    x_BLD, text_BSD, scales_BT6D, layout, past, vlm_context_BUV, keys = inputs
    if past is not None or layout.mask is not None or keys != "none":
        raise InputError("context parallel has no causal attention yet: set layout.context to 1")
    own = tuple(_own_part(part, 0, scales_BT6D.shape[1], group) for part in layout.rotary_LP)
    return x_BLD, text_BSD, scales_BT6D, layout._replace(rotary_LP=own), past, vlm_context_BUV, keys


def _take_own_tokens(group: dist.ProcessGroup, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reduce the first block's tokens to those of this rank."""
    x_BLD, _, scales_BT6D, *_ = inputs
    return _own_part(x_BLD, 1, scales_BT6D.shape[1], group), *inputs[1:]


def _own_part(x: Tensor, axis: int, frames: int, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's part of each frame, along an axis of L tokens."""
    per_frame, ranks = x.shape[axis] // frames, group.size()
    if per_frame % ranks:
        raise InputError(
            f"{per_frame} tokens a frame do not divide among {ranks} ranks of context parallel: use fewer, or another size"
        )
    return x.unflatten(axis, (frames, ranks, -1)).select(axis + 1, group.rank()).flatten(axis, axis + 1)


def _gather_tokens(group: dist.ProcessGroup, _block: nn.Module, inputs: tuple[Any, ...], x_BlD: Tensor) -> Tensor:
    return _Gather.apply(x_BlD, inputs[2].shape[1], group)


class _Gather(torch.autograd.Function):
    """Gather the tokens of all parts. Backward: this rank's part of the gradient, times the group's size."""

    @staticmethod
    def forward(ctx: Any, x_BlD: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
        ctx.frames, ctx.group = frames, group
        parts = [torch.empty_like(x_BlD) for _ in range(group.size())]
        dist.all_gather(parts, x_BlD.contiguous(), group=group)
        return torch.stack([part.unflatten(1, (frames, -1)) for part in parts], 2).flatten(1, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _own_part(gradients[0], 1, ctx.frames, ctx.group) * ctx.group.size(), None, None


def _attend_exchanged(attend: Attend, group: dist.ProcessGroup, q_BlNH: Tensor, k_BlNH: Tensor, v_BlNH: Tensor) -> Tensor:
    """Attend over all tokens with this rank's heads; return this rank's tokens with all heads."""
    values_BLnH = attend(*(_tokens_to_heads(x, group) for x in (q_BlNH, k_BlNH, v_BlNH)))
    return _heads_to_tokens(values_BLnH, group)


def _tokens_to_heads(x_BlNH: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Exchange own tokens with all heads for all tokens with own heads, [B, L, n, H].

    The tokens are ordered by rank, then frame; a mask over them must have the same order.
    """
    parts = x_BlNH.unflatten(2, (group.size(), -1)).movedim(2, 0).contiguous()
    return _all_to_all(parts, group).movedim(0, 1).flatten(1, 2)


def _heads_to_tokens(x_BLnH: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Invert `_tokens_to_heads`: [B, l, N, H]."""
    parts = x_BLnH.unflatten(1, (group.size(), -1)).movedim(1, 0).contiguous()
    return _all_to_all(parts, group).movedim(0, 2).flatten(2, 3)


def _all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send part r of the first axis to rank r of the group, and receive its part for this rank."""
    return wait_tensor(all_to_all_single(parts, None, None, group))
