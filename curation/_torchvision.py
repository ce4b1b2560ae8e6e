"""Let a CUDA build of torchvision be imported with CPU torch, in every process that imports this package.

PyPI has no CPU build of torchvision. The CUDA build cannot load its compiled operators without CUDA. Its import then fails
with "operator torchvision::nms does not exist", and so do the imports of transformers, diffusers and timm. It is enough to
define the two schemas that the import looks up: everything works except those compiled operators. Where the two wheels match,
the hook does not change the import.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _Guard(MetaPathFinder):
    """Run once, at the first `import torchvision`. torch itself is imported only then."""

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
    """Whether torchvision's compiled operators load with the installed torch. Loading them also registers them."""
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
    """Put the guard at the front of the import system, once. Nothing is imported until the first `import torchvision`."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())
