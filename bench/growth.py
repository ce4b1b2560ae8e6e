"""How the cost of a run grows with the number of sources: CPU, memory, requests and objects, of a first run and of a resume.

    python -m bench.growth --work FOLDER --real 10,100 --made-up 1000,10000 --compact --made-up-packed 100000

Real sources are tiny videos that are curated. Of made-up sources only the results exist: the files of one real source,
copied under other names for each of them, so that a resume has as much to read as after a real run. Each run is a separate
process, in which every request to the store is counted, as S3 would see it: a list request returns 1,000 names. FOLDER keeps
what was made, so another build can be measured on the same files: PYTHONPATH=OTHER python bench/growth.py --work FOLDER ...
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

_NAMES_PER_LIST = 1000
_RESULT = "growth "


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where sources and outputs are made")
    parser.add_argument("--real", default="10,100", help="numbers of real sources, with commas; default 10,100")
    parser.add_argument("--made-up", default="1000,10000", help="numbers of made-up sources; default 1000,10000")
    parser.add_argument("--made-up-packed", default="", help="numbers of made-up sources whose results are packed already")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a made-up source, which gives a clip every 6.7 s")
    parser.add_argument("--compact", action="store_true", help="pack the outputs before the last resume")
    parser.add_argument("--label", default="", help="printed with each result")
    parser.add_argument(
        "--measure", nargs=argparse.REMAINDER, metavar="WORD", help="run this command of gamecraft in this process, and count"
    )
    options = parser.parse_args(arguments)
    if options.measure:
        _measure_here(options.measure)
        return
    from bench.machine import describe

    print(describe(), flush=True)
    options.work.mkdir(parents=True, exist_ok=True)
    for count in _numbers(options.real):
        _real_runs(options.work, count, options.label, options.compact)
    for count in _numbers(options.made_up):
        _made_up_runs(options.work, count, options.label, options.compact, False, options.seconds)
    for count in _numbers(options.made_up_packed):
        _made_up_runs(options.work, count, options.label, False, True, options.seconds)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def _real_runs(work: Path, count: int, label: str, compact: bool) -> None:
    folder, out = _make_sources(work, count), work / f"real-{count}{label and '-' + label}"
    _print(label, f"{count} sources, first run", out, _run(_curate(folder, out, work)))
    _print(label, f"{count} sources, resume", out, _run(_curate(folder, out, work)))
    if compact:
        _print(label, f"{count} sources, compact", out, _run(["compact", str(out)]))
        _print(label, f"{count} sources, resume after compact", out, _run(_curate(folder, out, work)))


def _made_up_runs(work: Path, count: int, label: str, compact: bool, packed: bool, seconds: float) -> None:
    kind = f"{count}x{seconds:g}s"
    folder, out = work / f"made-up-in-{kind}", work / f"made-up-{kind}{'-packed' if packed else ''}"
    if not (out / "done").exists():
        template = work / f"template{seconds:g}"
        _run(_curate(_make_sources(work, 1, seconds), template, work))
        from bench.made_up import make_up

        make_up(folder, out, template, count, _recipe(work), packed)
        (out / "done").touch()
    name = f"{count} made-up sources of {seconds:g} s{', packed' if packed else ''}"
    _print(label, f"{name}, first resume", out, _run(_curate(folder, out, work)))
    _print(label, f"{name}, resume", out, _run(_curate(folder, out, work)))
    if compact:
        _print(label, f"{name}, compact", out, _run(["compact", str(out)]))
        _print(label, f"{name}, resume after compact", out, _run(_curate(folder, out, work)))


def _make_sources(work: Path, count: int, seconds: float = 5.0) -> Path:
    from bench.tiny_videos import write_tiny_video

    folder = work / f"in-{count}x{seconds:g}s"
    folder.mkdir(exist_ok=True)
    for seed in range(count):
        if not (path := folder / f"{seed:05d}.mp4").exists():
            write_tiny_video(path, seed, seconds)
            os.utime(path, (1e9, 1e9))
    return folder


def _recipe(work: Path) -> Path:
    """Return the recipe of all runs, a file: `smoke` without the encoder of captions, whose start costs more than the rest."""
    path = work / "recipe.yaml"
    if not path.exists():
        from curation.captions.embeddings import EncoderSettings
        from pipelines import recipes, setting_comments

        smoke = recipes.smoke()
        recipe = replace(smoke, name="growth", relate=recipes.Relate(EncoderSettings("none")))
        path.write_text(setting_comments.to_commented_yaml(recipe))
    return path


def _curate(folder: Path, out: Path, work: Path) -> list[str]:
    return ["curate", str(folder), "--out", str(out), "--recipe", str(_recipe(work))]


def _run(words: list[str]) -> dict[str, Any]:
    """Run a command of gamecraft in a process that counts, and return what it counted."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.run(
            [sys.executable, __file__, "--work", "unused", "--measure", *words],
            text=True, stdout=subprocess.PIPE, stderr=errors, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        lines = [line for line in child.stdout.splitlines() if line.startswith(_RESULT)]
        if child.returncode or not lines:
            errors.seek(0)
            raise SystemExit(f"gamecraft {' '.join(words)} failed ({child.returncode}):\n{child.stdout}\n{errors.read()}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix(_RESULT))
    return result


def _measure_here(words: list[str]) -> None:
    """Run a command in this process, count its requests, and print the result as a line of JSON."""
    import importlib

    counts: Counter[str] = Counter()
    _count_requests(importlib.import_module("curation.storage"), counts)
    source_files: Any = importlib.import_module("curation.source_files")
    source_files.list_files = importlib.import_module("curation.storage").list_files
    cli = importlib.import_module("pipelines.cli")
    began, status = time.monotonic(), 0
    sys.argv = ["gamecraft", *words]
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    driver, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "driver_cpu_s": round(driver.ru_utime + driver.ru_stime, 2),
        "worker_cpu_s": round(workers.ru_utime + workers.ru_stime, 2),
        "driver_mib": _peak_mib(),
        "wall_s": round(time.monotonic() - began, 1),
        **{kind: counts[kind] for kind in ("GET", "LIST", "PUT", "DELETE", "HEAD")},
    }
    print(_RESULT + json.dumps(result))
    sys.exit(status)


