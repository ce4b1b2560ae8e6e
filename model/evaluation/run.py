"""What the command `gamecraft eval` does: read a folder of videos, run a suite over it, write results and tables."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from curation import storage
from curation.errors import InputError
from curation.vlm import ServerSettings, VlmSettings
from curation.yaml_text import load_yaml
from model.evaluation.cases import read_cases
from model.parallel import launch

SUITES = ("interbench", "general", "control", "pairs")
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
        if backend == "vllm":
            raise ValueError("engines answer questions of curation only: start `vllm serve MODEL`, and use http:MODEL@URL")
        if backend == "http" and "@" in model:
            model, _, url = model.rpartition("@")
            return VlmSettings(backend, model, server=ServerSettings(url=url))
        return VlmSettings(backend, model)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"--vlm {text}: {error}") from error


def runner(on_ray: bool, workers: int = 0) -> Each:
    """Return a function that runs work over jobs: in this process, or in actors of the Ray cluster that is started."""
    return partial(_on_ray, workers) if on_ray else map


def _on_ray(workers: int, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    return launch.map_on_ray(work, jobs, workers) if jobs else iter(())


def interbench(
    videos: str,
    out: str,
    settings: Any,
    only: Sequence[str] = (),
    each: Each = map,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run InterBench over a folder of videos. Return what OUT/interbench.json holds."""
    from model.evaluation.interbench import run

    cases = read_cases(videos, only)
    unnamed = [case.name for case in cases if not case.subset]
    if unnamed:
        raise InputError(
            f"{videos}: no subset for {unnamed[0]!r}; put videos into SUBSET/IMAGE.mp4, or list them in cases.jsonl"
        )
    return run.run(cases, out, settings, each, log)


def general(
    videos: str,
    real: str,
    out: str,
    settings: Any,
    only: Sequence[str] = (),
    each: Each = map,
    log: Callable[[str], None] = print,
) -> None:
    """Run the general measures over a folder of videos. real: a folder of real ones with the same names; empty: no ceilings."""
    from model.evaluation.general import run

    run.run(read_cases(videos, only), read_cases(real) if real else [], out, settings, each, log)


def control(
    videos: str,
    out: str,
    settings: Any,
    only: Sequence[str] = (),
    each: Each = map,
    log: Callable[[str], None] = print,
) -> None:
    """Run the measures of control and memory over a folder of videos whose cameras are known."""
    from model.evaluation.control import run

    run.run(read_cases(videos, only), out, settings, each, log)


def pairs(
    models: Mapping[str, str], out: str, settings: Any, votes: Sequence[str] = (), only: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare folders of videos of the same cases pair by pair. models: folders by the models' names.

    Writes vote.html and vote-key.json, a blind page for people; with a judge its verdicts, with `votes` (CSV files that the
    page exported) those of people, as tables of Bradley-Terry strengths. InputError where the folders share no case.
    """
    from curation.vlm import load
    from model.evaluation.interbench import pairwise, voting
    from model.evaluation.interbench.judge import RecordedVlm
    from model.evaluation.statistics import bradley_terry
    from model.evaluation.tables import Column, Row, Table, write

    out = storage.normal(out)
    matched = pairwise.pair_cases({name: read_cases(folder, only) for name, folder in models.items()})
    if not matched:
        raise InputError(f"{', '.join(models.values())}: these folders have no video of the same name")
    page, key = storage.join(out, "vote.html"), storage.join(out, "vote-key.json")
    if votes:
        comparisons = voting.read_votes(votes, key)
        rows = [Row(s.name, [s.strength, s.comparisons], [s.interval, None]) for s in bradley_terry(comparisons)]
        columns = [Column("Strength", "up", 2), Column("Comparisons")]
        write(Table("Votes of people", columns, rows, f"{len(comparisons)} votes."), out, "votes")
    else:
        voting.write_page(matched, page, key)
    summary: dict[str, Any] = {"pairs": len(matched)}
    if settings.judge.vlm.enabled:
        vlm = RecordedVlm(load(settings.judge.vlm), storage.join(out, "replies"))
        verdicts = pairwise.compare(vlm, matched, settings.judge)
        judged = pairwise.summarise(verdicts)
        write(pairwise.table(judged, vlm.name), out, "pairs")
        summary |= {
            "consistent": judged.consistent,
            "first_share": judged.first_share,
            "strengths": [row._asdict() for row in judged.strengths],
            "verdicts": [
                {
                    "case": v.pair.first.name,
                    "first": v.pair.first_model,
                    "second": v.pair.second_model,
                    "score": v.score,
                    "reason": v.reason,
                    "positions": v.positions,
                }
                for v in verdicts
            ],
        }
    storage.put(storage.join(out, "pairs.json"), json.dumps(summary, indent=1).encode())
    return summary
