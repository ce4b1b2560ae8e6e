"""Decoders of a stream of latents, piece by piece.

Each session has its own: what it remembers is never stored in the shared autoencoder.

B batch, C latent channels, F frames, T latents, H W px, h w latent rows and columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from model.backbone.tiny_decoder import WARM_UP_FRAMES, TinyDecoder


class StreamDecoder(ABC):
    """Decodes consecutive latents of one session. The pieces joined are the decoding of the whole."""

    @abstractmethod
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        """Return the frames [B, 3, F, H, W] of the next latents, in [-1, 1]. The first latent of a stream may have fewer."""

    def clone(self) -> "StreamDecoder":
        """Return a decoder that continues from here, independent of this one."""
        return copy(self)


class FrameStreamDecoder(StreamDecoder):
    """The stream of a codec that encodes every frame separately: nothing to remember."""

    def __init__(self, decode: Callable[[Tensor], Tensor]) -> None:
        self._decode = decode

    def decode(self, latents_BCThw: Tensor) -> Tensor:
        return self._decode(latents_BCThw)


class WanStreamDecoder(StreamDecoder):
    """Wan's decoder, one latent at a time.

    diffusers' `decode` stores the inputs of its causal convolutions in the autoencoder and clears them at both ends, so it can
    only decode a whole video, one at a time. Here the list of these inputs belongs to the stream. An entry is None before the
    first latent, the string "Rep" where an upsampling has seen only the first, or a tensor.
    """

    def __init__(self, vae: Any, scale: Callable[[Tensor], Tensor]) -> None:
        """scale: returns normalised latents as the autoencoder reads them."""
        self._vae, self._scale, self._inputs = vae, scale, new_inputs(vae.decoder)

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        # A decoding that fails midway must not leave half of its inputs behind.
        inputs, frames = list(self._inputs), []
        for latent in self._vae.post_quant_conv(self._scale(latents_BCThw).to(self._vae.dtype)).split(1, 2):
            first = inputs[0] is None
            frames.append(self._vae.decoder(latent, feat_cache=inputs, feat_idx=[0], first_chunk=first))
        self._inputs = inputs
        return torch.cat(frames, 2).float().clamp(-1, 1)


class TinyStreamDecoder(StreamDecoder):
    """The stream of a tiny decoder of Wan's latents."""

    def __init__(self, net: TinyDecoder) -> None:
        self._net, self._memory, self._dropped = net, net.new_memory(), False

    @torch.no_grad()
    def decode(self, latents_BCThw: Tensor) -> Tensor:
        memory, weight = list(self._memory), next(self._net.parameters())
        frames = self._net(latents_BCThw.to(weight.dtype).transpose(1, 2), memory)
        self._memory, dropped, self._dropped = memory, self._dropped, True
        return frames[:, 0 if dropped else WARM_UP_FRAMES :].transpose(1, 2).float() * 2 - 1


def new_inputs(part: torch.nn.Module) -> list[Any]:
    """Return the stored inputs of the causal convolutions of Wan's encoder or decoder before the first frame."""
    return [None] * sum(type(module).__name__ == "WanCausalConv3d" for module in part.modules())
