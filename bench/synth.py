"""`verify` against a game engine's truth: interactions that happen, and takes made to fail in each known way.

Takes are acted out on maps on which no threshold was chosen, and go through the operators of any made video; with `synth.vlm`
in the recipe its model is asked too. Accepting a true take and turning down any other is right. A wrong interaction
whose description reads like the one asked for (as large, in the same place, as lasting, as light) is counted apart: no signal
here can tell the two from each other.
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
from synth.doom.takes import KINDS, SCRIPTS, NoPlace, Take, film, kinds_of
from synth.media import to_mp4, to_png
from synth.requests import Frame, Request
from synth.taxonomy import Interaction

SEED, _TUNING_SEED = 5100, 5000
_TRIED_MAPS = 8
ALIKE = "wrong, alike"


class Outcome(NamedTuple):
    """What was asked for, how the take was made, what happened in it, and what verify said: a reason, or null."""

    asked: str
    kind: str
    happened: str | None
    reason: str | None
    place: str

    @property
    def right(self) -> bool:
        return (self.reason is None) == (self.kind == "true")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench synth", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="laptop", help="whose synth settings are measured; default laptop, signals alone")
    parser.add_argument("--rounds", type=int, default=1, help="takes of each interaction and kind; default 1")
    parser.add_argument(
        "--only", default=",".join(SCRIPTS), help="interactions, with commas; default all that can be acted out"
    )
    parser.add_argument("--seed", type=int, help=f"which maps, places and wrong interactions; default {SEED}")
    parser.add_argument("--tune", action="store_true", help="other maps: those on which the thresholds were chosen")
    parser.add_argument("--json", type=Path, help="also write every take and what was measured of it, a line each")
    options = parser.parse_args(arguments)
    print(describe())
    recipe = recipes.load(options.recipe)
    recipe = replace(recipe, partition=replace(recipe.partition, flow=replace(recipe.partition.flow, backend="dis")))
    seed = options.seed or (_TUNING_SEED if options.tune else SEED)
    with tempfile.TemporaryDirectory() as folder:
        takes = _takes(seed, options.only.split(","), options.rounds, options.tune)
        found = [_outcome(take, Path(folder) / "take.mp4", recipe, options.json) for take in takes]
    print("\n".join(lines(found)))


def _takes(seed: int, names: Sequence[str], rounds: int, tuning: bool) -> list[Take]:
    """In random order, so that a part of them is a sample. A camera that turns is no fault where it is free to."""
    rng = random.Random(seed)
    maps = maps_of(held_out=not tuning)
    pairs = [(name, kind) for name in names for kind in kinds_of(name)]
    takes = [
        Take(*rng.choice(maps), name, rng.randrange(10**6), kind)
        for name, kind in rng.sample(pairs * rounds, len(pairs) * rounds)
    ]
    return [take for take in takes if take.kind != "turning" or taxonomy.built_in()[take.interaction].camera == "still"]


def _outcome(take: Take, file: Path, recipe: Recipe, log: Path | None) -> Outcome:
    """Act a take out and have it verified; on another map where this one has no place for it."""
    wanted, filmed = taxonomy.built_in()[take.interaction], _filmed(take)
    file.write_bytes(to_mp4(filmed.pictures, filmed.fps))
    scan.forget()
    decode.forget()
    asked = Request(wanted, wanted.templates[0], Frame(f"doom:{take.collection}:{take.level}"), take.seed)
    row: dict[str, Any] = {
        "clip_id": "0",
        "video_id": "0",
        "source_uri": str(file),
        "request": asked.to_json(),
        "synth_attempt": 0,
    }
    made = {"initial_png": to_png(filmed.pictures[0]), "strategy": "procedural"}
    (row,) = run_chain(chains.generate(recipe)[1:], [row | made])
    if row.get("error"):
        raise RuntimeError(row["error"])
    kind: str = take.kind
    if kind == "wrong" and filmed.happened and not tellable(wanted, taxonomy.built_in()[filmed.happened]):
        kind = ALIKE
    if log:
        measured = {name: value for name, value in row.items() if name.startswith(("synth_", "luma_", "iqa"))}
        with log.open("a") as lines_:
            told = {"asked": wanted.name, "kind": kind, "happened": filmed.happened, "reason": row.get("reject")}
            lines_.write(json.dumps({**told, "place": filmed.place, **measured}) + "\n")
    return Outcome(wanted.name, kind, filmed.happened, row.get("reject"), filmed.place)


def _filmed(take: Take) -> Any:
    same = maps_of(held_out=take.level in HELD_OUT)
    rng = random.Random(take.seed)
    for _ in range(_TRIED_MAPS):
        try:
            return film(take)
        except NoPlace:
            collection, level = rng.choice(same)
            take = replace(take, collection=collection, level=level)
    raise NoPlace(f"none of {_TRIED_MAPS} maps has a place for {take.interaction}")


def tellable(asked: Interaction, happened: Interaction) -> bool:
    """Whether the descriptions differ in what signals measure: extent, place, end, light."""
    return (
        {asked.scope, happened.scope} == {"global", "local"}
        or (asked.where == "hands" and happened.where != "hands")
        or {asked.end, happened.end} == {"lasting", "passing"}
        or bool(asked.light and happened.light != asked.light)
    )


def lines(found: Sequence[Outcome]) -> list[str]:
    """The table by kind, then every take that was judged wrongly."""
    groups = defaultdict(list)
    for outcome in found:
        groups[outcome.kind].append(outcome)
    table = [f"{'kind':14} {'takes':>5} {'right':>5} {'share':>6}"]
    for kind in (*KINDS, ALIKE):
        if group := groups[kind]:
            right = sum(outcome.right for outcome in group)
            table.append(f"{kind:14} {len(group):5} {right:5} {right / len(group):6.2f}")
    said = [
        f"  asked {o.asked}, {o.kind}: {o.happened or 'nothing'} happened at {o.place}: {o.reason or 'accepted'}"
        for o in found
        if not o.right
    ]
    return [*table, "judged wrongly:", *said]


if __name__ == "__main__":
    main()
