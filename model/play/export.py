"""Export a trained run as a playable world: averaged weights, codec, controls, and start pictures from held-out footage."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch

from curation import storage
from curation.errors import InputError
from model import build
from model.backbone.frame_codec import FrameCodec
from model.data.captions import CaptionMix, caption
from model.data.loader import TrainingSample, Windows
from model.data.windows import StoredClip, stored_clips, touching_runs
from model.parallel import dist
from model.parallel.layout import place_rank
from model.recipes import TrainRecipe
from model.training.parts import ModelParts
from model.training.sample_videos import evaluation_data, fixed_samples
from model.world_files import WorldFile, plain_prompt, save_world

# Windows whose first frames are candidates for start pictures.
_CANDIDATES = 96


def export(
    recipe: TrainRecipe,
    run: str,
    outputs: Sequence[str],
    folder: str,
    starts: int = 6,
    int8: bool = False,
    prompts: bool = True,
    left_out: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> WorldFile:
    """Write the world of a run into a folder.

    outputs: curated outputs, best not trained on, whose first frames become start pictures and whose cameras give the
    intrinsics. int8: see `save_world`. prompts: whether the world follows prompts; false: play refuses them. left_out: prompts
    of the data that the world was seen not to follow, and does not offer. InputError for a recipe that is not causal, or a run
    without checkpoint.
    """
    if recipe.model.vlm_encoder:
        raise InputError(f"recipe {recipe.name} has model.vlm_encoder; play has no vision-language model yet")
    if not recipe.is_causal:
        raise InputError(f"recipe {recipe.name} is bidirectional and cannot be played; train it on with a causal objective")
    *_, device = dist.start()
    try:
        parts = build.load_trained(recipe, outputs, run, place_rank(recipe.layout, device), log)
        parts.world.to(torch.float32)
        frames = recipe.train.curriculum[0].frames
        data = evaluation_data(recipe.data, frames, outputs)
        data = replace(data, captions=replace(data.captions, dropout=0.0))
        windows = Windows(outputs, data)
        samples = fixed_samples(windows, _CANDIDATES)
        # A world with Wan's text encoder reads any text.
        known = prompts_of(outputs, data.captions) if prompts and not recipe.model.weights else {}
        texts = {text: lasts_s for text, lasts_s in known.items() if text not in left_out}
        file = world_file(recipe, parts, samples, texts, about)
        file = file if prompts else replace(file, reads_text=False)
        # The world begins without a prompt: pictures of recordings in which nothing happens.
        quiet = {w.key for w in windows.windows if not any(text_of_clip(clip, data.captions) for clip in w.clips)}
        plain = [sample for sample in samples if sample["key"] in quiet]
        pictures = start_pictures(plain or samples, starts)
        save_world(folder, file, parts.world, parts.codec, pictures, int8)
    finally:
        dist.stop()
    log(f"{folder}: {file.name}, {file.size[0]}x{file.size[1]} px at {file.causal.fps:g} fps, {len(pictures)} start pictures")
    return file


def world_file(
    recipe: TrainRecipe,
    parts: ModelParts,
    samples: Sequence[TrainingSample],
    prompts: Mapping[str, float | None],
    about: dict[str, Any] | None = None,
) -> WorldFile:
    """Return the description of a run's world. InputError where no sample has a camera."""
    cameras = [sample["intrinsics"] for sample in samples if sample["camera_known"]]
    if not cameras:
        raise InputError("no clip has a usable camera, so that the world's field of view is not known")
    fx, fy, cx, cy = torch.cat(cameras).median(0).values.tolist()
    codec = parts.codec
    sizes = None
    if isinstance(codec, FrameCodec):
        sizes = {"channels": recipe.codec.channels, "width": recipe.codec.width, "cell_px": recipe.codec.cell_px}
    return WorldFile(
        name=recipe.name,
        size=recipe.data.size,
        intrinsics=(fx, fy, cx, cy),
        backbone=parts.world.high.expert.config,
        noise=recipe.model.noise,
        causal=recipe.causal,
        control=recipe.control,
        two_experts=recipe.model.two_experts,
        control_width=recipe.model.control_width,
        frames_per_latent=codec.frames_per_latent,
        codec=sizes,
        weights=recipe.model.weights,
        reads_text=recipe.model.text == "words",
        prompts=tuple(prompts),
        lasts_s={text: lasts_s for text, lasts_s in prompts.items() if lasts_s is not None},
        about=about or {},
    )


def prompts_of(outputs: Sequence[str], captions: CaptionMix) -> dict[str, float | None]:
    """Return the texts of all clips, in lower case, without the empty one, and how long each lasts in seconds.

    None for a text that never ends: where it is followed by no text in the same recording, what it names is over.
    """
    lengths: dict[str, list[float | None]] = defaultdict(list)
    for run in touching_runs(stored_clips(outputs)):
        texts = [(text_of_clip(clip, captions), clip.seconds) for clip in run]
        spans = [(text, sum(seconds for _, seconds in span)) for text, span in groupby(texts, key=lambda each: each[0])]
        for (text, seconds), after in zip(spans, [*(text for text, _ in spans[1:]), None], strict=True):
            lengths[text].append(seconds if after == "" else None)
    return {text: _median(lengths[text]) for text in sorted(lengths) if text}


def _median(lengths_s: Sequence[float | None]) -> float | None:
    """Return the median length of spans; None where most did not end."""
    ended = sorted(length_s for length_s in lengths_s if length_s is not None)
    return ended[len(ended) // 2] if 2 * len(ended) > len(lengths_s) else None


@lru_cache(maxsize=4096)  # the windows of a recording share its clips
def text_of_clip(clip: StoredClip, captions: CaptionMix) -> str:
    """Return a clip's text in lower case, as prompts are read."""
    location = clip.member("json")
    meta = json.loads(storage.read(*location)) if location else {}
    return plain_prompt(caption(meta, captions, 1.0, 1.0))


def start_pictures(samples: Sequence[TrainingSample], count: int) -> list[tuple[str, np.ndarray]]:
    """Return first frames with names: the richest one, then always the one that differs most from those chosen."""
    pictures = [sample["video"][:, 0].permute(1, 2, 0).numpy() for sample in samples]
    small = np.stack([_thumbnail(picture) for picture in pictures])
    chosen = [int(np.argmax([np.abs(np.diff(picture.astype(float), axis=1)).mean() for picture in pictures]))]
    while len(chosen) < min(count, len(pictures)):
        distance = np.min([np.abs(small - small[i]).mean(1) for i in chosen], 0)
        chosen.append(int(distance.argmax()))
    return [(f"place-{number + 1}", pictures[i]) for number, i in enumerate(chosen)]


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    height, width = (side // 8 * 8 for side in picture.shape[:2])
    return picture[:height, :width].reshape(8, height // 8, 8, width // 8, 3).mean((1, 3)).ravel()
