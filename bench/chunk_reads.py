"""What a chunk of a long video fetches from S3, by container.

    python -m bench.chunk_reads --minutes 10 --start 240 --seconds 20
    python -m bench.chunk_reads --minutes 180 --fps 5 --kbit 240 --containers index_last.mp4 --runs 2,1

A made-up video is written in several containers and served by a small S3 server, which counts. Each chunk is measured as by a
fresh worker, so nothing is kept from an earlier one. "own" are the bytes of the file from the chunk's first packet to its last.
"opening" is what a worker fetches once for each source: headers, the index, the first frame. The ratio is that of all other
fetched bytes to the chunk's own. It includes 3 s of lead-in, and the time from the key frame before that.

With --runs 2,1 the phases `scan` and `partition` are run on the first container instead, with two workers and with one. One
worker makes one pass, two or more share chunks. It exits with 1 where rows, thumbnails or signals differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av

from bench.long_videos import CONTAINERS, write_clip, write_long_video
from bench.machine import describe
from bench.object_server import BUCKET, Fetches, serve
from curation import s3, storage, versions
from curation.errors import NotExact
from curation.media.source import probe
from curation.partition import chunks, scan
from curation.partition.chunks import ScanSettings
from curation.partition.optical_flow import FlowSettings
from curation.quality.iqa import IqaSettings
from pipelines import ledger

_CLIP_S = 20.0


class Result(NamedTuple):
    """One chunk of one file. Sizes in MB (1e6 bytes); opens: calls of `av.open`; problem: why it was refused, or empty."""

    container: str
    own: float
    opening: float
    fetched: float
    requests: int
    opens: int
    ratio: float
    problem: str


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chunk_reads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, help="where videos are made and kept; default: a temporary folder")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the videos")
    parser.add_argument("--kbit", type=int, default=680, help="rate of their pictures, kbit/s")
    parser.add_argument("--start", type=float, default=240.0, help="start of the chunk, s")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the chunk")
    parser.add_argument("--fps", type=int, default=10, help="frames a second")
    parser.add_argument("--runs", default="", help="run whole phases with these numbers of workers, with commas")
    parser.add_argument("--containers", default=",".join(CONTAINERS), help="which, with commas")
    options = parser.parse_args(arguments)
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        files = make_videos(folder, options.containers.split(","), options.minutes * 60, options.kbit * 1000, options.fps)
        if options.runs:
            with serve(folder) as fetches:
                whole_runs(files[0], fetches, [int(count) for count in options.runs.split(",")])
            return
        print("| container | own, MB | opening, MB | fetched, MB | requests | opens | ratio | |")
        print("|---|---|---|---|---|---|---|---|")
        with serve(folder) as fetches:
            for file in files:
                result = measure(file, fetches, options.start, options.start + options.seconds)
                print(
                    f"| {result.container} | {result.own:.2f} | {result.opening:.2f} | {result.fetched:.2f} "
                    f"| {result.requests} | {result.opens} | {result.ratio:.2f} | {result.problem} |",
                    flush=True,
                )


def make_videos(folder: Path, names: Sequence[str], seconds: float, bits_per_s: int, fps: int) -> list[Path]:
    """Write the videos that the folder does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"seconds": seconds, "bits_per_s": bits_per_s, "fps": fps}
    note = folder / "made.json"
    if not note.exists() or json.loads(note.read_text()) != about:
        for name in CONTAINERS:
            (folder / name).unlink(missing_ok=True)
        write_clip(folder / "clip.mp4", _CLIP_S, fps, bits_per_s)
        note.write_text(json.dumps(about))
    for name in names:
        if not (folder / name).exists():
            write_long_video(folder / name, folder / "clip.mp4", seconds, _CLIP_S, CONTAINERS[name])
    return [folder / name for name in names]


