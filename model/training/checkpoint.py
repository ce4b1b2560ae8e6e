"""Checkpoints that a run goes on from exactly: weights, moments, average, draws, and where in the data it was.

Written with torch's distributed checkpoints, so that a run may go on with another number of ranks. A checkpoint counts once its
`state.json` is there, which is written last.
"""

import json
import os
import shutil
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from model.training.average import Average

_DONE = "state.json"


def save(
    folder: str, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average, state: dict[str, Any]
) -> str:
    """Put the checkpoint of a step under `folder`; `state` is what JSON holds: position, spec, generators."""
    path = os.path.join(folder, f"step-{step:08d}")
    if _first():
        shutil.rmtree(path, ignore_errors=True)  # an earlier attempt that never got its state.json
    _wait()
    dcp.save(_tensors(module, optimizer, average), checkpoint_id=path)
    if _first():
        partial = os.path.join(path, f"{_DONE}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({"step": step, **state}, file, indent=2, sort_keys=True)
        os.replace(partial, os.path.join(path, _DONE))
    _wait()
    return path


def latest(folder: str) -> str | None:
    """The newest complete checkpoint, None where there is none."""
    if not os.path.isdir(folder):
        return None
    names = sorted(n for n in os.listdir(folder) if n.startswith("step-") and os.path.exists(os.path.join(folder, n, _DONE)))
    return os.path.join(folder, names[-1]) if names else None


def load(path: str, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Any]:
    """Put a checkpoint's tensors into place; returns its state."""
    tensors = _tensors(module, optimizer, average)
    dcp.load(tensors, checkpoint_id=path)
    set_model_state_dict(module, tensors["model"])
    set_optimizer_state_dict(module, optimizer, tensors["optimizer"])
    for name, weight in tensors["average"].items():
        average.weights[name].copy_(weight)
    return read_state(path)


def read_state(path: str) -> dict[str, Any]:
    with open(os.path.join(path, _DONE), encoding="utf-8") as file:
        state: dict[str, Any] = json.load(file)
    return state


def _tensors(module: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Any]:
    _fill(optimizer)
    return {
        "model": get_model_state_dict(module),
        "optimizer": get_optimizer_state_dict(module, optimizer),
        "average": average.weights,
    }


def _fill(optimizer: torch.optim.Optimizer) -> None:
    """Moments for every weight, also of an expert that no step has trained yet: what has no place is not loaded, in silence."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and not optimizer.state.get(parameter):
                zeros = torch.zeros_like(parameter)
                optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
