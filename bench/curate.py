"""CPU-seconds a video-minute of each stage of curation beside the floor: one decode of the source, one encode of kept clips.

In the same run, on the same input, also PySceneDetect's own command that finds scenes and stores them (`scenedetect
detect-adaptive split-video`). Without camera and VLM, flow by DIS. Records 720p play from the game engine unless given footage.
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

import av

from bench.machine import describe
from curation import encode, storage, video
from curation.encode import Encoding
from curation.video import Span
from pipelines import ledger, recipes, run
from synth.doom.record import Recording, record

_SEED, _SECONDS = 9500, 30.0
_TAKES = (("explore", "MAP07"), ("camera", "MAP12"), ("fight", "MAP18"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and the table."""
    parser = argparse.ArgumentParser(prog="gamecraft bench curate", description=__doc__.splitlines()[0])
    parser.add_argument("footage", nargs="?", help="a video, folder or list; default: 720p play recorded anew")
    parser.add_argument("--recipe", default="laptop", help="default laptop")
    options = parser.parse_args(arguments)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        source = options.footage or _recorded(Path(folder) / "footage")
        recipe = recipes.load(options.recipe)
        recipe = replace(recipe, partition=replace(recipe.partition, flow=replace(recipe.partition.flow, backend="dis")))
        out = f"{folder}/out"
        summary = run.curate([source], out, recipe)
        minutes = summary.total_s / 60
        print(
            f"{summary.sources} sources, {minutes:.2f} minutes, {summary.kept} clips kept ({summary.kept_s / 60:.2f} minutes)"
        )
        _print_table(_stages(out), _floor(source, out, recipe.shard.encoding), _scenedetect(source, folder), minutes)


def _recorded(folder: Path) -> str:
    for seed, (style, game) in enumerate(_TAKES, start=_SEED):
        take = Recording([("freedoom2", game, _SECONDS)], seed=seed, style=style, width=1280, height=720, crf=20)
        record(folder / f"{style}.mp4", take)
    return str(folder)


def _stages(out: str) -> Counter[str]:
    cpu_s: Counter[str] = Counter()
    for unit in ledger.records(out):
        cpu_s.update(unit.cpu_s)
    return cpu_s


def _floor(source: str, out: str, how: Encoding) -> dict[str, float]:
    """CPU-seconds of decoding every source once, and of encoding the kept clips from pictures already decoded and scaled."""
    began = time.process_time()
    for entry in storage.find_sources([source]):
        for _ in video.decode(entry.uri, purpose="bench"):
            pass
    decoded = time.process_time()
    encoded = sum(_encode_s(row, how) for row in ledger.kept(ledger.clips(out)).to_pylist())
    return {"one decode": decoded - began, "one encode": encoded}


def _encode_s(row: dict[str, object], how: Encoding) -> float:
    """Of a stored clip: its own pictures, encoded as it was."""
    span = Span(float(str(row["start_s"])), float(str(row["end_s"])))
    crop = row["picture"]
    assert isinstance(crop, dict), crop
    clip = encode.encode(str(row["source_uri"]), span, (crop["x"], crop["y"], crop["w"], crop["h"]), how)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(clip.mp4)
        file.flush()
        with av.open(file.name) as container:
            pictures = list(container.decode(video=0))
        began = time.process_time()
        encode.store(pictures, (clip.width, clip.height), video.probe(str(row["source_uri"])), how)
        return time.process_time() - began


def _scenedetect(source: str, folder: str) -> float | None:
    """CPU-seconds of the command on the same files; None where it or FFmpeg's program is not installed."""
    before = _children_s()
    for number, entry in enumerate(storage.find_sources([source])):
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
    for name, seconds in [*stages.items(), ("all stages", stages.total())]:
        print(f"{name:34} {seconds / minutes:8.2f}")
    least = sum(floor.values())
    for name, seconds in [*floor.items(), ("floor", least)]:
        print(f"{name:34} {seconds / minutes:8.2f}")
    if scenedetect is not None:
        print(f"{'scenedetect split-video':34} {scenedetect / minutes:8.2f}")
    print(f"all stages / floor = {stages.total() / least:.2f}")


if __name__ == "__main__":
    main()
