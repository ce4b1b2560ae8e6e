"""Compare captions and "interactive or not" with a game engine's truth: doors, shots, weapons, enemies, and clips without them.

It runs a recipe's pipeline over recordings on maps on which nothing was trained or tuned. If the recipe has a `caption.vlm`, it
scores that model, else the captions that are composed from measurements. --tune prints the scores of each threshold on other
maps.
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
from operators.captions import measurements_of
from pipelines import ledger, recipes, run
from synth.doom import truth
from synth.doom.map_splits import maps_of, recordings
from synth.doom.record import Recording, record
from synth.doom.truth import Truth

SEED, _TUNING_SEED = 9900, 9800
# Style and whether there are monsters: doors, fire and enemies, and as many recordings of walking and looking around.
_STYLES = (("explore", True), ("fight", True), ("static", False), ("camera", False), ("camera", False), ("explore", False))
_ROUNDS, _MAPS_EACH, _MAP_S = 2, 3, 20.0
# How long a moving door or a busy weapon must be visible before it counts as an event of a clip.
_MIN_VISIBLE_S = 0.3
# The words by which a caption names an event. A generic phrase such as "something happens" does not name one.
WORDS = {
    "door": r"\b(door|gate|lift|elevator|hatch)s?\b",
    "shot": r"\b(shoot|shot|fire[sd]?|firing|gunfire|muzzle)",
    "weapon": r"\b(draw|switch|swap|rais|lower|equip|holster)\w*\b.{0,40}\b(weapon|gun|pistol|shotgun|fist|saw|knife)",
    "enemy": r"\b(enem(y|ies)|monster|demon|zombie|soldier|creature|imp|foe|opponent)s?\b",
}
_GENERIC_EVENT = r"something happens"
BEFORE, AFTER = ["partition", "score", "annotate"], ["caption", "relate"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench captions", description=__doc__.splitlines()[0])
    parser.add_argument("recordings", nargs="*", type=Path, help="recordings with their .jsonl; default: recorded anew")
    parser.add_argument("--recipe", default="laptop", help="the recipe to score; default laptop, which has no model")
    parser.add_argument("--seed", type=int, help=f"seed of the recorded maps and paths; default {SEED}")
    parser.add_argument("--repeats", type=int, default=1, help="how often each question is asked; default 1")
    parser.add_argument("--tune", action="store_true", help="print the scores of each threshold, on the tuning maps")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        seed = options.seed or (_TUNING_SEED if options.tune else SEED)
        files = options.recordings or _record_footage(Path(folder) / "footage", seed, options.tune)
        recipe = _with_cheap_measurements(recipes.load(options.recipe))
        runs = [list(_captioned_clips(files, out)) for out in _caption_runs(files, Path(folder), recipe, options.repeats)]
        print("\n".join(_thresholds(runs[0]) if options.tune else [*_interactive_lines(runs[0]), *_caption_lines(runs)]))


def _with_cheap_measurements(recipe: recipes.Recipe) -> recipes.Recipe:
    """Use the cheapest optical flow and no cameras, since neither is scored here."""
    camera = replace(recipe.annotate.camera, backend="none")
    flow = replace(recipe.partition.flow, backend="dis")
    return replace(recipe, annotate=replace(recipe.annotate, camera=camera), partition=replace(recipe.partition, flow=flow))


def _record_footage(folder: Path, seed: int, tuning: bool) -> list[Path]:
    rng, places, files = random.Random(seed), _maps(tuning), []
    for number, (style, monsters) in enumerate(_STYLES * _ROUNDS):
        maps = [(*place, _MAP_S) for place in rng.sample(places, _MAPS_EACH)]
        hud, crf = rng.random() < 0.6, rng.choice((23, 28, 33))
        files.append(folder / f"{number:02}_{style}.mp4")
        record(files[-1], Recording(maps, seed=seed + number, style=style, monsters=monsters, hud=hud, crf=crf))
    return files


def _maps(tuning: bool) -> list[tuple[str, str]]:
    """Return the validation maps of the event detector for tuning, else the maps that nothing was trained or tuned on."""
    if tuning:
        return sorted({m[:2] for name, take in recordings().items() if name.startswith("valid") for m in take.maps})
    return maps_of(held_out=True)


def _caption_runs(files: Sequence[Path], folder: Path, recipe: recipes.Recipe, repeats: int) -> Iterator[str]:
    """Yield output folders with the same clips. Each has captions and relations from a separate run."""
    inputs = [str(file) for file in files]
    _curate(inputs, str(folder / "before"), recipe, BEFORE)
    for number in range(repeats):
        out = str(folder / f"captions{number}")
        shutil.copytree(folder / "before", out)
        done = _curate(inputs, out, recipe, AFTER)
        print("\n".join(f"{title}: {words}" for title, words in done.notes))
        yield out


def _curate(inputs: Sequence[str], out: str, recipe: recipes.Recipe, phases: Sequence[str]) -> run.Summary:
    done = run.curate(inputs, out, recipe, phases=phases)
    for failed in done.failures:
        raise SystemExit(f"{failed.phase}: {failed.failure}")
    return done


def _captioned_clips(files: Sequence[Path], out: str) -> Iterator[dict[str, Any]]:
    """Yield every clip with a caption, and the events that the engine's log has in it."""
    truths = {file.name: truth.read_truth(file.with_suffix(".jsonl")) for file in files}
    for row in ledger.clips(out).to_pylist():
        if row["caption_source"]:
            source_truth = truths[Path(row["source_uri"]).name]
            yield {**row, "events": events_in_view(source_truth, row["start_s"], row["end_s"])}


