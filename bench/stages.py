"""CPU-seconds a video-minute of each operator, beside the floor in the same run: one decode of the source, one encode of the
kept clips. Records its own footage from the game engine (three styles, 20 s each, 640x480) unless given a folder.

    python bench/stages.py [FOLDER]
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.machine import describe
from curation import storage, video
from pipelines import ledger, recipes, run
from synth.doom.record import Recording, record


def main() -> None:
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        source = sys.argv[1] if len(sys.argv) > 1 else _record(Path(folder) / "footage")
        out = f"{folder}/out"
        summary = run.curate([source], out, recipes.laptop())
        minutes = summary.total_s / 60
        cpu: Counter[str] = Counter()
        for unit in ledger.records(out):
            cpu.update(unit.cpu_s)
        floor = _decode_floor(source)
        print(
            f"{summary.sources} sources, {minutes:.2f} video-minutes, {summary.kept} clips kept ({summary.kept_s / 60:.2f} min)"
        )
        print(f"{'stage':24} CPU-s per video-minute")
        for name, seconds in [*cpu.items(), ("all operators", sum(cpu.values()))]:
            print(f"{name:24} {seconds / minutes:8.2f}")
        print(f"{'floor: one decode':24} {floor / minutes:8.2f}")
        least = floor + cpu["encode_clip"]
        print(f"{'floor: decode + encode':24} {least / minutes:8.2f}   all operators / floor = {sum(cpu.values()) / least:.2f}")


def _record(folder: Path) -> str:
    for seed, (style, game) in enumerate([("explore", "MAP01"), ("camera", "MAP04"), ("fight", "MAP02")]):
        record(folder / f"{style}.mp4", Recording([("freedoom2", game, 20.0)], seed=seed + 50, style=style))
    return str(folder)


def _decode_floor(source: str) -> float:
    """CPU-seconds of decoding every frame once and doing nothing with it."""
    began = time.process_time()
    for entry in storage.find_sources([source]):
        for _ in video.decode(entry.uri):
            pass
    return time.process_time() - began


if __name__ == "__main__":
    main()
