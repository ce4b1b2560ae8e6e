"""Parameter names of original Wan checkpoints and of diffusers, which this package uses: one to one in both directions."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from curation.errors import InputError

# Original to diffusers. norm2 and norm3 are swapped: the norm before the cross-attention is Wan's norm3 and diffusers' norm2.
_PATTERNS = (
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
    (r"^(blocks\.\d+)\.self_attn\.(q|k|v)\.", r"\1.attn1.to_\2."),
    (r"^(blocks\.\d+)\.cross_attn\.(q|k|v)\.", r"\1.attn2.to_\2."),
    (r"^(blocks\.\d+)\.self_attn\.o\.", r"\1.attn1.to_out.0."),
    (r"^(blocks\.\d+)\.cross_attn\.o\.", r"\1.attn2.to_out.0."),
    (r"^(blocks\.\d+)\.self_attn\.(norm_q|norm_k)\.", r"\1.attn1.\2."),
    (r"^(blocks\.\d+)\.cross_attn\.(norm_q|norm_k)\.", r"\1.attn2.\2."),
    (r"^patch_embedding\.", "patch_embedding."),
)


def to_diffusers(name: str) -> str:
    """Return a parameter's name in diffusers, given its name in an original checkpoint. InputError for an unknown name."""
    for pattern, replacement in _PATTERNS:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise InputError(f"{name!r} is no parameter of an original Wan2.2 checkpoint")


def original_names(diffusers_names: Iterable[str]) -> dict[str, str]:
    """Return the original name of every name in diffusers. The inverse of `to_diffusers`, built by applying it to all names."""
    blocks = {name.split(".")[1] for name in diffusers_names if name.startswith("blocks.")}
    by_diffusers = {to_diffusers(name): name for name in _all_original_names(blocks)}
    return {name: by_diffusers[name] for name in diffusers_names}


def _all_original_names(blocks: Iterable[str]) -> Iterable[str]:
    for module in ("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"):
        yield from (f"{module}.weight", f"{module}.bias")
    yield from ("time_projection.1.weight", "time_projection.1.bias", "head.modulation", "head.head.weight", "head.head.bias")
    for block in blocks:
        yield f"blocks.{block}.modulation"
        for module in ("norm3", "ffn.0", "ffn.2"):
            yield from (f"blocks.{block}.{module}.weight", f"blocks.{block}.{module}.bias")
        for attention in ("self_attn", "cross_attn"):
            yield from (f"blocks.{block}.{attention}.{norm}.weight" for norm in ("norm_q", "norm_k"))
            for module in "qkvo":
                yield from (f"blocks.{block}.{attention}.{module}.{kind}" for kind in ("weight", "bias"))


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an original checkpoint under diffusers' names."""
    return {to_diffusers(name): tensor for name, tensor in state.items()}


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with diffusers' names under the original names."""
    names = original_names(state)
    return {names[name]: tensor for name, tensor in state.items()}
