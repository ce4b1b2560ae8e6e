"""An expert that obeys a camera, and the pair of them: what training and play call the model."""

from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.dit import Expert
from model.control.encoder import CameraEncoder
from model.noise import TIMESTEPS, Name, NoiseSpec


class ControlledExpert(nn.Module):
    """An expert and its own camera encoder. A fresh encoder adds nothing: the model is then its base, bit for bit."""

    def __init__(self, expert: Expert, camera: CameraEncoder | None = None) -> None:
        super().__init__()
        self.expert = expert
        self.camera = camera or CameraEncoder(expert.config.width, patch=expert.config.patch_size[1])

    def forward(
        self,
        x_BCThw: Tensor,
        sigma_BT: Tensor,
        text_BSE: Tensor,
        maps_BFCHW: Tensor | None = None,
        first_frame: int = 0,
        added_BUV: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, 16, T, h, w]. maps: `control.pluecker.control_maps` of the frames; None is no camera, as zeros are in a
        batch where other samples have one. added: what a vision-language model thought of frame and instruction
        (`backbone.added`); None is no instruction, as zeros are.
        """
        control = self.camera.nothing() if maps_BFCHW is None else self.camera(maps_BFCHW, first_alone=first_frame == 0)
        velocity: Tensor = self.expert(x_BCThw, sigma_BT * TIMESTEPS, text_BSE, control, first_frame, added_BUV)
        return velocity


class World(nn.Module):
    """The pair under one call; which of them runs follows from the noise. One network under both names is allowed."""

    def __init__(self, high: ControlledExpert, low: ControlledExpert, noise: NoiseSpec) -> None:
        super().__init__()
        if high.expert.config != low.expert.config:
            raise ValueError(f"the experts differ in size: {high.expert.config} and {low.expert.config}")
        self.high, self.low, self.noise = high, low, noise

    def named(self, name: Name) -> ControlledExpert:
        return self.high if name == "high" else self.low

    def forward(
        self, x_BCThw: Tensor, sigma_BT: Tensor, text_BSE: Tensor, denoised_BT: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Velocity. denoised: True where a frame is being denoised (None: all); the others are context, whose sigma is 0."""
        deciding = sigma_BT if denoised_BT is None else torch.masked_select(sigma_BT, denoised_BT)
        velocity: Tensor = self.named(self.noise.expert_for(deciding))(x_BCThw, sigma_BT, text_BSE, **more)
        return velocity
