"""An expert that follows a camera, and the pair of experts that training and sampling use."""

from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.dit import Expert
from model.control.encoder import CameraEncoder
from model.noise import TIMESTEPS, ExpertName, NoiseSpec


class ControlledExpert(nn.Module):
    """An expert with its own camera encoder. The output of a fresh encoder is zero: the model is then its base, bit for bit."""

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
        vlm_context_BUV: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity [B, 16, T, h, w].

        maps: `control.pluecker.control_maps` of the frames. None is no camera, and so are zeros for a sample in a batch where
        others have one. first_frame: position of the first latent in its stream. vlm_context: hidden states of a
        vision-language model for frame and instruction (`backbone.vlm_context`). None is no instruction, and so are zeros.
        """
        control = self.camera.no_camera_token() if maps_BFCHW is None else self.camera(maps_BFCHW, first_frame == 0)
        velocity: Tensor = self.expert(x_BCThw, sigma_BT * TIMESTEPS, text_BSE, control, first_frame, vlm_context_BUV)
        return velocity


class World(nn.Module):
    """The pair of experts under one call; the noise level decides which of them runs. Both may be the same network."""

    def __init__(self, high: ControlledExpert, low: ControlledExpert, noise: NoiseSpec) -> None:
        super().__init__()
        if high.expert.config != low.expert.config:
            raise ValueError(f"the experts differ in size: {high.expert.config} and {low.expert.config}")
        self.high, self.low, self.noise = high, low, noise

    def expert_named(self, name: ExpertName) -> ControlledExpert:
        return self.high if name == "high" else self.low

    def forward(
        self, x_BCThw: Tensor, sigma_BT: Tensor, text_BSE: Tensor, denoised_BT: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Return the velocity.

        denoised: True for frames that are being denoised (None: all). The others are clean context with a sigma of 0. `more`
        goes to `ControlledExpert.forward`.
        """
        denoised_sigmas = sigma_BT if denoised_BT is None else torch.masked_select(sigma_BT, denoised_BT)
        expert = self.expert_named(self.noise.expert_for(denoised_sigmas))
        velocity: Tensor = expert(x_BCThw, sigma_BT, text_BSE, **more)
        return velocity