def measure(file: Path, fetches: Fetches, start_s: float, end_s: float) -> Result:
    """Measure a chunk of a served file as a fresh worker does, and count."""
    uri = f"s3://{BUCKET}/{file.name}"
    settings = ScanSettings(FlowSettings(backend="dis"), IqaSettings())
    scan.load_models(settings)
    token = storage.version(uri)
    _forget(uri, token, fetches)
    probe(uri)
    opening = fetches.bytes
    _forget(uri, token, fetches)
    problem = ""
    with _counted_opens() as opens:
        try:
            chunks.scan_chunk(uri, settings, start_s, end_s)
        except NotExact as error:
            problem = str(error)
    own = own_bytes(file, start_s, end_s)
    ratio = max(0, fetches.bytes - opening) / own
    return Result(file.name, own / 1e6, opening / 1e6, fetches.bytes / 1e6, fetches.requests, len(opens), ratio, problem)


def _forget(uri: str, token: str, fetches: Fetches) -> None:
    """Drop all that this process keeps of sources, as if it were new, and begin to count."""
    scan.clear_caches()
    for name in ("_kept", "_passing"):
        getattr(s3, name, {}).clear()  # commits that this is compared with may lack one
    versions.pin({uri: token})
    fetches.clear()


@contextmanager
def _counted_opens() -> Iterator[list[Any]]:
    """Yield a list that grows by what each call of `av.open` was given."""
    real, opened = av.open, list[Any]()

    def counting(file: Any, *args: Any, **options: Any) -> Any:
        opened.append(file)
        return real(file, *args, **options)

    av.open = counting
    try:
        yield opened
    finally:
        av.open = real


def own_bytes(file: Path, start_s: float, end_s: float) -> int:
    """Return the bytes of a file from the first to the last packet of video that is shown in [start_s, end_s)."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        first = None
        spans = []
        for packet in container.demux(stream):
            if packet.pts is None or packet.pos is None or packet.pos < 0:
                continue
            first = packet.pts if first is None else first
            if start_s <= float((packet.pts - first) * packet.time_base) < end_s:
                spans.append((packet.pos, packet.pos + packet.size))
    return max(end for _, end in spans) - min(start for start, _ in spans)


def whole_runs(file: Path, fetches: Fetches, counts: Sequence[int]) -> None:
    """Run `scan` and `partition` over a served file with each number of workers, and compare what they give."""
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
    print("| workers | phase | seconds | CPU-s | largest process, MiB | fetched, MB | requests | load |")
    print("|---|---|---|---|---|---|---|---|")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            out = Path(temporary, str(count))
            for phase in ("scan", "partition") if count > 1 else ("partition",):
                fetches.clear()
                seconds, cpu_s, largest_mib = _run_phase(phase, file, out, count)
                print(
                    f"| {count} | {phase} | {seconds:.0f} | {cpu_s:.0f} | {largest_mib} | {fetches.bytes / 1e6:.1f} "
                    f"| {fetches.requests} | {os.getloadavg()[0]:.1f} |",
                    flush=True,
                )
            results[count] = _results(out)
    sizes = [len(rows) for rows, _ in results.values()]
    same = all(result == results[counts[0]] for result in results.values())
    print(f"rows of clips: {sizes}; rows, thumbnails and signals " + ("are the same" if same else "DIFFER"))
    if not same:
        raise SystemExit(1)


def _run_phase(phase: str, file: Path, out: Path, workers: int) -> tuple[float, float, int]:
    """Run one phase in another process. Return seconds, CPU-seconds of all its processes, and MiB of the largest."""
    words = ["curate", f"s3://{BUCKET}/{file.name}", "--out", str(out), "--recipe", "smoke", "--phase", phase]
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "gamecraft", "-q", *words, "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"gamecraft {' '.join(words)} failed ({os.waitstatus_to_exitcode(status)})")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10


def _results(out: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the rows of an output's clips, and the files of thumbnails and signals."""
    files = [path for kind in ("thumbs", "signals") for path in sorted((out / "sidecar" / kind).iterdir())]
    return ledger.clips(str(out)).to_pylist(), {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


if __name__ == "__main__":
    main()
