"""What the command `gamecraft eval` does: read a folder of videos, run a suite over it, write results and tables."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from curation.errors import InputError
from curation.vlm import ServerSettings, VlmSettings
from curation.yaml_text import load_yaml
from model.evaluation.cases import read_cases
from model.parallel import launch

SUITES = ("interbench", "general", "control")
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def judge_model(text: str) -> VlmSettings:
    """Return the settings of a judge from the command line: BACKEND:MODEL, http:MODEL@URL, or a YAML file of the settings.

    Empty: no judge. InputError where it is none of these.
    """
    if not text:
        return VlmSettings()
    try:
        if text.endswith((".yaml", ".yml")):
            with open(text, encoding="utf-8") as file:
                values = load_yaml(file.read())
            server = ServerSettings(**values.pop("server", {}))
            return VlmSettings(**values, server=server)
        backend, separator, model = text.partition(":")
        if not separator:
            raise ValueError("it must be BACKEND:MODEL")
        if backend == "http" and "@" in model:
            model, _, url = model.rpartition("@")
            return VlmSettings(backend, model, server=ServerSettings(url=url))
        return VlmSettings(backend, model)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"--vlm {text}: {error}") from error


def runner(on_ray: bool, workers: int = 0) -> Each:
    """Return a function that runs work over jobs: in this process, or in actors of the Ray cluster that is started."""
    return partial(_on_ray, workers) if on_ray else map  # type: ignore[return-value]


def _on_ray(workers: int, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    return launch.map_on_ray(work, jobs, workers) if jobs else iter(())


def interbench(
    videos: str, out: str, settings: Any, only: Sequence[str] = (), each: Each = map, log: Callable[[str], None] = print  # type: ignore[assignment]
) -> dict[str, Any]:
    """Run InterBench over a folder of videos. Return what OUT/interbench.json holds."""
    from model.evaluation.interbench import run

    cases = read_cases(videos, only)
    unnamed = [case.name for case in cases if not case.subset]
    if unnamed:
        raise InputError(f"{videos}: no subset for {unnamed[0]!r}; put videos into SUBSET/IMAGE.mp4, or list them in cases.jsonl")
    return run.run(cases, out, settings, each, log)
