"""Install the package into fresh environments, one after the other, and run the commands of what was installed.

    python -m bench.environments --python python3.10 --python python3.11 --python python3.12 --log environments.jsonl
    python -m bench.environments --log environments.jsonl --table

One environment holds the core, the core and one extra, or all extras that need no GPU. Each is made anew with the
interpreter's own venv and pip (modules are not compiled ahead), measured, and deleted. Only pip's downloads are shared. Each
result is a JSON line, and an environment that has one is not made again. `iqa` is installed by uv, as docs/quality.md says,
since pip cannot leave out a second OpenCV. `vllm` is resolved but not installed: its wheels need CUDA.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.machine import describe
from bench.process_tree import children_cpu_s
from bench.tiny_videos import write_tiny_video

_ROOT = Path(__file__).parents[1]
CORE, ALL = "core", "all"
# Extras by how much they bring: those without torch first, so that a run that is stopped has the most environments.
EXTRAS = ("camera", "rerun", "play", "demo", "bench", "onnx", "dev", "raft", "iqa", "vlm", "train", "synth", "vllm")
_WITH_ALL = tuple(extra for extra in EXTRAS if extra not in ("iqa", "vllm"))
_TIMEOUT_S = 3600
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")

# What is run in an environment: {python}, {bin} and {folder} are replaced. Each must exit with status 0. Where torchvision is
# loaded, `import curation` comes first, as in the project's own processes: its CUDA build needs that where torch is the CPU's.
_CORE_COMMANDS = (
    "{bin}/gamecraft --version",
    "{bin}/gamecraft curate {folder}/in --out {folder}/out --recipe smoke",
    "{bin}/gamecraft inspect {folder}/out",
    '{python} -c \'import curation.shards as s; print(next(iter(s.open("{folder}/out")))["mp4"].shape)\'',
)
_COMMANDS = {
    "camera": ("{python} -c 'import scipy, curation.cameras.export'",),
    "rerun": ('{python} -c \'import rerun; rerun.init("x"); rerun.save("{folder}/x.rrd")\'',),
    "play": ("{python} -c 'import fastapi, uvicorn, websockets'", "{bin}/gamecraft play --help"),
    "demo": ("{python} -m synth.doom {folder}/doom.mp4 --map freedoom2:MAP01:2 --size 320x240",),
    "bench": ("{python} -c 'import evo, imageio_ffmpeg, pycolmap, vizdoom'", "{bin}/gamecraft bench chaos --help"),
    "onnx": ("{python} -c 'import onnxruntime, onnxscript'",),
    "dev": ("{bin}/ruff --version", "{bin}/mypy --version", "{python} -m pytest --version"),
    "raft": (
        "{python} -c 'import curation, torch, torchvision.models.optical_flow as o; "
        "print(o.raft_small()(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128))[-1].shape)'",
    ),
    "iqa": ("{python} -c 'import curation, pyiqa; print(len(pyiqa.list_models()))'",),
    "vlm": (
        "{python} -c 'import curation, transformers, sentence_transformers, qwen_vl_utils, llguidance; "
        "transformers.PreTrainedModel'",
    ),
    "train": ("{bin}/gamecraft recipe list --train", "{bin}/gamecraft train --recipe tiny --plan 1"),
    "synth": ("{python} -c 'import curation, diffusers, ftfy; diffusers.FluxPipeline'",),
}
_TOGETHER = (  # of several extras at once
    "{bin}/gamecraft rollout demo --keys 'W*4' --out {folder}/rollout.mp4",
)


@dataclass
class Environment:
    """What came of one environment.

    installed_s, installed_cpu_s: seconds of venv, pip or uv, by the clock and of CPU time. size_mib: of its site-packages.
    packages: distributions, without pip. failures: the last line of each command that failed. note: what was done instead of an
    installation.
    """

    python: str
    name: str
    installed_s: float = 0.0
    installed_cpu_s: float = 0.0
    size_mib: int = 0
    packages: int = 0
    torch: str = ""
    commands: int = 0
    commands_s: float = 0.0
    commands_cpu_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.environments", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", action="append", default=[], help="an interpreter; repeat it for several")
    parser.add_argument("--log", type=Path, required=True, help="the results, one JSON line an environment")
    parser.add_argument("--only", default="", help="environments, with commas: core, an extra, all; default: each of them")
    parser.add_argument("--table", action="store_true", help="print the results as a table and make nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(read_log(options.log)))
        return
    names = options.only.split(",") if options.only else [CORE, *EXTRAS, ALL]
    if unknown := set(names) - {CORE, ALL, *EXTRAS}:
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}")
    print(describe(), flush=True)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    for python in options.python:
        with tempfile.TemporaryDirectory(prefix="environments-") as folder:
            wheel = _build_wheel(python, Path(folder))
            for name in names:
                if (version := _version(python), name) in {(e.python, e.name) for e in read_log(options.log)}:
                    continue
                result = try_environment(python, version, name, wheel, Path(folder, name))
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(result)) + "\n")
                print(json.dumps(asdict(result)), flush=True)


def read_log(path: Path) -> list[Environment]:
    """Return the results that are there already."""
    return [Environment(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def requirement(name: str) -> str:
    """Return the extras of an environment as a requirement spells them: "[raft]", or "" for the core."""
    extras = {CORE: (), ALL: _WITH_ALL}.get(name, (name,))
    return f"[{','.join(extras)}]" if extras else ""


def commands_of(name: str) -> list[str]:
    """Return the commands that an environment must run."""
    extras = {CORE: (), ALL: _WITH_ALL}.get(name, (name,))
    together = _TOGETHER if {"play", "train"} <= set(extras) else ()
    return [*_CORE_COMMANDS, *(command for extra in extras for command in _COMMANDS[extra]), *together]


def try_environment(python: str, version: str, name: str, wheel: Path, folder: Path) -> Environment:
    """Make an environment, measure it, run its commands, and delete it."""
    folder.mkdir()
    result, began, began_cpu = Environment(version, name), time.monotonic(), children_cpu_s()
    try:
        _run([python, "-m", "venv", str(folder / "venv")], folder)
        inside = str(folder / "venv" / "bin" / "python")
        if name == "vllm":
            _resolve(result, inside, wheel, folder)
        else:
            _install(result, inside, name, wheel, folder)
            result.installed_s = round(time.monotonic() - began, 1)
            result.installed_cpu_s = round(children_cpu_s() - began_cpu, 1)
            _measure(result, inside, folder)
            _run_commands(result, name, inside, folder)
    except subprocess.SubprocessError as error:
        result.failures.append(_last_line(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _build_wheel(python: str, folder: Path) -> Path:
    _run([python, *_PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(_ROOT)], folder)
    (wheel,) = folder.glob("gamecraft-*.whl")
    return wheel


def _install(result: Environment, python: str, name: str, wheel: Path, folder: Path) -> None:
    constraints, wanted = str(_ROOT / "constraints-cpu.txt"), f"{wheel}{requirement(name)}"
    if name == "iqa":
        _run([python, *_PIP, "install", "--quiet", "uv"], folder)
        overrides = ["--override", str(_ROOT / "overrides-iqa.txt")]
        # pip's own sources of packages, since uv does not read pip's settings.
        sources = [*_uv_sources(python, folder), "--index-strategy", "unsafe-best-match"]
        _run([python, "-m", "uv", "pip", "install", "--quiet", "-c", constraints, *overrides, *sources, wanted], folder)
        result.note = "by uv, with overrides-iqa.txt"
    else:
        _run([python, *_PIP, "install", "--quiet", "-c", constraints, wanted], folder)


def _uv_sources(python: str, folder: Path) -> Iterator[str]:
    lines = _run([python, *_PIP, "config", "list"], folder).splitlines()
    settings = dict(line.partition("=")[0::2] for line in lines)
    for key, option in (("find-links", "--find-links"), ("extra-index-url", "--extra-index-url"), ("index-url", "--index-url")):
        for value in (value for name, value in settings.items() if name.rpartition(".")[2] == key):
            for item in value.strip("'\"").split():
                yield from (option, item)


def _resolve(result: Environment, python: str, wheel: Path, folder: Path) -> None:
    """Let pip choose versions for an extra that cannot be installed here."""
    began = time.monotonic()
    text = _run([python, *_PIP, "install", "--dry-run", f"{wheel}{requirement('vllm')}"], folder)
    chosen = re.search(r"Would install (.*)", text)
    packages = chosen.group(1).split() if chosen else []
    result.packages = len(packages)
    result.torch = next((package[6:] for package in packages if re.match(r"torch-\d", package)), "")
    vllm = next((package for package in packages if package.startswith("vllm-")), "no vllm")
    result.note = f"resolved in {time.monotonic() - began:.0f} s, not installed: {vllm}"


def _measure(result: Environment, python: str, folder: Path) -> None:
    site = next((folder / "venv").rglob("site-packages"))
    result.size_mib = sum(file.stat().st_blocks * 512 for file in site.rglob("*") if file.is_file()) >> 20
    listed = json.loads(_run([python, *_PIP, "list", "--format", "json"], folder))
    versions = {item["name"].lower(): item["version"] for item in listed}
    result.packages = len(versions.keys() - {"pip", "setuptools", "uv"})
    result.torch = versions.get("torch", "")


def _run_commands(result: Environment, name: str, python: str, folder: Path) -> None:
    (folder / "in").mkdir()
    write_tiny_video(folder / "in" / "a.mp4", seed=0)
    began, began_cpu = time.monotonic(), children_cpu_s()
    for command in commands_of(name):
        text = command.format(python=python, bin=Path(python).parent, folder=folder)
        result.commands += 1
        try:
            _run(["sh", "-c", text], folder)
        except subprocess.SubprocessError as error:
            result.failures.append(f"{command.partition(' ')[2]}: {_last_line(error)}")
    result.commands_s, result.commands_cpu_s = round(time.monotonic() - began, 1), round(children_cpu_s() - began_cpu, 1)


def _run(command: Sequence[str], folder: Path) -> str:
    """Run a command outside the project's folder, and return what it prints. It sees none of this process's packages."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PIP_NO_COMPILE": "1",
        "RAY_AUTH_MODE": "disabled",
        "VIRTUAL_ENV": str(folder / "venv"),
    }
    done = subprocess.run(command, cwd=folder, env=environment, timeout=_TIMEOUT_S, text=True, check=True, capture_output=True)
    return done.stdout


