"""`gamecraft doctor`: what this machine has for each part of the project, and the command that mends each line."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation import model_files
from curation.captions import embeddings
from curation.errors import describe
from pipelines import installed, machine

OK, ABSENT, BROKEN = "ok", "absent", "broken"
_STYLES = {OK: "green", ABSENT: "yellow", BROKEN: "bold red"}
_GIB = 1 << 30
_MIN_MEMORY_GIB = 4  # one process curates in less; Ray, its workers and a scan each need more
_MIN_SCRATCH_GIB = 2  # a shard of 256 clips is up to 2 GiB and is written here first
_MIN_SHARED_GIB = 2  # below this Ray keeps its object store on disk
_DECODERS = ("h264", "hevc", "av1", "vp9")
_HARDWARE_ENCODERS = ("h264_nvenc", "hevc_nvenc")
_RAFT_HINT = f"put the checkpoint at $GAMECRAFT_WEIGHTS/{model_files.RAFT_SMALL.file}: {model_files.RAFT_SMALL.hub_url}"
_ROOT = Path(__file__).parents[1]
# Weights that ship with the package, by what they are for.
_SHIPPED = {
    "interactions": "curation/actions/interactions.npz",
    "picture quality": "curation/quality/iqa_net.npz",
    "demo world": "model/play/demo_world/weights.safetensors",
}
# Models of many files that recipes name, with what happens without them.
_MODELS = {
    "VLM": ("Qwen/Qwen2.5-VL-7B-Instruct", "captions are composed of measurements, or a server is asked"),
    "video model": ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "the recipes for 14B models cannot start from it"),
}
_ENGINES = ("minetest", "openarena", "neverball")
_SHARED_PROGRAMS = ("Xvfb", "cc")


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, its state, what was seen, and what mends it."""

    name: str
    state: str  # `OK`; `ABSENT`: something optional is missing; `BROKEN`: must be mended before `gamecraft curate` works
    text: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything. A check that fails by itself becomes a broken line, so that the others are still shown.

    Nothing is downloaded, started or asked over the network.
    """
    return [finding for name, check in _CHECKS.items() for finding in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        yield Finding(name, BROKEN, " ".join(describe(error).split())[:200], "reinstall the package that the message names")


def print_findings(findings: list[Finding], width: int | None = None) -> None:
    """Print one line for each finding, with its remedy at the end."""
    console = Console(soft_wrap=False, highlight=False, width=width or max(80, shutil.get_terminal_size((120, 24)).columns))
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f" -> {finding.remedy}", "bold")
        table.add_row(Text(finding.state, _STYLES[finding.state]), Text(finding.name), text)
    console.print(table)
    broken = sum(finding.state == BROKEN for finding in findings)
    absent = sum(finding.state == ABSENT for finding in findings)
    console.print(f"\n{broken} to mend, {absent} optional and absent" if broken or absent else "\nall is well")


def report() -> int:
    """Examine the machine and print the findings. Return the exit status: 1 where something must be mended."""
    findings = examine()
    print_findings(findings)
    return int(any(finding.state == BROKEN for finding in findings))


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] < (3, 13)
    remedy = "" if supported else "use Python 3.10, 3.11 or 3.12"
    yield Finding("Python", OK if supported else BROKEN, f"{version}, {platform.system()} {platform.machine()}", remedy)
    cores, (total, free) = machine.count_cores(), (size / _GIB for size in machine.read_memory())
    enough = total >= _MIN_MEMORY_GIB
    remedy = "" if enough else f"use a machine or a container with at least {_MIN_MEMORY_GIB} GiB"
    yield Finding("memory", OK if enough else ABSENT, f"{total:.1f} GiB, {free:.1f} GiB free; {cores} cores", remedy)
    yield _space("scratch", os.environ.get("TMPDIR") or "/tmp", _MIN_SCRATCH_GIB, "set TMPDIR to a larger disk")  # noqa: S108


def _space(name: str, folder: str, min_gib: float, remedy: str) -> Finding:
    if not os.access(folder, os.W_OK):
        return Finding(name, BROKEN, f"{folder} cannot be written", remedy)
    free = shutil.disk_usage(folder).free / _GIB
    enough = free >= min_gib
    return Finding(name, OK if enough else ABSENT, f"{folder}: {free:.1f} GiB free", "" if enough else remedy)


def _packages() -> Iterator[Finding]:
    try:
        missing = installed.lacking(installed.CORE)
    except PackageNotFoundError:
        text = f"the packages are read from {_ROOT}, which is not installed, so extras are not known"
        yield Finding("gamecraft", ABSENT, text, "pip install -c constraints-cpu.txt -e .")
        return
    version = installed.version_of("gamecraft")
    text = f"{version}, all it needs" if not missing else f"{version} lacks {', '.join(missing)}"
    yield Finding("gamecraft", BROKEN if missing else OK, text, "pip install gamecraft" if missing else "")


def _opencv() -> Iterator[Finding]:
    packages = installed.opencv_packages()
    remedy = f"pip uninstall -y {' '.join(packages)} && pip install opencv-python-headless"
    if len(packages) > 1:
        yield Finding("OpenCV", BROKEN, f"{' and '.join(packages)} are installed over each other", remedy)
        return
    try:
        import cv2
    except ImportError as error:  # opencv-python without X libraries
        yield Finding("OpenCV", BROKEN, describe(error), remedy if packages else "pip install opencv-python-headless")
        return
    yield Finding("OpenCV", OK, f"{cv2.__version__} ({packages[0] if packages else 'not from a package'})")


def _ffmpeg() -> Iterator[Finding]:
    import av

    known = av.codecs_available
    missing = [name for name in _DECODERS if name not in known]
    encoder = "libx264" in known
    hardware = [name for name in _HARDWARE_ENCODERS if name in known]
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    text = f"PyAV {av.__version__}, libavcodec {codec}: decodes {', '.join(n for n in _DECODERS if n in known)}"
    text += f"; encodes {', '.join([*(['libx264'] if encoder else []), *hardware]) or 'nothing that shards use'}"
    remedy = "pip install --force-reinstall --only-binary av av" if missing or not encoder else ""
    yield Finding("FFmpeg", BROKEN if remedy else OK, text, remedy)


def _torch() -> Iterator[Finding]:
    version = installed.version_of("torch")
    if version is None:
        text = "not installed: no RAFT flow, no model in this process, no training"
        yield Finding("torch", ABSENT, text, "pip install torch==2.13.0")
        return
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        yield Finding("torch", OK, f"{version}; {', '.join(f'{d.name} {d.total_memory / _GIB:.0f} GiB' for d in devices)}")
    elif shutil.which("nvidia-smi"):
        what = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        text = f"{version} sees no GPU, though this machine has NVIDIA's driver; it {what}"
        yield Finding("torch", ABSENT, text, "pip install --force-reinstall torch==2.13.0, from the index of your CUDA")
    else:
        yield Finding("torch", OK, f"{version}, no GPU on this machine")
    if installed.version_of("torchvision"):
        import torchvision

        yield Finding("torchvision", OK, torchvision.__version__)


def _ray() -> Iterator[Finding]:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    yield Finding("Ray", OK, f"{ray.__version__}; {f'RAY_ADDRESS={address}' if address else 'no RAY_ADDRESS: starts one here'}")
    yield _space("shared memory", "/dev/shm", _MIN_SHARED_GIB, "give a container more: docker run --shm-size=4g")  # noqa: S108


def _weights() -> Iterator[Finding]:
    lost = [path for path in _SHIPPED.values() if not (_ROOT / path).is_file()]
    text = f"{', '.join(_SHIPPED)}" if not lost else f"missing: {', '.join(lost)}"
    yield Finding("shipped weights", BROKEN if lost else OK, text, "pip install --force-reinstall gamecraft" if lost else "")
    raft = model_files.local_weights(model_files.RAFT_SMALL)
    text = str(raft or "not here: torchvision downloads it on a machine with a GPU; else flow is DIS")
    yield Finding("RAFT-small", OK if raft else ABSENT, text, "" if raft else _RAFT_HINT)
    encoder = embeddings.EncoderSettings()
    reason, revision = embeddings.missing_reason(encoder), embeddings.revision_of(encoder)
    download = f"hf download sentence-transformers/{encoder.model} --revision {revision}"
    remedy = "" if not reason else f'pip install "gamecraft[vlm]" && {download}'
    yield Finding("caption encoder", ABSENT if reason else OK, reason or encoder.model, remedy)
    for name, (model, without) in _MODELS.items():
        folder = model_files.resolve_model(model)
        place = folder if folder != model else model_files.hub_snapshot(model)
        remedy = "" if place else f"hf download {model}"
        yield Finding(name, OK if place else ABSENT, place or f"{model} is not here: {without}", remedy)


def _programs() -> Iterator[Finding]:
    from synth.engines.lockstep import find_program

    absent = [name for name in (*_ENGINES, *_SHARED_PROGRAMS) if not find_program(name)]
    if absent:
        works = [] if set(absent) & set(_SHARED_PROGRAMS) else [name for name in _ENGINES if name not in absent]
        lost = f"of these only {', '.join(works)}" if works else "none of these games"
        yield Finding("engines", ABSENT, f"no {', '.join(absent)}: {lost} can be recorded", "make engines")
    else:
        yield Finding("engines", OK, ", ".join((*_ENGINES, *_SHARED_PROGRAMS)))
    doom = find_spec("vizdoom")
    yield Finding("Doom", OK if doom else ABSENT, "vizdoom" if doom else "no vizdoom", "" if doom else _install("demo"))


def _extras() -> Iterator[Finding]:
    try:
        extras = [extra for extra in installed.requirements() if extra != installed.CORE]
    except PackageNotFoundError:
        return  # `_packages` says so
    complete = [extra for extra in extras if not installed.lacking(extra)]
    yield Finding("extras", OK, f"complete: {', '.join(complete) or 'none'}")
    for extra in extras:
        if missing := installed.lacking(extra):
            shown = ", ".join(missing[:2]) + (f" and {len(missing) - 2} more" if len(missing) > 2 else "")
            yield Finding(f"  {extra}", ABSENT, f"lacks {shown}", _install(extra))


def _install(extra: str) -> str:
    return model_files.INSTALL_PYIQA if extra == "iqa" else f'pip install "gamecraft[{extra}]"'


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "machine": _machine,
    "gamecraft": _packages,
    "OpenCV": _opencv,
    "FFmpeg": _ffmpeg,
    "torch": _torch,
    "Ray": _ray,
    "weights": _weights,
    "programs": _programs,
    "extras": _extras,
}
