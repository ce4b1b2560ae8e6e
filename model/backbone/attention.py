"""The attention function that modules are given, so that it can be replaced without a change to the model.

B batch, L queries, S keys, N heads, H width of a head.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Attend = Callable[..., Tensor]


def attend(q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention by the kernel that PyTorch chooses. mask: True where a query sees a key, broadcast to [B, N, L, S]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