def _last_line(error: subprocess.SubprocessError) -> str:
    """Return the last line that a failed command printed."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in f"{error.stdout}\n{error.stderr}".splitlines() if line.strip()]
        return (lines or [f"exit status {error.returncode}"])[-1][:300]
    return str(error)[:300]


def _version(python: str) -> str:
    return _run([python, "-c", "import platform; print(platform.python_version())"], Path(tempfile.gettempdir())).strip()


def table(results: Sequence[Environment]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| Python | environment | packages | size | torch | installed in | CPU time of that | commands | CPU time of those | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = [CORE, *EXTRAS, ALL]
    for e in sorted(results, key=lambda e: (e.python.split("."), order.index(e.name))):
        installed = f"{e.installed_s:.0f} s" if e.installed_s else ""
        size = f"{e.size_mib:,} MiB" if e.size_mib else ""
        ran = f"{e.commands - len(e.failures)} of {e.commands}" if e.commands else ""
        words = "; ".join([*filter(None, [e.note]), *e.failures])
        cpu_s = [f"{seconds:.0f} s" if seconds else "" for seconds in (e.installed_cpu_s, e.commands_cpu_s)]
        cells = (e.python, e.name, e.packages or "", size, e.torch, installed, cpu_s[0], ran, cpu_s[1], words)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
