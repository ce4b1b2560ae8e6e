"""Checkpoints that a run goes on from exactly: weights, moments, average, draws, and where in the data it was.

Written with torch's distributed checkpoints, so that a run may go on with another number of ranks. A checkpoint counts once its
`state.json` is there, which is written last.

The average holds trained weights only: what a run froze is among its plain weights. `load_weights` puts the two together.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the builtin one from Python 3.11 on
from contextlib import contextmanager, suppress
from pickle import UnpicklingError
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from model.parallel import dist as ranks
from model.training.ema import Average, put

_DONE = "state.json"
_LEAVING_S = 600.0
_SAME_MODEL = "use the recipe that the run was made with"
_DAMAGED = "if files are lost, delete this checkpoint, and the run goes on from the one before"


class Saver:
    """Writes checkpoints under a folder beside the work: a step waits until its weights are copied, not until they are stored.

    One is written at a time. What went wrong in writing is raised by the next `save`, or by `finish`. keep: how many complete
    ones stay, the newest; an older one is deleted once a newer one is complete.
    """

    def __init__(self, folder: str, keep: int) -> None:
        self._folder, self._keep = folder, keep
        # A group of its own: the writing thread's messages must not fall between those of the steps.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._writing: Future[Any] | None = None

    def save(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average, state: dict[str, Any]
    ) -> None:
        """Begin the checkpoint of a step; `state` is what JSON holds: position, spec."""
        self.finish()
        path = os.path.join(self._folder, f"step-{step:08d}")
        if self._is_there(path):
            return
        if ranks.first():
            shutil.rmtree(path, ignore_errors=True)  # an earlier attempt that never got its state.json
        _wait()
        tensors = _tensors(module, optimizer, average)
        written = cast("Future[Any]", dcp.async_save(tensors, checkpoint_id=path, process_group=self._group))
        self._writing = self._signed(written, path, {"step": step, **state}) if ranks.first() else written

    def _is_there(self, path: str) -> bool:
        """Whether a step's checkpoint is complete, as the first rank sees it. Equal draws made it, so it is not made again."""
        found = [os.path.exists(os.path.join(path, _DONE)) if ranks.first() else None]
        if dist.is_initialized():
            dist.broadcast_object_list(found, src=0, group=self._group)
        return bool(found[0])

    def _signed(self, written: "Future[Any]", path: str, state: dict[str, Any]) -> "Future[Any]":
        """Done once the state stands beside what was written."""
        signed: Future[Any] = Future()

        def sign(written: "Future[Any]") -> None:
            try:
                written.result()
                _put_state(path, state)
                _delete_old(self._folder, self._keep)
            except BaseException as error:
                signed.set_exception(error)
            else:
                signed.set_result(None)

        written.add_done_callback(sign)
        return signed

    def leave(self) -> None:
        """Let what was begun be stored where the run fails: the group that it is written with ends with the run."""
        if self._writing is not None:
            with suppress(FutureTimeoutError):
                self._writing.exception(_LEAVING_S)

    def finish(self) -> None:
        """Wait until what was begun is stored on every rank."""
        if self._writing is not None:
            with _plain_errors(self._folder, "make room, and start the run again"):
                self._writing.result()
            self._writing = None
            _wait()


def _put_state(path: str, state: dict[str, Any]) -> None:
    begun = os.path.join(path, f"{_DONE}.partial")
    with open(begun, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2, sort_keys=True)
    os.replace(begun, os.path.join(path, _DONE))


def latest(folder: str) -> str | None:
    """The newest complete checkpoint, None where there is none."""
    names = _complete(folder)
    return os.path.join(folder, names[-1]) if names else None


def _complete(folder: str) -> list[str]:
    """The names of the complete checkpoints of a run, oldest first."""
    return [name for name in _begun(folder) if os.path.exists(os.path.join(folder, name, _DONE))]


def _begun(folder: str) -> list[str]:
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted((n for n in names if n.startswith("step-") and n[5:].isdigit()), key=lambda n: int(n[5:]))


def _delete_old(folder: str, keep: int) -> None:
    """Delete complete checkpoints but for the newest, and what killed runs left unfinished before them."""
    kept = _complete(folder)[-keep:]
    for name in _begun(folder):
        if int(name[5:]) < int(kept[-1][5:]) and name not in kept:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name, _DONE))  # first, so that a kill leaves none that counts and lacks tensors
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def load(path: str, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Any]:
    """Put a checkpoint's tensors into place; returns its state. OSError where its files are damaged."""
    tensors = _tensors(module, optimizer, average)
    with _plain_errors(path):
        dcp.load(tensors, checkpoint_id=path)
    set_model_state_dict(module, tensors["model"])
    set_optimizer_state_dict(module, optimizer, tensors["optimizer"])
    for name, weight in tensors["average"].items():
        average.weights[name].copy_(weight)
    return read_state(path)


def load_weights(path: str, module: nn.Module, new: Sequence[str] = ()) -> list[str]:
    """Put the averaged weights of a checkpoint into a module, and the plain ones of what that run froze.

    new: parts of names of parameters that the checkpoint may lack; they keep their values, and their names are returned.
    ValueError where other parameters are missing, unknown or of another shape; OSError where files are damaged.
    """
    parameters = dict(module.named_parameters())
    with _plain_errors(path):
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    shapes = {name: tuple(item.size) for name, item in stored.items() if isinstance(item, TensorStorageMetadata)}
    sources = {name: next((part for part in ("average", "model") if f"{part}.{name}" in shapes), "") for name in parameters}
    missing = [name for name, part in sources.items() if not part]
    if undeclared := [name for name in missing if not any(part in name for part in new)]:
        raise ValueError(f"{path}: lacks {len(undeclared)} weights of this model, {undeclared[0]} the first; {_SAME_MODEL}")
    held = {name.partition(".")[2] for name in shapes if name.startswith("model.")}
    if unknown := sorted(held - module.state_dict().keys()):
        raise ValueError(f"{path}: holds {len(unknown)} weights that this model has not, {unknown[0]} the first; {_SAME_MODEL}")
    for name, part in sources.items():
        if part and (shape := shapes[f"{part}.{name}"]) != tuple(parameters[name].shape):
            raise ValueError(f"{path}: {name} is {shape}, this model's is {tuple(parameters[name].shape)}; {_SAME_MODEL}")
    read: dict[str, dict[str, Tensor]] = {"average": {}, "model": {}}
    for name, part in sources.items():
        if part:
            read[part][name] = parameters[name].detach().clone()
    with _plain_errors(path):
        dcp.load({part: tensors for part, tensors in read.items() if tensors}, checkpoint_id=path)
    put(module, read["model"] | read["average"])
    return missing


@contextmanager
def _plain_errors(path: str, remedy: str = _DAMAGED) -> Iterator[None]:
    """Torch raises a BaseException for a checkpoint that it cannot read or write; make it an OSError with its first cause."""
    try:
        yield
    except (CheckpointException, UnpicklingError, EOFError) as error:
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        cause = next((failure[0] for failure in failures), error)
        raise OSError(f"{path}: {type(cause).__name__}: {cause}; {remedy}") from error


def read_state(path: str) -> dict[str, Any]:
    with open(os.path.join(path, _DONE), encoding="utf-8") as file:
        state: dict[str, Any] = json.load(file)
    return state


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """The entries in which two specs differ, in words: "data.fps was 16.0, now 10.0"; null is what one has not."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        a, b, place = before.get(name), now.get(name), f"{where}.{name}" if where else name
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, place)
        elif a != b:
            found.append(f"{place} was {json.dumps(a)}, now {json.dumps(b)}")
    return found


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
