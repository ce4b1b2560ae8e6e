"""FSDP2 around a controlled expert: each block a unit, weights of the blocks in bfloat16 where asked, the islands whole.

The parts named in `dit.FP32` and the camera encoder stay float32 and unsharded: they are a hundredth of the weights, and a
policy of FSDP2 would cast them with their block. Their gradients are averaged by hand (`average_whole`).
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model.backbone.dit import FP32
from model.world import ControlledExpert


def is_whole(name: str) -> bool:
    """Whether a parameter of a controlled expert is kept on every rank, in float32."""
    return name.startswith("camera.") or any(part in name for part in FP32)


def shard(expert: ControlledExpert, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> ControlledExpert:
    """Shard an expert's weights over a mesh, in place. dtype: what blocks compute in; gradients are summed in float32."""
    whole = [parameter for name, parameter in expert.named_parameters() if is_whole(name)]
    for parameter in whole:  # a list: every rank must broadcast them in the same order
        if parameter.is_meta:
            continue  # read by every rank from the same file afterwards
        dist.broadcast(parameter.data, src=0, group=mesh.get_group())
    # Inputs stay as they are: noise levels in bfloat16 would be off by a part in 256.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in expert.expert.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=set(whole))
    fully_shard(expert, mesh=mesh, mp_policy=policy, ignored_params=set(whole))
    return expert


def average_whole(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over the ranks of gradients that FSDP2 does not see to."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def clip(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients so that their norm over all ranks is at most `most`; returns the norm before.

    A sharded gradient's squares are summed over the ranks, in one message for all of them; a whole one is equal on each.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    squares = _squares(sharded, gradients[0].device)
    if sharded:
        dist.all_reduce(squares)
    norm = (squares + _squares(whole, squares.device)).sqrt()
    scale = float((most / (norm + 1e-6)).clamp(max=1.0))
    for gradient in (*sharded, *whole):
        gradient.mul_(scale)
    return norm


def _squares(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of squares of all numbers in float32, 0 for none."""
    return sum((g.detach().float().square().sum() for g in gradients), torch.zeros((), device=device))
