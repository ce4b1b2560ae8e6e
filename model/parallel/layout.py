"""How a model is placed on many devices: one place that wraps an expert with everything, in the one order that works."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from curation.errors import InputError
from model.parallel import context_parallel, fsdp, recompute
from model.world import ControlledExpert


@dataclass(frozen=True)
class ParallelLayout:
    """How a model uses its devices. Weights are always sharded over all ranks (FSDP2)."""

    context: int = 1  # ranks that share the tokens of one sample (Ulysses); must divide the number of ranks and of heads
    recompute: bool = False  # compute activations again in the backward pass: less memory, a third more work
    compile: bool = False  # compile each block with torch.compile

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context must be at least 1 rank, not {self.context}")


@dataclass(frozen=True)
class Placement:
    """The place of a rank. Ranks that share the tokens of a sample have the same `data_rank` and read the same samples."""

    layout: ParallelLayout
    mesh: DeviceMesh  # all ranks
    context_mesh: DeviceMesh  # the ranks that share this rank's samples
    data_rank: int  # this rank's number among those that read different samples
    data_ranks: int  # how many of those there are

    def parallelize(self, expert: ControlledExpert, dtype: torch.dtype) -> ControlledExpert:
        """Put an expert on all ranks, in place. dtype: what its blocks compute in. InputError where it cannot be divided."""
        if self.layout.context > 1:
            context_parallel.parallelize(expert.expert, self.context_mesh)
        if self.layout.recompute:
            recompute.recompute_blocks(expert.expert)
        if self.layout.compile:
            recompute.compile_blocks(expert.expert)
        return fsdp.shard(expert, self.mesh, dtype)


def place_rank(layout: ParallelLayout, device: torch.device) -> Placement:
    """Return this rank's place among those that `dist.start` joined. InputError where `context` does not divide them."""
    rank, ranks, context = dist.get_rank(), dist.get_world_size(), layout.context
    if ranks % context:
        raise InputError(f"{ranks} ranks do not divide into groups of {context}: start more, or set layout.context to fewer")
    grid = init_device_mesh(device.type, (ranks // context, context), mesh_dim_names=("data", "context"))
    mesh = init_device_mesh(device.type, (ranks,))
    return Placement(layout, mesh, grid["context"], rank // context, ranks // context)
