"""What a training step works on: the world, and the frozen encoders around it."""

from dataclasses import dataclass

import torch

from model.backbone.vae import Codec
from model.training.flow_matching import EncodeInstruction, EncodeText
from model.world import World


@dataclass(frozen=True)
class ModelParts:
    """The world and the frozen encoders around it. codec_hash: `frame_codec.fingerprint` of the codec's file or folder."""

    world: World
    codec: Codec
    text_encoder: EncodeText
    vlm_encoder: EncodeInstruction | None
    codec_hash: str
    teacher: World | None = None  # of consistency distillation: the frozen model that is distilled

    @property
    def device(self) -> torch.device:
        return next(self.world.parameters()).device
