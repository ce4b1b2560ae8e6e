"""Kernels of self-attention by name. A kernel that is not there is an error: another one would make another world in silence.

B batch, L queries, S keys, N heads, H width of a head.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from model.backbone.attention import Attend, attend
from model.backbone.dit import Expert
from model.causal.cache import History, Page
from model.causal.passes import Passes, PreparedBlock
from model.causal.spec import CausalSpec
from model.noise import ExpertName
from model.world import World

_FIRST_CUDNN = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def kernel(name: str, device: torch.device) -> Attend:
    """Return the attention function of a name. RuntimeError where it cannot run here."""
    if name == "cudnn":
        if device.type != "cuda":
            raise RuntimeError("attention=cudnn needs a GPU")
        return _cudnn
    if name == "sage":
        if find_spec("sageattention") is None:
            raise RuntimeError("SageAttention is not installed: pip install sageattention, or use another attention")
        if device.type != "cuda":
            raise RuntimeError("attention=sage needs a GPU")
        return _sage
    return attend  # sdpa; and flex, whose masks are of another type


def use(expert: Expert, function: Attend) -> None:
    """Let the self-attention of all blocks use a function; call it before context parallel wraps it."""
    for block in expert.blocks:
        block.attn1.attend = function


def _cudnn(q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    with sdpa_kernel(_FIRST_CUDNN, set_priority=True):
        return attend(q_BLNH, k_BSNH, v_BSNH, mask, scale)


@torch.compiler.disable
def _sage(q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """8-bit products of queries and keys (arXiv 2410.02367). It has no masks: the few passes with one use PyTorch's kernel."""
    if mask is not None:
        return attend(q_BLNH, k_BSNH, v_BSNH, mask, scale)
    from sageattention import sageattn

    values: Tensor = sageattn(q_BLNH, k_BSNH, v_BSNH, tensor_layout="NHD", is_causal=False, sm_scale=scale)
    return values


def with_block_masks(passes: Passes) -> Passes:
    """Return passes that give flex attention the mask of a history in its own form, made once for each history."""
    last: dict[str, Any] = {"of": None, "is": None}

    def masked(history: History) -> History:
        if last["of"] is not history:
            mask, queries = history.layout.mask, history.layout.rotary_LP[0].shape[0]
            layout = history.layout
            if isinstance(mask, Tensor):
                layout = layout._replace(mask=block_mask(mask.flatten().clone(), queries))
            last.update({"of": history, "is": History(layout, history.past)})
        made: History = last["is"]
        return made

    def denoise(world: World, x: Tensor, sigma: float, prepared: PreparedBlock, history: History, name: ExpertName) -> Tensor:
        return passes.denoise(world, x, sigma, prepared, masked(history), name)

    def commit(
        world: World, x0: Tensor, prepared: PreparedBlock, history: History, spec: CausalSpec, noise: Tensor | None = None
    ) -> Page:
        return passes.commit(world, x0, prepared, masked(history), spec, noise)

    return Passes(denoise, commit)


def block_mask(seen_S: Tensor, queries: int) -> BlockMask:
    """Return the mask of queries that all see the same keys. seen: bool [S]."""

    def rule(_batch: Any, _head: Any, _query: Tensor, key: Tensor) -> Tensor:
        return seen_S[key]

    return create_block_mask(rule, None, None, queries, len(seen_S), device=str(seen_S.device))
