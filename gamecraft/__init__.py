"""All packages of this project under one name: `gamecraft.curation` is `curation`, the same module and not a copy.

    import gamecraft
    from gamecraft.curation import shards

    for sample in gamecraft.curation.shards.open("out/"):
        ...

The packages are imported when they are used, so `import gamecraft` loads none of them.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import bench as bench
    import curation as curation
    import model as model
    import operators as operators
    import pipelines as pipelines
    import synth as synth

PACKAGES = ("bench", "curation", "model", "operators", "pipelines", "synth")

__all__ = [*PACKAGES, "__version__"]

try:
    __version__ = version("gamecraft")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "not installed"


class _Alias(Loader):
    """Loads `gamecraft.X` as the module `X`."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.partition(".")[2])
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec  # the import system has put the alias's there; the module ran when it was imported


class _AliasFinder(MetaPathFinder):
    """Finds `gamecraft.X` and everything below it, so that no module of ours is ever loaded a second time."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG002 - as above
    ) -> ModuleSpec | None:
        head, _, real = fullname.partition(".")
        if head != __name__ or real.partition(".")[0] not in PACKAGES or find_spec(real) is None:
            return None
        return ModuleSpec(fullname, _Alias())


sys.meta_path.insert(0, _AliasFinder())


def __getattr__(name: str) -> ModuleType:
    if name in PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PACKAGES})
