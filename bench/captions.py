"""Captions, and interactive or not, against a game engine's truth: doors, shots, weapons, enemies, and clips without them.

Runs the pipeline of a recipe over recordings on maps on which nothing was trained or tuned: with `caption.vlm` in the recipe it
scores that model, without one the measured captions. --tune prints what each threshold gives on other maps.
"""

import argparse
import json
import random
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import describe
from curation.captions.interaction import event_score
from operators.captions import facts_of
from pipelines import ledger, recipes, run
from synth.doom import truth
from synth.doom.map_splits import maps_of, recordings
from synth.doom.record import Recording, record
from synth.doom.truth import Truth

SEED, _TUNING_SEED = 9900, 9800
# Doors, fire and enemies on one side, walking and looking around without monsters on the other.
_TAKES = (("explore", True), ("fight", True), ("static", False), ("camera", False), ("camera", False), ("explore", False))
_ROUNDS, _MAPS_EACH, _MAP_S = 2, 3, 20.0
# What must be seen of a moving door and of a busy weapon before a clip counts as showing it.
_LEAST_S = 0.3
# How a caption says that an event happened; a generic word is no name for any of them.
WORDS = {
    "door": r"\b(door|gate|lift|elevator|hatch)s?\b",
    "shot": r"\b(shoot|shot|fire[sd]?|firing|gunfire|muzzle)",
    "weapon": r"\b(draw|switch|swap|rais|lower|equip|holster)\w*\b.{0,40}\b(weapon|gun|pistol|shotgun|fist|saw|knife)",
    "enemy": r"\b(enem(y|ies)|monster|demon|zombie|soldier|creature|imp|foe|opponent)s?\b",
}
_SOMETHING = r"something happens"
BEFORE, TOLD = ["partition", "score", "annotate"], ["caption", "relate"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench captions", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="recordings with their .jsonl; default: recorded anew")
    parser.add_argument("--recipe", default="laptop", help="whose caption settings are scored; default laptop, measured")
    parser.add_argument("--seed", type=int, help=f"which maps and paths to record; default {SEED}")
    parser.add_argument("--repeats", type=int, default=1, help="how often each question is asked; default 1")
    parser.add_argument("--tune", action="store_true", help="thresholds of interactive or not, on other maps")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        seed = options.seed or (_TUNING_SEED if options.tune else SEED)
        files = options.recordings or _recorded(Path(folder) / "footage", seed, options.tune)
        recipe = _without_cameras(recipes.load(options.recipe))
        runs = [list(_clips(files, out)) for out in _outputs(files, Path(folder), recipe, options.repeats)]
        print("\n".join(_thresholds(runs[0]) if options.tune else [*_interactive_lines(runs[0]), *_caption_lines(runs)]))


def _without_cameras(recipe: recipes.Recipe) -> recipes.Recipe:
    """Flow and cameras as cheap as they come: neither is what is scored here."""
    camera = replace(recipe.annotate.camera, backend="none")
    flow = replace(recipe.partition.flow, backend="dis")
    return replace(recipe, annotate=replace(recipe.annotate, camera=camera), partition=replace(recipe.partition, flow=flow))


def _recorded(folder: Path, seed: int, tuning: bool) -> list[Path]:
    rng, places, files = random.Random(seed), _places(tuning), []
    for number, (style, monsters) in enumerate(_TAKES * _ROUNDS):
        maps = [(*place, _MAP_S) for place in rng.sample(places, _MAPS_EACH)]
        hud, crf = rng.random() < 0.6, rng.choice((23, 28, 33))
        files.append(folder / f"{number:02}_{style}.mp4")
        record(files[-1], Recording(maps, seed=seed + number, style=style, monsters=monsters, hud=hud, crf=crf))
    return files


def _places(tuning: bool) -> list[tuple[str, str]]:
    """Validation maps of the detector for tuning, else those that nothing was trained or tuned on."""
    if tuning:
        return sorted({m[:2] for name, take in recordings().items() if name.startswith("valid") for m in take.maps})
    return maps_of(held_out=True)


def _outputs(files: Sequence[Path], folder: Path, recipe: recipes.Recipe, repeats: int) -> Iterator[str]:
    """Outputs of equal clips, each told about anew."""
    inputs = [str(file) for file in files]
    _curated(inputs, str(folder / "before"), recipe, BEFORE)
    for number in range(repeats):
        out = str(folder / f"told{number}")
        shutil.copytree(folder / "before", out)
        done = _curated(inputs, out, recipe, TOLD)
        print("\n".join(f"{title}: {words}" for title, words in done.notes))
        yield out


def _curated(inputs: Sequence[str], out: str, recipe: recipes.Recipe, phases: Sequence[str]) -> run.Summary:
    done = run.curate(inputs, out, recipe, phases=phases)
    for failed in done.failures:
        raise SystemExit(f"{failed.phase}: {failed.failure}")
    return done


def _clips(files: Sequence[Path], out: str) -> Iterator[dict[str, Any]]:
    """Every clip with a caption, with what truly happened in it."""
    told = {file.name: truth.read_truth(file.with_suffix(".jsonl")) for file in files}
    for row in ledger.clips(out).to_pylist():
        if row["caption_source"]:
            source = told[Path(row["source_uri"]).name]
            yield {**row, "happened": happened(source, row["start_s"], row["end_s"])}


def happened(told: Truth, start_s: float, end_s: float) -> set[str]:
    """Which of door, shot, weapon, enemy a clip shows."""
    start, end, least = round(start_s * told.fps), round(end_s * told.fps), _LEAST_S * told.fps
    names = Counter(event.name for event in told.events if start <= event.frame < end)
    drawn = "--no-weapon" not in told.header.get("argv", ())
    busy = drawn and told.weapon_busy[start:end].sum() >= least
    found = {
        "door": told.moving_in_view[start:end].sum() >= least,
        "shot": busy and names["shot_fired"] > 0,
        "weapon": busy and (names["weapon_switched"] > 0 or not names["shot_fired"]),
        "enemy": names["enemy_appears"] > 0,
    }
    return {name for name, holds in found.items() if holds}


def _scores(true: np.ndarray, said: np.ndarray) -> str:
    hit = int((true & said).sum())
    precision, recall = hit / max(1, said.sum()), hit / max(1, true.sum())
    f1 = 2 * hit / max(1, true.sum() + said.sum())
    right_no = (~true & ~said).sum() / max(1, (~true).sum())
    even = 2 * recall / max(1e-9, 1 + recall + 1 - right_no)  # F1 if there were as many clips without an event as with one
    return f"{f1:6.3f} {even:8.3f} {precision:10.3f} {recall:7.3f} {right_no:14.3f} {int(said.sum()):5}"


_HEADER = "    F1  F1 even  precision  recall  right about no   yes"


def _interactive_lines(clips: Sequence[dict[str, Any]]) -> Iterator[str]:
    true = np.array([bool(clip["happened"]) for clip in clips])
    kinds = Counter(kind for clip in clips for kind in clip["happened"])
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield f"\n{len(clips)} clips, {true.sum()} with an event ({shown}), {(~true).sum()} walking, turning or still"
    yield f"{'interactive or not':28}{_HEADER}"
    moving = np.array([clip["motion_object"] or 0.0 for clip in clips])
    ways = {
        "ours": np.array([clip["interactive"] is True for clip in clips]),
        "always yes": np.ones(len(clips), bool),
        "motion beside the camera's": moving > np.quantile(moving, 1 - true.mean()),
    }
    for name, said in ways.items():
        yield f"{name:28} {_scores(true, said)}"
    unknown = sum(clip["interactive"] is None for clip in clips)
    yield f"{'left open':28} {unknown:6}"


def _thresholds(clips: Sequence[dict[str, Any]]) -> Iterator[str]:
    true = np.array([bool(clip["happened"]) for clip in clips])
    score = np.array([event_score(facts_of(clip)) for clip in clips])
    yield f"\n{len(clips)} clips, {true.sum()} with an event\n{'min_score':28}{_HEADER}"
    for limit in np.arange(0.1, 1.0, 0.05):
        yield f"{limit:<28.2f} {_scores(true, score >= limit)}"


def _text(clip: dict[str, Any]) -> str:
    return " ".join(filter(None, (clip[name] for name in ("caption_short", "caption_long", "action_caption")))).lower()


def named(clip: dict[str, Any]) -> set[str]:
    """The events that a clip's captions speak of by name."""
    return {name for name, words in WORDS.items() if re.search(words, _text(clip))}


def _names(name: str, clip: dict[str, Any]) -> bool:
    return name in named(clip)


def _eventful(clip: dict[str, Any]) -> bool:
    return bool(named(clip)) or bool(re.search(_SOMETHING, _text(clip)))


def _motions(clip: dict[str, Any]) -> list[str]:
    motions: list[str] = json.loads(clip["caption_json"])["camera_motion"]
    return motions


def _caption_lines(runs: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    by_writer = defaultdict(list)
    for clip in runs[0]:
        by_writer[clip["caption_source"]].append(clip)
    for writer, clips in by_writer.items():
        yield f"\ncaptions by {writer} ({len(clips)} clips)"
        for name in WORDS:
            true, false = ([c for c in clips if (name in c["happened"]) == there] for there in (True, False))
            speaks = partial(_names, name)
            yield f"  {name:24} named {_share(true, speaks)}, falsely {_share(false, speaks)}"
        events, quiet = [c for c in clips if c["happened"]], [c for c in clips if not c["happened"]]
        yield f"  {'that something happens':24} said {_share(events, _eventful)}, falsely {_share(quiet, _eventful)}"
        yield f"  {'at odds with motion, light':24} {_share(clips, lambda c: bool(c['caption_conflicts']))}"
    errors = ("caption_error", "action_error", "interaction_error")
    asked = [clip for clip in runs[0] if clip["interactive_source"] != "measured" or any(clip[name] for name in errors)]
    if asked:
        yield f"{'answers that fit':26} {_share([(c, e) for c in asked for e in errors], lambda pair: not pair[0][pair[1]])}"
    if len(runs) > 1:
        yield from _agreement(runs)


def _share(items: Sequence[Any], holds: Any) -> str:
    count = sum(map(holds, items))
    return f"{count / len(items):.3f} ({count} of {len(items)})" if items else "none to judge"


def _agreement(runs: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    """How often the first two tellings say the same of a clip."""
    again = {clip["clip_id"]: clip for clip in runs[1]}
    pairs = [(clip, again[clip["clip_id"]]) for clip in runs[0] if clip["clip_id"] in again]
    yield f"\nagreement over repeats ({len(pairs)} clips told twice)"
    for what, same in (
        ("interactive or not", lambda a, b: a["interactive"] == b["interactive"]),
        ("category", lambda a, b: a["interaction_category"] == b["interaction_category"]),
        ("events named", lambda a, b: named(a) == named(b)),
        ("camera motion", lambda a, b: _motions(a) == _motions(b)),
    ):
        yield f"  {what:24} {_share(pairs, lambda pair, s=same: s(*pair))}"


if __name__ == "__main__":
    main()
