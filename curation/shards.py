"""WebDataset shards, their index, and `dataset.json` (paths: `curation.output_folder`). Imports neither torch nor ray.

A tar or an index is written only where none exists, and an index is a pure function of its tar. So a second writer (a retry, a
worker that was believed dead, a second run) completes the commit of the first instead of making a different one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import scratch, storage
from curation.errors import InputError
from curation.output_folder import OutputFolder
from curation.schema import CAMERA_SPAN, READABLE_VERSIONS, SCHEMA_VERSION

if TYPE_CHECKING:
    from webdataset import WebDataset

PLAN = pa.schema([("shard", pa.string()), ("clip_id", pa.string())])

INDEX = pa.schema(
    [
        ("clip_id", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("tar", pa.string()),
        ("tar_sha256", pa.string()),
        # From the clip's json: what a loader must know about every clip before it reads one.
        ("video_id", pa.string()),
        ("index", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("camera_status", pa.string()),
        ("camera_spans", pa.list_(CAMERA_SPAN)),  # indexes of schema version 2 lack it
    ]
)
_FROM_META = ("video_id", "index", "start_s", "end_s", "camera_status", "camera_spans")

# Columns that say where a run stored things and not what a clip is. Without them shards do not depend on folders.
NOT_IN_SHARDS = frozenset({"source_uri", "source_token", "synth_frame", "unit_id", "shard", "reject", "error"})


@dataclass(frozen=True)
class Sample:
    """One clip in a shard: its ledger row as `meta`, and its other members as bytes by extension ("mp4", "camera.npz")."""

    clip_id: str
    meta: Mapping[str, Any]
    members: Mapping[str, bytes] = field(default_factory=dict)


def encode_sample(sample: Sample) -> dict[str, bytes]:
    """Return the sample's tar members by name, sorted. `decode_sample` is the inverse."""
    meta = json.dumps(dict(sample.meta), sort_keys=True, ensure_ascii=False).encode()
    members = {**sample.members, "json": meta}
    return {f"{sample.clip_id}.{extension}": members[extension] for extension in sorted(members)}


def decode_sample(members: Mapping[str, bytes]) -> Sample:
    """Build a sample from its tar members by name."""
    clip_id = next(iter(members)).partition(".")[0]
    parts = {name.partition(".")[2]: data for name, data in members.items()}
    return Sample(clip_id, json.loads(parts.pop("json")), parts)


def write_tar(path: str, samples: Iterable[Sample]) -> None:
    """Write samples in order. Equal samples give equal bytes: the tar has no times, owners or modes of this machine."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, data in encode_sample(sample).items():
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.mode = len(data), 0, 0o644
                tar.addfile(member, io.BytesIO(data))


def index_tar(path: str, name: str) -> pa.Table:
    """Index a tar: the byte range of each member, columns from its clip's json, and the SHA-256 of the whole file."""
    with Path(path).open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        meta = {_clip_id(m.name): json.load(_content(tar, m)) for m in members if m.name.endswith(".json")}
    rows = []
    for member in members:
        clip_id = _clip_id(member.name)
        place = {"member": member.name, "offset": member.offset_data, "size": member.size, "tar": name, "tar_sha256": sha}
        rows.append({"clip_id": clip_id, **place, **{key: meta.get(clip_id, {}).get(key) for key in _FROM_META}})
    return pa.Table.from_pylist(rows, schema=INDEX)


def _clip_id(member: str) -> str:
    return member.partition(".")[0]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    content = tar.extractfile(member)
    assert content is not None, member.name
    return content


def _sha256(file: Any) -> str:
    """For Python 3.10, which has no `hashlib.file_digest`."""
    sha = hashlib.sha256()
    while chunk := file.read(1 << 20):
        sha.update(chunk)
    return sha.hexdigest()


def put_tar(out: str, shard: str, samples: Iterable[Sample]) -> pa.Table:
    """Write `shards/<shard>.tar` unless it exists. Return the index of the stored one."""
    tar_uri = OutputFolder(out).tar(shard)
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        path = os.path.join(folder, f"{shard}.tar")
        with storage.naming(path):
            write_tar(path, samples)
        index = index_tar(path, f"{shard}.tar")
        if not storage.put_file(tar_uri, path, if_absent=True):
            index = index_tar(_download(tar_uri, folder), f"{shard}.tar")
    return index


def put_index(out: str, shard: str, index: pa.Table) -> None:
    """Commit a shard: write the index of its tar, unless it exists."""
    storage.put(OutputFolder(out).shard_index(shard), to_parquet(index), if_absent=True)


def _download(uri: str, folder: str) -> str:
    """Copy an object to a local file, in blocks, since it may not fit in memory."""
    path = os.path.join(folder, "stored.tar")
    with storage.open_binary(uri) as source, Path(path).open("wb") as target:
        while chunk := source.read(8 << 20):
            target.write(chunk)
    return path


def list_committed(out: str) -> list[str]:
    """List the committed shards, sorted by name: those that have an index."""
    names = storage.names(OutputFolder(out).shards)
    return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and not name.startswith("plan-")]


def read_index(out: str, shard: str) -> pa.Table:
    return from_parquet(storage.read(OutputFolder(out).shard_index(shard)))


def put_plan(out: str, number: int, plan: pa.Table) -> bool:
    """Commit a plan. Return False if another driver has committed one with this number."""
    return storage.put(OutputFolder(out).plan(number), to_parquet(plan), if_absent=True)


