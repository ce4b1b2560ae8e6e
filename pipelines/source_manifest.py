"""The manifest of sources: what was read of each new source to name it, so that nothing is read for that twice.

    OUT/sources/<name>.parquet    up to 1,000 listed sources: uri, size, version, id by content, declared length

Sources are identified in groups, on the cluster where the run has one. A group is stored as soon as it is done, so a run that
is killed continues there. A row counts for the listed version of its source only. A source whose bytes cannot be read now has
no row: the next run tries it again.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from curation import source_files, storage
from curation.media.source import probe
from curation.output_folder import OutputFolder
from curation.schema import digest
from curation.shards import from_parquet, to_parquet
from curation.storage import Entry
from pipelines import unit_files
from pipelines.ids import to_array

SOURCES = pa.schema(
    [
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("token", pa.string()),
        ("video_id", pa.string()),
        ("duration_s", pa.float64()),  # as the container declares it; null: not asked for
    ]
)
_GROUP = 1000
_READ_AT_ONCE = 256  # parts of the manifest


class Identified(NamedTuple):
    """What was read of a source."""

    video_id: str  # by `source_files.content_id`; where the bytes cannot be read, a stand-in
    duration_s: float | None = None  # as the container declares it, 0 where it declares none; None: not asked for
    problem: str | None = None  # why the bytes cannot be read now


def identify(out: str, entries: Sequence[Entry], probed_bytes: float = math.inf) -> dict[Entry, Identified]:
    """Return what is known of sources. Those without a row in the manifest are read, and get one.

    probed_bytes: sources of at least this size are also opened for their declared length.
    """
    files = unit_files.of(out)
    manifest = files.kept.setdefault("sources", _Manifest(out))
    known = manifest.find(entries)
    missing = [entry for entry in entries if _is_missing(known.get(entry), entry, probed_bytes)]
    groups = [missing[first : first + _GROUP] for first in range(0, len(missing), _GROUP)]
    found_in = files.run_tasks(_identify_group, [(out, group, probed_bytes) for group in groups])
    for group, found in zip(groups, found_in, strict=True):
        known.update(zip(group, found, strict=True))
        manifest.add(group, found)
    return known


def _is_missing(known: Identified | None, entry: Entry, probed_bytes: float) -> bool:
    return known is None or (known.duration_s is None and entry.size >= probed_bytes)


class _Manifest:
    """The rows of the manifest: those of earlier runs, which are read once, and those that this run adds. 40 bytes a source."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None  # sorted keys, video_ids, lengths

    def find(self, entries: Sequence[Entry]) -> dict[Entry, Identified]:
        """Return what is known of these sources."""
        if not entries:
            return {}
        if self._blocks is None:
            self._blocks = []
            folder = OutputFolder(self._out).sources
            names = storage.names(folder)
            for first in range(0, len(names), _READ_AT_ONCE):
                some = names[first : first + _READ_AT_ONCE]
                rows = [
                    row
                    for data in storage.at_once(lambda name: storage.read(storage.join(folder, name)), some)
                    for row in from_parquet(data).to_pylist()
                ]
                self._add([(row["uri"], row["token"], row["video_id"], row["duration_s"]) for row in rows])
        known: dict[Entry, Identified] = {}
        keys_N = to_array([_key(entry.uri, entry.token) for entry in entries])
        for keys, video_ids, lengths in self._blocks:
            at = np.minimum(np.searchsorted(keys, keys_N), len(keys) - 1)
            for number in np.flatnonzero(keys[at] == keys_N):
                length, before = float(lengths[at[number]]), known.get(entries[number])
                duration_s = (before and before.duration_s) if math.isnan(length) else length
                known[entries[number]] = Identified(video_ids[at[number]].decode(), duration_s)
        return known

    def add(self, entries: Sequence[Entry], found: Sequence[Identified]) -> None:
        """Add what this run read of sources. Those that could not be read are left out."""
        known = zip(entries, found, strict=True)
        self._add([(e.uri, e.token, source.video_id, source.duration_s) for e, source in known if source.problem is None])

    def _add(self, rows: Sequence[tuple[str, str, str, float | None]]) -> None:
        """Add rows as a block. Later parts may repeat a source with its length, so a source can be in several blocks."""
        last: dict[str, tuple[str, float]] = {}
        for uri, token, video_id, duration_s in rows:
            key = _key(uri, token)
            length = last[key][1] if duration_s is None and key in last else duration_s
            last[key] = video_id, math.nan if length is None else length
        if last:
            keys = to_array(list(last))
            order = np.argsort(keys)
            video_ids, lengths = to_array([v for v, _ in last.values()]), np.array([s for _, s in last.values()])
            assert self._blocks is not None
            self._blocks.append((keys[order], video_ids[order], lengths[order]))


def _key(uri: str, token: str) -> str:
    return digest(uri, token)


def _identify_group(out: str, entries: Sequence[Entry], probed_bytes: float) -> list[Identified]:
    """Read what names these sources, and store it. One task."""
    group = storage.at_once(_identify, entries)
    # One of each recording is opened.
    large = {s.video_id: e.uri for e, s in reversed([*zip(entries, group, strict=True)]) if _wants_length(e, s, probed_bytes)}
    lengths = dict(zip(large, declared_durations_s(list(large.values())), strict=True))
    group = [source._replace(duration_s=lengths.get(source.video_id)) for source in group]
    rows = [
        {
            "uri": entry.uri,
            "size": entry.size,
            "token": entry.token,
            "video_id": source.video_id,
            "duration_s": source.duration_s,
        }
        for entry, source in zip(entries, group, strict=True)
        if source.problem is None
    ]
    if rows:
        name = digest(*(f"{row['uri']} {row['token']} {row['duration_s']}" for row in rows))
        data = to_parquet(pa.Table.from_pylist(rows, schema=SOURCES))
        storage.put(storage.join(OutputFolder(out).sources, f"{name}.parquet"), data)
    return group


def _wants_length(entry: Entry, source: Identified, probed_bytes: float) -> bool:
    return source.problem is None and entry.size >= probed_bytes


def _identify(entry: Entry) -> Identified:
    try:
        return Identified(source_files.content_id(entry))
    except OSError as error:
        return stand_in(entry, error)


def stand_in(entry: Entry, error: OSError) -> Identified:
    """Name a source whose bytes cannot be read now, and say why."""
    return Identified(digest(entry.uri, entry.token), problem=f"{entry.uri}: {error.strerror or error}")


def declared_durations_s(uris: list[str]) -> list[float]:
    """Read the durations that containers declare, 0 where they declare none.

    A separate process reads them: a file that crashes the demuxer would crash the driver, and the whole job in every run. If
    that happens, no source counts as long.
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
    except Exception:  # `partition` will meet the same error and report it
        return 0.0
    return source.duration_s or 0.0 if source.seekable else 0.0
