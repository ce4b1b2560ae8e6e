"""One expert from and to disk: diffusers' folders and original Wan folders, file by file, so that 28 GB are not held twice."""

import json
import os
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from model.backbone.attention import Attend, attend
from model.backbone.convert import to_diffusers, to_original
from model.backbone.dit import FP32, Expert
from model.config import BackboneConfig

_NAME = "diffusion_pytorch_model"
_LARGEST_FILE = 5 * 10**9


def load(
    folder: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: Attend = attend,
) -> Expert:
    """The expert in a folder: `config.json` and safetensors, under diffusers' or the original names.

    Built without memory, then each tensor is put in its place; the parts named in `FP32` keep single precision. Raises
    FileNotFoundError where a file is missing, ValueError where tensors are missing, unknown or of another shape.
    """
    expert = blank(read_config(folder), attention)
    wanted, found = dict(expert.state_dict()), {}
    for name, tensor in _tensors(folder):
        _check(name, tensor, wanted, folder)
        found[name] = tensor.to(device=device, dtype=precision(name, dtype))
    _complete(set(wanted) - set(found), folder)
    expert.load_state_dict(found, assign=True)
    return expert


def _check(name: str, tensor: Tensor, wanted: Mapping[str, Tensor], folder: str) -> None:
    if name not in wanted:
        raise ValueError(f"{folder}: holds {name!r}, which the model has not")
    if tensor.shape != wanted[name].shape:
        raise ValueError(f"{folder}: {name} is {tuple(tensor.shape)}, the model's is {tuple(wanted[name].shape)}")


def _complete(missing: Set[str], folder: str) -> None:
    if missing:
        raise ValueError(f"{folder}: lacks {len(missing)} tensors, {min(missing)} the first")


def load_sharded(module: nn.Module, expert: Expert, folder: str) -> None:
    """Put the tensors of a folder into an expert whose weights are sharded over ranks, each rank its own part.

    module: the FSDP root that holds the expert, built without memory (`blank`); it gets it here, on the device of its mesh;
    what has memory already keeps its values. A rank holds one whole tensor at a time. Raises as `load` does.
    """
    parameters = dict(expert.named_parameters())
    mesh = next(p.device_mesh for p in parameters.values() if isinstance(p, DTensor))
    unread = {name for name, p in parameters.items() if not p.is_meta}
    kept = {name: p.detach().clone() for name, p in module.named_parameters() if not p.is_meta}
    module.to_empty(device=mesh.device_type)
    module.load_state_dict(kept, strict=False)
    parameters, missing = dict(expert.named_parameters()), set(parameters) - unread
    for name, tensor in _tensors(folder):
        _check(name, tensor, parameters, folder)
        parameter = parameters[name]
        part = tensor.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):  # no rank to take it from: every rank has read the same file
            part = distribute_tensor(part, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.data.copy_(part)
        missing.discard(name)
    _complete(missing, folder)


def blank(config: BackboneConfig, attention: Attend = attend) -> Expert:
    """An expert without memory for its weights (torch's meta device)."""
    with torch.device("meta"):
        return Expert(config, attention)


def precision(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type that a parameter is kept in where the model's is `dtype`."""
    return torch.float32 if any(part in name for part in FP32) else dtype


def read_config(folder: str) -> BackboneConfig:
    """The sizes in a folder's `config.json`, in diffusers' words or the original ones."""
    config = _config(folder)
    return BackboneConfig.from_diffusers(_diffusers_words(config) if _is_original(config) else config)


def _config(folder: str) -> dict[str, Any]:
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    return config


def _is_original(config: Mapping[str, Any]) -> bool:
    return "num_heads" in config


def _diffusers_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """An original `config.json` (dim, num_heads, in_dim, ...) in diffusers' words."""
    words = {"num_heads": "num_attention_heads", "in_dim": "in_channels", "out_dim": "out_channels"}
    same = ("num_layers", "ffn_dim", "freq_dim", "eps", "text_dim")
    found = {ours: config[theirs] for theirs, ours in words.items()} | {name: config[name] for name in same if name in config}
    return {**found, "attention_head_dim": config["dim"] // config["num_heads"]}


def _tensors(folder: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in diffusers, one file open at a time."""
    rename = to_diffusers if _is_original(_config(folder)) else str
    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping: it cannot be iterated)
                yield rename(name), file.get_tensor(name)


def _files(folder: str) -> list[str]:
    """The safetensors of a folder: those that its index lists, else the only one."""
    index = os.path.join(folder, f"{_NAME}.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    else:
        names = [f"{_NAME}.safetensors"]
    if missing := [name for name in names if not os.path.exists(os.path.join(folder, name))]:
        raise FileNotFoundError(f"{folder}: {missing[0]} is missing; a checkpoint is config.json and {_NAME}*.safetensors")
    return [os.path.join(folder, name) for name in names]


def save(expert: Expert, folder: str, original: bool = False, largest_file: int = _LARGEST_FILE) -> None:
    """Write a folder that `load` and diffusers (with `original`: Wan's own code) read; `largest_file` is in bytes."""
    words = _original_words(expert.config) if original else expert.config.to_diffusers()
    os.makedirs(folder, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in expert.state_dict().items()}
    parts = _parts(to_original(state) if original else state, largest_file)
    names = [_file_name(i, len(parts)) for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, os.path.join(folder, name), metadata={"format": "pt"})
    if len(parts) > 1:
        places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        size = sum(t.nbytes for t in state.values())
        _write(
            os.path.join(folder, f"{_NAME}.safetensors.index.json"), {"metadata": {"total_size": size}, "weight_map": places}
        )
    _write(os.path.join(folder, "config.json"), words)


def _original_words(config: BackboneConfig) -> dict[str, Any]:
    """Wan's own `config.json`. Its code has 1024 rotary positions and patches of 1x2x2, whatever a config says."""
    if (config.rope_max_seq_len, config.patch_size) != (1024, (1, 2, 2)):
        raise ValueError(f"Wan's own format cannot say {config.rope_max_seq_len} positions or patches of {config.patch_size}")
    if config.added_kv_proj_dim is not None:
        raise ValueError("Wan's own format has no place for a second source of cross-attention; save in diffusers' format")
    sizes = {"num_layers": config.num_layers, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim, "eps": config.eps}
    channels = {"in_dim": config.in_channels, "out_dim": config.out_channels, "text_dim": config.text_dim}
    return (
        {"_class_name": "WanModel", "model_type": "i2v", "dim": config.width, "num_heads": config.num_attention_heads}
        | sizes
        | channels
    )


def _parts(state: dict[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    room = largest
    for name, tensor in state.items():
        if tensor.nbytes > room and parts[-1]:
            parts.append({})
            room = largest
        parts[-1][name] = tensor
        room -= tensor.nbytes
    return parts


def _file_name(i: int, count: int) -> str:
    return f"{_NAME}.safetensors" if count == 1 else f"{_NAME}-{i + 1:05d}-of-{count:05d}.safetensors"


def _write(path: str, data: Mapping[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
