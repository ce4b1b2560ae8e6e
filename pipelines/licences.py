"""`gamecraft doctor --licences`: the licences of what ships with the package and of what is installed beside it.

The file NOTICE says the same in prose. It is no legal advice: classes are read from the packages' own metadata.
"""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.utils import canonicalize_name
from rich.console import Console
from rich.table import Table

from pipelines import installed
from pipelines.recipes import Recipe

PERMISSIVE, WEAK, COPYLEFT, NON_COMMERCIAL, UNKNOWN = "permissive", "weak copyleft", "copyleft", "non-commercial", "unknown"
# The strictest licence of an expression decides.
_WORDS = (
    (NON_COMMERCIAL, r"non-?commercial|\bNC\b"),
    (COPYLEFT, r"\bA?GPL|(?<!lesser )general public license"),
    (WEAK, r"\bLGPL|lesser general public|\bMPL|mozilla public|\bEPL"),
    (PERMISSIVE, r"\bMIT\b|\bBSD|apache|\bISC\b|\bPSF|python software foundation|\bHPND|zlib|unlicense|0BSD|CC0|public domain"),
)
_MAX_NAME = 80  # a longer `License` is the text of a licence, not its name


@dataclass(frozen=True)
class Shipped:
    """Files that are part of the package and are not code."""

    path: str  # a file, or a folder that ends in /
    what: str
    licence: str
    note: str


SHIPPED = (
    Shipped(
        "curation/actions/interactions.npz",
        "weights of the detector of interactions",
        "Apache-2.0",
        "trained on recordings of VizDoom (MIT) with Freedoom's maps (BSD-3-Clause)",
    ),
    Shipped(
        "curation/quality/iqa_net.npz",
        "weights of the measure of picture quality",
        "Apache-2.0",
        "trained on pictures under BSD-3-Clause, CC-BY-SA-3.0, CC-BY-SA-4.0 and GPL-2.0-or-later; none are in the package",
    ),
    Shipped(
        "model/play/demo_world/",
        "weights and start pictures of the demo world",
        "CC-BY-SA-3.0",
        'trained on Minetest Game and shows it: name "Minetest Game and its contributors", and keep the licence',
    ),
)


@dataclass(frozen=True)
class Condition:
    """What a user must know of a package or of weights beyond the name of a licence."""

    kind: str  # one of the classes above
    note: str


# By package. A kind here overrides that of the metadata.
CONDITIONS = {
    "av": Condition(
        PERMISSIVE,
        "its wheels hold FFmpeg with x264 and x265 (GPL-2.0-or-later): who passes on the wheel, passes on these too",
    ),
    "opencv-python-headless": Condition(PERMISSIVE, "its wheels hold FFmpeg (LGPL-2.1)"),
    "evo": Condition(COPYLEFT, "GPL-3.0; benchmarks and tests run it, nothing else does"),
    "imageio-ffmpeg": Condition(COPYLEFT, "its wheels hold an ffmpeg program with x264 (GPL); a benchmark runs it"),
    "pyiqa": Condition(NON_COMMERCIAL, "PolyForm Noncommercial and NTU S-Lab, the package and the weights of its metrics"),
    "nvidia-vipe": Condition(
        NON_COMMERCIAL,
        "Apache-2.0 except UniK3D (CC-BY-NC-SA-4.0); the models that it downloads have their own licences",
    ),
}
# Not in any extra's list, but installed by hand for one.
_BY_HAND = {"nvidia-vipe": "camera"}
# What a commercial user must leave out or keep to.
COMMERCIAL = (
    "leave out pyiqa and its weights: keep partition.iqa.backend at embedded, and set it in the recipe gamecraft2",
    "leave out ViPE's UniK3D, and read the licences of the models that ViPE downloads: annotate.camera.backend klt needs none",
    "keep CC-BY-SA-3.0 for the demo world and for what is recorded from Minetest, or leave out model/play/demo_world",
    "pass on PyAV's wheels under the GPL of x264 and x265, or build PyAV against an FFmpeg without them",
    "read the licence of every model that a recipe names: sizes of one family differ, as Qwen2.5-VL's",
)


