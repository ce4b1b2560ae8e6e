"""Windows that were encoded before training: a tar of them at a time, under the commit of shards (`curation.shards`).

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
from model.data.windows import Place, Window

_MEMBER = "latents.npz"


class Encoded(NamedTuple):
    """latents [C, T, h, w]; image [4 + C, T, h, w], see `vae.Codec.condition`; stamps_s [F]: when each frame came on screen, s
    from its clip's start.
    """

    latents: Tensor
    image: Tensor
    stamps_s: np.ndarray


def name(window: Window, frames: int) -> str:
    """Of a window among the encoded ones."""
    return f"{window.run[0].clip_id}-{frames}-{round(1000 * window.start_s)}"


def places(folder: str) -> dict[str, Place | None]:
    """Where each encoded window lies, by name; None: it could not be encoded, and its json says why."""
    out = storage.normal(folder)
    tables = storage.at_once(lambda shard: shards.read_index(out, shard), shards.list_committed(out))
    found: dict[str, Place | None] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        found.setdefault(row["clip_id"], None)
        if row["member"].endswith(_MEMBER):
            found[row["clip_id"]] = Place(storage.join(OutputFolder(out).shards, row["tar"]), row["offset"], row["size"])
    return found


def put(folder: str, shard: str, encoded: dict[str, Encoded | str]) -> None:
    """Commit a shard of windows by name: encoded, in half precision, or the reason why not."""
    out = storage.normal(folder)
    shards.put_index(out, shard, shards.put_tar(out, shard, [_sample(*item) for item in encoded.items()]))


def _sample(window: str, encoded: Encoded | str) -> Sample:
    if isinstance(encoded, str):
        return Sample(window, {"error": encoded})
    return Sample(window, {}, {_MEMBER: _to_npz(encoded)})


def read(place: Place) -> tuple[dict[str, Tensor], np.ndarray]:
    """A window's tensors by their names in a sample, and its stamps. ValueError for bytes that hold none."""
    with np.load(io.BytesIO(storage.read(place.uri, place.offset, place.size))) as held:
        tensors = {part: torch.from_numpy(held[part]) for part in ("latents", "image")}
        return tensors, held["stamps_s"]


def _to_npz(encoded: Encoded) -> bytes:
    buffer = io.BytesIO()
    tensors = {part: getattr(encoded, part).cpu().half().numpy() for part in ("latents", "image")}
    np.savez(buffer, stamps_s=encoded.stamps_s, **tensors)
    return buffer.getvalue()
