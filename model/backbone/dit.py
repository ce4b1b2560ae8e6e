"""The Wan2.2 diffusion transformer of one expert. Its parameters have the names in diffusers' `WanTransformer3DModel`.

B batch, C channels, T latent frames, h w latent rows and columns, L tokens (T x h/2 x w/2), D width, N heads, H head width,
S text tokens, E text width, U tokens of a vision-language model, V their width; such a token of zeros is padding and is masked.
Noise levels are per latent frame, [B, T]: context frames of a causal model are clean (0).

Whatever the dtype of the weights, the time embedder, the tables of scales and shifts, the norms (`FP32`) and the rotary angles
are float32. In bfloat16 they would make a fine-tuned model drift from its base.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone.attention import KV, Attend, AttentionLayout, Past, attend, attend_with_past
from model.backbone.rope import Rotary, rotary
from model.config import BackboneConfig

# Parts of the names of parameters that stay in float32 (diffusers' `_keep_in_fp32_modules`).
FP32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "norm_out")

# What a block returns of its keys and values.
WantedKeys = Literal["none", "also", "only"]


class Embedded(NamedTuple):
    """What an expert makes of a noise level and a text, which is equal in many passes of play.

    time: [B, T, D]. scales: scales and shifts of the blocks, [B, T, 6, D]. text: keys and values of each block.
    """

    time_BTD: Tensor
    scales_BT6D: Tensor
    text: Sequence[KV]


class Expert(nn.Module):
    """Predicts the velocity of noisy video latents from text and control."""

    def __init__(self, config: BackboneConfig, attention: Attend = attend) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
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
        vlm_context_BUV: Tensor | None = None,
        layout: AttentionLayout | None = None,
        past: Sequence[Past] = (),
        keys_only: bool = False,
        embedded: Embedded | None = None,
    ) -> Tensor | tuple[KV, ...]:
        """Return the velocity [B, 16, T, h, w].

        time: 0 (clean) to 1000 (noise). text: of the whole video, or of each latent frame [B, T, S, E]. control: added to the
        tokens (None: no control). vlm_context: U tokens of width `added_kv_proj_dim`, padded with zeros, for a cross-attention
        next to that to the text (None: skip it). layout: where the tokens stand and what they see (None: frames 0 to T - 1, and
        everything sees everything). past: of each layer, what the tokens see of earlier latents. ValueError for sizes that do
        not divide into tokens.

        keys_only: return the keys and values of each layer instead, which a cache stores. The last block stops at its keys, and
        there is no head. embedded: noise levels and text where they are embedded already; `time` and `text` are not read then.
        """
        sizes = self._grid(x_BCThw)
        tokens_BLD = self.patch_embedding(x_BCThw.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        if control_BLD is not None:
            tokens_BLD = tokens_BLD + control_BLD.to(tokens_BLD.dtype)
        texts: Sequence[Tensor | KV]
        if embedded is None:
            time_BTD, scales_BT6D, text_BSD = self.condition_embedder(time_BT, text_BSE, tokens_BLD.dtype)
            texts = [text_BSD] * len(self.blocks)
        else:
            time_BTD, scales_BT6D, texts = embedded
        if layout is None:
            layout = AttentionLayout(self.rotary(range(sizes[0]), sizes[1], sizes[2], x_BCThw.device))
        keys = []
        for i, block in enumerate(self.blocks):
            own_past, last = past[i] if past else None, i == len(self.blocks) - 1
            wanted: WantedKeys = ("only" if last else "also") if keys_only else "none"
            made = block(tokens_BLD, texts[i], scales_BT6D, layout, own_past, vlm_context_BUV, wanted)
            if keys_only:
                tokens_BLD, kv = (tokens_BLD, made) if last else made
                keys.append(kv)
            else:
                tokens_BLD = made
        if keys_only:
            return tuple(keys)
        return self._unpatchify(self._head(tokens_BLD, time_BTD), sizes)

    def text_keys(self, text_BSE: Tensor) -> tuple[KV, ...]:
        """Return the keys and values of a text for the cross-attention of each block."""
        text_BSD = self.condition_embedder.text_embedder(text_BSE.to(self.patch_embedding.weight.dtype))
        return tuple(block.attn2.keys(text_BSD) for block in self.blocks)

    def embed(self, time_BT: Tensor, text_BSE: Tensor, text_keys: Sequence[KV]) -> Embedded:
        """Return noise levels and text as blocks read them. text_keys: `text_keys` of the text."""
        dtype = self.patch_embedding.weight.dtype
        return Embedded(*self.condition_embedder.embed_time(time_BT, text_BSE, dtype), text_keys)

    def rotary(self, frames: Sequence[int], rows: int, columns: int, device: torch.device) -> Rotary:
        """Return the rotary positions of tokens, given the position of each frame and the number of rows and columns."""
        return rotary(frames, rows, columns, self.config.attention_head_dim, self.config.rope_max_seq_len, device)

    def _grid(self, x_BCThw: Tensor) -> tuple[int, int, int]:
        """Return the number of tokens along frames, rows and columns. ValueError for sizes that do not divide into tokens."""
        sizes, patch = x_BCThw.shape[2:], self.config.patch_size
        if any(size % part for size, part in zip(sizes, patch, strict=True)):
            raise ValueError(
                f"latents of {tuple(sizes)} (frames, rows, columns) do not divide into patches of {patch}: pad the video"
            )
        frames, rows, columns = (size // part for size, part in zip(sizes, patch, strict=True))
        return frames, rows, columns

    def _head(self, x_BLD: Tensor, time_BTD: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table.float() + time_BTD.float()[:, :, None]).unbind(2)
        return self.proj_out(modulate(self.norm_out(x_BLD.float()), scale, shift).type_as(x_BLD))

    def _unpatchify(self, x_BLO: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        x = x_BLO.unflatten(1, sizes).unflatten(-1, (*self.config.patch_size, self.config.out_channels))
        whole = (size * part for size, part in zip(sizes, self.config.patch_size, strict=True))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(len(x), -1, *whole)


class ConditionEmbedder(nn.Module):
    """Embeds noise levels and text for the blocks.

    text: [B, S, E], or of each frame [B, T, S, E].
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self._freq_dim = config.freq_dim
        self.time_embedder = MLP(config.freq_dim, config.width, functional.silu)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = MLP(config.text_dim, config.width, partial(functional.gelu, approximate="tanh"))
        self.pooled_text = None
        if config.pooled_text:
            self.pooled_text = MLP(config.text_dim, config.width, functional.silu)
            nn.init.zeros_(self.pooled_text.linear_2.weight)
            nn.init.zeros_(self.pooled_text.linear_2.bias)

    def forward(self, time_BT: Tensor, text_BSE: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return time embedding [B, T, D], the blocks' scales and shifts [B, T, 6, D], text [B, S, D]."""
        return *self.embed_time(time_BT, text_BSE, dtype), self.text_embedder(text_BSE.to(dtype))

    def embed_time(self, time_BT: Tensor, text_BSE: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return time embedding [B, T, D] and the blocks' scales and shifts [B, T, 6, D]. The text may be added to both."""
        waves = sinusoid(time_BT, self._freq_dim).to(self.time_embedder.linear_1.weight.dtype)
        time_BTD = self.time_embedder(waves).to(dtype)
        if self.pooled_text is not None:
            pooled_BTE = mean_of_tokens(text_BSE if text_BSE.ndim == 4 else text_BSE[:, None])
            time_BTD = time_BTD + self.pooled_text(pooled_BTE.to(dtype))
        return time_BTD, self.time_proj(functional.silu(time_BTD)).unflatten(-1, (6, -1))


def mean_of_tokens(text_BTSE: Tensor) -> Tensor:
    """Return the mean of the tokens that are not padding, [B, T, E]; zeros where all are."""
    tokens = (text_BTSE != 0).any(-1).sum(-1, keepdim=True)
    return text_BTSE.sum(-2) / tokens.clamp(min=1)


def sinusoid(time_BT: Tensor, width: int) -> Tensor:
    """Return cosines, then sines, of a time at frequencies in a geometric series, float32 [B, T, width]."""
    frequency = torch.exp(
        -math.log(10_000) * torch.arange(width // 2, dtype=torch.float32, device=time_BT.device) / (width // 2)
    )
    phase = time_BT.float()[..., None] * frequency
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
    """Self-attention over the video, cross-attention to the text, feed-forward; scaled, shifted, gated by the noise level."""

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
        text_BSD: Tensor | KV,
        scales_BT6D: Tensor,
        layout: AttentionLayout,
        past: Past | None = None,
        vlm_context_BUV: Tensor | None = None,
        keys: WantedKeys = "none",
    ) -> Any:
        """Return the tokens after this block: [B, L, D].

        text: or its keys and values, where they are known. keys: return the tokens with this block's own KV as well, or only
        the KV.
        """
        modulation = (self.scale_shift_table.float() + scales_BT6D.float()).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        normed = modulate(self.norm1(x_BLD.float()), scale, shift).type_as(x_BLD)
        kv = self.attn1.keys(normed)
        stored = kv if keys == "none" else KV(kv.k_BSNH.clone(), kv.v_BSNH.clone())  # FSDP2 must not return views
        if keys == "only":
            return stored
        x_BLD = gated_residual(x_BLD, self.attn1.attend_to_video(normed, kv, layout, past), gate)
        x_BLD = x_BLD + self.attn2(self.norm2(x_BLD.float()).type_as(x_BLD), text_BSD, vlm_context_BUV)
        normed = modulate(self.norm3(x_BLD.float()), ffn_scale, ffn_shift).type_as(x_BLD)
        x_BLD = gated_residual(x_BLD, self.ffn(normed), ffn_gate)
        return x_BLD if keys == "none" else (x_BLD, stored)


def modulate(x_BLD: Tensor, scale_BTD: Tensor, shift_BTD: Tensor) -> Tensor:
    """Scale and shift each frame's tokens by the row of that frame. The rows are not expanded to [B, L, D]."""
    frames = x_BLD.unflatten(1, (scale_BTD.shape[1], -1))
    return torch.addcmul(shift_BTD[:, :, None], frames, 1 + scale_BTD[:, :, None]).flatten(1, 2)


def gated_residual(x_BLD: Tensor, change_BLD: Tensor, gate_BTD: Tensor) -> Tensor:
    """Return x + change * gate of the token's frame, computed in float32."""
    frames = change_BLD.float().unflatten(1, (gate_BTD.shape[1], -1)) * gate_BTD[:, :, None]
    return (x_BLD.float() + frames.flatten(1, 2)).type_as(x_BLD)


class Attention(nn.Module):
    """Attention: queries from the video; keys, values from the video (with rotary positions), or from text and VLM tokens."""

    def __init__(self, config: BackboneConfig, attention: Attend, context_dim: int | None = None) -> None:
        super().__init__()
        width = config.width
        self._heads, self.attend = config.num_attention_heads, attention  # `parallel.context_parallel` wraps `attend`
        self.kept_heads = self._heads  # of what `keys` returns; context parallel divides them among its ranks
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(width, config.eps), nn.RMSNorm(width, config.eps)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if context_dim is not None:
            self.add_k_proj, self.add_v_proj = nn.Linear(context_dim, width), nn.Linear(context_dim, width)
            self.norm_added_k = nn.RMSNorm(width, config.eps)

    def queries(self, x_BLD: Tensor) -> Tensor:
        """Return normed queries [B, L, N, H], not rotated."""
        return self.norm_q(self.to_q(x_BLD)).unflatten(-1, (self._heads, -1))

    def keys(self, source_BSD: Tensor) -> KV:
        """Return normed keys, not rotated, and values."""
        k = self.norm_k(self.to_k(source_BSD)).unflatten(-1, (self._heads, -1))
        return KV(k, self.to_v(source_BSD).unflatten(-1, (self._heads, -1)))

    def attend_to_video(self, x_BLD: Tensor, own: KV, layout: AttentionLayout, past: Past | None = None) -> Tensor:
        """Self-attention: attend to `own`, the keys of the same tokens, and to the past."""
        return self.to_out[0](attend_with_past(self.attend, self.queries(x_BLD), own, layout, past).flatten(2))

    def forward(self, x_BLD: Tensor, source_BSD: Tensor | KV, vlm_context_BUV: Tensor | None = None) -> Tensor:
        """Cross-attention: attend to `source`, and to `vlm_context` as well if there is one (see `Expert.forward`).

        source: [B, S, D], or one for each frame's tokens, [B, T, S, D]; or keys and values of the former.
        """
        q = self.queries(x_BLD)
        if isinstance(source_BSD, KV):
            values = self.attend(q, *source_BSD)
        elif source_BSD.ndim == q.ndim:
            frames = source_BSD.shape[1]
            k, v = self.keys(source_BSD.flatten(0, 1))
            values = self.attend(q.unflatten(1, (frames, -1)).flatten(0, 1), k, v).unflatten(0, (-1, frames)).flatten(1, 2)
        else:
            values = self.attend(q, *self.keys(source_BSD))
        if vlm_context_BUV is not None:
            values = values + self._attend_vlm_context(q, vlm_context_BUV.type_as(x_BLD))
        return self.to_out[0](values.flatten(2))

    def _attend_vlm_context(self, q_BLNH: Tensor, vlm_context_BUV: Tensor) -> Tensor:
        """Attend with the same queries to the VLM tokens, which have separate keys and values (as Wan2.1's image tokens have).

        Padding is masked; otherwise a sample would depend on how long the other samples of its batch are. The result is zero
        for a sample that is all padding.
        """
        k = self.norm_added_k(self.add_k_proj(vlm_context_BUV)).unflatten(-1, (self._heads, -1))
        v = self.add_v_proj(vlm_context_BUV).unflatten(-1, (self._heads, -1))
        is_token_BU = (vlm_context_BUV != 0).any(-1)
        any_B = is_token_BU.any(-1)
        values = self.attend(q_BLNH, k, v, (is_token_BU | ~any_B[:, None])[:, None, None])  # softmax over no key would be NaN
        return values * any_B[:, None, None, None]


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear, under diffusers' names `net.0.proj` and `net.2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(width, hidden)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.net[2](functional.gelu(self.net[0].proj(x_BLD), approximate="tanh"))
