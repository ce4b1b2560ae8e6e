"""Where a model's weights come from: one order for all of them (an explicit path, $GAMECRAFT_WEIGHTS, the hub's cache)."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Weights:
    """A checkpoint: its file under $GAMECRAFT_WEIGHTS, its file in a folder of torch's hub cache, and where the hub has it."""

    name: str
    file: str
    hub_file: str
    hub_url: str
    hub_folder: str = "checkpoints"

    @property
    def hash_prefix(self) -> str | None:
        """The first digits of its SHA-256, where its name carries them: "musiq-e95806b9.pth"."""
        named = re.search(r"-([0-9a-f]{8})\.\w+$", self.hub_file)
        return named[1] if named else None


RAFT_SMALL = Weights(
    "RAFT-small",
    "raft-small/raft-small.pth",
    "raft_small_C_T_V2-01064c6d.pth",
    "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth",
)


def present(wanted: Weights, path: str | None = None) -> Path | None:
    """The checkpoint's file where it is on this machine, else None. An explicit path that is not there is an error."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{wanted.name}: no file at {path}")
        return Path(path)
    return next((place for place in _places(wanted) if place.is_file()), None)


def find(wanted: Weights, path: str | None = None) -> Path:
    """As `present`, then the hub. FileNotFoundError names the three ways to provide what could not be had."""
    found = present(wanted, path)
    if found is not None:
        return found
    import torch

    target = Path(torch.hub.get_dir()) / wanted.hub_folder / wanted.hub_file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(wanted.hub_url, str(target), hash_prefix=wanted.hash_prefix, progress=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{wanted.name}: not on this machine, and the hub cannot be reached ({error}). Give its path in the recipe, "
            f"put it at $GAMECRAFT_WEIGHTS/{wanted.file}, or download {wanted.hub_url} to {target}"
        ) from error
    return target


def _places(wanted: Weights) -> list[Path]:
    places = [Path(os.environ["GAMECRAFT_WEIGHTS"]) / wanted.file] if os.environ.get("GAMECRAFT_WEIGHTS") else []
    hub = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return [*places, Path(hub).expanduser() / "hub" / wanted.hub_folder / wanted.hub_file]


# What a folder of transformers holds, and one of diffusers.
_MODEL_FILES = ("config.json", "model_index.json")


def model_folder(name: str) -> str:
    """Where a model of many files is: the folder itself, its name's under $GAMECRAFT_WEIGHTS, else the name, for the hub."""
    own = os.environ.get("GAMECRAFT_WEIGHTS")
    places = [Path(name).expanduser(), *([Path(own) / name, Path(own) / name.rpartition("/")[2]] if own else [])]
    return next((str(place) for place in places if any((place / file).is_file() for file in _MODEL_FILES)), name)


@contextmanager
def named_if_missing(name: str) -> Iterator[None]:
    """Say by which three ways a model can be provided, where loading it fails because it cannot be had (FileNotFoundError)."""
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: not on this machine, and the hub cannot be reached ({' '.join(str(error).split())[:160]}). Name its "
            f"folder in the recipe, put it at $GAMECRAFT_WEIGHTS/{name.rpartition('/')[2]}, or let the hub be reached once"
        ) from error


def in_hub_cache(name: str) -> str | None:
    """The folder of a model's newest snapshot in the hub's cache; None where it was never downloaded."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return str(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
