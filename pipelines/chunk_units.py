"""Long sources in chunks: which chunks there are, where their results are stored, and when those are deleted.

A chunk's unit in `clips/scan` is its commit. `sidecar/chunks` has what it measured until `partition` joins it; it is absent
where the result may not be exact. Chunks only save time: a source that lacks one is measured in one pass, with equal results.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

from curation import storage
from curation.media.source import probe
from curation.output_folder import OutputFolder
from curation.partition import chunks
from curation.partition.chunks import Chunk
from curation.schema import digest
from curation.storage import Entry
from pipelines import sources, units
from pipelines.recipes import Recipe
from pipelines.units import Name, Unit

# No gameplay of 360 lines or more is coded leaner. A file that is smaller than two chunks of it is not opened to be asked how
# long it is, and a container that declares years does not make a million units.
_LEAN_BYTES_PER_S = 50_000


def chunk_units(entries: Sequence[Entry], out: str, recipe: Recipe) -> list[Unit]:
    """The chunks, not yet measured, of long sources that have no unit in `partition` yet."""
    chunk_s = recipe.partition.chunk_s
    if chunk_s is None:
        return []
    large = [entry for entry in entries if entry.size >= 2 * chunk_s * _LEAN_BYTES_PER_S]
    size = {entry.uri: entry.size for entry in large}
    long = [unit for unit in sources.source_units(large, out, recipe) if not (unit.duplicate_of or unit.problem)]
    finished = {str(name) for name in units.done(out, "scan")}
    return [
        Unit("scan", str(name), unit.uri, unit.token)
        for unit, duration_s in zip(long, _durations([unit.uri for unit in long]), strict=True)
        for name in _names(unit, recipe, int(min(duration_s, size[unit.uri] / _LEAN_BYTES_PER_S) // chunk_s))
        if str(name) not in finished
    ]


def _names(source: Unit, recipe: Recipe, parts: int) -> list[Name]:
    name = Name.parse(source.name)
    return [Name(name.video_id, _key(source, recipe), part, parts) for part in range(parts if parts > 1 else 0)]


def _key(source: Unit, recipe: Recipe) -> str:
    """Names the chunks of a source: its unit, which no chunk length changes, and how it is cut up."""
    return digest(Name.parse(source.name).digest, str(recipe.partition.chunk_s), str(chunks.FORMAT))


def _durations(uris: list[str]) -> list[float]:
    """What containers declare, 0 where that is nothing. A process of its own asks: a file that kills a decoder must not kill
    the driver, with which the whole job would die in every run; then no source is known to be long.
    """
    if not uris:
        return []
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(storage.at_once, _duration_s, uris).result()
    except BrokenProcessPool:
        return [0.0] * len(uris)


def _duration_s(uri: str) -> float:
    try:
        source = probe(uri)
    except Exception:  # whatever it is, `partition` will meet it and say so
        return 0.0
    return source.duration_s or 0.0 if source.seekable else 0.0


def span(unit: Unit, recipe: Recipe) -> tuple[float, float]:
    """Seconds [start, end) of a chunk; the last one goes on to the end, wherever that is."""
    name, chunk_s = Name.parse(unit.name), recipe.partition.chunk_s
    assert chunk_s is not None, unit.name
    return name.part * chunk_s, math.inf if name.part == name.parts - 1 else (name.part + 1) * chunk_s


def with_chunks(sources: Sequence[Unit], out: str, recipe: Recipe) -> list[Unit]:
    """The units of sources, those whose chunks are all there with their names."""
    present = defaultdict(list)
    for name in _stored(out):
        present[name.digest].append(name)
    whole = {key: tuple(map(str, sorted(names))) for key, names in present.items() if len(names) == names[0].parts}
    return [replace(source, chunks=whole.get(_key(source, recipe), ())) for source in sources]


def _stored(out: str) -> list[Name]:
    return [Name.parse(name.removesuffix(".npz")) for name in storage.names(OutputFolder(out).sidecars("chunks"))]


def put(out: str, name: str, chunk: Chunk) -> None:
    storage.put(OutputFolder(out).chunk(name), chunks.to_bytes(chunk))


def read(out: str, names: Iterable[str]) -> list[Chunk]:
    """Chunks by name. `chunks.NotExact` for a file that is no chunk.

    Only fetched at once: np.load parses Python literals, which fails at random in several threads (CPython 3.10 and
    3.11: SystemError, "AST constructor recursion depth mismatch").
    """
    files = storage.at_once(lambda name: storage.read(OutputFolder(out).chunk(name)), names)
    return [chunks.from_bytes(file) for file in files]


def drop(out: str, names: Iterable[str]) -> None:
    storage.at_once(lambda name: storage.delete(OutputFolder(out).chunk(name)), names)


def sweep(out: str) -> None:
    """Drop what is left of sources that are committed: of a run that was killed, of chunks that were not all there."""
    if left := _stored(out):
        committed = {name.video_id for name in units.done(out, "partition")}
        drop(out, [str(name) for name in left if name.video_id in committed])
