"""Attention by one function with backends by name; one that is not here is an error, since each gives other last digits.

B batch, L queries, S keys, N heads, H width of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend(q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask_LS: Tensor | None = None) -> Tensor:
    """Softmax attention by PyTorch's own choice of kernel; mask: True where a query sees a key."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_LS).transpose(1, 2)


def _flash(q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return attend(q_BLNH, k_BSNH, v_BSNH)


_BACKENDS: dict[str, Attend] = {"sdpa": attend, "flash": _flash}


def backend(name: str) -> Attend:
    """The attention of that name. ValueError where there is none, or where this machine cannot run it."""
    if name not in _BACKENDS:
        raise ValueError(f"attention {name!r} is not one of {', '.join(_BACKENDS)}")
    if name == "flash" and not torch.cuda.is_available():
        raise ValueError("attention 'flash' needs a CUDA GPU; 'sdpa' runs everywhere")
    return _BACKENDS[name]
