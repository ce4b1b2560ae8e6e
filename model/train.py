"""A training run from a recipe: check the data, build the model, and train it, from the newest checkpoint on."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from curation import storage
from curation.errors import InputError
from model.build import build
from model.data.loader import DataSettings, DataSource, Windows, shards_by_source, sources_of
from model.data.windows import StoredClip, clips_in_order
from model.distiller import Distiller
from model.parallel import dist, launch
from model.parallel.layout import place_rank
from model.recipes import TrainRecipe
from model.trainer import Trainer, no_log
from model.training import precision
from model.training.sample_videos import evaluation_data

# Of this many sources one clip is read and checked before training; the index of a shard does not hold sizes.
_CHECKED_SOURCES = 32
# Stored clips may be slower than data.fps by this factor: a clip's last frame may be missing, and times are rounded.
_MIN_FPS_RATIO = 0.9


def train(
    recipe: TrainRecipe,
    outputs: Sequence[str],
    folder: str,
    sample_from: Sequence[str] = (),
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train to the recipe's end in `folder`, and return the metrics of this call's steps.

    Started by torchrun it is one process per device; otherwise it is a run of one process. sample_from: see `Trainer`.
    InputError for data that cannot be trained on.
    """
    log = log if dist.is_first() else no_log
    data_lines = _check_all(outputs, sample_from, recipe)
    _, ranks, device = dist.start()
    try:
        dtype, reason = precision.choose(recipe.train.precision, folder, device)
        recipe = replace(recipe, train=replace(recipe.train, precision=dtype))
        log(f"{dtype} ({reason})")
        for line in data_lines:
            log(line)
        placement = place_rank(recipe.layout, device)
        parts = build(recipe, outputs, folder, placement, log)
        weights = sum(p.numel() for p in parts.world.parameters())
        kind = Distiller if recipe.objective.kind == "self_forcing" else Trainer
        trainer = kind(parts, placement, recipe, folder, outputs, sample_from, log)
        log(f"{weights / 1e6:.1f} M weights on {ranks} x {device.type}; step {trainer.step} of {recipe.train.steps}")
        return trainer.run()
    finally:
        dist.stop()


def train_on_ray(
    recipe: TrainRecipe,
    outputs: Sequence[str],
    folder: str,
    sample_from: Sequence[str] = (),
    workers: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Run `train` in `workers` ranks of the connected Ray cluster (0: one for each of its GPUs, or one without GPUs).

    All nodes must see `folder`. InputError for data that cannot be trained on.
    """
    for line in _check_all(outputs, sample_from, recipe):
        log(line)
    log(f"training on Ray; see {os.path.join(folder, 'log.jsonl')} and the TensorBoard files next to it")
    arguments = (recipe, list(outputs), folder, list(sample_from))
    launch.run_on_ray(_train_rank, {"arguments": arguments}, workers, os.path.join(folder, "ray"))


def _train_rank(config: dict[str, Any]) -> None:
    train(*config["arguments"])


def _check_all(outputs: Sequence[str], sample_from: Sequence[str], recipe: TrainRecipe) -> list[str]:
    """Run `check_data` for what is trained on and for what sample videos are made from; return the lines of both."""
    lines = check_data(outputs, recipe)
    if sample_from:
        data = evaluation_data(recipe.data, recipe.data.frames, sample_from)
        lines += check_data(sample_from, replace(recipe, data=data))
    return lines


def with_shares(recipe: TrainRecipe, outputs: Sequence[str], shares: Sequence[float]) -> TrainRecipe:
    """Return the recipe with these outputs as sources of its data. InputError where the number of shares differs."""
    if len(outputs) != len(shares):
        raise InputError(f"--share must be given once for each --data: {len(shares)} for {len(outputs)}")
    sources = tuple(map(DataSource, outputs, shares))
    return replace(recipe, data=replace(recipe.data, sources=sources))


def check_data(outputs: Sequence[str], recipe: TrainRecipe) -> list[str]:
    """Describe the training data in lines: clips, then windows and hours for each phase of the curriculum and each source.

    InputError with the remedy where no clip has a usable camera, or a phase has no window. All phases are checked now, since
    the last one would otherwise fail after days.
    """
    data = recipe.data
    shards = shards_by_source(outputs, data)
    clips = clips_in_order(shard for source in shards for shard in source)
    cameras = Counter(clip.camera_status for clip in clips if clip.member("camera.npz"))
    with_camera = sum(cameras[status] for status in data.cameras)
    names = [", ".join(uris) for uris, _ in sources_of(outputs, data)]
    where = ", ".join(names)
    if not with_camera:
        raise InputError(
            f"{where}: no clip has a camera with a status in data.cameras ({dict(cameras) or 'no clip has a camera'}), so that "
            "no control can be learned; curate with a camera backend, or add statuses to data.cameras"
        )
    checked = list({clip.video_id: clip for clip in clips}.values())[:_CHECKED_SOURCES]
    metas = [_read_meta(clip) for clip in checked]
    for clip, meta in zip(checked, metas, strict=True):
        _check_stored(clip, meta, data, where)
    _check_scales(metas, data, where)
    seconds = sum(clip.seconds for clip in clips)
    lines = [f"{where}: {len(clips)} clips, {seconds / 60:.1f} min, {with_camera} with cameras"]
    for frames in dict.fromkeys(phase.frames for phase in recipe.train.curriculum):
        windows = Windows(outputs, replace(data, frames=frames), shards=shards)
        counts = windows.counts.items()
        sizes = [f"{name}: {count} windows, {count * frames / data.fps / 3600:.2f} h" for name, count in counts]
        shares = [f" ({schedule.share:.0%} of samples)" if len(names) > 1 else "" for schedule in windows.schedules]
        lines.append(f"{frames} frames: " + "; ".join(map("".join, zip(sizes, shares, strict=True))))
    return lines


def _check_scales(metas: Sequence[dict[str, Any]], data: DataSettings, where: str) -> None:
    """Raise InputError where all checked cameras move and have no known scale: such clips are trained on without a camera."""
    cameras = [meta for meta in metas if meta.get("camera_status") in data.cameras]
    if cameras and all(meta["camera_status"] == "ok" and meta.get("camera_scale_source") == "none" for meta in cameras):
        raise InputError(
            f"{where}: none of the {len(cameras)} cameras checked has a known scale, so that no walk can be learned; curate "
            "longer sources, or footage with an engine's log of its camera"
        )


def _check_stored(clip: StoredClip, meta: dict[str, Any], data: DataSettings, where: str) -> None:
    """Raise InputError where pictures would be enlarged or frames repeated: a model would learn to do the same."""
    stored, fps = (meta["stored_width"], meta["stored_height"]), meta["stored_frames"] / clip.seconds
    if stored[0] < data.size[0] or stored[1] < data.size[1]:
        raise InputError(
            f"{where}: clips are stored at {stored[0]}x{stored[1]} px, too small for {data.size[0]}x{data.size[1]}; set "
            "data.size to no more than that, or curate with a larger shard.encoding"
        )
    if fps < _MIN_FPS_RATIO * data.fps:
        raise InputError(
            f"{where}: clips are stored at {fps:.3g} fps, too slow for {data.fps:g}; set data.fps to no more than that, or "
            "curate footage with more"
        )


def _read_meta(clip: StoredClip) -> dict[str, Any]:
    location = clip.member("json")
    assert location is not None, clip.clip_id
    meta: dict[str, Any] = json.loads(storage.read(*location))
    return meta
