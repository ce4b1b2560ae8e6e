"""Measure `verify` against a game engine's truth: interactions that happen, and takes made to fail in each known way.

Takes are acted out on maps on which no threshold was chosen, and go through the operators of any made video. With `synth.vlm`
in the recipe its model is asked too. It is right to accept a true take and to reject any other. A wrong interaction
whose description is like the requested one (same extent, place, duration and brightness) is counted separately: the metrics
cannot distinguish the two.
"""

import argparse
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import describe
from curation.media import decode
from curation.partition import scan
from operators.op import run_chain
from pipelines import chains, recipes
from pipelines.recipes import Recipe
from synth import taxonomy
from synth.doom.map_splits import HELD_OUT, maps_of
from synth.doom.takes import KINDS, SCRIPTS, FilmedTake, InteractionTake, NoSpot, film_take, possible_kinds
from synth.media import to_mp4, to_png
from synth.requests import InitialFrame, Request
from synth.taxonomy import Interaction

SEED, _TUNING_SEED = 5100, 5000
_MAX_MAPS = 8
ALIKE = "wrong, alike"  # another interaction with a like description


class Outcome(NamedTuple):
    """A take, and the verdict of `verify` on it."""

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
    parser.add_argument("--rounds", type=int, default=1, help="takes per interaction and kind; default 1")
    parser.add_argument(
        "--only", default=",".join(SCRIPTS), help="interactions, separated by commas; default: all that the engine can act out"
    )
    parser.add_argument("--seed", type=int, help=f"seed of maps, places and wrong interactions; default {SEED}")
    parser.add_argument("--tune", action="store_true", help="use the maps on which the thresholds were chosen")
    parser.add_argument("--json", type=Path, help="also write every take and its measurements to this file, one JSON line each")
    options = parser.parse_args(arguments)
    print(describe())
    recipe = recipes.load(options.recipe)
    recipe = replace(recipe, partition=replace(recipe.partition, flow=replace(recipe.partition.flow, backend="dis")))
    seed = options.seed or (_TUNING_SEED if options.tune else SEED)
    with tempfile.TemporaryDirectory() as folder:
        takes = _takes(seed, options.only.split(","), options.rounds, options.tune)
        outcomes = [_outcome(take, Path(folder) / "take.mp4", recipe, options.json) for take in takes]
    print("\n".join(lines(outcomes)))


def _takes(seed: int, names: Sequence[str], rounds: int, tuning: bool) -> list[InteractionTake]:
    """Return the takes in random order, so that the first ones are a sample.

    Turning takes are left out where the camera is free to turn: they would not be faulty.
    """
    rng = random.Random(seed)
    maps = maps_of(held_out=not tuning)
    pairs = [(name, kind) for name in names for kind in possible_kinds(name)]
    takes = [
        InteractionTake(*rng.choice(maps), name, rng.randrange(10**6), kind)
        for name, kind in rng.sample(pairs * rounds, len(pairs) * rounds)
    ]
    return [take for take in takes if take.kind != "turning" or taxonomy.built_in()[take.interaction].camera == "still"]


def _outcome(take: InteractionTake, file: Path, recipe: Recipe, log: Path | None) -> Outcome:
    """Act a take out and verify it. If its map has no place for it, another map is used."""
    interaction, filmed = taxonomy.built_in()[take.interaction], _film_somewhere(take)
    file.write_bytes(to_mp4(filmed.pictures, filmed.fps))
    scan.clear_caches()
    decode.clear_caches()
    frame = InitialFrame(f"doom:{take.collection}:{take.level}")
    request = Request(interaction, interaction.templates[0], frame, take.seed)
    row: dict[str, Any] = {
        "clip_id": "0",
        "video_id": "0",
        "source_uri": str(file),
        "request": request.to_json(),
        "synth_attempt": 0,
    }
    made = {"initial_png": to_png(filmed.pictures[0]), "strategy": "procedural"}
    (row,) = run_chain(chains.generate(recipe)[1:], [row | made])
    if row.get("error"):
        raise RuntimeError(row["error"])
    kind: str = take.kind
    if kind == "wrong" and filmed.happened and not distinguishable(interaction, taxonomy.built_in()[filmed.happened]):
        kind = ALIKE
    if log:
        measured = {name: value for name, value in row.items() if name.startswith(("synth_", "luma_", "iqa"))}
        with log.open("a") as takes_file:
            about = {"requested": interaction.name, "kind": kind, "happened": filmed.happened, "reason": row.get("reject")}
            takes_file.write(json.dumps({**about, "place": filmed.place, **measured}) + "\n")
    return Outcome(interaction.name, kind, filmed.happened, row.get("reject"), filmed.place)


def _film_somewhere(take: InteractionTake) -> FilmedTake:
    maps = maps_of(held_out=take.level in HELD_OUT)
    rng = random.Random(take.seed)
    for _ in range(_MAX_MAPS):
        try:
            return film_take(take)
        except NoSpot:
            collection, level = rng.choice(maps)
            take = replace(take, collection=collection, level=level)
    raise NoSpot(f"none of {_MAX_MAPS} maps has a place for {take.interaction}")


def distinguishable(requested: Interaction, happened: Interaction) -> bool:
    """Whether the descriptions differ in what the metrics measure: extent, place, end, light."""
    return (
        {requested.scope, happened.scope} == {"global", "local"}
        or (requested.where == "hands" and happened.where != "hands")
        or {requested.end, happened.end} == {"lasting", "passing"}
        or bool(requested.light and happened.light != requested.light)
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
