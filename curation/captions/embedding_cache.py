"""The cache of embeddings, OUT/sidecar/embeddings/<model>/<video_id>.npz, by the hash of the text: no text is embedded twice.

A video has one object with all its texts. One object for each text would cost more than it saves: a request to S3 takes longer
than to embed a sentence. Texts that occur in many videos, such as "the camera stands still", are also kept in memory.
"""

import io
import zipfile
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from curation import storage
from curation.captions.embeddings import Encoder
from curation.schema import digest

_folder: str | None = None
_IN_MEMORY = 4096  # vectors of one process: 6 MB for MiniLM
_recent: OrderedDict[str, np.ndarray] = OrderedDict()


def use_folder(folder: str | None) -> None:
    """Store this process's embeddings under `folder`. None switches the cache off and empties it."""
    global _folder
    _folder = folder
    if folder is None:
        _recent.clear()


def encode(encoder: Encoder, texts: Sequence[str], video_id: str) -> np.ndarray:
    """Return the vectors of N texts of a video, float32 [N, D]. Texts that are in the cache are not embedded."""
    if _folder is None or not texts:
        return encoder(texts)
    keys = [digest(encoder.version, text) for text in texts]
    uri = storage.join(_folder, digest(encoder.version), f"{video_id}.npz")
    stored = {key: _recent[key] for key in keys if key in _recent}
    if len(stored) < len(set(keys)):
        in_file = _read(uri)
        stored = in_file | stored
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in stored}
        if missing:
            stored |= dict(zip(missing, encoder(list(missing.values())), strict=True))
            _write(uri, stored)
    _remember({key: stored[key] for key in keys})
    return np.stack([stored[key] for key in keys])


def _read(uri: str) -> dict[str, np.ndarray]:
    """Return the vectors of a file by key. Nothing if there is none, or only half of one."""
    try:
        with np.load(io.BytesIO(storage.read(uri))) as file:
            return dict(zip(file["keys"].tolist(), file["vectors"], strict=True))
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _write(uri: str, vectors: dict[str, np.ndarray]) -> None:
    file = io.BytesIO()
    np.savez(file, keys=np.array(sorted(vectors)), vectors=np.stack([vectors[key] for key in sorted(vectors)]))
    storage.put(uri, file.getvalue())


def _remember(vectors: dict[str, np.ndarray]) -> None:
    for key, vector in vectors.items():
        _recent[key] = vector
        _recent.move_to_end(key)
    while len(_recent) > _IN_MEMORY:
        _recent.popitem(last=False)
