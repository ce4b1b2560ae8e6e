"""Checkpoints from which a run resumes exactly: weights, Adam state, averaged weights, step, and position in the data.

A run of self-forcing also stores its critic and the critic's Adam state. What a critic has frozen is the teacher's and is not
stored.

They are written with torch's distributed checkpoints (DCP), so that a run may resume with another number of ranks. A checkpoint
is complete once it has its `state.json`, which is written last.

The averaged weights are those that the run trained. What it froze is among its plain weights only; `load_weights` reads both.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the builtin one from Python 3.11 on
from contextlib import contextmanager, suppress
from pickle import UnpicklingError
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from curation.errors import InputError
from model.parallel import dist as ranks
from model.training.ema import EmaWeights, copy_weights

_STATE = "state.json"
_WRITE_TIMEOUT_S = 600.0
_TRAINED = StateDictOptions(ignore_frozen_params=True)
_SAME_MODEL = "use the recipe that the run was made with"
_DAMAGED = "if files are lost, delete this checkpoint, and the run resumes from the one before"
# Settings in the spec of a checkpoint that had another name when it was written.
_RENAMED = {"origin_way": "max_origin_distance", "camera_none_share": "camera_dropout", "none_share": "dropout"}


class Critic(NamedTuple):
    """The critic of a run of self-forcing, and its optimizer."""

    module: nn.Module
    optimizer: torch.optim.Optimizer


class Saver:
    """Writes checkpoints under a folder in the background: a step waits until its weights are copied, not until they are
    stored.

    One checkpoint is written at a time. An error in writing is raised by the next `save`, or by `finish`.
    """

    def __init__(self, folder: str, keep: int) -> None:
        """keep: how many complete checkpoints stay. An older one is deleted once a newer one is complete."""
        self._folder, self._keep = folder, keep
        # A separate group, so that the messages of the writing thread do not mix with those of the training steps.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._writing: Future[Any] | None = None

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: EmaWeights,
        state: dict[str, Any],
        critic: Critic | None = None,
    ) -> None:
        """Start to write the checkpoint of a step. state: what goes into its JSON file: phase, position, shards, spec."""
        self.finish()
        path = os.path.join(self._folder, f"step-{step:08d}")
        if self._is_complete(path):
            return
        if ranks.is_first():
            shutil.rmtree(path, ignore_errors=True)  # left by an earlier attempt that did not get to its state.json
        _barrier()
        tensors = _tensors(module, optimizer, ema, critic)
        written = cast("Future[Any]", dcp.async_save(tensors, checkpoint_id=path, process_group=self._group))
        self._writing = self._complete_after(written, path, {"step": step, **state}) if ranks.is_first() else written

    def _is_complete(self, path: str) -> bool:
        """Return whether a checkpoint is complete, as rank 0 sees it. The same draws made it, so it is not written again."""
        complete = [os.path.exists(os.path.join(path, _STATE)) if ranks.is_first() else None]
        if dist.is_initialized():
            dist.broadcast_object_list(complete, src=0, group=self._group)
        return bool(complete[0])

    def _complete_after(self, written: "Future[Any]", path: str, state: dict[str, Any]) -> "Future[Any]":
        """Return a future that is done once the tensors are written, the state is stored, and old checkpoints are deleted."""
        completed: Future[Any] = Future()

        def complete(written: "Future[Any]") -> None:
            try:
                written.result()
                _put_state(path, state)
                _delete_old(self._folder, self._keep)
            except BaseException as error:
                completed.set_exception(error)
            else:
                completed.set_result(None)

        written.add_done_callback(complete)
        return completed

    def finish_after_failure(self) -> None:
        """Wait for the checkpoint in progress after the run failed: its process group ends with the run. Raise nothing."""
        if self._writing is not None:
            with suppress(FutureTimeoutError):
                self._writing.exception(_WRITE_TIMEOUT_S)

    def finish(self) -> None:
        """Wait until the checkpoint in progress is stored on every rank. OSError where it could not be written."""
        if self._writing is not None:
            with _plain_errors(self._folder, "make room, and start the run again"):
                self._writing.result()
            self._writing = None
            _barrier()


def _put_state(path: str, state: dict[str, Any]) -> None:
    partial = os.path.join(path, f"{_STATE}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(state, file, indent=2, sort_keys=True)
    os.replace(partial, os.path.join(path, _STATE))


def latest(folder: str) -> str | None:
    """Return the newest complete checkpoint of a run, None where there is none."""
    names = _complete_names(folder)
    return os.path.join(folder, names[-1]) if names else None


def _complete_names(folder: str) -> list[str]:
    """Return the names of the complete checkpoints of a run, oldest first."""
    return [name for name in _all_names(folder) if os.path.exists(os.path.join(folder, name, _STATE))]


def _all_names(folder: str) -> list[str]:
    """Return the names of all checkpoints of a run, also of those that are not complete, oldest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted((n for n in names if n.startswith("step-") and n[5:].isdigit()), key=lambda n: int(n[5:]))