def conditions_of(recipe: Recipe, phases: Collection[str]) -> list[str]:
    """Return what a run of these phases must say of licences: a sentence for each non-commercial package that it uses."""
    uses = {
        f"partition.iqa.backend: {recipe.partition.iqa.backend}": (
            "pyiqa",
            recipe.partition.iqa.backend.startswith("pyiqa:") and not {"partition", "generate"}.isdisjoint(phases),
            "embedded",
        ),
        f"annotate.camera.backend: {recipe.annotate.camera.backend}": (
            "nvidia-vipe",
            recipe.annotate.camera.backend == "vipe" and "annotate" in phases,
            "klt",
        ),
    }
    return [
        f"{setting} is for non-commercial use only ({CONDITIONS[package].note}); {instead} may be used for all purposes"
        for setting, (package, used, instead) in uses.items()
        if used
    ]


@dataclass(frozen=True)
class Package:
    """A package that is installed, or that an extra would install."""

    name: str
    version: str | None
    licence: str
    kind: str
    extras: tuple[str, ...]  # that need it; none: every installation does


def packages() -> list[Package]:
    """Return what `gamecraft` and its extras need directly, the strictest first. PackageNotFoundError as `installed`."""
    needed: dict[str, set[str]] = {}
    for extra, requirements in installed.requirements().items():
        for requirement in requirements:
            needed.setdefault(canonicalize_name(requirement.name), set()).add(extra)
    for name, extra in _BY_HAND.items():
        if installed.version_of(name):
            needed.setdefault(name, set()).add(extra)
    order = (NON_COMMERCIAL, COPYLEFT, UNKNOWN, WEAK, PERMISSIVE)
    rows = [_package(name, extras) for name, extras in needed.items()]
    return sorted(rows, key=lambda row: (order.index(row.kind), row.extras, row.name))


def _package(name: str, extras: set[str]) -> Package:
    version = installed.version_of(name)
    licence = licence_of(name) if version else ""
    condition = CONDITIONS.get(name)
    kind = condition.kind if condition else kind_of(licence)
    needed_by = () if installed.CORE in extras else tuple(sorted(extras))
    return Package(name, version, licence, kind, needed_by)


def licence_of(name: str) -> str:
    """Return the name of an installed package's licence, from its metadata; empty where they do not say."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    for expression in about.get_all("License-Expression") or []:
        return str(expression)
    named = " ".join(" ".join(about.get_all("License") or []).split())
    if named and len(named) <= _MAX_NAME and named.lower() != "unknown":
        return named
    classifiers = [
        line.rpartition("::")[2].strip() for line in about.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    return ", ".join(name for name in classifiers if name != "OSI Approved")


def kind_of(licence: str) -> str:
    """Return the class of a licence by its name, the strictest where it names several."""
    return next((kind for kind, words in _WORDS if re.search(words, licence, re.IGNORECASE)), UNKNOWN)


def print_licences(width: int | None = None) -> None:
    """Print what ships, what is installed beside it, and what a commercial user must leave out."""
    console = Console(highlight=False, width=width or max(80, shutil.get_terminal_size((120, 24)).columns))
    console.print("gamecraft itself: Apache-2.0. Part of the package, and not code:\n")
    console.print(_table(("file", "licence", "what it is"), _shipped_rows()))
    console.print("\nPackages that it needs, by their own metadata (no legal advice):\n")
    console.print(_table(("class", "package", "licence", "needed by"), _package_rows()))
    console.print("\nConditions that their metadata do not tell:\n")
    for name, condition in CONDITIONS.items():
        console.print(f"- {name}: {condition.note}", markup=False)
    console.print("\nFor commercial use:\n")
    for line in COMMERCIAL:
        console.print(f"- {line}", markup=False)


def _shipped_rows() -> Iterator[tuple[str, ...]]:
    for each in SHIPPED:
        yield each.path, each.licence, f"{each.what}; {each.note}"


def _package_rows() -> Iterator[tuple[str, ...]]:
    for each in packages():
        version = f"{each.name} {each.version}" if each.version else f"{each.name} (not installed)"
        yield each.kind, version, each.licence, ", ".join(each.extras) or "all"


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(*header, box=None, header_style="bold", padding=(0, 1))
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table
