"""Ulysses context parallel around an expert: ranks of a group share one sample's tokens (arXiv 2309.14509).

Between the first and the last block a rank holds an equal part of *every frame's* tokens, so that noise levels stay per frame.
For self-attention the ranks exchange tokens against heads: each then sees all tokens with its share of the heads.

Gradients are right under the mean over *all* ranks that FSDP2 takes anyway. Within a group each rank makes the same loss of the
gathered tokens; `_Gather` hands back its own part times the group's size, so what blocks and embeddings learn is summed over a
group's parts, and what comes behind the blocks, equal on each, is averaged.

B batch, T latent frames, S tokens a frame, s of them here, L = T x S, l = T x s, D width, N heads, H head width, R ranks.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single, wait_tensor
from torch.distributed.device_mesh import DeviceMesh

from model.backbone.attention import Attend
from model.backbone.dit import Expert


def share(expert: Expert, mesh: DeviceMesh) -> Expert:
    """Let the ranks of a mesh of one dimension share each sample's tokens, in place; put on before FSDP2.

    ValueError where heads do not divide among them; the forward pass raises one where a frame's tokens do not.
    """
    ranks, heads = mesh.size(), expert.config.num_attention_heads
    if heads % ranks:
        raise ValueError(f"context parallel over {ranks} ranks needs heads that divide among them, not {heads}")
    group = mesh.get_group()
    for block in expert.blocks:
        block.attn1.attend = partial(_exchanged, block.attn1.attend, group)
        block.register_forward_pre_hook(partial(_own_turn, group))
    expert.blocks[0].register_forward_pre_hook(partial(_own_tokens, group))
    expert.blocks[-1].register_forward_hook(partial(_all_tokens, group))
    return expert


def _own_turn(group: dist.ProcessGroup, _block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A block's rotary positions, those of the tokens here."""
    x_BLD, text_BSD, scales_BT6D, turn_LP, *more = given
    return x_BLD, text_BSD, scales_BT6D, tuple(_part(turn, 0, scales_BT6D.shape[1], group) for turn in turn_LP), *more


def _own_tokens(group: dist.ProcessGroup, _block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    x_BLD, _, scales_BT6D, *_ = given
    return _part(x_BLD, 1, scales_BT6D.shape[1], group), *given[1:]


def _part(x: Tensor, axis: int, frames: int, group: dist.ProcessGroup) -> Tensor:
    """What this rank holds of each frame, along an axis of L tokens."""
    each, ranks = x.shape[axis] // frames, group.size()
    if each % ranks:
        raise ValueError(
            f"{each} tokens a frame do not divide among {ranks} ranks of context parallel: use fewer, or another size"
        )
    return x.unflatten(axis, (frames, ranks, -1)).select(axis + 1, group.rank()).flatten(axis, axis + 1)


def _all_tokens(group: dist.ProcessGroup, _block: nn.Module, given: tuple[Any, ...], x_BlD: Tensor) -> Tensor:
    return _Gather.apply(x_BlD, given[2].shape[1], group)


class _Gather(torch.autograd.Function):
    """All tokens of the parts; backwards this rank's part of the gradient, times the group's size."""

    @staticmethod
    def forward(ctx: Any, x_BlD: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
        ctx.frames, ctx.group = frames, group
        parts = [torch.empty_like(x_BlD) for _ in range(group.size())]
        dist.all_gather(parts, x_BlD.contiguous(), group=group)
        return torch.stack([part.unflatten(1, (frames, -1)) for part in parts], 2).flatten(1, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _part(gradients[0], 1, ctx.frames, ctx.group) * ctx.group.size(), None, None


def _exchanged(attend: Attend, group: dist.ProcessGroup, q_BlNH: Tensor, k_BlNH: Tensor, v_BlNH: Tensor) -> Tensor:
    """Attention over all tokens with this rank's heads, and back to its own tokens with all heads."""
    seen_BLnH = attend(*(_heads_here(x, group) for x in (q_BlNH, k_BlNH, v_BlNH)))
    return _tokens_here(seen_BLnH, group)


def _heads_here(x_BlNH: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, L, N/R, H]: every rank's tokens, ordered by rank, then frame (a mask over them must know that)."""
    sent = x_BlNH.unflatten(2, (group.size(), -1)).movedim(2, 0).contiguous()
    return _swapped(sent, group).movedim(0, 1).flatten(1, 2)


def _tokens_here(x_BLnH: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, l, N, H]: the way back."""
    sent = x_BLnH.unflatten(1, (group.size(), -1)).movedim(1, 0).contiguous()
    return _swapped(sent, group).movedim(0, 2).flatten(2, 3)


def _swapped(sent: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Part r of the first axis goes to rank r of the group, and comes from it."""
    return wait_tensor(all_to_all_single(sent, None, None, group))