def _delete_old(folder: str, keep: int) -> None:
    """Delete complete checkpoints except the newest, and incomplete ones before them that killed runs left."""
    kept = _complete_names(folder)[-keep:]
    for name in _all_names(folder):
        if int(name[5:]) < int(kept[-1][5:]) and name not in kept:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name, _STATE))  # first: no kill may leave a state without all tensors
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def load(
    path: str, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EmaWeights, critic: Critic | None = None
) -> dict[str, Any]:
    """Copy the tensors of a checkpoint into module, optimizer, average and critic, and return its state.

    OSError for damaged files.
    """
    tensors = _tensors(module, optimizer, ema, critic)
    with _plain_errors(path):
        dcp.load(tensors, checkpoint_id=path)
    set_model_state_dict(module, tensors["model"])
    _set_adam_state(module, optimizer, tensors["optimizer"])
    for name, weight in tensors["average"].items():
        ema.weights[name].copy_(weight)
    if critic is not None:
        set_model_state_dict(critic.module, tensors["critic"], options=StateDictOptions(strict=False))
        _set_adam_state(critic.module, critic.optimizer, tensors["critic_optimizer"], _TRAINED)
    return read_state(path)


def load_weights(path: str, module: nn.Module, new: Sequence[str] = ()) -> list[str]:
    """Copy the averaged weights of a checkpoint into a module, and the plain weights of what that run froze.

    new: parts of names of parameters that the checkpoint may lack. They keep their values, and their names are returned.
    InputError where other parameters are missing, unknown or of another shape; OSError for damaged files.
    """
    parameters = dict(module.named_parameters())
    with _plain_errors(path):
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    shapes = {name: tuple(item.size) for name, item in stored.items() if isinstance(item, TensorStorageMetadata)}
    sources = {name: next((part for part in ("average", "model") if f"{part}.{name}" in shapes), "") for name in parameters}
    missing = [name for name, part in sources.items() if not part]
    if undeclared := [name for name in missing if not any(part in name for part in new)]:
        raise InputError(f"{path}: lacks {len(undeclared)} weights of this model, the first {undeclared[0]}; {_SAME_MODEL}")
    stored_names = {name.partition(".")[2] for name in shapes if name.startswith("model.")}
    if unknown := sorted(stored_names - module.state_dict().keys()):
        raise InputError(
            f"{path}: holds {len(unknown)} weights that this model does not have, the first {unknown[0]}; {_SAME_MODEL}"
        )
    for name, part in sources.items():
        if part and (shape := shapes[f"{part}.{name}"]) != tuple(parameters[name].shape):
            raise InputError(f"{path}: {name} is {shape}, this model's is {tuple(parameters[name].shape)}; {_SAME_MODEL}")
    weights: dict[str, dict[str, Tensor]] = {"average": {}, "model": {}}
    for name, part in sources.items():
        if part:
            weights[part][name] = parameters[name].detach().clone()
    with _plain_errors(path):
        dcp.load({part: tensors for part, tensors in weights.items() if tensors}, checkpoint_id=path)
    copy_weights(module, weights["model"] | weights["average"])
    return missing


@contextmanager
def _plain_errors(path: str, remedy: str = _DAMAGED) -> Iterator[None]:
    """Turn torch's CheckpointException, a BaseException for a failed read or write, into an OSError with its first cause."""
    try:
        yield
    except (CheckpointException, UnpicklingError, EOFError) as error:
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        cause = next((failure[0] for failure in failures), error)
        raise OSError(f"{path}: {type(cause).__name__}: {cause}; {remedy}") from error


def read_state(path: str) -> dict[str, Any]:
    """Read the state of a checkpoint. Settings in its spec have the names of today."""
    with open(os.path.join(path, _STATE), encoding="utf-8") as file:
        state: dict[str, Any] = json.load(file)
    return {**state, "spec": _with_current_names(state["spec"])}


def _with_current_names(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    return {_RENAMED.get(name, name): _with_current_names(value) for name, value in spec.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Describe the entries in which two specs differ, as in "data.fps was 16.0, now 10.0"; null is a missing entry."""
    changes = []
    for name in dict.fromkeys([*before, *now]):
        a, b, path = before.get(name), now.get(name), f"{where}.{name}" if where else name
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes += differences(a, b, path)
        elif a != b:
            changes.append(f"{path} was {json.dumps(a)}, now {json.dumps(b)}")
    return changes


def _tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: EmaWeights, critic: Critic | None = None
) -> dict[str, Any]:
    _create_adam_state(optimizer)
    tensors = {
        "model": get_model_state_dict(module),
        "optimizer": _adam_state(module, optimizer),
        "average": ema.weights,
    }
    if critic is not None:
        _create_adam_state(critic.optimizer)
        trained = {name for name, parameter in critic.module.named_parameters() if parameter.requires_grad}
        weights = get_model_state_dict(critic.module)
        tensors["critic"] = {name: weight for name, weight in weights.items() if name in trained}
        tensors["critic_optimizer"] = _adam_state(critic.module, critic.optimizer, _TRAINED)
    return tensors


def _adam_state(module: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions | None = None) -> dict[str, Any]:
    """Return Adam's averages by the names of parameters.

    Its groups are not stored: their settings are the recipe's, and how parameters are grouped may differ when a run resumes.
    """
    return {"state": get_optimizer_state_dict(module, optimizer, options=options)["state"]}


def _set_adam_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Any], options: StateDictOptions | None = None
) -> None:
    groups = get_optimizer_state_dict(module, optimizer, options=options)["param_groups"]
    set_optimizer_state_dict(module, optimizer, {**stored, "param_groups": groups}, options=options)


def _create_adam_state(optimizer: torch.optim.Optimizer) -> None:
    """Create Adam state for every parameter, also of an expert that no step has trained yet.

    DCP silently skips state that does not exist yet when it loads.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and not optimizer.state.get(parameter):
                zeros = torch.zeros_like(parameter)
                optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
