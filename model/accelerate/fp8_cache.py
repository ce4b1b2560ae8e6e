"""A ring whose keys and values are fp8: a third of the memory of the plain one, which also keeps keys as they are rotated.

Each page has a scale for each head: the heads of a layer differ by more than fp8's range of relative precision. Keys are
quantised before rotation. Each pass of each layer makes them the model's dtype again, into one buffer that all layers share.
Own keys and values of a pass are not quantised.

B batch, S tokens, N heads, H width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.accelerate.fp8 import DTYPE, LARGEST
from model.backbone.attention import KV, Past
from model.backbone.rope import Rotary, rotate
from model.causal.cache import RingCache, TokenGrid
from model.causal.spec import CausalSpec
from model.noise import ExpertName
from model.world import World


class Quantized(NamedTuple):
    """Keys or values of a layer: fp8 [B, S, N, H], and a scale for each latent and head, float32 [B, S of latents, N]."""

    numbers: Tensor
    scale: Tensor


def quantize_page(x_BSNH: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fp8 numbers of a page and the scale of each head, float32 [B, 1, N]."""
    x = x_BSNH.float()
    scale_BN = (x.abs().amax((1, 3)) / LARGEST).clamp(min=1e-12)
    return (x / scale_BN[:, None, :, None]).clamp(-LARGEST, LARGEST).to(DTYPE), scale_BN[:, None]


def restore(numbers_BSNH: Tensor, scale_BTN: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that a quantised buffer of T latents stands for."""
    latents = scale_BTN.shape[1]
    by_latent = numbers_BSNH.unflatten(1, (latents, -1)).to(torch.float32) * scale_BTN[:, :, None, :, None]
    return by_latent.flatten(1, 2).to(dtype)


class Fp8RingCache(RingCache):
    """The ring in fp8. compiled: compute each layer's keys and values by a compiled function."""

    def __init__(
        self,
        spec: CausalSpec,
        grid: TokenGrid,
        world: World,
        batch: int = 1,
        static: bool = False,
        compiled: bool = False,
    ) -> None:
        self._restore: Callable[..., None] = torch.compile(_restore_layer, dynamic=False) if compiled else _restore_layer
        super().__init__(spec, grid, world, batch, static)

    def _allocate(self, names: tuple[ExpertName, ...]) -> None:
        device, (batch, _, heads, _) = self.grid.device, self._shape

        def layers() -> list[Quantized]:
            scales = batch, self._capacity, heads
            return [
                Quantized(torch.zeros(self._shape, dtype=DTYPE, device=device), torch.ones(scales, device=device))
                for _ in range(self._layers)
            ]

        self._stored = {name: (layers(), layers()) for name in names}
        self._room = tuple(torch.zeros(self._shape, dtype=self._dtype, device=device) for _ in range(2))

    def _read(self, tokens: int, rotary_SP: Rotary, own_L: Tensor) -> Mapping[ExpertName, Sequence[Past]]:
        latents = tokens // self.grid.per_latent

        def layer(keys: Quantized, values: Quantized) -> Past:
            k, v = (room[:, :tokens] for room in self._room)
            parts = ((each.numbers[:, :tokens], each.scale[:, :latents]) for each in (keys, values))
            (key, key_scale), (value, value_scale) = parts
            self._restore(key, key_scale, value, value_scale, rotary_SP, k, v)
            return Past(k, v, own_L)

        return {name: _Layers(layer, *stored) for name, stored in self._stored.items()}

    def _write(self, name: ExpertName, kvs: tuple[KV, ...], tokens: slice) -> None:
        per = self.grid.per_latent
        latents = slice(tokens.start // per, tokens.stop // per)
        for kv, *stored in zip(kvs, *self._stored[name], strict=True):
            for made, each in zip(kv, stored, strict=True):
                numbers, scale = quantize_page(made)
                # `copy_` of fp8 numbers between devices and strides is not everywhere; bytes are.
                each.numbers[:, tokens].view(torch.uint8).copy_(numbers.view(torch.uint8))
                each.scale[:, latents] = scale


def _restore_layer(
    key: Tensor, key_scale: Tensor, value: Tensor, value_scale: Tensor, rotary_SP: Rotary, k_room: Tensor, v_room: Tensor
) -> None:
    """Write a layer's keys, rotated, and values into the buffers that passes read."""
    k_room.copy_(rotate(restore(key, key_scale, torch.float32), rotary_SP))
    v_room.copy_(restore(value, value_scale, v_room.dtype))


class _Layers(Sequence[Past]):
    """The past of an expert's layers, each made when it is asked for; valid until the next one is."""

    def __init__(
        self, layer: Callable[[Quantized, Quantized], Past], keys: Sequence[Quantized], values: Sequence[Quantized]
    ) -> None:
        self._layer, self._keys, self._values = layer, keys, values

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self._layer(self._keys[number], self._values[number])