def events_in_view(source_truth: Truth, start_s: float, end_s: float) -> set[str]:
    """Return which of door, shot, weapon, enemy a clip shows."""
    fps = source_truth.fps
    start, end, min_frames = round(start_s * fps), round(end_s * fps), _MIN_VISIBLE_S * fps
    names = Counter(event.name for event in source_truth.events if start <= event.frame < end)
    weapon_drawn = "--no-weapon" not in source_truth.header.get("argv", ())
    weapon_busy = weapon_drawn and source_truth.weapon_busy[start:end].sum() >= min_frames
    shown = {
        "door": source_truth.moving_in_view[start:end].sum() >= min_frames,
        "shot": weapon_busy and names["shot_fired"] > 0,
        "weapon": weapon_busy and (names["weapon_switched"] > 0 or not names["shot_fired"]),
        "enemy": names["enemy_appears"] > 0,
    }
    return {name for name, is_shown in shown.items() if is_shown}


def _score_line(true: np.ndarray, predicted: np.ndarray) -> str:
    hits = int((true & predicted).sum())
    precision, recall = hits / max(1, predicted.sum()), hits / max(1, true.sum())
    f1 = 2 * hits / max(1, true.sum() + predicted.sum())
    specificity = (~true & ~predicted).sum() / max(1, (~true).sum())
    balanced = 2 * recall / max(1e-9, 1 + recall + 1 - specificity)  # F1 with as many clips without an event as with one
    return f"{f1:6.3f} {balanced:11.3f} {precision:10.3f} {recall:7.3f} {specificity:12.3f} {int(predicted.sum()):5}"


_HEADER = "    F1 F1 balanced  precision  recall  specificity   yes"


def _interactive_lines(clips: Sequence[dict[str, Any]]) -> Iterator[str]:
    true = np.array([bool(clip["events"]) for clip in clips])
    kinds = Counter(kind for clip in clips for kind in clip["events"])
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    yield f"\n{len(clips)} clips, {true.sum()} with an event ({counts}), {(~true).sum()} walking, turning or still"
    yield f"{'interactive or not':28}{_HEADER}"
    moving = np.array([clip["motion_object"] or 0.0 for clip in clips])
    predictions = {
        "ours": np.array([clip["interactive"] is True for clip in clips]),
        "always yes": np.ones(len(clips), bool),
        "object motion": moving > np.quantile(moving, 1 - true.mean()),
    }
    for name, predicted in predictions.items():
        yield f"{name:28} {_score_line(true, predicted)}"
    unknown = sum(clip["interactive"] is None for clip in clips)
    yield f"{'unknown':28} {unknown:6}"


def _thresholds(clips: Sequence[dict[str, Any]]) -> Iterator[str]:
    true = np.array([bool(clip["events"]) for clip in clips])
    score = np.array([event_score(measurements_of(clip)) for clip in clips])
    yield f"\n{len(clips)} clips, {true.sum()} with an event\n{'min_score':28}{_HEADER}"
    for limit in np.arange(0.1, 1.0, 0.05):
        yield f"{limit:<28.2f} {_score_line(true, score >= limit)}"


def _text(clip: dict[str, Any]) -> str:
    return " ".join(filter(None, (clip[name] for name in ("caption_short", "caption_long", "action_caption")))).lower()


def named_events(clip: dict[str, Any]) -> set[str]:
    """Return the events that a clip's captions name."""
    return {name for name, words in WORDS.items() if re.search(words, _text(clip))}


def _is_named(name: str, clip: dict[str, Any]) -> bool:
    return name in named_events(clip)


def _mentions_event(clip: dict[str, Any]) -> bool:
    return bool(named_events(clip)) or bool(re.search(_GENERIC_EVENT, _text(clip)))


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
            with_event, without = ([c for c in clips if (name in c["events"]) == present] for present in (True, False))
            is_named = partial(_is_named, name)
            yield f"  {name:24} named {_share(with_event, is_named)}, falsely {_share(without, is_named)}"
        busy, quiet = [c for c in clips if c["events"]], [c for c in clips if not c["events"]]
        yield f"  {'any event':24} mentioned {_share(busy, _mentions_event)}, falsely {_share(quiet, _mentions_event)}"
        yield f"  {'contradicts measurements':24} {_share(clips, lambda c: bool(c['caption_conflicts']))}"
    errors = ("caption_error", "action_error", "interaction_error")
    by_model = [clip for clip in runs[0] if clip["interactive_source"] != "measured" or any(clip[name] for name in errors)]
    if by_model:
        answers = [(clip, error) for clip in by_model for error in errors]
        yield f"{'valid answers':26} {_share(answers, lambda pair: not pair[0][pair[1]])}"
    if len(runs) > 1:
        yield from _agreement(runs)


def _share(items: Sequence[Any], condition: Any) -> str:
    count = sum(map(condition, items))
    return f"{count / len(items):.3f} ({count} of {len(items)})" if items else "no clips"


def _agreement(runs: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    """Return how often the first two runs agree about a clip."""
    second = {clip["clip_id"]: clip for clip in runs[1]}
    pairs = [(clip, second[clip["clip_id"]]) for clip in runs[0] if clip["clip_id"] in second]
    yield f"\nagreement over repeats ({len(pairs)} clips captioned twice)"
    for topic, same in (
        ("interactive or not", lambda a, b: a["interactive"] == b["interactive"]),
        ("category", lambda a, b: a["interaction_category"] == b["interaction_category"]),
        ("events named", lambda a, b: named_events(a) == named_events(b)),
        ("camera motion", lambda a, b: _motions(a) == _motions(b)),
    ):
        yield f"  {topic:24} {_share(pairs, lambda pair, s=same: s(*pair))}"


if __name__ == "__main__":
    main()
