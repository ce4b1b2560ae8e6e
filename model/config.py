"""Sizes of one expert, and the strides of the video autoencoder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CELL_PX = 8  # spatial stride of the video autoencoder: a latent's row or column covers 8 px; see `Codec.cell_px`
FRAMES_PER_LATENT = 4  # temporal stride of the video autoencoder; the first frame is a latent by itself


def check_frames(frames: int) -> None:
    """Raise ValueError for a clip length that is not a whole number of latents."""
    if frames < 1 or (frames - 1) % FRAMES_PER_LATENT:
        raise ValueError(f"frames must be 1 + 4k (the video autoencoder's stride), not {frames}")


# Settings of diffusers' class that this backbone has at one value only: no CLIP image tokens (Wan2.1 I2V), no other norms.
_FIXED = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "pos_embed_seq_len": None,
}


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of one expert. Names and meanings are those in `config.json` of diffusers' `WanTransformer3DModel`."""

    num_attention_heads: int  # attention heads; the width of a token is heads times head width
    attention_head_dim: int  # width of a head; even, since rotary positions rotate pairs
    num_layers: int  # number of transformer blocks
    ffn_dim: int  # hidden width of the feed-forward layers
    in_channels: int = 36  # channels of the input: noise, mask (4) and image latents, so 2 x out_channels + 4
    out_channels: int = 16  # channels of a latent
    text_dim: int = 4096  # width of the text encoder's hidden states
    freq_dim: int = 256  # number of sines and cosines that encode a noise level
    patch_size: tuple[int, int, int] = (1, 2, 2)  # frames, rows, columns of latents that make one token
    eps: float = 1e-6  # epsilon of the normalisation layers
    rope_max_seq_len: int = 1024  # positions of an axis; a video with more latents than that is refused
    # width of the vision-language model's tokens that a second cross-attention reads; null: no such attention, as in Wan2.2
    # (`backbone.vlm_context.with_vlm_cross_attention` adds one)
    added_kv_proj_dim: int | None = None
    # whether the mean of a prompt's tokens is added to the embedding of the noise level, and so scales and shifts every layer:
    # small worlds with few examples of a prompt ignore it in their cross-attention. Wan2.2 and diffusers have no such part
    pooled_text: bool = False

    def __post_init__(self) -> None:
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise ValueError(
                f"attention_head_dim must be even and at least 6 (rotary positions on 3 axes), not {self.attention_head_dim}"
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even (sines and cosines), not {self.freq_dim}")
        if self.patch_size[0] != 1:
            raise ValueError(
                f"patch_size must take one latent frame a token, since noise levels are per frame; not {self.patch_size}"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def to_diffusers(self) -> dict[str, Any]:
        """Return the `config.json` of the same model in diffusers, which has no `pooled_text`: it is left out where false."""
        sizes = asdict(self) | {"patch_size": list(self.patch_size)}
        if not self.pooled_text:
            del sizes["pooled_text"]
        return {"_class_name": "WanTransformer3DModel", **sizes, **_FIXED}

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "BackboneConfig":
        """Return the config of a diffusers checkpoint. ValueError names a setting that this backbone does not support."""
        for name, value in _FIXED.items():
            if config.get(name, value) != value:
                raise ValueError(f"{name} is {config[name]!r}; this backbone knows {value!r} only (Wan2.2, not Wan2.1 I2V)")
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        return cls(**{**known, "patch_size": tuple(known.get("patch_size", (1, 2, 2)))})


def wan22_i2v_a14b() -> BackboneConfig:
    """Return the config of one expert of Wan2.2-I2V-A14B: 14.3 billion parameters."""
    return BackboneConfig(num_attention_heads=40, attention_head_dim=128, num_layers=40, ffn_dim=13824)


def tiny() -> BackboneConfig:
    """Return a config for tests: the same parts, a few thousand parameters."""
    return BackboneConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, text_dim=24, freq_dim=16)
