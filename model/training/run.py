"""A training run from a recipe: checks what it is given, builds the model, trains it, goes on where it stopped."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from curation import storage
from model.build import parts
from model.data.runs import Clip, stored_clips
from model.parallel import ranks
from model.recipes import TrainRecipe
from model.training.trainer import Trainer


def train(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, watched: Sequence[str] = (), say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Train to the recipe's end, in `folder`; returns the notes of this run's steps. ValueError for data that cannot be used.

    One process a device, as torchrun starts them; alone it is a run of one. watched: see `Trainer`.
    """
    *_, device = ranks.start()
    said = say if ranks.first() else _unsaid
    try:
        for part in (outputs, watched):
            if part:
                said(check(part, recipe))
        world, codec, words, seat = parts(recipe, outputs, folder, device, said)
        trainer = Trainer(world, codec, words, outputs, recipe.data, recipe.train, folder, *seat, watched, said)
        weights = sum(p.numel() for p in world.parameters()) / 1e6
        said(f"{weights:.1f} M weights on {ranks.count()} x {device.type}; step {trainer.step} of {recipe.train.steps}")
        return trainer.run()
    finally:
        ranks.stop()


def check(outputs: Sequence[str], recipe: TrainRecipe) -> str:
    """What there is to train on, in words. ValueError where it cannot be trained on, with the remedy."""
    clips, size = stored_clips(outputs), recipe.data.size
    cameras = Counter(clip.camera_status for clip in clips if clip.place("camera.npz"))
    believed = sum(cameras[status] for status in recipe.data.cameras)
    where = ", ".join(outputs)
    if not believed:
        raise ValueError(
            f"no clip of {where} has a camera that is believed ({dict(cameras) or 'none has one'}), so "
            "that no control can be learned; curate with a camera backend, or name more statuses in data.cameras"
        )
    meta = _meta(clips[0])
    stored = meta["stored_width"], meta["stored_height"]
    if stored[0] < size[0] or stored[1] < size[1]:
        raise ValueError(
            f"{where}: clips are stored at {stored[0]}x{stored[1]} px, too small for {size[0]}x{size[1]}; set "
            "data.size to no more than that, or curate with a larger shard.encoding"
        )
    seconds = sum(clip.seconds for clip in clips)
    return f"{where}: {len(clips)} clips, {seconds / 60:.1f} min, {believed} with cameras"


def _meta(clip: Clip) -> dict[str, Any]:
    place = clip.place("json")
    assert place is not None, clip.clip_id
    found: dict[str, Any] = json.loads(storage.read(place.uri, place.offset, place.size))
    return found


def _unsaid(words: str) -> None:
    """What ranks but the first say."""
