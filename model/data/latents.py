"""Windows that were encoded before training, in tar shards that are committed as those of clips are (`curation.shards`).

C latent channels, T latents, h w their rows and columns, F frames.
"""

import io
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation import shards, storage
from curation.output_folder import OutputFolder
from curation.shards import Sample
from model.data.windows import ByteRange, Window

_MEMBER = "latents.npz"


class EncodedWindow(NamedTuple):
    """An encoded window. stamps_s: when each frame came on screen, s from the start of its clip."""

    latents: Tensor  # [C, T, h, w]
    image: Tensor  # [4 + C, T, h, w], see `vae.Codec.encode_first_frame`
    stamps_s: np.ndarray  # [F]


def window_name(window: Window, frames: int) -> str:
    """Return the name under which a window is stored."""
    return f"{window.clips[0].clip_id}-{frames}-{round(1000 * window.start_s)}"


def locations(folder: str) -> dict[str, ByteRange | None]:
    """Return where each encoded window is stored, by name. None: it could not be encoded, and its json says why."""
    out = storage.normal(folder)
    tables = storage.at_once(lambda shard: shards.read_index(out, shard), shards.list_committed(out))
    by_name: dict[str, ByteRange | None] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        by_name.setdefault(row["clip_id"], None)
        if row["member"].endswith(_MEMBER):
            by_name[row["clip_id"]] = ByteRange(storage.join(OutputFolder(out).shards, row["tar"]), row["offset"], row["size"])
    return by_name


def write_shard(folder: str, shard: str, windows: dict[str, EncodedWindow | str]) -> None:
    """Commit a shard of windows by name: each encoded, in half precision, or the reason why it could not be."""
    out = storage.normal(folder)
    shards.put_index(out, shard, shards.put_tar(out, shard, [_sample(*item) for item in windows.items()]))


def _sample(name: str, encoded: EncodedWindow | str) -> Sample:
    if isinstance(encoded, str):
        return Sample(name, {"error": encoded})
    return Sample(name, {}, {_MEMBER: _to_npz(encoded)})


def read(location: ByteRange) -> tuple[dict[str, Tensor], np.ndarray]:
    """Read a window's tensors, by their names in a sample, and its times. ValueError for bytes that are not such a window."""
    with np.load(io.BytesIO(storage.read(*location))) as arrays:
        tensors = {part: torch.from_numpy(arrays[part]) for part in ("latents", "image")}
        return tensors, arrays["stamps_s"]


def _to_npz(encoded: EncodedWindow) -> bytes:
    buffer = io.BytesIO()
    tensors = {part: getattr(encoded, part).cpu().half().numpy() for part in ("latents", "image")}
    np.savez(buffer, stamps_s=encoded.stamps_s, **tensors)
    return buffer.getvalue()
