"""Load and save one expert, as a diffusers or an original Wan folder, file by file so that 28 GB are not in memory twice."""

import json
import os
from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from curation.errors import InputError, Unavailable
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
    """Load the expert in a folder of `config.json` and safetensors, with diffusers' or the original names.

    It is built on the meta device, then each tensor is assigned. The parts named in `FP32` stay float32. Unavailable where a
    file is missing, InputError where tensors are missing, unknown or of another shape.
    """
    expert = meta_expert(read_config(folder), attention)
    expected, state = dict(expert.state_dict()), {}
    for name, tensor in _tensors(folder):
        _check(name, tensor, expected, folder)
        state[name] = tensor.to(device=device, dtype=parameter_dtype(name, dtype))
    _check_complete(set(expected) - set(state), folder)
    expert.load_state_dict(state, assign=True)
    return expert


def _check(name: str, tensor: Tensor, expected: Mapping[str, Tensor], folder: str) -> None:
    if name not in expected:
        raise InputError(f"{folder}: holds {name!r}, which the model does not have")
    if tensor.shape != expected[name].shape:
        raise InputError(f"{folder}: {name} is {tuple(tensor.shape)}, the model's is {tuple(expected[name].shape)}")


def _check_complete(missing: Set[str], folder: str) -> None:
    if missing:
        raise InputError(f"{folder}: lacks {len(missing)} tensors, the first {min(missing)}")


def load_sharded(module: nn.Module, expert: Expert, folder: str) -> None:
    """Load the tensors of a folder into an expert whose weights are sharded over ranks; each rank keeps its own part.

    module: the FSDP root that contains the expert, built on the meta device (`meta_expert`). Its memory is allocated here, on
    the device of its mesh; parameters that have memory already keep their values. A rank holds one whole tensor at a time.
    Raises the errors of `load`.
    """
    parameters = dict(expert.named_parameters())
    mesh = next(p.device_mesh for p in parameters.values() if isinstance(p, DTensor))
    initialised = {name for name, p in parameters.items() if not p.is_meta}
    values = {name: p.detach().clone() for name, p in module.named_parameters() if not p.is_meta}
    module.to_empty(device=mesh.device_type)
    module.load_state_dict(values, strict=False)
    parameters, missing = dict(expert.named_parameters()), set(parameters) - initialised
    for name, tensor in _tensors(folder):
        _check(name, tensor, parameters, folder)
        parameter = parameters[name]
        part = tensor.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):  # no rank sends it: every rank has read the same file
            part = distribute_tensor(part, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.data.copy_(part)
        missing.discard(name)
    _check_complete(missing, folder)


def meta_expert(config: BackboneConfig, attention: Attend = attend) -> Expert:
    """Return an expert without memory for its weights (torch's meta device)."""
    with torch.device("meta"):
        return Expert(config, attention)


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter in a model of dtype `dtype`."""
    return torch.float32 if any(part in name for part in FP32) else dtype


def read_config(folder: str) -> BackboneConfig:
    """Read the sizes in a folder's `config.json`, with diffusers' keys or the original ones."""
    config = _config(folder)
    return BackboneConfig.from_diffusers(_diffusers_config(config) if _is_original(config) else config)


def _config(folder: str) -> dict[str, Any]:
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    return config


def _is_original(config: Mapping[str, Any]) -> bool:
    return "num_heads" in config


def _diffusers_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an original `config.json` (dim, num_heads, in_dim, ...) to diffusers' keys."""
    renamed = {"num_heads": "num_attention_heads", "in_dim": "in_channels", "out_dim": "out_channels"}
    same = ("num_layers", "ffn_dim", "freq_dim", "eps", "text_dim")
    sizes = {ours: config[theirs] for theirs, ours in renamed.items()} | {name: config[name] for name in same if name in config}
    return {**sizes, "attention_head_dim": config["dim"] // config["num_heads"]}


def _tensors(folder: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its name in diffusers, with one file open at a time."""
    rename = to_diffusers if _is_original(_config(folder)) else str
    for path in _files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping: it cannot be iterated)
                yield rename(name), file.get_tensor(name)


def _files(folder: str) -> list[str]:
    """Return the safetensors of a folder: those that its index lists, or the only one. Unavailable where one is missing."""
    index = os.path.join(folder, f"{_NAME}.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    else:
        names = [f"{_NAME}.safetensors"]
    if missing := [name for name in names if not os.path.exists(os.path.join(folder, name))]:
        raise Unavailable(f"{folder}: {missing[0]} is missing; a checkpoint is config.json and {_NAME}*.safetensors")
    return [os.path.join(folder, name) for name in names]


def save(expert: Expert, folder: str, original: bool = False, largest_file: int = _LARGEST_FILE) -> None:
    """Write a folder for `load` and diffusers (with `original`: for Wan's own code). largest_file: bytes."""
    config = _original_config(expert.config) if original else expert.config.to_diffusers()
    os.makedirs(folder, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in expert.state_dict().items()}
    parts = _parts(to_original(state) if original else state, largest_file)
    names = [_file_name(i, len(parts)) for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, os.path.join(folder, name), metadata={"format": "pt"})
    if len(parts) > 1:
        file_of = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        size = sum(t.nbytes for t in state.values())
        _write(
            os.path.join(folder, f"{_NAME}.safetensors.index.json"), {"metadata": {"total_size": size}, "weight_map": file_of}
        )
    _write(os.path.join(folder, "config.json"), config)


def _original_config(config: BackboneConfig) -> dict[str, Any]:
    """Return Wan's own `config.json`. Wan's code has 1024 rotary positions and patches of 1x2x2, whatever a config says."""
    if (config.rope_max_seq_len, config.patch_size) != (1024, (1, 2, 2)):
        raise ValueError(
            f"Wan's own format cannot store {config.rope_max_seq_len} positions or patches of {config.patch_size}; save in "
            "diffusers' format"
        )
    if config.added_kv_proj_dim is not None:
        raise ValueError("Wan's own format cannot store cross-attention to a vision-language model; save in diffusers' format")
    sizes = {"num_layers": config.num_layers, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim, "eps": config.eps}
    channels = {"in_dim": config.in_channels, "out_dim": config.out_channels, "text_dim": config.text_dim}
    return (
        {"_class_name": "WanModel", "model_type": "i2v", "dim": config.width, "num_heads": config.num_attention_heads}
        | sizes
        | channels
    )


def _parts(state: dict[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """Divide tensors, in their order, into files of at most `largest` bytes."""
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