def _peak_mib() -> int:
    """Return the most memory that this program used. `ru_maxrss` also has what the parent held when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) >> 10


def _count_requests(storage: Any, counts: Counter[str]) -> None:
    """Replace the functions of `curation.storage` by ones that count the requests that S3 would get from this process."""

    def counted(name: str, kind: str) -> None:
        real = getattr(storage, name, None)
        if real is None:
            return

        def call(*args: Any, **options: Any) -> Any:
            counts[kind] += 1
            return real(*args, **options)

        setattr(storage, name, call)

    for name in ("read", "read_stamped", "open_binary"):
        counted(name, "GET")
    for name in ("put", "put_file", "replace"):
        counted(name, "PUT")
    counted("delete", "DELETE")
    counted("version", "HEAD")
    real_list = storage.list_files
    real_delete_all: Any = getattr(storage, "delete_all", None)

    def list_files(prefix: str) -> Any:
        entries = real_list(prefix)
        counts["LIST"] += max(1, -(-len(entries) // _NAMES_PER_LIST))
        return entries

    def delete_all(uris: Any) -> Any:
        listed = list(uris)
        counts["DELETE"] += -(-len(listed) // _NAMES_PER_LIST)
        return real_delete_all(listed)

    real_names = storage.names

    def names(prefix: str) -> Any:
        before = counts["LIST"]
        listed = real_names(prefix)
        counts["LIST"] = before + max(1, -(-len(listed) // _NAMES_PER_LIST))  # whether or not it calls list_files
        return listed

    storage.list_files, storage.names = list_files, names
    if real_delete_all:
        storage.delete_all = delete_all


def _objects(out: Path) -> Iterator[int]:
    """Yield the size of each file of an output."""
    for file in out.rglob("*"):
        if file.is_file():
            yield file.stat().st_size


def _print(label: str, name: str, out: Path, result: dict[str, Any]) -> None:
    sizes = list(_objects(out))
    line = {"label": label, "run": name, **result, "objects": len(sizes), "mib": round(sum(sizes) / 2**20, 1)}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if "bench" not in sys.modules:  # run as a file: modules of its folder are named like packages, and PYTHONPATH goes first
        sys.path[:1] = []
        sys.path.append(str(Path(__file__).parents[1]))
    main()
