"""Measure CPU-seconds a video-minute of each stage of curation, and of the floor: one decode, one encode of kept clips.

The same input also goes through PySceneDetect's own command that finds scenes and stores them (`scenedetect detect-adaptive
split-video`). Flow is computed by DIS. Cameras, VLM and caption embeddings are left out, unless `--whole` is given. It records
720p play from the game engine unless it is given footage.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import describe
from bench.process_tree import children_cpu_s
from curation import source_files
from curation.captions.embeddings import EncoderSettings
from curation.media import decode, encode
from curation.media.decode import Span
from curation.media.encode import Encoding
from curation.media.source import probe
from pipelines import ledger, recipes, run
from synth.doom.record import Recording, record

_SEED, _SECONDS = 9500, 30.0
_TAKES = (("explore", "MAP07"), ("camera", "MAP12"), ("fight", "MAP18"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the table."""
    parser = argparse.ArgumentParser(prog="gamecraft bench curate", description=__doc__.splitlines()[0])
    parser.add_argument("footage", nargs="?", help="a video, folder or list; default: new recordings of 720p play")
    parser.add_argument("--recipe", default="laptop", help="default laptop")
    parser.add_argument("--whole", action="store_true", help="with the recipe's cameras, VLM and embeddings")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        source = options.footage or _record_footage(Path(folder) / "footage")
        recipe = _benchmark_recipe(recipes.load(options.recipe), options.whole)
        out = f"{folder}/out"
        summary = run.curate([source], out, recipe)
        minutes = summary.total_s / 60
        print(
            f"{summary.sources} sources, {minutes:.2f} minutes, {summary.kept} clips kept ({summary.kept_s / 60:.2f} minutes)"
        )
        floor, again_s = _floor(source, out, recipe.shard.encoding)
        _print_table(_stage_cpu_s(out), floor, again_s, _scenedetect(source, folder), minutes)


def _benchmark_recipe(recipe: recipes.Recipe, whole: bool) -> recipes.Recipe:
    """Return the recipe with DIS flow, and without the stages that have no counterpart in the floor."""
    recipe = replace(recipe, partition=replace(recipe.partition, flow=replace(recipe.partition.flow, backend="dis")))
    if whole:
        return recipe
    annotate = replace(recipe.annotate, camera=replace(recipe.annotate.camera, backend="none"))
    caption = replace(recipe.caption, vlm=replace(recipe.caption.vlm, backend="none"))
    return replace(recipe, annotate=annotate, caption=caption, relate=replace(recipe.relate, encoder=EncoderSettings("none")))


def _record_footage(folder: Path) -> str:
    for seed, (style, game) in enumerate(_TAKES, start=_SEED):
        take = Recording([("freedoom2", game, _SECONDS)], seed=seed, style=style, width=1280, height=720, crf=23)
        record(folder / f"{style}.mp4", take)
    return str(folder)


def _stage_cpu_s(out: str) -> Counter[str]:
    cpu_s: Counter[str] = Counter()
    for unit in ledger.records(out):
        cpu_s.update(unit.cpu_s)
    return cpu_s


def _floor(source: str, out: str, encoding: Encoding) -> tuple[dict[str, float], float]:
    """Return CPU-seconds to decode every source once, to fit the kept clips to the stored size, and to encode them once.

    Beside it, those to decode the kept clips alone, each from the key frame before it, as a run does a second time.
    """
    decode_s = sum(_decode_s(entry.uri) for entry in source_files.find_sources([source]))
    rows = ledger.kept_clips(ledger.clips(out)).to_pylist()
    again_s, fit_s, encode_s = np.sum([_clip_costs_s(row, encoding) for row in rows], axis=0)
    return {"one decode": decode_s, "cut out and scaled": fit_s, "one encode": encode_s}, again_s


def _decode_s(uri: str, span: Span | None = None) -> float:
    began = time.process_time()
    for _ in decode.decode(uri, span, purpose="bench"):
        pass
    return time.process_time() - began


def _clip_costs_s(row: dict[str, Any], encoding: Encoding) -> tuple[float, float, float]:
    """Return CPU-seconds to decode a stored clip, to fit it and to encode it. Fitting is decode and fit, less the decode."""
    uri, span, crop = row["source_uri"], Span(row["start_s"], row["end_s"]), row["picture"]
    decode_s = _decode_s(uri, span)
    began = time.process_time()
    size, frames = encode.fitted_frames(uri, span, (crop["x"], crop["y"], crop["w"], crop["h"]), encoding)
    held = list(frames)
    fitted = time.process_time()
    encode.encode_frames(held, size, probe(uri).fps, encoding)
    return decode_s, max(0.0, fitted - began - decode_s), time.process_time() - fitted


def _scenedetect(source: str, folder: str) -> float | None:
    """Return CPU-seconds of the command on the same files; None where it or FFmpeg's program is not installed."""
    before = children_cpu_s()
    for number, entry in enumerate(source_files.find_sources([source])):
        target = f"{folder}/scenes{number}"
        command = ["scenedetect", "-q", "-i", entry.uri, "-o", target, "detect-adaptive", "split-video"]
        try:
            subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"scenedetect could not run: {getattr(error, 'stderr', b'')!r:.200}")
            return None
    return children_cpu_s() - before


def _print_table(
    stages: Counter[str], floor: dict[str, float], again_s: float, scenedetect: float | None, minutes: float
) -> None:
    print(f"{'':34}CPU-s a video-minute")
    floor_s = sum(floor.values())
    beyond = beyond_floor(stages, floor, again_s)
    for name, seconds in [*stages.items(), ("all stages", stages.total()), *floor.items(), ("floor", floor_s), *beyond.items()]:
        print(f"{name:34} {seconds / minutes:8.2f}")
    if scenedetect is not None:
        print(f"{'scenedetect split-video':34} {scenedetect / minutes:8.2f}")
    print(f"all stages / floor = {stages.total() / floor_s:.2f}")


def beyond_floor(stages: Counter[str], floor: dict[str, float], again_s: float) -> dict[str, float]:
    """Return what all stages cost beyond the floor, in three parts that add up to it."""
    scores_s = stages["scan_source"] - floor["one decode"]
    rest_s = stages.total() - sum(floor.values()) - scores_s - again_s
    return {"beyond: scores of the one pass": scores_s, "beyond: kept clips decoded again": again_s, "beyond: all else": rest_s}


if __name__ == "__main__":
    main()
