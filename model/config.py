"""What a model is: the sizes of one expert, and how a pair of them shares the noise levels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FRAMES_A_LATENT = 4  # the video autoencoder's stride; the first frame is a latent of its own


def check_frames(frames: int) -> None:
    """Refuse a length that is no whole number of latents (ValueError)."""
    if frames < 1 or (frames - 1) % FRAMES_A_LATENT:
        raise ValueError(f"frames must be 1 + 4k (the video autoencoder's stride), not {frames}")


# What diffusers' class can be and ours is not: CLIP image tokens (Wan2.1 I2V), other norms.
_FIXED = {
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}


@dataclass(frozen=True)
class BackboneConfig:
    """One expert; names and meanings are those of the `config.json` of diffusers' `WanTransformer3DModel`.

    in_channels: 16 noise + 4 mask + 16 image latents. patch_size: frames, rows, columns of latents that make a token.
    rope_max_seq_len: how many positions an axis has; more latents than that cannot be told apart.
    """

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int
    in_channels: int = 36
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    rope_max_seq_len: int = 1024

    def __post_init__(self) -> None:
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise ValueError(f"attention_head_dim must be even and at least 6 (three axes turn), not {self.attention_head_dim}")
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
        """The `config.json` of the same model in diffusers."""
        return {"_class_name": "WanTransformer3DModel", **asdict(self), "patch_size": list(self.patch_size), **_FIXED}

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "BackboneConfig":
        """The config of a diffusers checkpoint. ValueError names what this backbone has no part for."""
        for name, value in _FIXED.items():
            if config.get(name, value) != value:
                raise ValueError(f"{name} is {config[name]!r}; this backbone knows {value!r} only (Wan2.2, not Wan2.1 I2V)")
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        return cls(**{**known, "patch_size": tuple(known.get("patch_size", (1, 2, 2)))})


def wan22_i2v_a14b() -> BackboneConfig:
    """One expert of Wan2.2-I2V-A14B: 14.3 billion parameters."""
    return BackboneConfig(num_attention_heads=40, attention_head_dim=128, num_layers=40, ffn_dim=13824)


def tiny() -> BackboneConfig:
    """For tests: the same parts, a few thousand parameters."""
    return BackboneConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, text_dim=24, freq_dim=16)
