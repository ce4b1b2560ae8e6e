"""Who am I among how many, and what all must agree on."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> tuple[int, int, torch.device]:
    """Join the group that torchrun (or Ray Train) describes in the environment, else one of this process alone.

    Returns rank, ranks and the device of this rank. A group that is there already (Ray Train's) is kept.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        # NCCL for weights, gloo for checkpoints that are written beside the work.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)
    return dist.get_rank(), dist.get_world_size(), device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def first() -> bool:
    """Whether this is the process that speaks and writes for all, also before it has joined them."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def agree(what: str, choice: str) -> None:
    """Every rank must have made the same choice of module; RuntimeError names the others'.

    Two FSDP ranks that run different modules of equal shape mix their weights without an error (rows of both are gathered).
    """
    if not dist.is_initialized():
        return
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, choice)
    if len(set(found)) > 1:
        raise RuntimeError(f"ranks disagree on {what}: {found}; it must be drawn from the generator that they share")
