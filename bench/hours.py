"""What the operators of `partition` cost after the scan of hours of video: CPU time and memory by length.

    python -m bench.hours CLIP --hours 0.25 0.5 1 3

The clip is scanned once, and its measurements are repeated up to the length, as one chunk: the copy that a join of chunks makes
is not in the peak. Each length runs in a separate process. CPU time should grow with the length, and no faster.
"""

import argparse
import math
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.machine import describe
from curation.media.source import probe
from curation.partition import chunks, scan
from curation.partition.chunks import Chunk
from curation.worker_state import worker
from operators.op import Op, Step
from pipelines import recipes
from pipelines.phases import Phase


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and a table: for each length its clips, CPU-seconds by operator, and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--hours", type=float, nargs="+", default=[0.25, 0.5, 1, 3])
    options = parser.parse_args(arguments)
    print(describe())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        data = process.submit(scan_clip, str(options.clip)).result()
    print("| hours | clips | " + " | ".join(f"{op.name}, CPU-s" for op in _operators()) + " | peak, MiB |")
    print("|---" * (len(_operators()) + 3) + "|")
    for hours in options.hours:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            clips, seconds, peak_mib = process.submit(run_operators, str(options.clip), data, hours).result()
        print(f"| {hours:g} | {clips} | {' | '.join(f'{s:.1f}' for s in seconds)} | {peak_mib} |", flush=True)


def _operators() -> list[Op]:
    """Return the operators that follow the scan, as the recipe `laptop` has them."""
    return [op for op in Phase("partition", recipes.laptop(), "").chain if op.name != "scan_source"]


def scan_clip(uri: str) -> bytes:
    """Scan a clip, and return its chunk."""
    return chunks.to_bytes(chunks.measure(uri, _operators()[0].args["settings"]))


def run_operators(uri: str, data: bytes, hours: float) -> tuple[int, list[float], int]:
    """Run the operators on a repeated chunk. Return the clips, the CPU-seconds of each operator, and the peak memory in MiB."""
    operators = _operators()
    settings = operators[0].args["settings"]
    source = probe(uri)
    worker.scan = (uri, settings), scan.join_chunks(source, [repeat(chunks.from_bytes(data), hours * 3600)])
    row = {"video_id": "v", "source_uri": uri, "width": source.width, "height": source.height}
    rows, seconds = [row], []
    for op in operators:
        step, began_s = Step([op]), time.process_time()
        rows = step(rows, on_row=lambda _: None)  # one by one, as supervised workers do
        seconds.append(time.process_time() - began_s)
        if errors := [one["error"] for one in rows if one.get("error")]:
            raise RuntimeError(errors[0])
    return len(rows), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def repeat(chunk: Chunk, seconds: float) -> Chunk:
    """Repeat a chunk's measurements until they fill so many seconds."""
    times_s = chunk.arrays["times_s"]
    length_s = float(times_s[-1] - times_s[0]) * len(times_s) / (len(times_s) - 1)
    rounds = math.ceil(seconds / length_s)
    return replace(chunk, arrays=dict(_repeated(chunk, rounds, length_s)))


def _repeated(chunk: Chunk, rounds: int, length_s: float) -> Iterator[tuple[str, np.ndarray]]:
    frames = len(chunk.arrays["times_s"])
    for name, values in chunk.arrays.items():
        step = length_s if name == "times_s" else frames if name.endswith("_frame") else None
        yield name, np.concatenate([values + number * step if step else values for number in range(rounds)])


if __name__ == "__main__":
    main()
