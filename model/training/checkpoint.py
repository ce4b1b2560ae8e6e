"""Checkpoints that a run goes on from exactly: weights, moments, average, draws, and where in the data it was.

Written with torch's distributed checkpoints, so that a run may go on with another number of ranks. A checkpoint counts once its
`state.json` is there, which is written last.
"""

import json
import os
import shutil
from concurrent.futures import Future
from typing import Any, cast

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

from model.parallel import ranks
from model.training.average import Average

_DONE = "state.json"


class Saver:
    """Writes checkpoints under a folder beside the work: a step waits until its weights are copied, not until they are stored.

    One is written at a time. What went wrong in writing is raised by the next `save`, or by `finish`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        # A group of its own: the writing thread's messages must not fall between those of the steps.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._writing: Future[Any] | None = None

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average, state: dict[str, Any]
    ) -> None:
        """Begin the checkpoint of a step; `state` is what JSON holds: position, spec."""
        self.finish()
        path = os.path.join(self._folder, f"step-{step:08d}")
        if ranks.first():
            shutil.rmtree(path, ignore_errors=True)  # an earlier attempt that never got its state.json
        _wait()
        tensors = _tensors(module, optimizer, average)
        written = cast("Future[Any]", dcp.async_save(tensors, checkpoint_id=path, process_group=self._group))
        self._writing = _signed(written, path, {"step": step, **state}) if ranks.first() else written

    def finish(self) -> None:
        """Wait until what was begun is stored on every rank."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
            _wait()


def _signed(written: "Future[Any]", path: str, state: dict[str, Any]) -> "Future[Any]":
    """Done once the state stands beside what was written."""
    signed: Future[Any] = Future()

    def sign(written: "Future[Any]") -> None:
        try:
            written.result()
            _put_state(path, state)
        except BaseException as error:
            signed.set_exception(error)
        else:
            signed.set_result(None)

    written.add_done_callback(sign)
    return signed


def _put_state(path: str, state: dict[str, Any]) -> None:
    begun = os.path.join(path, f"{_DONE}.partial")
    with open(begun, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2, sort_keys=True)
    os.replace(begun, os.path.join(path, _DONE))


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


def load_average(path: str, average: Average) -> None:
    """Only the averaged weights of a checkpoint: what is played and evaluated."""
    dcp.load({"average": average.weights}, checkpoint_id=path)


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


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
