"""The smallest world with all parts of the paper's, which tests train in this process and in ranks."""

import diffusers
import torch

from model.backbone.dit import Expert
from model.backbone.vae import VideoCodec
from model.config import tiny
from model.data.captions import CaptionMix
from model.data.loader import DataSettings
from model.recipes import ModelSpec, TrainRecipe
from model.training.frame_codec import CodecSettings
from model.training.parts import ModelParts
from model.world import ControlledExpert

DATA = DataSettings(frames=5, fps=10.0, size=(32, 32), captions=CaptionMix(dropout=0.0))


def recipe(settings):
    """Return the recipe of the tiny world with training settings."""
    model = ModelSpec(tiny(), init_from="stage1" if settings.freeze_camera else "")
    return TrainRecipe(model=model, codec=CodecSettings(channels=16), data=DATA, train=settings)


def parts(world):
    """Return the parts of a trainer around a world."""
    return ModelParts(world, codec(), Waves(), None, "tiny")


class Waves(torch.nn.Module):
    """A text encoder: each text has different waves."""

    def forward(self, texts):
        waves = 1 + torch.arange(3.0 * tiny().text_dim).view(3, -1)
        return torch.stack([torch.sin(waves * (1 + sum(map(ord, text)) % 97)) for text in texts])


def codec():
    torch.manual_seed(0)
    return VideoCodec(diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1))


def experts():
    """Return the same fresh pair every time."""
    torch.manual_seed(1)
    return [ControlledExpert(Expert(tiny())) for _ in range(2)]
