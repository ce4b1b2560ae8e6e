"""The smallest world with all parts of the paper's: what tests train, in this process and in ranks."""

import diffusers
import torch

from model.backbone.dit import Expert
from model.backbone.vae import VideoCodec
from model.config import tiny
from model.data.captions import CaptionMix
from model.data.loader import DataSettings
from model.world import ControlledExpert

DATA = DataSettings(frames=5, fps=10.0, size=(32, 32), captions=CaptionMix(none_share=0.0))


class Words(torch.nn.Module):
    """A text encoder's place: each text has its own waves."""

    def forward(self, texts):
        waves = 1 + torch.arange(3.0 * tiny().text_dim).view(3, -1)
        return torch.stack([torch.sin(waves * (1 + sum(map(ord, text)) % 97)) for text in texts])


def codec():
    torch.manual_seed(0)
    return VideoCodec(diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1))


def experts():
    """The same fresh pair every time."""
    torch.manual_seed(1)
    return [ControlledExpert(Expert(tiny())) for _ in range(2)]
