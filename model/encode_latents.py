"""Encode all windows of a recipe's curriculum before training (`gamecraft encode`), so that no training step runs the codec.

A window is encoded in the middle of its slack, so training on latents has no jitter in time. Stored windows are not encoded
again, and new data adds shards. A window that cannot be read is stored with the reason, and training leaves it out.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from curation import storage
from curation.errors import InputError
from model.backbone import vae
from model.backbone.vae import Codec
from model.data import latents
from model.data.loader import DataSettings, decode_window, shards_by_source, times_by_clip
from model.data.windows import Window, clips_in_order, touching_runs, windows
from model.parallel import launch
from model.recipes import TrainRecipe, weights_folder
from model.training.checkpoint import differences
from model.training.flow_matching import encode_video
from model.training.frame_codec import fingerprint

# At 480p and 81 frames a shard has about 400 MB.
_WINDOWS_PER_SHARD = 64


class LatentShard(NamedTuple):
    """A shard of windows that is to be encoded."""

    name: str
    windows: tuple[Window, ...]
    data: DataSettings


def encode(
    recipe: TrainRecipe,
    outputs: Sequence[str],
    folder: str,
    on_ray: bool = False,
    workers: int = 0,
    log: Callable[[str], None] = print,
) -> int:
    """Encode the windows of the recipe's phases that the folder lacks, and return how many those were.

    InputError where the recipe has no `model.weights`, or the folder was made with another codec, size or rate.
    """
    if not recipe.model.weights:
        raise InputError("encoding needs model.weights: a codec that is trained with the run cannot encode before it")
    vae_folder = os.path.join(weights_folder(recipe.model), "vae")
    _store_spec(folder, recipe.data, vae_folder)
    todo = list(missing_shards(recipe, outputs, folder))
    log(f"{sum(len(shard.windows) for shard in todo)} windows to encode in {len(todo)} shards")
    encode_shard, done = _Encoder(vae_folder, folder), 0
    for count in launch.map_on_ray(encode_shard, todo, workers) if on_ray and todo else map(encode_shard, todo):
        done += count
        log(f"{done} windows encoded")
    return done


def missing_shards(recipe: TrainRecipe, outputs: Sequence[str], folder: str) -> Iterator[LatentShard]:
    """Yield windows of all clip lengths of the curriculum that the folder lacks, a shard at a time, named by its windows."""
    stored = latents.locations(folder)
    runs = [run for shards in shards_by_source(outputs, recipe.data) for run in touching_runs(clips_in_order(shards))]
    for frames in sorted({phase.frames for phase in recipe.train.curriculum}):
        data = replace(recipe.data, frames=frames, latents="")
        missing = [
            w
            for w in windows(runs, frames, data.fps, data.join_clips, data.at_boundaries)
            if latents.window_name(w, frames) not in stored
        ]
        for first in range(0, len(missing), _WINDOWS_PER_SHARD):
            part = tuple(missing[first : first + _WINDOWS_PER_SHARD])
            names = " ".join(latents.window_name(window, frames) for window in part)
            yield LatentShard(f"{frames:03d}-{hashlib.sha256(names.encode()).hexdigest()[:16]}", part, data)


class _Encoder:
    """Encodes shards with a codec that is loaded once, in the process that encodes."""

    def __init__(self, vae_folder: str, folder: str) -> None:
        self._vae_folder, self._folder = vae_folder, folder
        self._codec: Codec | None = None

    def __call__(self, shard: LatentShard) -> int:
        if self._codec is None:
            self._codec = vae.load(self._vae_folder, "cuda" if torch.cuda.is_available() else "cpu")
        frames = shard.data.frames
        encoded = {latents.window_name(w, frames): self._encode_or_reason(w, shard.data) for w in shard.windows}
        latents.write_shard(self._folder, shard.name, encoded)
        return len(encoded)

    def _encode_or_reason(self, window: Window, data: DataSettings) -> latents.EncodedWindow | str:
        assert self._codec is not None
        try:
            return encode_window(window, data, self._codec)
        except (OSError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"


def encode_window(window: Window, data: DataSettings, codec: Codec) -> latents.EncodedWindow:
    """Encode a window, in the middle of its slack."""
    tensors, stamps_s = decode_window(times_by_clip(window, data, 0.5), data)
    x0, image = encode_video({"video": tensors["video"][None]}, codec, next(codec.parameters()).device)
    return latents.EncodedWindow(x0[0], image[0], stamps_s)


def _store_spec(folder: str, data: DataSettings, vae_folder: str) -> None:
    """Store what the latents are encoded with. InputError where the folder's latents were encoded with something else."""
    spec = _spec(data, fingerprint(vae_folder))
    storage.put(_spec_uri(folder), json.dumps(spec).encode(), if_absent=True)
    check_encoded_with(folder, data, spec["codec"])


def check_encoded_with(folder: str, data: DataSettings, codec_hash: str) -> None:
    """Raise InputError where a folder has no latents, or latents of another codec, size or rate."""
    try:
        stored = json.loads(storage.read(_spec_uri(folder)))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no encoded.json there; data.latents must be a folder of `gamecraft encode`") from error
    if changed := differences(stored, _spec(data, codec_hash)):
        raise InputError(f"{folder}: {'; '.join(changed)}; use another folder, or those settings")


def _spec(data: DataSettings, codec_hash: str) -> dict[str, Any]:
    return {"codec": codec_hash, "size": list(data.size), "fps": data.fps}


def _spec_uri(folder: str) -> str:
    return storage.join(storage.normal(folder), "encoded.json")
