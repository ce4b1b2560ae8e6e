"""Encode each kept clip once, for its shard."""

from pathlib import Path

from curation import scratch, storage
from curation.cameras.camera import from_npz, to_npz
from curation.media import encode
from curation.media.decode import Span
from curation.media.encode import Encoding
from curation.media.viewport import Rect
from curation.schema import Row
from operators.op import each


@each
def encode_clip(row: Row, encoding: Encoding) -> Row:
    """Decode the clip's span and encode it as mp4, cut to the picture and scaled to the recipe's size.

    The mp4 stays in this process's scratch folder (`scratch_file`) until the unit's commit puts it into the shard. A camera is
    converted to the times and px of the stored frames.
    """
    crop = Rect(**row["picture"])
    clip = encode.encode(row["source_uri"], Span(row["start_s"], row["end_s"]), crop, encoding)
    file = scratch_file(row["clip_id"])
    with storage.naming(str(file)):
        file.write_bytes(clip.mp4)
    stored = {"stored_width": clip.width, "stored_height": clip.height, "stored_frames": len(clip.times_s)}
    return {**row, **stored, "camera_npz": _stored_camera(row, crop, clip)}


def _stored_camera(row: Row, crop: Rect, clip: encode.EncodedClip) -> bytes | None:
    if not row.get("camera_npz"):
        return None
    return to_npz(from_npz(row["camera_npz"]).crop_and_scale(crop, (clip.width, clip.height)).at_times(clip.times_s))


def scratch_file(clip_id: str) -> Path:
    """Return the path of an encoded clip on its node, until the commit."""
    return scratch.folder() / f"{clip_id}.mp4"
