"""What a chunk of a long video fetches from S3, by container.

    python -m bench.chunk_reads --minutes 10 --start 240 --seconds 20

A made-up video is written in several containers and served by a small S3 server, which counts. Each chunk is measured as by a
fresh worker, so nothing is kept from an earlier one. "own" are the bytes of the file from the chunk's first packet to its last.
"opening" is what a worker fetches once for each source: headers, the index, the first frame. The ratio is that of all other
fetched bytes to the chunk's own. It includes 3 s of lead-in, and the time from the key frame before that.
"""

import argparse
import json
import tempfile
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

_CLIP_S = 20.0


class Result(NamedTuple):
    """One chunk of one file. Sizes in MB."""

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
    parser.add_argument("--containers", default=",".join(CONTAINERS), help="which, with commas")
    options = parser.parse_args(arguments)
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        files = make_videos(folder, options.containers.split(","), options.minutes * 60, options.kbit * 1000)
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


def make_videos(folder: Path, names: Sequence[str], seconds: float, bits_per_s: int) -> list[Path]:
    """Write the videos that the folder does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"seconds": seconds, "bits_per_s": bits_per_s}
    note = folder / "made.json"
    if not note.exists() or json.loads(note.read_text()) != about:
        for name in CONTAINERS:
            (folder / name).unlink(missing_ok=True)
        write_clip(folder / "clip.mp4", _CLIP_S, 10, bits_per_s)
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
    for kept in (getattr(s3, "_kept", None), getattr(s3, "_passing", None)):
        if kept is not None:
            kept.clear()
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


if __name__ == "__main__":
    main()
