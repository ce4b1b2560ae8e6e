"""Turned pictures as a condition: what a known frame shows after the rotation that the controls command.

A source is a known frame. Its picture is turned to the new camera, without moving it: that needs no depth. Each source gives
8 + C channels a cell: how much of the cell is covered, the noise level that was added, six channels of how rays changed, and
the C latents of the turned picture.

B batch, T frames, C latent channels, H W px, h w latent rows and columns.
"""

import torch
from torch import Tensor
from torch.nn import functional

from model.control.pluecker import pluecker

# Channels of a source besides its latents: coverage, declared noise, change of rays.
SOURCE_CHANNELS = 8
# A cell with less than this share of known pixels counts as unknown.
_MIN_COVERAGE = 0.02
# Scale of the change of rays. A quarter of a unit or of a radian is then 1.
_RAY_SCALE = 4.0


def condition_channels(sources: int, channels: int) -> int:
    """Return how many channels the condition has."""
    return sources * (SOURCE_CHANNELS + channels)


def turn(picture_B3HW: Tensor, source_B44: Tensor, target_B44: Tensor, intrinsics_B4: Tensor) -> tuple[Tensor, Tensor]:
    """Turn pictures in [-1, 1] from one camera to the orientation of another. Poses are camera-to-world.

    Returns pictures [B, 3, H, W] and bool [B, H, W], whether a pixel is known.
    """
    height, width = picture_B3HW.shape[-2:]
    rotation = source_B44[:, :3, :3].double().transpose(1, 2) @ target_B44[:, :3, :3].double()
    fx, fy, cx, cy = (part[:, None, None] for part in intrinsics_B4.float().unbind(-1))
    column = torch.arange(width, dtype=torch.float32, device=picture_B3HW.device) + 0.5
    row = torch.arange(height, dtype=torch.float32, device=picture_B3HW.device) + 0.5
    x, y = (column - cx) / fx, (row[:, None] - cy) / fy
    # Each coordinate of a ray is linear in x and y.
    r = rotation.float()[..., None, None]
    right, down, depth = (r[:, i, 0] * x + r[:, i, 1] * y + r[:, i, 2] for i in range(3))
    ahead = depth > 1e-3
    depth = depth.clamp(min=1e-3)
    u = 2 * (right / depth * fx + cx) / width - 1
    v = 2 * (down / depth * fy + cy) / height - 1
    known = ahead & (u.abs() < 1 - 0.99 / width) & (v.abs() < 1 - 0.99 / height)
    places = torch.stack([u, v], -1).clamp(-2, 2)
    turned = functional.grid_sample(picture_B3HW, places, mode="bicubic", padding_mode="border", align_corners=False)
    return turned.clamp(-1, 1), known


def ray_change(source_B44: Tensor, target_B44: Tensor, intrinsics_B4: Tensor, rows: int, columns: int, cell_px: int) -> Tensor:
    """Return how the ray through each cell's centre changed from source to target, [B, 6, h, w]: moment and direction.

    Zero where the cameras are the same. intrinsics: px of the picture.
    """
    relative = torch.linalg.inv(source_B44.double()) @ target_B44.double()
    cells = (intrinsics_B4 / cell_px)[:, None]
    rest = torch.eye(4, device=source_B44.device, dtype=torch.float64).expand_as(relative)
    change = pluecker(relative[:, None], cells, rows, columns) - pluecker(rest[:, None], cells, rows, columns)
    return _RAY_SCALE * change[:, 0]


def assemble(latents_BChw: Tensor, known_BHW: Tensor, noise_B: Tensor, rays_B6hw: Tensor, cell_px: int) -> Tensor:
    """Return the channels of a source [B, 8 + C, h, w]. noise: level of the noise that `latents` have. Unknown cells are 0."""
    coverage = functional.avg_pool2d(known_BHW[:, None].float(), cell_px)
    known = coverage > _MIN_COVERAGE
    noise = noise_B.view(-1, 1, 1, 1).expand_as(coverage)
    return torch.cat([coverage * known, noise, rays_B6hw, latents_BChw * known], 1)


def from_prior(
    noisy_BCThw: Tensor, condition_BKThw: Tensor, sigma_BT: Tensor, remainder_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a network is to read and how its output becomes a velocity, given the turned frame before.

    The clean frame is taken as normal around the turned frame c with deviation `remainder` where that is known and 1 where it
    is not, wider by the declared noise. The velocity of that guess is exact; the network only corrects it:
    velocity = base + scale x output. Returns the input (unit variance), base and scale, each [B, C, T, h, w].
    """
    channels = len(remainder_C)
    coverage, declared = condition_BKThw[:, :1], condition_BKThw[:, 1:2]
    guess = condition_BKThw[:, SOURCE_CHANNELS : SOURCE_CHANNELS + channels]
    variance = coverage * remainder_C.view(1, -1, 1, 1, 1) ** 2 + (1 - coverage) + declared**2
    sigma = sigma_BT[:, None, :, None, None]
    total = (1 - sigma) ** 2 * variance + sigma**2
    y = noisy_BCThw - (1 - sigma) * guess
    base = y * (sigma - (1 - sigma) * variance) / total - guess
    return y / total.sqrt(), base, (variance / total).sqrt()
