"""The ladder from plain play to the fastest, rung by rung: frames a second of the model alone, and as a viewer gets them."""

import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from bench.shapes import Shape, random_codec, random_world
from model.backbone.vae import Codec, to_uint8
from model.causal.cache import RingCache, TokenGrid
from model.causal.rollout import Rollout, StreamStart
from model.control.trajectory import PlayerState
from model.parallel.recompute import compile_blocks
from model.training import throughput
from model.world import World


def table(shape: Shape, device: torch.device, left_s: Callable[[], float], tiny: bool = False) -> Iterator[str]:
    """Yield the rows for a world of random weights."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    without_diffusers = find_spec("diffusers") is None
    codec = random_codec(device, dtype, tiny=without_diffusers, small=tiny)
    world = random_world(shape, device, dtype)
    weights = sum(p.numel() for p in world.parameters())
    yield f"{shape.what}; {weights / 1e9:.2f} B weights in {str(dtype).removeprefix('torch.')}, {shape.causal}"
    yield ""
    yield f"Decoder: {'TAEHV (diffusers is not installed)' if without_diffusers else 'that of Wan'}, random weights."
    yield ""
    first = True
    for label, prepare in (("eager", lambda: None), ("+ compile", lambda: compile_all(world, "aot_eager" if tiny else "inductor"))):
        if left_s() < 20:
            yield f"| {label} | no time left |"
            continue
        try:
            prepare()
            row = measure(world, codec, shape, device, left_s)
        except Exception as error:  # one rung must not lose the others
            yield f"| {label} | {type(error).__name__}: {str(error).splitlines()[0]} |"
            continue
        if first:
            yield "| | " + " | ".join(row) + " |"
            yield "|---" * (len(row) + 1) + "|"
            first = False
        yield f"| {label} | " + " | ".join(row.values()) + " |"


def compile_all(world: World, backend: str) -> None:
    for expert in {world.high, world.low}:
        compile_blocks(expert.expert, backend)


def measure(world: World, codec: Codec, shape: Shape, device: torch.device, left_s: Callable[[], float]) -> Mapping[str, str]:
    """Play until the window is full, then as many blocks as fill a few seconds."""
    rows, columns = shape.grid
    height, width = rows * codec.cell_px, columns * codec.cell_px
    picture = torch.linspace(-1, 1, 3 * height * width, device=device).view(1, 3, height, width)
    text = torch.randn(1, shape.text_tokens, shape.backbone.text_dim, generator=torch.Generator().manual_seed(0)).to(device)
    intrinsics = torch.tensor([[0.5 * width, 0.5 * width, 0.5 * width, 0.5 * height]], device=device)
    grid = TokenGrid.of(world.high.expert, rows, columns)
    ring = RingCache(shape.causal, grid, world)
    began = time.perf_counter()
    stream = Rollout(world, codec, shape.causal, StreamStart(picture, intrinsics, text), 0, ring)
    _wait(device)
    start_s = time.perf_counter() - began
    times: dict[str, list[float]] = {"denoise": [], "decode": [], "pictures": [], "commit": [], "block": []}
    warm = shape.causal.window // shape.causal.block + 1
    first_s, number, played_s = 0.0, 0, 0.0
    frames = stream.block_frames
    while number < warm + 3 or (played_s < 4.0 and left_s() > 12):
        poses = [PlayerState(z=0.03 * i, yaw_deg=2.0 * i).pose for i in range(number * frames, (number + 1) * frames)]
        pose = torch.from_numpy(np.stack(poses)).float()[None].to(device)
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            _wait(device)
            marks.append(time.perf_counter())

        stream.generate(pose)
        mark()
        video = stream.decode()
        mark()
        encode_pictures(video)
        mark()
        stream.commit()
        mark()
        number += 1
        first_s = first_s or marks[-1] - marks[0]
        if number > warm:
            for stage, before, after in zip(list(times)[:4], marks, marks[1:], strict=False):
                times[stage].append(after - before)
            times["block"].append(marks[-1] - marks[0])
            played_s += marks[-1] - marks[0]
    means = {stage: float(np.mean(values)) for stage, values in times.items()}
    core_s = means["denoise"] + means["commit"]
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return {
        "start s": f"{start_s:.1f}",
        "first block s": f"{first_s:.1f}",
        "core FPS": f"{frames / core_s:.2f}",
        "client FPS": f"{frames / means['block']:.2f}",
        "block ms p50/p99": f"{1e3 * np.percentile(times['block'], 50):.0f}/{1e3 * np.percentile(times['block'], 99):.0f}",
        "stages ms": ", ".join(f"{stage} {1e3 * value:.0f}" for stage, value in list(means.items())[:4]),
        "MFU": f"{flops(shape) / core_s / throughput.peak_flops(device, next(world.parameters()).dtype):.0%}",
        "peak GiB": f"{peak_gib:.1f}",
    }


def flops(shape: Shape) -> float:
    """Return the operations of a block's passes once the window is full: each step, and the commit."""
    spec, (rows, columns) = shape.causal, shape.grid
    tokens = throughput.count_tokens(shape.backbone, (spec.block, rows, columns))
    keys = tokens // spec.block * (spec.sink + spec.window + spec.block)
    return (len(spec.steps) + 1) * throughput.forward_flops(shape.backbone, tokens, keys, shape.text_tokens)


def encode_pictures(video: Any) -> list[bytes]:
    """Return the frames of a block as JPEGs, as a viewer gets them."""
    import cv2

    frames = to_uint8(video[0].permute(1, 2, 3, 0)).cpu().numpy()
    return [cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes() for frame in frames]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
