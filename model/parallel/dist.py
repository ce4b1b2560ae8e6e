"""Process group: rank, world size, device and a few collectives."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> tuple[int, int, torch.device]:
    """Join the process group and return rank, world size and the device of this rank.

    The group is the one that torchrun or Ray Train describes in the environment, or else one of this process alone. A group
    that exists already (Ray Train's) is used.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        single = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        # NCCL for weights, gloo for checkpoints, which are written while training continues.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **single)
    return dist.get_rank(), dist.get_world_size(), device


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Return whether this is rank 0, which logs and writes for all. Also works before the process has joined the group."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def check_agreement(subject: str, choice: str) -> None:
    """Raise RuntimeError, with the choices of all ranks, where they are not equal.

    Two FSDP ranks that run different modules of equal shape mix their weights without an error, since rows of both are
    gathered.
    """
    if not dist.is_initialized():
        return
    choices: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(choices, choice)
    if len(set(choices)) > 1:
        raise RuntimeError(f"ranks disagree on {subject}: {choices}; it must be drawn from the generator that they share")
