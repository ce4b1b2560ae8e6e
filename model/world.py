"""An expert that follows a camera, and the pair of experts that training and sampling use."""

from typing import Any

import torch
from torch import Tensor, nn

from model.backbone.dit import Expert
from model.control.encoder import CameraEncoder
from model.noise import TIMESTEPS, ExpertName, NoiseSpec
from model.warp import from_prior


class ControlledExpert(nn.Module):
    """An expert with its own camera encoder. The output of a fresh encoder is zero: the model is then its base, bit for bit.

    warp_sources: how many turned pictures the input holds after the noise (`model.warp`); 0: the first-frame condition of
    Wan2.2. With turned pictures the prediction starts from the first of them.
    """

    def __init__(self, expert: Expert, camera: CameraEncoder | None = None, warp_sources: int = 0) -> None:
        super().__init__()
        self.expert = expert
        self.camera = camera or CameraEncoder(expert.config.width, patch=expert.config.patch_size[1])
        self.remainder = None
        if warp_sources:
            # Deviation of a frame from the turned frame before, by channel; measured, not trained.
            self.remainder = nn.Parameter(torch.ones(expert.config.out_channels), requires_grad=False)

    def control_tokens(self, maps_BFCHW: Tensor | None, start_of_stream: bool = True) -> Tensor:
        """Return the camera's tokens for the video's. maps: None is no camera, and so are zeros for one sample of a batch."""
        tokens: Tensor = self.camera.no_camera_token() if maps_BFCHW is None else self.camera(maps_BFCHW, start_of_stream)
        return tokens

    def forward(
        self,
        x_BCThw: Tensor,
        sigma_BT: Tensor,
        text_BSE: Tensor,
        maps_BFCHW: Tensor | None = None,
        vlm_context_BUV: Tensor | None = None,
        start_of_stream: bool = True,
        control_BLD: Tensor | None = None,
        **attention: Any,
    ) -> Any:
        """Return the velocity [B, 16, T, h, w].

        maps: `control.pluecker.control_maps` of the frames. None is no camera, and so are zeros for a sample in a batch where
        others have one. vlm_context: hidden states of a vision-language model for frame and instruction
        (`backbone.vlm_context`). None is no instruction, and so are zeros. start_of_stream: the first frame is a latent by
        itself. control: `control_tokens` of the maps, where they are known already. attention: `layout`, `past`, `keys_only`
        and `embedded` of `Expert.forward`.
        """
        control = self.control_tokens(maps_BFCHW, start_of_stream) if control_BLD is None else control_BLD
        time_BT = sigma_BT * TIMESTEPS
        if self.remainder is None:
            return self.expert(x_BCThw, time_BT, text_BSE, control, vlm_context_BUV, **attention)
        noisy, condition = x_BCThw.split((len(self.remainder), x_BCThw.shape[1] - len(self.remainder)), 1)
        reads, base, scale = from_prior(noisy, condition, sigma_BT, self.remainder)
        output = self.expert(torch.cat([reads, condition], 1), time_BT, text_BSE, control, vlm_context_BUV, **attention)
        return output if attention.get("keys_only") else base + scale * output.float()


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