def list_plans(out: str) -> list[str]:
    """List the names of the plans, sorted."""
    return [name for name in storage.names(OutputFolder(out).shards) if name.startswith("plan-")]


def read_plan(out: str) -> pa.Table:
    """Read all plans of an output as one table, which is empty if there is none."""
    tables = [from_parquet(storage.read(storage.join(OutputFolder(out).shards, name))) for name in list_plans(out)]
    return pa.concat_tables(tables) if tables else PLAN.empty_table()


def read_member(out: str, index: pa.Table, clip_id: str, extension: str) -> bytes:
    """Read one member of a committed shard by its offset. KeyError if the clip has no such member."""
    for row in index.to_pylist():
        if row["member"] == f"{clip_id}.{extension}":
            return storage.read(storage.join(OutputFolder(out).shards, row["tar"]), row["offset"], row["size"])
    raise KeyError(f"no {clip_id}.{extension} in {index['tar'][0] if len(index) else 'an empty shard'}")


def read_samples(out: str, shard: str) -> Iterator[Sample]:
    """Yield the samples of a committed shard, in order."""
    tar_uri, members, current = OutputFolder(out).tar(shard), {}, None
    with storage.open_binary(tar_uri) as file, tarfile.open(fileobj=file) as tar:
        for member in tar:
            clip_id = _clip_id(member.name)
            if not member.isfile() or not clip_id or "/" in clip_id:
                raise InputError(f"{tar_uri}: {member.name!r} is no member that gamecraft writes")
            if current is not None and clip_id != current:
                yield decode_sample(members)
                members = {}
            current = clip_id
            members[member.name] = _content(tar, member).read()
    if members:
        yield decode_sample(members)


def open(  # noqa: A001 - `shards.open`, as one says it; in this module it hides the built-in
    uri: str | Sequence[str], *, decode: bool = True, fps: float | None = None, shuffle: int = 0, **options: Any
) -> WebDataset:
    """Return a `webdataset.WebDataset` of the committed shards of an output.

    Samples are dicts, as WebDataset makes them: `__key__` (the clip's id), `json` (a dict), `mp4` (uint8 [F, H, W, 3]),
    `times_s` (float64 [F], seconds) and, where the clip has one, `camera.npz` (a `curation.cameras.camera.Camera`). Shards are
    split over the nodes of a torch process group (or RANK and WORLD_SIZE) and over the workers of a DataLoader. Each worker
    needs a shard; WebDataset raises ValueError in one that gets none.

    uri: a folder or s3:// prefix that `gamecraft curate` wrote, a single tar, or several of these. decode: False leaves members
    as bytes, for a pipeline that decodes them itself. fps: frames per second that are kept; None: all. shuffle: samples in the
    buffer from which the next is drawn, in which case shards are shuffled too; 0: the order of the shards. options: those of
    WebDataset, such as `handler`, `resampled` or `cache_dir`; with a `seed`, each epoch has an order that depends on it alone.

    InputError where an output has no committed shard. Our own loader (`model.data.loader`) resumes to the sample and joins
    clips that touch; this one does neither.
    """
    from curation import shard_reader  # loads a decoder, and torch where it is installed

    uris = [uri] if isinstance(uri, str) else list(uri)
    tars = [shard_reader.webdataset_url(tar) for one in uris for tar in _tars(one)]
    return shard_reader.open_tars(tars, decode, fps, shuffle, options)


def _tars(uri: str) -> list[str]:
    """Return the uris of an output's tars in order; those of a tar are itself."""
    if uri.endswith(".tar"):
        return [uri]
    out = storage.normal(uri)
    read_dataset(out)  # refuses other schema versions
    names = list_committed(out)
    if not names:
        raise InputError(f"no committed shard in {uri}; make some with `gamecraft curate`")
    return [OutputFolder(out).tar(name) for name in names]


def write_wids_index(out: str, clips_by_shard: Mapping[str, int]) -> None:
    """Write `index.json`, by which `wids.ShardListDataset` reads any clip by its number. Empty shards are left out."""
    listed = [{"url": f"shards/{name}.tar", "nsamples": clips} for name, clips in sorted(clips_by_shard.items()) if clips]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": listed}
    storage.put(OutputFolder(out).wids_index, json.dumps(index, indent=2).encode() + b"\n")


def read_dataset(out: str) -> dict[str, Any] | None:
    """Read `dataset.json`; None if there is none. InputError for a schema version that this code cannot read."""
    try:
        dataset: dict[str, Any] = json.loads(storage.read(OutputFolder(out).dataset))
    except FileNotFoundError:
        return None
    if dataset.get("schema_version") not in READABLE_VERSIONS:
        *earlier, newest = map(str, READABLE_VERSIONS)
        readable = f"{', '.join(earlier)} and {newest}"
        raise InputError(
            f"{out} was made with schema version {dataset.get('schema_version')}; this code reads {readable}. "
            "Use the gamecraft release that made it, or curate into a new folder"
        )
    return dataset


def write_dataset(out: str, dataset: Mapping[str, Any]) -> None:
    """Write `dataset.json`. Its schema_version is that of this code, unless the dataset has one."""
    data = json.dumps({"schema_version": SCHEMA_VERSION, **dataset}, indent=2, sort_keys=True, ensure_ascii=False)
    storage.put(OutputFolder(out).dataset, data.encode() + b"\n")


def to_parquet(table: pa.Table) -> bytes:
    """Encode a table as Parquet. Equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    # With torch loaded, threads of Arrow that still release Python objects when a process ends abort that process.
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
