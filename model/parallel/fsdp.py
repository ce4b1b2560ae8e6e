"""FSDP2 around a controlled expert: each block is one unit, whose weights may compute in bfloat16.

The parts named in `dit.FP32` and the camera encoder stay unsharded, in float32. They are a hundredth of the weights, and
FSDP2's mixed precision would cast them with their block. FSDP2 does not average their gradients; `average_unsharded_gradients`
does.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model.backbone.dit import FP32
from model.world import ControlledExpert


def is_unsharded(name: str) -> bool:
    """Return whether a parameter of a controlled expert is kept whole on every rank, in float32."""
    return name.startswith(("camera.", "remainder")) or any(part in name for part in FP32)


def shard(expert: ControlledExpert, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> ControlledExpert:
    """Shard an expert's weights over a mesh, in place. dtype: what blocks compute in; gradients are summed in float32."""
    unsharded = [parameter for name, parameter in expert.named_parameters() if is_unsharded(name)]
    for parameter in unsharded:  # a list: every rank must broadcast them in the same order
        if parameter.is_meta:
            continue  # every rank loads it from the same file afterwards
        dist.broadcast(parameter.data, src=0, group=mesh.get_group())
    # Inputs are not cast: noise levels in bfloat16 would be off by one part in 256.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in expert.expert.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=set(unsharded))
    fully_shard(expert, mesh=mesh, mp_policy=policy, ignored_params=set(unsharded))
    return expert


def optimizer_groups(parameters: Iterable[nn.Parameter], **settings: Any) -> list[dict[str, Any]]:
    """Return groups of parameters for an optimizer: the sharded ones, and those kept whole, where there are any.

    On CUDA torch's optimizers update a group at once, and refuse one that mixes both. settings: of each group.
    """
    parameters = list(parameters)
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    unsharded = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    return [{"params": group, **settings} for group in (sharded, unsharded) if group]


def average_unsharded_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over the ranks the gradients that FSDP2 does not average, in place."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their norm over all ranks is at most `max_norm`. Return the norm before.

    Squares of sharded gradients are summed over the ranks, in one message for all of them. Unsharded gradients are equal on
    each rank.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    unsharded = [g for g in gradients if not isinstance(g, DTensor)]
    squares = _sum_of_squares(sharded, gradients[0].device)
    if sharded:
        dist.all_reduce(squares)
    norm = (squares + _sum_of_squares(unsharded, squares.device)).sqrt()
    scale = float((max_norm / (norm + 1e-6)).clamp(max=1.0))
    for gradient in (*sharded, *unsharded):
        gradient.mul_(scale)
    return norm


def _sum_of_squares(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares of all numbers in float32, 0 for no gradients."""
    return sum((g.detach().float().square().sum() for g in gradients), torch.zeros((), device=device))
