"""Measure `verify` against game engines' truth: interactions that happen, and takes made to fail in each known way.

Takes are acted out in places where no threshold was chosen, and go through the operators of any made video. With `synth.vlm`
in the recipe its model is asked too. It is right to accept a true take and to reject any other. A wrong interaction
whose description is like the requested one (same extent, place, duration and brightness) is counted separately: the metrics
cannot distinguish the two. An engine that is not installed is left out, and the reason is printed.
"""

import argparse
import contextlib
import itertools
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import describe
from curation.errors import AttemptFailed, InputError, Unavailable
from curation.media import decode
from curation.partition import scan
from operators.op import run_chain
from pipelines import chains, recipes
from pipelines.recipes import Recipe
from synth import procedural, taxonomy
from synth.acted import KINDS, FilmedTake
from synth.media import to_mp4, to_png
from synth.procedural import ActingEngine, Done, Shot
from synth.requests import ENGINES, InitialFrame, Request
from synth.taxonomy import Interaction

SEED, _TUNING_SEED = 5100, 5000
_MAX_PLACES = 8
# Worlds of Minetest on which limits are chosen, and others that the tables report.
_TUNING_WORLDS, _HELD_OUT_WORLDS = range(1, 9), range(101, 105)
_TAKES_A_GAME = 16  # of Minetest, on stages in one spot: to start the game takes longer than a take
ALIKE = "wrong, alike"  # another interaction with a like description


class Outcome(NamedTuple):
    """A take, and the verdict of `verify` on it."""

    engine: str
    requested: str  # the requested interaction
    kind: str  # how the take was made: one of KINDS, or ALIKE
    happened: str | None  # the interaction that happened, if any
    reason: str | None  # of the rejection; None: accepted
    place: str

    @property
    def right(self) -> bool:
        return (self.reason is None) == (self.kind == "true")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench synth", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe", default="laptop", help="the recipe whose synth settings are measured; default laptop, without a VLM"
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"with commas; default {','.join(ENGINES)}")
    parser.add_argument("--rounds", type=int, default=1, help="takes per interaction and kind; default 1")
    parser.add_argument(
        "--only", default="", help="interactions, separated by commas; default: all that the engine can act out"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"kinds of take, with commas; default {','.join(KINDS)}")
    parser.add_argument("--seed", type=int, help=f"seed of places and wrong interactions; default {SEED}")
    parser.add_argument("--tune", action="store_true", help="use the places on which the limits were chosen")
    parser.add_argument("--takes", type=Path, help="keep the takes in this folder, and do not film again what it has")
    parser.add_argument("--part", default="0/1", help="K/N: every Nth take from the Kth on, to share the filming; default all")
    parser.add_argument("--json", type=Path, help="also write every take and its measurements to this file, one JSON line each")
    options = parser.parse_args(arguments)
    print(describe())
    recipe = recipes.load(options.recipe)
    recipe = replace(recipe, partition=replace(recipe.partition, flow=replace(recipe.partition.flow, backend="dis")))
    seed = options.seed or (_TUNING_SEED if options.tune else SEED)
    for name in options.engines.split(","):
        if name not in ENGINES:
            raise InputError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
        try:
            engine = procedural.engine(name)
            print(f"\n{engine.version()}")
        except Unavailable as error:
            print(f"\n{name} is left out: {error}")
            continue
        only = options.only.split(",") if options.only else engine.interactions()
        mine, parts = (int(number) for number in options.part.split("/"))
        kinds = options.kinds.split(",")
        shots = _shots(name, engine, seed, only, kinds, options.rounds, options.tune, (mine, parts))
        with contextlib.ExitStack() as stack:
            folder = options.takes or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            _film(shots, engine, folder, options.tune)
            print("\n".join(lines([_outcome(shot, folder, recipe, options.json) for shot in shots])))


def _shots(
    name: str,
    engine: ActingEngine,
    seed: int,
    only: Sequence[str],
    kinds: Sequence[str],
    rounds: int,
    tuning: bool,
    part: tuple[int, int] = (0, 1),
) -> list[Shot]:
    """Return the takes in random order, so that the first ones are a sample.

    Turning takes are left out where the camera is free to turn: they would not be faulty.
    """
    rng = random.Random(seed)
    places = _places(name, tuning)
    pairs = [(one, kind) for one in only for kind in engine.possible_kinds(one)]
    shots = [
        Shot(rng.choice(places), interaction, rng.randrange(10**6), kind)
        for interaction, kind in rng.sample(pairs * rounds, len(pairs) * rounds)
    ]
    games = _TAKES_A_GAME if name == "minetest" else 1  # takes that follow each other share a game, and so a place
    shots = [replace(shot, place=shots[number - number % games].place) for number, shot in enumerate(shots)]
    mine, parts = part
    return [
        shot
        for number, shot in enumerate(shots)
        if shot.kind in kinds
        and number // games % parts == mine
        and (shot.kind != "turning" or taxonomy.built_in()[shot.interaction].camera == "still")
    ]


