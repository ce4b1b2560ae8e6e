"""One Parquet file a shard: the columns of its clips, and their mp4 and camera.npz as bytes. Nothing is lost."""

import json

import pyarrow as pa

from curation import shards, storage
from curation.errors import InputError
from curation.schema import CLIP, SIDECAR_COLUMNS
from curation.shards import NOT_IN_SHARDS, Sample, to_parquet
from pipelines.exports.clips import Exported, Target

# Large: the videos of one file may have more than 2 GiB, the most that offsets of 32 bits reach.
_MEMBERS = [pa.field("mp4", pa.large_binary()), pa.field("camera_npz", pa.large_binary())]
SCHEMA = pa.schema(
    [
        *(field.remove_metadata() for field in CLIP if field.name not in NOT_IN_SHARDS | SIDECAR_COLUMNS),
        pa.field("encoding", pa.string()),  # json
        *_MEMBERS,
    ]
)


def export_parquet(out: str, to: str) -> Exported:
    """Write train/<shard>.parquet of each committed shard, and columns.json with the unit and meaning of each column."""
    out, target, count = storage.normal(out), Target(to, "columns.json"), 0
    shards.read_dataset(out)
    names = shards.list_committed(out)
    if not names:
        raise InputError(f"no committed shard in {out}; make some with `gamecraft curate`")
    for name in names:
        rows = [_row(sample) for sample in shards.read_samples(out, name)]
        target.put(f"train/{name}.parquet", to_parquet(pa.Table.from_pylist(rows, schema=SCHEMA)))
        count += len(rows)
    about = {field.name: {key.decode(): value.decode() for key, value in field.metadata.items()} for field in CLIP}
    listed = {name: {key: about[name][key] for key in ("unit", "meaning")} for name in SCHEMA.names if name in about}
    target.put("columns.json", json.dumps(listed, indent=1).encode())
    return Exported(count, {})


def _row(sample: Sample) -> dict[str, object]:
    row = {name: value for name, value in sample.meta.items() if name in SCHEMA.names}
    members = {"mp4": sample.members["mp4"], "camera_npz": sample.members.get("camera.npz")}
    encoding = json.dumps(sample.meta.get("encoding"), sort_keys=True)
    return {**row, "clip_id": sample.clip_id, "encoding": encoding, **members}
