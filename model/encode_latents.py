"""Latents of all windows of a recipe's curriculum, made before training (`gamecraft encode`): the codec then costs no step.

A window is encoded in the middle of its slack, so runs on latents have no jitter in time. What is there is not made again, and
more data adds shards. A window that cannot be read is put down with its reason, and runs leave it out.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from curation import storage
from model.backbone import vae
from model.backbone.vae import Codec
from model.data import latents
from model.data.loader import DataSettings, decoded, parts_of, stored_in
from model.data.windows import Window, in_order, runs, windows
from model.parallel import launch
from model.recipes import TrainRecipe, weights_folder
from model.training.checkpoint import differences
from model.training.flow_matching import coded
from model.training.frame_codec import fingerprint

# Windows of a shard: at 480p and 81 frames about 400 MB.
_A_SHARD = 64


class Unit(NamedTuple):
    """A shard to be made."""

    name: str
    windows: tuple[Window, ...]
    data: DataSettings


def encode(
    recipe: TrainRecipe,
    outputs: Sequence[str],
    folder: str,
    on_ray: bool = False,
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> int:
    """Encode what the recipe's phases read and is not there yet; how many windows that was. ValueError where the recipe has no
    `model.weights`, or the folder was made with another codec, size or rate.
    """
    if not recipe.model.weights:
        raise ValueError("encoding needs model.weights: a codec that is trained with the run cannot encode before it")
    place = os.path.join(weights_folder(recipe.model), "vae")
    _check_spec(folder, recipe.data, place)
    todo = list(units(recipe, outputs, folder))
    say(f"{sum(len(unit.windows) for unit in todo)} windows to encode in {len(todo)} shards")
    work, done = _Encoder(place, folder), 0
    for count in launch.each_on_ray(work, todo, workers) if on_ray and todo else map(work, todo):
        done += count
        say(f"{done} windows encoded")
    return done


def units(recipe: TrainRecipe, outputs: Sequence[str], folder: str) -> Iterator[Unit]:
    """Windows of all lengths of the curriculum that the folder lacks, a shard at a time; a shard's name follows from them."""
    there = latents.places(folder)
    chains = [run for stored in stored_in(outputs, recipe.data) for run in runs(in_order(stored))]
    for frames in sorted({phase.frames for phase in recipe.train.curriculum}):
        data = replace(recipe.data, frames=frames, latents="")
        missing = [w for w in windows(chains, frames, data.fps) if latents.name(w, frames) not in there]
        for first in range(0, len(missing), _A_SHARD):
            part = tuple(missing[first : first + _A_SHARD])
            names = " ".join(latents.name(window, frames) for window in part)
            yield Unit(f"{frames:03d}-{hashlib.sha256(names.encode()).hexdigest()[:16]}", part, data)


class _Encoder:
    """Makes shards with a codec that is loaded once, where the work is."""

    def __init__(self, place: str, folder: str) -> None:
        self._place, self._folder = place, folder
        self._codec: Codec | None = None

    def __call__(self, unit: Unit) -> int:
        if self._codec is None:
            self._codec = vae.load(self._place, "cuda" if torch.cuda.is_available() else "cpu")
        made = {latents.name(window, unit.data.frames): self._tried(window, unit.data) for window in unit.windows}
        latents.put(self._folder, unit.name, made)
        return len(made)

    def _tried(self, window: Window, data: DataSettings) -> latents.Encoded | str:
        assert self._codec is not None
        try:
            return encoded(window, data, self._codec)
        except (OSError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"


def encoded(window: Window, data: DataSettings, codec: Codec) -> latents.Encoded:
    """A window through the codec, in the middle of its slack."""
    shown, stamps_s = decoded(parts_of(window, data, 0.5), data)
    x0, image = coded({"video": shown["video"][None]}, codec, next(codec.parameters()).device)
    return latents.Encoded(x0[0], image[0], stamps_s)


def _check_spec(folder: str, data: DataSettings, place: str) -> None:
    """Put down what the latents are made with; ValueError where the folder has others."""
    spec = _spec(data, fingerprint(place))
    storage.put(_spec_uri(folder), json.dumps(spec).encode(), if_absent=True)
    check_made_with(folder, data, spec["codec"])


def check_made_with(folder: str, data: DataSettings, codec_hash: str) -> None:
    """ValueError where the latents in a folder are of another codec, size or rate, or where there are none."""
    try:
        found = json.loads(storage.read(_spec_uri(folder)))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no encoded.json there; data.latents must be a folder of `gamecraft encode`") from error
    if changed := differences(found, _spec(data, codec_hash)):
        raise ValueError(f"{folder}: {'; '.join(changed)}; use another folder, or those settings")


def _spec(data: DataSettings, codec_hash: str) -> dict[str, Any]:
    return {"codec": codec_hash, "size": list(data.size), "fps": data.fps}


def _spec_uri(folder: str) -> str:
    return storage.join(storage.normal(folder), "encoded.json")
