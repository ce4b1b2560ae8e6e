"""Ulysses context parallel around an expert: the ranks of a group share the tokens of one sample (arXiv 2309.14509).

Between the first and the last block a rank holds an equal part of *every frame's* tokens, so that noise levels stay per frame.
For self-attention the ranks exchange tokens against heads: each rank then has all tokens, in their order, with its share of the
heads. Rotary positions, masks and the past are therefore those of one rank. The keys and values that a causal model caches are
taken after the exchange: each rank has pages of its own heads, which are never gathered.

Gradients are correct under the mean over *all* ranks, which FSDP2 takes anyway. Outside the blocks all ranks of a group
compute the same, and have the same gradients. Inside them a rank has the gradient of its own tokens or heads, times the group's
size: so the mean over the ranks is the sum over their parts. The factor comes in with `_Gather` and goes out with `_Split`, so
that gradients stay correct where an output becomes the input of another pass, as in a rollout.

B batch, T latent frames, S tokens a frame (s on this rank), L = T x S, l = T x s, D width, N heads (n on this rank),
H head width, R ranks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single, wait_tensor
from torch.distributed.device_mesh import DeviceMesh

from curation.errors import InputError
from model.backbone.attention import KV, Attend
from model.backbone.dit import Block, Expert


def parallelize(expert: Expert, mesh: DeviceMesh) -> Expert:
    """Divide each sample's tokens among the ranks of a mesh of one dimension, in place; call it before FSDP2.

    InputError where the heads do not divide among the ranks. The forward pass raises it where the tokens of a frame do not.
    """
    ranks, heads = mesh.size(), expert.config.num_attention_heads
    if heads % ranks:
        raise InputError(f"context parallel over {ranks} ranks needs heads that divide among them, not {heads}")
    group = mesh.get_group()
    for block in expert.blocks:
        _Exchange(group).put_around(block)
    expert.blocks[0].register_forward_pre_hook(partial(_split_tokens, group))
    expert.blocks[-1].register_forward_hook(partial(_gather_tokens, group))
    return expert


class _Exchange:
    """Exchanges tokens against heads in the self-attention of a block."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._frames = group, 1

    def put_around(self, block: Block) -> None:
        attention: Any = block.attn1
        block.forward = partial(self._forward, block.forward)  # type: ignore[method-assign]
        attention.queries = partial(self._queries, attention.queries)
        attention.keys = partial(self._keys, attention.keys)
        attention.attend = partial(self._attend, attention.attend)
        attention.kept_heads //= self._group.size()

    def _forward(self, forward: Callable[..., Any], x_BlD: Tensor, text: Any, scales_BT6D: Tensor, *more: Any) -> Any:
        self._frames = scales_BT6D.shape[1]  # anew in every pass, and when a pass is computed again
        return forward(x_BlD, text, scales_BT6D, *more)

    def _queries(self, queries: Callable[[Tensor], Tensor], x_BlD: Tensor) -> Tensor:
        return _tokens_to_heads(queries(x_BlD), self._frames, self._group)

    def _keys(self, keys: Callable[[Tensor], KV], x_BlD: Tensor) -> KV:
        own = keys(x_BlD)
        return KV(*(_tokens_to_heads(each, self._frames, self._group) for each in own))

    def _attend(self, attend: Attend, *arguments: Any, **options: Any) -> Tensor:
        return _heads_to_tokens(attend(*arguments, **options), self._frames, self._group)


def _split_tokens(group: dist.ProcessGroup, _block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reduce the first block's tokens to those of this rank."""
    x_BLD, _, scales_BT6D, *_ = inputs
    return _Split.apply(x_BLD, scales_BT6D.shape[1], group), *inputs[1:]


def _gather_tokens(group: dist.ProcessGroup, _block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Gather the last block's tokens; keys and values alone stay divided by heads."""
    return _Gather.apply(output, inputs[2].shape[1], group) if isinstance(output, Tensor) else output


def _own_part(x_BLD: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's part of each frame's tokens."""
    per_frame, ranks = x_BLD.shape[1] // frames, group.size()
    if per_frame % ranks:
        raise InputError(
            f"{per_frame} tokens a frame do not divide among {ranks} ranks of context parallel: use fewer, or another size"
        )
    return x_BLD.unflatten(1, (frames, ranks, -1)).select(2, group.rank()).flatten(1, 2)


def _all_parts(x_BlD: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
    """Return the tokens of all ranks, in their order."""
    parts = [torch.empty_like(x_BlD) for _ in range(group.size())]
    dist.all_gather(parts, x_BlD.contiguous(), group=group)
    return torch.stack([part.unflatten(1, (frames, -1)) for part in parts], 2).flatten(1, 3)


class _Split(torch.autograd.Function):
    """Take this rank's part of tokens that all ranks have. Backward: gather the parts, over the group's size."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
        ctx.frames, ctx.group = frames, group
        return _own_part(x_BLD, frames, group).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _all_parts(gradients[0], ctx.frames, ctx.group) / ctx.group.size(), None, None


class _Gather(torch.autograd.Function):
    """Gather the tokens of all parts. Backward: this rank's part of the gradient, times the group's size."""

    @staticmethod
    def forward(ctx: Any, x_BlD: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
        ctx.frames, ctx.group = frames, group
        return _all_parts(x_BlD, frames, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _own_part(gradients[0], ctx.frames, ctx.group) * ctx.group.size(), None, None


def _tokens_to_heads(x_BlNH: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
    """Exchange own tokens with all heads for all tokens, in their order, with own heads: [B, L, n, H]."""
    parts = x_BlNH.unflatten(2, (group.size(), -1)).movedim(2, 0).contiguous()
    received = _all_to_all(parts, group).unflatten(2, (frames, -1))  # [R, B, T, s, n, H]
    return received.permute(1, 2, 0, 3, 4, 5).flatten(1, 3)


def _heads_to_tokens(x_BLnH: Tensor, frames: int, group: dist.ProcessGroup) -> Tensor:
    """Invert `_tokens_to_heads`: [B, l, N, H]."""
    parts = x_BLnH.unflatten(1, (frames, group.size(), -1)).movedim(2, 0).flatten(2, 3).contiguous()
    return _all_to_all(parts, group).movedim(0, 2).flatten(2, 3)


def _all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send part r of the first axis to rank r of the group, and receive its part for this rank."""
    return wait_tensor(all_to_all_single(parts, None, None, group))
