"""Attention over tokens of a pass and of its past: the functions that modules are given, and what travels with the tokens.

Cache and mask are arguments of a block's forward pass, never state of a module: recomputation runs the forward pass again.

B batch, L queries, S keys, N heads, H width of a head, P pairs of a head (H / 2).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.backbone.rope import Rotary, rotate

Attend = Callable[..., Tensor]


def attend(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask: Tensor | BlockMask | None = None, scale: float | None = None
) -> Tensor:
    """Softmax attention by the kernel that PyTorch chooses; by flex attention for a BlockMask.

    mask: True where a query sees a key, broadcast to [B, N, L, S]. scale: of the products; None: 1 / sqrt(H).
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    if isinstance(mask, BlockMask):
        # Compiled where there are kernels to compile to; otherwise the whole matrix of scores is computed.
        flex = _compiled_flex_attention() if q.is_cuda else flex_attention
        values: Any = flex(q, k, v, block_mask=mask, scale=scale)
    else:
        values = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return values.transpose(1, 2)


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled


class KV(NamedTuple):
    """Keys and values of one layer, as a cache stores them: keys are normed, and not rotated yet."""

    k_BSNH: Tensor
    v_BSNH: Tensor


class Past(NamedTuple):
    """Keys, rotated to their positions, and values of past latents for one layer.

    own: numbers of the tokens that are room for the pass's own keys and values, which are written there. Shapes and addresses
    then never change. Not for training: it writes in place. None: own keys follow those of the past.
    """

    k_BSNH: Tensor
    v_BSNH: Tensor
    own_L: Tensor | None = None


class SinkRotation(NamedTuple):
    """Second positions of queries, from which they see the sink in a pass over a whole sequence.

    A rollout places the sink right in front of its window, so only the distance to the sink is shortened.
    """

    rotary_LP: Rotary  # of the queries
    is_sink_L: Tensor  # bool, the keys that are seen from there


class AttentionLayout(NamedTuple):
    """Where the tokens of a pass stand and what they see; one for all layers.

    mask: for the keys of past and pass, see `attend`; None: everything. steady: later passes have the same shapes and
    addresses, so it is worth compiling or recording them.
    """

    rotary_LP: Rotary
    mask: Tensor | BlockMask | None = None
    sink: SinkRotation | None = None
    steady: bool = False


def attend_with_past(attend_function: Attend, q_BLNH: Tensor, own: KV, layout: AttentionLayout, past: Past | None) -> Tensor:
    """Return self-attention of a pass's queries to past and own keys, which are rotated here."""
    k, v = rotate(own.k_BSNH, layout.rotary_LP), own.v_BSNH
    q = rotate(q_BLNH, layout.rotary_LP)
    if past is not None and past.own_L is not None:
        k = past.k_BSNH.index_copy_(1, past.own_L, k)
        v = past.v_BSNH.index_copy_(1, past.own_L, v)
    elif past is not None:
        k, v = torch.cat([past.k_BSNH, k], 1), torch.cat([past.v_BSNH, v], 1)
    if layout.sink is None:
        return attend_function(q, k, v) if layout.mask is None else attend_function(q, k, v, layout.mask)
    # Two rotations in one product of twice the width: a key has numbers in only one half.
    is_sink = layout.sink.is_sink_L[None, :, None, None]
    q = torch.cat([q, rotate(q_BLNH, layout.sink.rotary_LP)], -1)
    k = torch.cat([k * ~is_sink, k * is_sink], -1)
    return attend_function(q, k, v, layout.mask, scale=q_BLNH.shape[-1] ** -0.5)
