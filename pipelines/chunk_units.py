"""Long sources in chunks: which chunks a source has, where their results are stored, and when the results are deleted.

A chunk's unit in `clips/scan` is its commit. `sidecar/chunks` stores its measurements until `partition` joins them. They are
absent where the result may not be exact. Chunks only save time: a source that lacks one is measured in one pass, with equal
results.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from curation import storage
from curation.output_folder import OutputFolder
from curation.partition import chunks
from curation.partition.chunks import Chunk
from curation.schema import digest
from curation.storage import Entry
from pipelines import source_manifest, sources, units
from pipelines.recipes import Recipe
from pipelines.units import Unit, UnitName

# Gameplay of 360 lines or more is never coded with fewer bytes. A file smaller than two chunks at this rate is not opened to
# read its duration, and a container that declares a length of years does not make a million units.
_MIN_BYTES_PER_S = 50_000


def pending_chunks(entries: Sequence[Entry], out: str, recipe: Recipe) -> list[Unit]:
    """List the chunks, not yet measured, of long sources that have no unit in `partition` yet."""
    chunk_s = recipe.partition.chunk_s
    if chunk_s is None:
        return []
    min_bytes = 2 * chunk_s * _MIN_BYTES_PER_S
    large = {entry.uri: entry for entry in entries if entry.size >= min_bytes}
    pending = sources.pending_sources(list(large.values()), out, recipe, min_bytes)
    long = [unit for unit in pending if not (unit.duplicate_of or unit.problem)]
    known = source_manifest.identify(out, [large[unit.uri] for unit in long], min_bytes)
    committed = {str(name) for name in units.list_committed(out, "scan")}
    return [
        Unit("scan", str(name), unit.uri, unit.token)
        for unit in long
        for name in _chunk_names(
            unit, recipe, _count_chunks(large[unit.uri], known[large[unit.uri]].duration_s or 0.0, chunk_s)
        )
        if str(name) not in committed
    ]


def _count_chunks(entry: Entry, duration_s: float, chunk_s: float) -> int:
    return int(min(duration_s, entry.size / _MIN_BYTES_PER_S) // chunk_s)


def _chunk_names(source: Unit, recipe: Recipe, parts: int) -> list[UnitName]:
    video_id, key = UnitName.parse(source.name).video_id, _chunks_digest(source, recipe)
    return [UnitName(video_id, key, part, parts) for part in range(parts if parts > 1 else 0)]


def _chunks_digest(source: Unit, recipe: Recipe) -> str:
    """Identify the chunks of a source: by its unit, which does not depend on the chunk length, that length and the format."""
    return digest(UnitName.parse(source.name).digest, str(recipe.partition.chunk_s), str(chunks.FORMAT))


def chunk_span_s(unit: Unit, recipe: Recipe) -> tuple[float, float]:
    """Return the seconds [start, end) of a chunk. The last chunk ends with the source, at infinity here."""
    name, chunk_s = UnitName.parse(unit.name), recipe.partition.chunk_s
    assert chunk_s is not None, unit.name
    return name.part * chunk_s, math.inf if name.part == name.parts - 1 else (name.part + 1) * chunk_s


def attach_chunks(source_units: Sequence[Unit], out: str, recipe: Recipe) -> list[Unit]:
    """Return the units of sources. Those whose chunks are all stored get their names."""
    stored = defaultdict(list)
    for name in _stored_names(out):
        stored[name.digest].append(name)
    complete = {key: tuple(map(str, sorted(names))) for key, names in stored.items() if len(names) == names[0].parts}
    return [replace(unit, chunks=complete.get(_chunks_digest(unit, recipe), ())) for unit in source_units]


def _stored_names(out: str) -> list[UnitName]:
    return [UnitName.parse(name.removesuffix(".npz")) for name in storage.names(OutputFolder(out).sidecars("chunks"))]


def put_chunk(out: str, name: str, chunk: Chunk) -> None:
    storage.put(OutputFolder(out).chunk(name), chunks.to_bytes(chunk))


def read_chunks(out: str, names: Iterable[str]) -> list[Chunk]:
    """Read chunks by name. `NotExact` for a file that does not hold a chunk.

    Only the download is concurrent: np.load parses Python literals, which fails at random in several threads (CPython 3.10 and
    3.11: SystemError, "AST constructor recursion depth mismatch").
    """
    files = storage.at_once(lambda name: storage.read(OutputFolder(out).chunk(name)), names)
    return [chunks.from_bytes(file) for file in files]


def delete_chunks(out: str, names: Iterable[str]) -> None:
    storage.at_once(lambda name: storage.delete(OutputFolder(out).chunk(name)), names)


def delete_leftover_chunks(out: str) -> None:
    """Delete the chunks of sources that are committed. A killed run leaves them, and so does a source with a missing chunk."""
    if stored := _stored_names(out):
        committed = {name.video_id for name in units.list_committed(out, "partition")}
        delete_chunks(out, [str(name) for name in stored if name.video_id in committed])
