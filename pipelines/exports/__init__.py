"""Shards in the layouts of other trainers: `gamecraft export OUT --format diffsynth|fastvideo|lerobot|parquet`."""

from collections.abc import Callable

from curation.errors import InputError
from pipelines.exports.captioned import export_diffsynth, export_fastvideo
from pipelines.exports.clips import Exported
from pipelines.exports.lerobot import export_lerobot
from pipelines.exports.tables import export_parquet

_VIDEOS: dict[str, Callable[[str, str, float | None], Exported]] = {
    "diffsynth": export_diffsynth,
    "fastvideo": export_fastvideo,
    "lerobot": export_lerobot,
}


def export_shards(out: str, layout: str, to: str, fps: float | None = None) -> Exported:
    """Write all clips in an output's shards in a layout of `gamecraft export`. Both may be folders or s3:// prefixes.

    fps: frames a second of the exported videos; None: as stored, and in lerobot's layout the most frequent rate.
    """
    if layout == "parquet":
        if fps is not None:
            raise InputError("--format parquet holds the videos as they are stored; leave --fps out")
        return export_parquet(out, to)
    return _VIDEOS[layout](out, to, fps)
