"""What a training step works on: the world, and the frozen encoders around it."""

from dataclasses import dataclass

import torch

from model.backbone.vae import Codec
from model.causal.spec import CausalSpec
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
    teacher: World | None = None  # of distillation: the frozen model that is distilled, or the real score
    critic: World | None = None  # of self-forcing: the fake score, which is trained on the student's rollouts
    teacher_causal: CausalSpec | None = (
        None  # of self-forcing: how the run of the real score saw its samples; None: all at once
    )

    @property
    def device(self) -> torch.device:
        return next(self.world.parameters()).device
