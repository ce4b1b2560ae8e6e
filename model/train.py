"""A training run from a recipe: checks what it is given, builds the model, trains it, goes on where it stopped."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from curation import storage
from model.build import parts
from model.data.loader import DataSettings, Source, Windows, sources_of, stored_in
from model.data.windows import Clip, in_order
from model.parallel import dist, launch
from model.parallel.layout import seated
from model.recipes import TrainRecipe
from model.training.precision import settle
from model.training.sample_videos import as_played
from model.training.trainer import Trainer, unsaid

# Sources of which a clip is looked at before training; a shard's index does not hold sizes.
_LOOKED_AT = 32
# A clip's last frame may be missing, and stamps are rounded.
_SAME_RATE = 0.9


def train(
    recipe: TrainRecipe, outputs: Sequence[str], folder: str, watched: Sequence[str] = (), say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Train to the recipe's end, in `folder`; returns the notes of this run's steps. ValueError for data that cannot be used.

    One process a device, as torchrun starts them; alone it is a run of one. watched: see `Trainer`.
    """
    said = say if dist.first() else unsaid
    checked = _check_all(outputs, watched, recipe)
    _, count, device = dist.start()
    try:
        name, reason = settle(recipe.train.precision, folder, device)
        recipe = replace(recipe, train=replace(recipe.train, precision=name))
        said(f"{name} ({reason})")
        for words in checked:
            said(words)
        seat = seated(recipe.layout, device)
        made = parts(recipe, outputs, folder, seat, said)
        weights = sum(p.numel() for p in made.world.parameters())
        pins = {
            "codec": made.codec_hash,
            "precision": name,
            "vlm": recipe.model.thoughts,
            "control": asdict(recipe.control),
            "control_width": recipe.model.control_width,
        }
        trainer = Trainer(
            *made[:3], outputs, recipe.data, recipe.train, folder, seat.number, seat.of, watched, said, made.thoughts, pins
        )
        said(f"{weights / 1e6:.1f} M weights on {count} x {device.type}; step {trainer.step} of {recipe.train.steps}")
        return trainer.run()
    finally:
        dist.stop()


def train_on_ray(
    recipe: TrainRecipe,
    outputs: Sequence[str],
    folder: str,
    watched: Sequence[str] = (),
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """`train` in so many ranks of the Ray cluster that is connected (0: one for each of its GPUs, or one without).

    folder: where all nodes see it. ValueError for data that cannot be used.
    """
    for words in _check_all(outputs, watched, recipe):
        say(words)
    say(f"training on Ray; {os.path.join(folder, 'log.jsonl')} and TensorBoard's files beside it tell how it goes")
    launch.on_ray(_rank, {"given": (recipe, list(outputs), folder, list(watched))}, workers, os.path.join(folder, "ray"))


def _rank(config: dict[str, Any]) -> None:
    train(*config["given"])


def _check_all(outputs: Sequence[str], watched: Sequence[str], recipe: TrainRecipe) -> list[str]:
    """What there is to train on and to watch, in words. ValueError where it cannot be trained on."""
    lines = check(outputs, recipe)
    if watched:
        data = as_played(recipe.data, recipe.data.frames, watched)
        lines += check(watched, replace(recipe, data=data))
    return lines


def with_shares(recipe: TrainRecipe, outputs: Sequence[str], shares: Sequence[float]) -> TrainRecipe:
    """The recipe with these outputs as sources of its data. ValueError where there is not a share for each output."""
    if len(outputs) != len(shares):
        raise ValueError(f"--share must be given once for each --data: {len(shares)} for {len(outputs)}")
    sources = tuple(map(Source, outputs, shares))
    return replace(recipe, data=replace(recipe.data, sources=sources))


def check(outputs: Sequence[str], recipe: TrainRecipe) -> list[str]:
    """What there is to train on, in words: clips, then windows and hours for each phase of the curriculum and each source.

    ValueError with the remedy where no camera can be learned from, or a phase has no window: also the last phase, which would
    otherwise fail after days.
    """
    data = recipe.data
    stored = stored_in(outputs, data)
    clips = in_order(shard for source in stored for shard in source)
    cameras = Counter(clip.camera_status for clip in clips if clip.place("camera.npz"))
    believed = sum(cameras[status] for status in data.cameras)
    names = [", ".join(uris) for uris, _ in sources_of(outputs, data)]
    where = ", ".join(names)
    if not believed:
        raise ValueError(
            f"no clip of {where} has a camera that is believed ({dict(cameras) or 'none has one'}), so "
            "that no control can be learned; curate with a camera backend, or name more statuses in data.cameras"
        )
    looked_at = list({clip.video_id: clip for clip in clips}.values())[:_LOOKED_AT]
    metas = [_meta(clip) for clip in looked_at]
    for clip, meta in zip(looked_at, metas, strict=True):
        _check_stored(clip, meta, data, where)
    _check_scales(metas, data, where)
    seconds = sum(clip.seconds for clip in clips)
    lines = [f"{where}: {len(clips)} clips, {seconds / 60:.1f} min, {believed} with cameras"]
    for frames in dict.fromkeys(phase.frames for phase in recipe.train.curriculum):
        windows = Windows(outputs, replace(data, frames=frames), stored=stored)
        counts = windows.counts.items()
        each = [f"{name}: {count} windows, {count * frames / data.fps / 3600:.2f} h" for name, count in counts]
        shares = [f" ({stock.share:.0%} of samples)" if len(names) > 1 else "" for stock in windows.stocks]
        lines.append(f"{frames} frames: " + "; ".join(map("".join, zip(each, shares, strict=True))))
    return lines


def _check_scales(metas: Sequence[dict[str, Any]], data: DataSettings, where: str) -> None:
    """A camera that walks in an unknown unit is trained on as none (`poses.chained`); others must be there."""
    believed = [meta for meta in metas if meta.get("camera_status") in data.cameras]
    if believed and all(meta["camera_status"] == "ok" and meta.get("camera_scale_source") == "none" for meta in believed):
        raise ValueError(
            f"{where}: the scale of no camera is known in {len(believed)} clips looked at, so that no walk can be learned; "
            "curate longer sources, or footage with an engine's log of its camera"
        )


def _check_stored(clip: Clip, meta: dict[str, Any], data: DataSettings, where: str) -> None:
    """Pictures are not enlarged and frames not repeated: a model would learn to."""
    stored, fps = (meta["stored_width"], meta["stored_height"]), meta["stored_frames"] / clip.seconds
    if stored[0] < data.size[0] or stored[1] < data.size[1]:
        raise ValueError(
            f"{where}: clips are stored at {stored[0]}x{stored[1]} px, too small for {data.size[0]}x{data.size[1]}; set "
            "data.size to no more than that, or curate with a larger shard.encoding"
        )
    if fps < _SAME_RATE * data.fps:
        raise ValueError(
            f"{where}: clips are stored at {fps:.3g} fps, too slow for {data.fps:g}; set data.fps to no more than that, or "
            "curate footage with more"
        )


def _meta(clip: Clip) -> dict[str, Any]:
    place = clip.place("json")
    assert place is not None, clip.clip_id
    found: dict[str, Any] = json.loads(storage.read(place.uri, place.offset, place.size))
    return found
