"""Lets a CUDA-built torchvision wheel import beside CPU torch, in every process that imports this package.

PyPI has no CPU build of torchvision. The CUDA build cannot load its compiled operators without CUDA, and its import then
fails with "operator torchvision::nms does not exist", taking transformers, diffusers and timm with it. Defining the two
schemas that the import asks for is enough for everything but those compiled operators. Where the wheels match, the hook
hands the import on untouched.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _Guard(MetaPathFinder):
    """Runs once, at the first `import torchvision`; importing torch itself is left to that moment."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        del target  # the protocol's third argument, for reloads
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.submodule_search_locations and not _operators_load(spec):
            _define_missing_schemas()
        return spec


def _operators_load(spec: ModuleSpec) -> bool:
    """Whether torchvision's compiled operators load beside the installed torch (they then register themselves)."""
    import torch

    if torch.version.cuda is not None:
        return True
    libraries = sorted(Path(next(iter(spec.submodule_search_locations or []))).glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


def _define_missing_schemas() -> None:
    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", _SCHEMA)


def install() -> None:
    """Put the guard in front of the import system, once; nothing is imported until torchvision is asked for."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())
