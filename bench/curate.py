"""CPU-seconds a video-minute of each stage of curation beside the floor: one decode of the source, one encode of kept clips.

In the same run, on the same input, also PySceneDetect's own command that finds scenes and stores them (`scenedetect
detect-adaptive split-video`). Flow by DIS; cameras, VLM and embeddings of captions are left out unless `--whole` asks for
all of the recipe. Records 720p play from the game engine unless given footage.
"""

import argparse
import resource
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
from curation import source_files
from curation.captions.embeddings import EncoderSettings
from curation.media import decode as video
from curation.media import encode
from curation.media.decode import Span
from curation.media.encode import Encoding
from pipelines import ledger, recipes, run
from synth.doom.record import Recording, record

_SEED, _SECONDS = 9500, 30.0
_TAKES = (("explore", "MAP07"), ("camera", "MAP12"), ("fight", "MAP18"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the table."""
    parser = argparse.ArgumentParser(prog="gamecraft bench curate", description=__doc__.splitlines()[0])
    parser.add_argument("footage", nargs="?", help="a video, folder or list; default: 720p play recorded anew")
    parser.add_argument("--recipe", default="laptop", help="default laptop")
    parser.add_argument("--whole", action="store_true", help="with the recipe's cameras, VLM and embeddings")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        source = options.footage or _recorded(Path(folder) / "footage")
        recipe = _measured(recipes.load(options.recipe), options.whole)
        out = f"{folder}/out"
        summary = run.curate([source], out, recipe)
        minutes = summary.total_s / 60
        print(
            f"{summary.sources} sources, {minutes:.2f} minutes, {summary.kept} clips kept ({summary.kept_s / 60:.2f} minutes)"
        )
        _print_table(_stages(out), _floor(source, out, recipe.shard.encoding), _scenedetect(source, folder), minutes)


def _measured(recipe: recipes.Recipe, whole: bool) -> recipes.Recipe:
    """The recipe with DIS flow, and without what the floor has no counterpart of."""
    recipe = replace(recipe, partition=replace(recipe.partition, flow=replace(recipe.partition.flow, backend="dis")))
    if whole:
        return recipe
    annotate = replace(recipe.annotate, camera=replace(recipe.annotate.camera, backend="none"))
    caption = replace(recipe.caption, vlm=replace(recipe.caption.vlm, backend="none"))
    return replace(recipe, annotate=annotate, caption=caption, relate=replace(recipe.relate, encoder=EncoderSettings("none")))


def _recorded(folder: Path) -> str:
    for seed, (style, game) in enumerate(_TAKES, start=_SEED):
        take = Recording([("freedoom2", game, _SECONDS)], seed=seed, style=style, width=1280, height=720, crf=23)
        record(folder / f"{style}.mp4", take)
    return str(folder)


def _stages(out: str) -> Counter[str]:
    cpu_s: Counter[str] = Counter()
    for unit in ledger.records(out):
        cpu_s.update(unit.cpu_s)
    return cpu_s


def _floor(source: str, out: str, how: Encoding) -> dict[str, float]:
    """CPU-seconds of decoding every source once, of fitting the kept clips to the stored size, and of encoding them once."""
    decode = sum(_decode_s(entry.uri) for entry in source_files.find_sources([source]))
    fit, encode_ = np.sum([_fit_and_encode_s(row, how) for row in ledger.kept(ledger.clips(out)).to_pylist()], axis=0)
    return {"one decode": decode, "cut out and scaled": fit, "one encode": encode_}


def _decode_s(uri: str, span: Span | None = None) -> float:
    began = time.process_time()
    for _ in video.decode(uri, span, purpose="bench"):
        pass
    return time.process_time() - began


def _fit_and_encode_s(row: dict[str, Any], how: Encoding) -> tuple[float, float]:
    """Of a stored clip, apart from its decode: what fitting costs is what decode and fit cost less the decode alone."""
    uri, span, crop = row["source_uri"], Span(row["start_s"], row["end_s"]), row["picture"]
    decode_s = _decode_s(uri, span)
    began = time.process_time()
    size, shown = encode.pictures(uri, span, (crop["x"], crop["y"], crop["w"], crop["h"]), how)
    held = list(shown)
    fitted = time.process_time()
    encode.store(held, size, video.probe(uri).fps, how)
    return max(0.0, fitted - began - decode_s), time.process_time() - fitted


def _scenedetect(source: str, folder: str) -> float | None:
    """CPU-seconds of the command on the same files; None where it or FFmpeg's program is not installed."""
    before = _children_s()
    for number, entry in enumerate(source_files.find_sources([source])):
        target = f"{folder}/scenes{number}"
        command = ["scenedetect", "-q", "-i", entry.uri, "-o", target, "detect-adaptive", "split-video"]
        try:
            subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"scenedetect could not run: {getattr(error, 'stderr', b'')!r:.200}")
            return None
    return _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _print_table(stages: Counter[str], floor: dict[str, float], scenedetect: float | None, minutes: float) -> None:
    print(f"{'':34}CPU-s a video-minute")
    least = sum(floor.values())
    for name, seconds in [*stages.items(), ("all stages", stages.total()), *floor.items(), ("floor", least)]:
        print(f"{name:34} {seconds / minutes:8.2f}")
    if scenedetect is not None:
        print(f"{'scenedetect split-video':34} {scenedetect / minutes:8.2f}")
    print(f"all stages / floor = {stages.total() / least:.2f}")


if __name__ == "__main__":
    main()