def _places(name: str, tuning: bool) -> list[str]:
    if name == "doom":
        from synth.doom.map_splits import maps_of

        return [f"doom:{collection}:{level}" for collection, level in maps_of(held_out=not tuning)]
    from synth.engines.minetest_acts import MAPGENS

    worlds = _TUNING_WORLDS if tuning else _HELD_OUT_WORLDS
    return [f"minetest:{mapgen}:{seed}" for seed in worlds for mapgen in MAPGENS]


def _film(shots: Sequence[Shot], engine: ActingEngine, folder: Path, tuning: bool) -> None:
    """Film the takes that the folder lacks. One that fails is filmed in another place."""
    left = [shot for shot in shots if not _file(folder, shot).exists()]
    draws = {_file(folder, shot): random.Random(shot.seed) for shot in left}
    for _ in range(_MAX_PLACES):
        failed: list[Shot] = []

        def done(shot: Shot, result: FilmedTake | AttemptFailed, failed: list[Shot] = failed) -> None:
            if isinstance(result, AttemptFailed):
                failed.append(replace(shot, place=draws[_file(folder, shot)].choice(_places(shot.engine, tuning))))
            else:
                _keep(result, _file(folder, shot))

        for _, game in itertools.groupby(left, key=lambda shot: shot.place):
            _film_game(engine, list(game), done)
        left = sorted(failed, key=lambda shot: shot.place)
    if left:
        raise AttemptFailed(f"none of {_MAX_PLACES} places has a spot for {', '.join(shot.interaction for shot in left)}")


def _file(folder: Path, shot: Shot) -> Path:
    """Return where the truth of a take is kept; its video and first picture lie beside it. Its place is no part of the name."""
    return folder / f"{shot.engine}-{shot.interaction}-{shot.kind}-{shot.seed}.json"


def _keep(filmed: FilmedTake, file: Path) -> None:
    file.with_suffix(".mp4").write_bytes(to_mp4(filmed.pictures, filmed.fps))
    file.with_suffix(".png").write_bytes(to_png(filmed.pictures[0]))
    file.write_text(json.dumps({"happened": filmed.happened, "place": filmed.place}))


def _film_game(engine: ActingEngine, shots: Sequence[Shot], done: Done) -> None:
    """Film takes. Where the game itself fails, those that were not filmed failed."""
    left = list(shots)

    def note(shot: Shot, result: FilmedTake | AttemptFailed) -> None:
        left.remove(shot)
        done(shot, result)

    try:
        engine.film_all(shots, note)
    except AttemptFailed as error:
        for shot in left:
            done(shot, error)


def _outcome(shot: Shot, folder: Path, recipe: Recipe, log: Path | None) -> Outcome:
    """Verify a take."""
    interaction, file = taxonomy.built_in()[shot.interaction], _file(folder, shot)
    truth = json.loads(file.read_text())
    scan.clear_caches()
    decode.clear_caches()
    request = Request(interaction, interaction.templates[0], InitialFrame(shot.place), shot.seed)
    row: dict[str, Any] = {
        "clip_id": "0",
        "video_id": "0",
        "source_uri": str(file.with_suffix(".mp4")),
        "request": request.to_json(),
        "synth_attempt": 0,
    }
    made = {"initial_png": file.with_suffix(".png").read_bytes(), "strategy": "procedural"}
    (row,) = run_chain(chains.generate(recipe)[1:], [row | made])
    if row.get("error"):
        raise RuntimeError(row["error"])
    kind: str = shot.kind
    if kind == "wrong" and truth["happened"] and not distinguishable(interaction, taxonomy.built_in()[truth["happened"]]):
        kind = ALIKE
    outcome = Outcome(shot.engine, interaction.name, kind, truth["happened"], row.get("reject"), truth["place"])
    if log:
        measured = {name: value for name, value in row.items() if name.startswith(("synth_", "luma_", "iqa"))}
        with log.open("a") as takes_file:
            takes_file.write(json.dumps({**outcome._asdict(), **measured}) + "\n")
    return outcome


def distinguishable(requested: Interaction, happened: Interaction) -> bool:
    """Whether the descriptions differ in what the metrics measure: extent, place, end, light, motion."""
    return (
        {requested.scope, happened.scope} == {"global", "local"}
        or requested.where != happened.where
        or {requested.end, happened.end} == {"lasting", "passing"}
        or bool(requested.light and happened.light != requested.light)
        or {requested.motion, happened.motion} == {"moves", "stands"}
    )


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table by kind, then every take with a wrong verdict."""
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.kind].append(outcome)
    table = [f"{'kind':14} {'takes':>5} {'right':>5} {'share':>6}"]
    for kind in (*KINDS, ALIKE):
        if group := groups[kind]:
            right = sum(outcome.right for outcome in group)
            table.append(f"{kind:14} {len(group):5} {right:5} {right / len(group):6.2f}")
    wrong = [
        f"  requested {o.requested}, {o.kind}: {o.happened or 'nothing'} happened at {o.place}: {o.reason or 'accepted'}"
        for o in outcomes
        if not o.right
    ]
    return [*table, "wrong verdicts:", *wrong]


if __name__ == "__main__":
    main()
