"""Long sources in chunks: which chunks a source has, where their results are stored, and when the results are deleted.

A chunk's unit in `clips/scan` is its commit. `sidecar/chunks` stores its measurements until `partition` joins them. They are
absent where the result may not be exact. Chunks only save time: a source that lacks one is measured in one pass, with equal
results.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from curation import storage
from curation.output_folder import OutputFolder
from curation.partition import chunks
from curation.partition.chunks import Chunk
from curation.schema import digest
from curation.storage import Entry
from pipelines import source_manifest, sources, unit_files, units
from pipelines.recipes import Recipe
from pipelines.sources import Listing
from pipelines.units import Group, Unit, UnitName

# A file smaller than two chunks at the first rate is not opened to read its duration: opening all files would cost more than
# that gains. Nothing is coded with fewer bytes than the second, so a container that declares a length of years does not make a
# million units.
_OPENED_BYTES_PER_S = 50_000
_MIN_BYTES_PER_S = 5_000
# The last frames of ten minutes may be missing: two chunks of five minutes may be shorter by this share of one together.
_SHORTFALL = 0.05
# Of memory for each second of a source whose chunks are joined: 0.4 GiB an hour. `bench.hours` needs 0.34, and joins no chunks.
_JOINED_BYTES_PER_S = 120_000
_PICTURE_BYTES_PER_S = 2 * 27 * 48 * 3 * 60  # of the detector transnet: those of the chunks and those of the whole, at 60 fps


def pending_chunks(entries: Iterable[Entry], out: str, recipe: Recipe) -> Iterator[Group]:
    """List the chunks, not yet measured, of long sources that have no unit in `partition` yet, those of a group of sources at a
    time.
    """
    chunk_s = recipe.partition.chunk_s
    if chunk_s is None:
        return
    min_bytes = 2 * chunk_s * _OPENED_BYTES_PER_S
    large = sources.Listing((entry for entry in entries if entry.size >= min_bytes), recipe)
    for group in sources.pending_groups(large, out, recipe, min_bytes):
        yield group._replace(units=_pending_chunks(group.units, large, chunk_s, out, recipe), done=0)


def _pending_chunks(group: Sequence[Unit], large: Listing, chunk_s: float, out: str, recipe: Recipe) -> list[Unit]:
    """Return the chunks of a group of sources."""
    long = {unit: large.find(unit.uri) for unit in group if not (unit.duplicate_of or unit.problem)}
    entries = {unit: entry for unit, entry in long.items() if entry}
    known = source_manifest.identify(out, list(entries.values()), 2 * chunk_s * _OPENED_BYTES_PER_S)
    chunks_ = [
        chunk
        for unit, entry in entries.items()
        for chunk in _chunks(unit, recipe, _bounds_s(entry, known[entry].duration_s or 0.0, chunk_s))
    ]
    files = unit_files.of(out)
    return [chunk for chunk in chunks_ if not files.has("clips/scan", chunk.name)]


def _bounds_s(entry: Entry, duration_s: float, chunk_s: float) -> list[float]:
    """Return where the chunks of a source begin, s. All are equally long: `chunk_s`, or up to half as much again."""
    likely_s = min(duration_s, entry.size / _MIN_BYTES_PER_S)
    parts = int(likely_s / chunk_s + _SHORTFALL)
    return [round(part * likely_s / parts, 3) for part in range(parts)]


def _chunks(source: Unit, recipe: Recipe, starts_s: Sequence[float]) -> Iterator[Unit]:
    """Yield the chunks of a source that begin at these times, none where there is only one."""
    video_id, key = UnitName.parse(source.name).video_id, _chunks_digest(source, recipe)
    ends_s: list[float | None] = [*starts_s[1:], None]
    if len(starts_s) > 1:
        for part, (start_s, end_s) in enumerate(zip(starts_s, ends_s, strict=True)):
            name = str(UnitName(video_id, key, part, len(starts_s)))
            yield Unit("scan", name, source.uri, source.token, start_s=start_s, end_s=end_s)


def _chunks_digest(source: Unit, recipe: Recipe) -> str:
    """Identify the chunks of a source: by its unit, which does not depend on the chunk length, that length and the format."""
    return digest(UnitName.parse(source.name).digest, str(recipe.partition.chunk_s), str(chunks.FORMAT))


def attach_chunks(source_units: Sequence[Unit], out: str, recipe: Recipe) -> list[Unit]:
    """Return the units of sources. Those whose chunks are all stored get their names."""
    stored = defaultdict(list)
    for name in _stored_names(out):
        stored[name.digest].append(name)
    complete = {key: tuple(map(str, sorted(names))) for key, names in stored.items() if len(names) == names[0].parts}
    return [replace(unit, chunks=complete.get(_chunks_digest(unit, recipe), ())) for unit in source_units]


def joining_memory(unit: Unit, recipe: Recipe) -> int:
    """Return the bytes that joining a source's chunks takes, beyond what operators declare. 0 for a unit without chunks."""
    longest_s = (len(unit.chunks) + 1) * (recipe.partition.chunk_s or 0)  # see `_bounds_s`
    pictures = _PICTURE_BYTES_PER_S if recipe.partition.scenes.detector == "transnet" else 0
    return round((_JOINED_BYTES_PER_S + pictures) * longest_s) if unit.chunks else 0


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
        done = units.list_of_videos(out, "partition", {name.video_id for name in stored})
        committed = {UnitName.parse(unit).video_id for unit in done}
        delete_chunks(out, [str(name) for name in stored if name.video_id in committed])
