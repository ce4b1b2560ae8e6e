"""Put a judge of InterBench on trial, on a game engine's takes of which everything is known.

gamecraft bench judge --vlm BACKEND:MODEL [--out FOLDER]. Each take is acted out twice from the same place, with the interaction
and without. Faults are put into the pictures (`faults`), and controls in which nothing may be triggered are judged too. The
tables say for each dimension how far the judge can be believed, and how often it sees what is not there.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.machine import describe
from curation.vlm import Vlm, load
from model.evaluation.cases import Case
from model.evaluation.interbench import faults, pairwise, suite, trial
from model.evaluation.interbench.faults import FAULTS, Take
from model.evaluation.interbench.judge import JudgeSettings, RecordedVlm, judge, mean_scores
from model.evaluation.interbench.pairwise import Pair
from model.evaluation.interbench.scores import DIMENSIONS
from model.evaluation.interbench.trial import Specimen
from model.evaluation.run import judge_model
from model.evaluation.tables import Table, to_markdown, write
from synth.acted import ACT_S, NoSpot
from synth.doom.map_splits import maps_of
from synth.doom.takes import SCRIPTS, InteractionTake, film_take
from synth.media import to_mp4

SEED, _FPS, _MAX_MAPS = 6200, 10.0, 8
_SIZE = 400, 225  # px; the engine has a few fixed sizes
_BASE_PROMPT = "A first-person view of a video game with a low resolution."


class Question(NamedTuple):
    """A video of known content, and the subset that the judge is asked about."""

    take: str
    kind: str
    subset: str
    pictures: np.ndarray
    base_prompt: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them, the videos and the replies into a folder."""
    parser = argparse.ArgumentParser(prog="gamecraft bench judge", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--vlm", required=True, help="the judge: http:MODEL@URL, transformers:FOLDER, or a YAML file of VLM settings"
    )
    parser.add_argument("--out", type=Path, default=Path("judge-bench"))
    parser.add_argument("--rounds", type=int, default=1, help="takes per interaction; default 1")
    parser.add_argument("--only", default="", help="subsets, separated by commas; default: all that the engine can act out")
    parser.add_argument("--frames", type=int, default=16, help="frames that the judge sees; default 16")
    parser.add_argument(
        "--pairs", action="store_true", help="also compare each faultless video with its faulty ones, in both orders"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of maps and places; default {SEED}")
    options = parser.parse_args(arguments)
    print(describe())
    known = [name for name in SCRIPTS if name in suite.subsets()]
    if unknown := set(filter(None, options.only.split(","))) - set(known):
        parser.error(f"--only: the engine cannot act out {', '.join(sorted(unknown))}; it can: {', '.join(known)}")
    names = [name for name in options.only.split(",") if name] or known
    settings = JudgeSettings(judge_model(options.vlm), frames=options.frames)
    takes = list(film(names, options.rounds, options.seed))
    print(f"{len(takes)} takes of {len(names)} interactions")
    for table in run(takes, load(settings.vlm), settings, options.out, options.pairs):
        print(to_markdown(table), flush=True)


def film(names: Sequence[str], rounds: int, seed: int) -> Iterator[Take]:
    """Act out takes on maps on which nothing was tuned, ten pictures a second."""
    rng = random.Random(seed)
    maps = maps_of(held_out=True)
    for number in range(rounds):
        for name in names:
            for collection, level in rng.sample(maps, min(_MAX_MAPS, len(maps))):
                take = InteractionTake(collection, level, name, rng.randrange(10**6), "true", 5.0, *_SIZE)
                try:
                    yield _filmed(take, f"{name}-{number}")
                    break
                except NoSpot:
                    continue


def _filmed(take: InteractionTake, name: str) -> Take:
    with_it, without = film_take(take), film_take(InteractionTake(**{**vars(take), "kind": "noop"}))
    scope = "global" if suite.find_subset(take.interaction).scope == "global" else "local"
    seconds = min(len(with_it.pictures), len(without.pictures)) / with_it.fps
    shown = (np.arange(int(seconds * _FPS)) * with_it.fps / _FPS).astype(int)
    onset = round(ACT_S * _FPS)
    return Take(name, take.interaction, with_it.pictures[shown], without.pictures[shown], onset, scope, _BASE_PROMPT)


def questions(takes: Sequence[Take]) -> Iterator[Question]:
    """Yield every video that is judged: without a fault, with each, and the controls of the trigger."""
    for number, take in enumerate(takes):
        own = suite.find_subset(take.subset)
        others = [other for other in suite.subsets().values() if other != own]
        alike = [other.name for other in others if other.category == own.category]
        unlike = [other.name for other in others if other.category != own.category and other.images == "scenes"]
        another = unlike[number % len(unlike)]
        for kind in ("true", *faults.possible(own.scope, own.end)):
            subset = alike[number % len(alike)] if kind == "wrong_object" else take.subset
            yield Question(take.name, kind, subset, faults.make(take, kind, number), take.base_prompt)
        yield Question(take.name, "no_instruction", take.subset, take.background, take.base_prompt)
        yield Question(take.name, "unrelated", another, take.pictures, take.base_prompt)
        if take.subset != "open_door":
            yield Question(take.name, "absent_object", "open_door", take.background, f"{take.base_prompt} There is no door.")


def run(takes: Sequence[Take], vlm: Vlm, settings: JudgeSettings, out: Path, pairs: bool = False) -> list[Table]:
    """Judge all videos, write tables, and return them. Stored replies are not asked for again."""
    (out / "videos").mkdir(parents=True, exist_ok=True)
    recorded = RecordedVlm(vlm, str(out / "replies"))
    asked = list(questions(takes))
    cases = [_case(question, out) for question in asked]
    judged = judge(recorded, cases, settings)
    specimens = [_specimen(question, mean_scores(one)) for question, one in zip(asked, judged, strict=True)]
    tables = trial.tables(trial.evaluate(specimens), vlm.name)
    if pairs:
        tables["judge-pairs"] = _compare(asked, cases, recorded, settings)
    for name, table in tables.items():
        write(table, str(out), name)
    return list(tables.values())


def _case(question: Question, out: Path) -> Case:
    path = out / "videos" / f"{question.take}-{question.kind}.mp4"
    path.write_bytes(to_mp4(question.pictures, _FPS))
    return Case(f"{question.take}/{question.kind}", str(path), question.subset, base_prompt=question.base_prompt)


def _specimen(question: Question, scores: tuple[float, ...] | None) -> Specimen:
    return Specimen(question.take, question.kind, dict(zip(DIMENSIONS, scores, strict=True)) if scores else None)


def _compare(asked: Sequence[Question], cases: Sequence[Case], vlm: RecordedVlm, settings: JudgeSettings) -> Table:
    """Compare each faultless video with the faulty ones of its take. The faultless one should win."""
    whole = {question.take: case for question, case in zip(asked, cases, strict=True) if question.kind == "true"}
    rows = [
        Pair("without a fault", whole[question.take], question.kind, case)
        for question, case in zip(asked, cases, strict=True)
        if question.kind in FAULTS and question.kind != "wrong_object"  # the same video, with another question
    ]
    return pairwise.table(pairwise.summarise(pairwise.compare(vlm, rows, settings)), vlm.name)


if __name__ == "__main__":
    main()
