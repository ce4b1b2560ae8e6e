"""The Wan2.2 diffusion transformer of one expert. Its parameters have the names of diffusers' `WanTransformer3DModel`.

B batch, C channels, T latent frames, h w latent rows and columns, L tokens (T x h/2 x w/2), D width, N heads, H head width,
S text tokens, E text width, U added tokens, V their width. An added token of zeros is padding: nothing reads it. Noise levels
are per latent frame, [B, T]: context frames of a causal model are clean (0).

Single precision, whatever the weights' type: the time embedder, the tables of scales and shifts, the norms and the rotary
angles (`FP32`). A bfloat16 there is what makes a fine-tune drift from its base.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone.attention import Attend, attend
from model.backbone.rope import angles, rotate
from model.config import BackboneConfig

# Parts of parameter names that stay in float32 (diffusers' `_keep_in_fp32_modules`).
FP32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "norm_out")


class Expert(nn.Module):
    """Velocity of video latents under noise, text and control."""

    def __init__(self, config: BackboneConfig, attention: Attend = attend) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, config.patch_size)
        self.condition_embedder = Conditions(config)
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)

    def forward(
        self,
        x_BCThw: Tensor,
        time_BT: Tensor,
        text_BSE: Tensor,
        control_BLD: Tensor | None = None,
        first_frame: int = 0,
        added_BUV: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, 16, T, h, w]. time: 0 clean to 1000 noise. control: added to the tokens (None: no control).

        first_frame: position of the first latent in its stream. added: a second source beside the text, U tokens of
        `added_kv_proj_dim` (None: not asked), padded with zeros. ValueError for sizes that do not divide into tokens.
        """
        sizes = self._tokens(x_BCThw)
        tokens_BLD = self.patch_embedding(x_BCThw.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        if control_BLD is not None:
            tokens_BLD = tokens_BLD + control_BLD.to(tokens_BLD.dtype)
        time_BTD, scales_BT6D, text_BSD = self.condition_embedder(time_BT, text_BSE, tokens_BLD.dtype)
        turned = angles(sizes, first_frame, self.config.attention_head_dim, self.config.rope_max_seq_len, x_BCThw.device)
        turn_LP = torch.cos(turned).float(), torch.sin(turned).float()
        for block in self.blocks:
            tokens_BLD = block(tokens_BLD, text_BSD, scales_BT6D, turn_LP, added_BUV)
        return self._unpatched(self._head(tokens_BLD, time_BTD), sizes)

    def _tokens(self, x_BCThw: Tensor) -> tuple[int, int, int]:
        sizes, patch = x_BCThw.shape[2:], self.config.patch_size
        if any(size % part for size, part in zip(sizes, patch, strict=True)):
            raise ValueError(
                f"latents of {tuple(sizes)} (frames, rows, columns) do not divide into patches of {patch}: pad the video"
            )
        frames, rows, columns = (size // part for size, part in zip(sizes, patch, strict=True))
        return frames, rows, columns

    def _head(self, x_BLD: Tensor, time_BTD: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table.float() + time_BTD.float()[:, :, None]).unbind(2)
        return self.proj_out(modulated(self.norm_out(x_BLD.float()), scale, shift).type_as(x_BLD))

    def _unpatched(self, x_BLO: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        x = x_BLO.unflatten(1, sizes).unflatten(-1, (*self.config.patch_size, self.config.out_channels))
        whole = (size * part for size, part in zip(sizes, self.config.patch_size, strict=True))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(x), -1, *whole)


class Conditions(nn.Module):
    """Noise levels and text, as the blocks read them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self._freq_dim = config.freq_dim
        self.time_embedder = MLP(config.freq_dim, config.width, functional.silu)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = MLP(config.text_dim, config.width, partial(functional.gelu, approximate="tanh"))

    def forward(self, time_BT: Tensor, text_BSE: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Time embedding [B, T, D], the blocks' scales and shifts [B, T, 6, D], text [B, S, D]."""
        waves = sinusoid(time_BT, self._freq_dim).to(self.time_embedder.linear_1.weight.dtype)
        time_BTD = self.time_embedder(waves).to(dtype)
        return (
            time_BTD,
            self.time_proj(functional.silu(time_BTD)).unflatten(-1, (6, -1)),
            self.text_embedder(text_BSE.to(dtype)),
        )


def sinusoid(time_BT: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of a time at geometric rates, float32 [B, T, width]."""
    rate = torch.exp(-math.log(10_000) * torch.arange(width // 2, dtype=torch.float32, device=time_BT.device) / (width // 2))
    phase = time_BT.float()[..., None] * rate
    return torch.cat([phase.cos(), phase.sin()], -1)


class MLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width_in: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width_in, width), nn.Linear(width, width)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self._activation(self.linear_1(x)))


class Block(nn.Module):
    """Self-attention over the video, cross-attention to the text, feed-forward; noise scales, shifts and gates them."""

    def __init__(self, config: BackboneConfig, attention: Attend) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.attn1 = Attention(config, attention)
        self.norm2 = nn.LayerNorm(width, config.eps)
        self.attn2 = Attention(config, attention, config.added_kv_proj_dim)
        self.norm3 = nn.LayerNorm(width, config.eps, elementwise_affine=False)
        self.ffn = FeedForward(width, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(
        self,
        x_BLD: Tensor,
        text_BSD: Tensor,
        scales_BT6D: Tensor,
        turn_LP: tuple[Tensor, Tensor],
        added_BUV: Tensor | None = None,
    ) -> Tensor:
        moved = (self.scale_shift_table.float() + scales_BT6D.float()).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = moved
        seen = modulated(self.norm1(x_BLD.float()), scale, shift).type_as(x_BLD)
        x_BLD = gated(x_BLD, self.attn1(seen, seen, turn_LP), gate)
        x_BLD = x_BLD + self.attn2(self.norm2(x_BLD.float()).type_as(x_BLD), text_BSD, added_BUV=added_BUV)
        seen = modulated(self.norm3(x_BLD.float()), ffn_scale, ffn_shift).type_as(x_BLD)
        return gated(x_BLD, self.ffn(seen), ffn_gate)


def modulated(x_BLD: Tensor, scale_BTD: Tensor, shift_BTD: Tensor) -> Tensor:
    """Each frame's tokens scaled and shifted by that frame's row; nothing of [B, L, D] is made of the rows."""
    frames = x_BLD.unflatten(1, (scale_BTD.shape[1], -1))
    return torch.addcmul(shift_BTD[:, :, None], frames, 1 + scale_BTD[:, :, None]).flatten(1, 2)


def gated(x_BLD: Tensor, change_BLD: Tensor, gate_BTD: Tensor) -> Tensor:
    """The residual, in float32: x + change x gate of the token's frame."""
    frames = change_BLD.float().unflatten(1, (gate_BTD.shape[1], -1)) * gate_BTD[:, :, None]
    return (x_BLD.float() + frames.flatten(1, 2)).type_as(x_BLD)


class Attention(nn.Module):
    """Queries of the video; keys and values of the video (with rotary positions), or of the text and what is added to it."""

    def __init__(self, config: BackboneConfig, attention: Attend, added_dim: int | None = None) -> None:
        super().__init__()
        width = config.width
        self._heads, self.attend = config.num_attention_heads, attention  # `parallel.context` wraps `attend`
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(width, config.eps), nn.RMSNorm(width, config.eps)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if added_dim is not None:
            self.add_k_proj, self.add_v_proj = nn.Linear(added_dim, width), nn.Linear(added_dim, width)
            self.norm_added_k = nn.RMSNorm(width, config.eps)

    def forward(
        self,
        x_BLD: Tensor,
        source_BSD: Tensor,
        turn_LP: tuple[Tensor, Tensor] | None = None,
        added_BUV: Tensor | None = None,
    ) -> Tensor:
        """added: see `Expert.forward`."""
        q = self.norm_q(self.to_q(x_BLD)).unflatten(-1, (self._heads, -1))
        k = self.norm_k(self.to_k(source_BSD)).unflatten(-1, (self._heads, -1))
        v = self.to_v(source_BSD).unflatten(-1, (self._heads, -1))
        if turn_LP is not None:
            q, k = rotate(q, turn_LP), rotate(k, turn_LP)
        seen = self.attend(q, k, v)
        if added_BUV is not None:
            seen = seen + self._added(q, added_BUV.type_as(x_BLD))
        return self.to_out[0](seen.flatten(2))

    def _added(self, q_BLNH: Tensor, added_BUV: Tensor) -> Tensor:
        """The same queries of the second source, with keys and values of its own (as Wan2.1 reads its image tokens).

        Padding is masked, or a sample would depend on how long its neighbours in a batch are. A sample that is all padding
        reads nothing: zero.
        """
        k = self.norm_added_k(self.add_k_proj(added_BUV)).unflatten(-1, (self._heads, -1))
        v = self.add_v_proj(added_BUV).unflatten(-1, (self._heads, -1))
        told_BU = (added_BUV != 0).any(-1)
        any_B = told_BU.any(-1)
        read = self.attend(q_BLNH, k, v, (told_BU | ~any_B[:, None])[:, None, None])  # softmax over no key would be NaN
        return read * any_B[:, None, None, None]


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear, under diffusers' names `net.0.proj` and `net.2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(width, hidden)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.net[2](functional.gelu(self.net[0].proj(x_BLD), approximate="tanh"))
