"""Worlds of Wan's sizes with random weights, built where they run: what a speed depends on, without 28 GB of files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.dit import Expert
from model.backbone.tiny_decoder import LATENT_CHANNELS, TinyDecoder
from model.backbone.vae import Codec, VideoCodec
from model.causal.spec import CausalSpec
from model.config import FRAMES_PER_LATENT, BackboneConfig
from model.control.encoder import CameraEncoder
from model.noise import NoiseSpec
from model.parallel.fsdp import is_unsharded
from model.world import ControlledExpert, World


@dataclass(frozen=True)
class Shape:
    """A world that is measured."""

    backbone: BackboneConfig
    grid: tuple[int, int]  # latent rows and columns
    experts: int = 1
    # four steps and a commit; blocks of 3 latents, which see 1 + 9 before them
    causal: CausalSpec = field(default_factory=CausalSpec)
    text_tokens: int = 512
    what: str = ""  # whose sizes they are


def _wan(heads: int, layers: int, ffn: int) -> BackboneConfig:
    return BackboneConfig(num_attention_heads=heads, attention_head_dim=128, num_layers=layers, ffn_dim=ffn)


SHAPES = {
    "tiny": Shape(
        BackboneConfig(num_attention_heads=4, attention_head_dim=32, num_layers=2, ffn_dim=256, text_dim=32, freq_dim=32),
        (4, 8),
        causal=CausalSpec(window=6, steps=(1.0, 0.5)),
        text_tokens=8,
        what="for tests",
    ),
    "1.3b": Shape(_wan(12, 30, 8960), (60, 104), what="Wan2.1-T2V-1.3B's layers, 832x480"),
    "5b": Shape(_wan(24, 30, 14336), (60, 104), what="Wan2.2-TI2V-5B's layers on the latents of the others, 832x480"),
    # The keys of both experts are those of the low-noise one: two caches of 25 GB do not fit beside the weights.
    "14b": Shape(
        _wan(40, 40, 13824),
        (60, 104),
        experts=2,
        causal=CausalSpec(sharing="low_noise"),
        what="Wan2.2-I2V-A14B, two experts, 832x480",
    ),
}


def random_world(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> World:
    """Return a world of this shape on a device. The parts that compute in float32 in play do so here, too."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        experts = [_expert(shape.backbone) for _ in range(shape.experts)]
    for expert in experts:
        _fill(expert, device, dtype, generator)
    world = World(experts[0], experts[-1], NoiseSpec(boundary=0.9 if shape.experts > 1 else 0.0))
    return world.eval().requires_grad_(False)


def _expert(config: BackboneConfig) -> ControlledExpert:
    return ControlledExpert(Expert(config), CameraEncoder(config.width, patch=config.patch_size[1]))


def _fill(expert: ControlledExpert, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Give an expert on the meta device weights that keep the size of what passes through."""
    state = {}
    for name, parameter in expert.named_parameters():
        value = torch.empty(parameter.shape, dtype=torch.float32 if is_unsharded(name) else dtype, device=device)
        if value.ndim >= 2:
            value.normal_(0, (value.numel() / value.shape[0]) ** -0.5, generator=generator)
        else:
            value.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        state[name] = value
    expert.load_state_dict(state, assign=True)


class SettledCodec(VideoCodec):
    """A video codec whose grey frames after the start image are encoded once: as they are in play after thirty latents."""

    def _grey_tail(self, first_B3HW: Tensor) -> Iterator[Tensor]:
        picture = first_B3HW[:, :, None]
        first = self.encode(torch.cat([picture, torch.zeros_like(picture).repeat(1, 1, FRAMES_PER_LATENT, 1, 1)], 2))
        yield first[:, :, :1]
        while True:
            yield first[:, :, 1:]


def has_diffusers() -> bool:
    """Return whether Wan's autoencoder can be imported: diffusers may be there without what it needs."""
    try:
        from diffusers import AutoencoderKLWan  # noqa: F401
    except Exception:  # it raises RuntimeError for what is missing, too
        return False
    return True


def random_codec(device: torch.device, dtype: torch.dtype, tiny: bool, small: bool = False) -> Codec:
    """Return Wan's autoencoder with random weights, or TAEHV's decoder of its latents behind an encoder of averages.

    tiny: the latter, which needs no diffusers. small: an autoencoder for tests. ImportError where diffusers is missing.
    """
    torch.manual_seed(0)
    if tiny:
        decoder = TinyDecoder((16, 12, 8, 8)) if small else TinyDecoder()
        return AverageCodec(decoder.to(device, dtype).eval().requires_grad_(False))
    from diffusers import AutoencoderKLWan

    sizes: dict[str, Any] = {"base_dim": 8, "num_res_blocks": 1} if small else {}
    build: Any = AutoencoderKLWan
    with torch.device(device):
        vae = build(**sizes)
    return SettledCodec(vae.to(dtype)).to(device)


class AverageCodec(Codec):
    """Latents are averages of cells, repeated to 16 channels; a tiny decoder decodes them: without diffusers."""

    frames_per_latent = FRAMES_PER_LATENT

    def __init__(self, decoder: TinyDecoder) -> None:
        super().__init__()
        self._decoder: nn.Module = decoder

    def encode(self, video_B3FHW: Tensor) -> Tensor:
        frames = video_B3FHW[:, :, :: self.frames_per_latent]
        cells = nn.functional.avg_pool3d(frames.float(), (1, self.cell_px, self.cell_px))
        return cells.repeat(1, -(-LATENT_CHANNELS // 3), 1, 1, 1)[:, :LATENT_CHANNELS]

    def decode(self, latents_BCThw: Tensor) -> Tensor:
        return self.stream_decoder().decode(latents_BCThw)

    def stream_decoder(self) -> Any:
        from model.backbone.stream_decoders import TinyStreamDecoder

        assert isinstance(self._decoder, TinyDecoder)
        return TinyStreamDecoder(self._decoder)

    def _grey_tail(self, first_B3HW: Tensor) -> Iterator[Tensor]:
        yield self.encode(first_B3HW[:, :, None])
        while True:
            yield torch.zeros_like(self.encode(first_B3HW[:, :, None]))
