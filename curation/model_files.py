"""Find a model's weights, in one order for all models: an explicit path, $GAMECRAFT_WEIGHTS, the hub's cache, the hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curation.errors import Unavailable

# pip would bring a second OpenCV, see overrides-iqa.txt.
INSTALL_PYIQA = "uv pip install -c constraints-cpu.txt --override overrides-iqa.txt -e '.[iqa]'"


@dataclass(frozen=True)
class Weights:
    """A checkpoint: its file under $GAMECRAFT_WEIGHTS, its file in a folder of torch's hub cache, and its URL on the hub."""

    name: str
    file: str
    hub_file: str
    hub_url: str
    hub_folder: str = "checkpoints"

    @property
    def hash_prefix(self) -> str | None:
        """The first digits of the checkpoint's SHA-256, if the file name carries them, as in "musiq-e95806b9.pth"."""
        match = re.search(r"-([0-9a-f]{8})\.\w+$", self.hub_file)
        return match[1] if match else None


RAFT_SMALL = Weights(
    "RAFT-small",
    "raft-small/raft-small.pth",
    "raft_small_C_T_V2-01064c6d.pth",
    "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth",
)
RAFT_LARGE = Weights(
    "RAFT-large",
    "raft-large/raft-large.pth",
    "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
)


def local_weights(weights: Weights, path: str | None = None) -> Path | None:
    """Return the checkpoint's file if this machine has it, else None. Raise Unavailable if an explicit path has no file."""
    if path is not None:
        if not Path(path).is_file():
            raise Unavailable(f"{weights.name}: no file at {path}; correct the path in the recipe, or copy the file there")
        return Path(path)
    return next((place for place in _local_places(weights) if place.is_file()), None)


def find_or_download(weights: Weights, path: str | None = None) -> Path:
    """Return the checkpoint's file; download it from the hub if this machine does not have it.

    Raise Unavailable with the three ways to provide the file if the hub cannot be reached either.
    """
    local = local_weights(weights, path)
    if local is not None:
        return local
    import torch

    target = Path(torch.hub.get_dir()) / weights.hub_folder / weights.hub_file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.hub_url, str(target), hash_prefix=weights.hash_prefix, progress=False)
    except OSError as error:
        raise Unavailable(how_to_provide(weights, weights.hub_url, error)) from error
    return target


def how_to_provide(weights: Weights, url: str, error: OSError) -> str:
    """Return the message for weights that are neither on this machine nor on a hub that can be reached, with three remedies."""
    folder = _hub_folder() / weights.hub_folder
    return (
        f"{weights.name}: not on this machine, and the hub cannot be reached ({error}). Give its path in the recipe, "
        f"put it at $GAMECRAFT_WEIGHTS/{weights.file}, or download {url} to {folder}"
    )


def _local_places(weights: Weights) -> list[Path]:
    places = [Path(os.environ["GAMECRAFT_WEIGHTS"]) / weights.file] if os.environ.get("GAMECRAFT_WEIGHTS") else []
    return [*places, _hub_folder() / weights.hub_folder / weights.hub_file]


def _hub_folder() -> Path:
    """Return torch's hub cache, without importing torch."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser() / "hub"


# The file that marks a folder as a model of transformers or of diffusers.
_MODEL_FILES = ("config.json", "model_index.json")


def resolve_model(name: str) -> str:
    """Return the folder of a model with many files: `name` itself, or its folder under $GAMECRAFT_WEIGHTS.

    Return `name` unchanged if neither folder holds a model, so that the hub resolves it.
    """
    own = os.environ.get("GAMECRAFT_WEIGHTS")
    places = [Path(name).expanduser(), *([Path(own) / name, Path(own) / name.rpartition("/")[2]] if own else [])]
    return next((str(place) for place in places if any((place / file).is_file() for file in _MODEL_FILES)), name)


@contextmanager
def explain_if_missing(name: str) -> Iterator[None]:
    """Turn an OSError of the code that loads a model into Unavailable with the three ways to provide the model."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{name}: not on this machine, and the hub cannot be reached ({' '.join(str(error).split())[:160]}). Name its "
            f"folder in the recipe, put it at $GAMECRAFT_WEIGHTS/{name.rpartition('/')[2]}, or run once with access to the hub"
        ) from error


def hub_snapshot(name: str, revision: str | None = None) -> str | None:
    """Return the folder of a model's snapshot in the hub's cache, or None if it was never downloaded.

    revision: a commit, tag or branch; None for the newest.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return str(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
