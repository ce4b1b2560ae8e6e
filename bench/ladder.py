"""The ladder from plain play to the fastest, rung by rung: frames a second of the model alone, and as a viewer gets them.

A rung adds a switch to those below it. It stays if it runs and is faster; the next one stands on the fastest so far. *Core*
counts the passes of the model, *client* everything until the frames are JPEGs. The public column has LingBot-World's figures:
the backbone of Wan2.2-I2V-A14B with a camera, 480x832, blocks of 12 frames, four steps and a commit.
"""

import argparse
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from bench.shapes import SHAPES, has_diffusers, random_codec, random_world
from curation.errors import InputError
from model.accelerate.apply import Accelerator
from model.accelerate.spec import AccelerateSpec
from model.backbone.vae import Codec, to_signed, to_uint8
from model.causal.cache import TokenGrid
from model.causal.rollout import Rollout, StreamStart
from model.causal.spec import CausalSpec
from model.config import BackboneConfig
from model.control.trajectory import PlayerState
from model.parallel import dist
from model.training import throughput
from model.world import World
from model.world_files import find_world, load_world

_PLAIN = AccelerateSpec(backend="eager")
_LEAST = 4  # blocks that are measured
_RESULT = "measured: "  # how a rank's answer begins


class Rung(NamedTuple):
    """A rung: what it switches on, on how many ranks, and what is published about it."""

    name: str
    switches: dict[str, Any]
    ranks: int = 1
    public: str = ""


RUNGS = (
    Rung("eager", {}, public="1 H200: 4.0 core, 3.7 client"),
    Rung("+ compile", {"compile": True}, public="1 H200: 4.9 core"),
    Rung("+ fp8", {"weights": "fp8"}, public="8 H100: 1.11 times (LightX2V)"),
    Rung("+ sage", {"attention": "sage"}),
    Rung("+ overlapped decode", {"decode": "overlapped"}),
    Rung("+ cuDNN's attention", {"attention": "cudnn"}),
    Rung("+ CUDA graphs", {"cuda_graphs": True}),
    Rung("+ fp8 cache", {"cache": "fp8"}),
    Rung("+ fp8 by our own code", {"weights": "fp8", "fp8_backend": "own"}),
    Rung("+ SP2", {"sequence_parallel": 2, "cuda_graphs": False}, 2, "2 H200: 7.7 core"),
    Rung("+ SP4", {"sequence_parallel": 4, "cuda_graphs": False}, 4, "4 H200: 16-17 core, 8.9 client"),
)


@dataclass(frozen=True)
class Playable:
    """What a rung plays: a way to get the world anew, since switches change it in place, and its codec."""

    world: Callable[[], World]
    codec: Codec
    causal: CausalSpec
    backbone: BackboneConfig
    grid: tuple[int, int]
    text: Tensor
    picture: Tensor
    intrinsics: Tensor
    source: tuple[str, str]  # arguments of this program that make it again, on other ranks

    @property
    def device(self) -> torch.device:
        return self.text.device


class Measured(NamedTuple):
    """What a rung reached."""

    core_fps: float
    client_fps: float
    cells: dict[str, str]


def random_playable(name: str, device: torch.device) -> Playable:
    """Return a world of random weights of a shape with Wan's decoder, or with a tiny one where diffusers is missing."""
    shape, dtype = SHAPES[name], torch.bfloat16 if device.type == "cuda" else torch.float32
    codec = random_codec(device, dtype, tiny=not has_diffusers(), small=name == "tiny")
    height, width = (side * codec.cell_px for side in shape.grid)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, shape.text_tokens, shape.backbone.text_dim, generator=generator)
    picture = torch.linspace(-1, 1, 3 * height * width, device=device).view(1, 3, height, width)
    intrinsics = torch.tensor([[0.5 * width, 0.5 * width, 0.5 * width, 0.5 * height]], device=device)
    return Playable(
        lambda: random_world(shape, device, dtype),
        codec,
        shape.causal,
        shape.backbone,
        shape.grid,
        text.to(device),
        picture,
        intrinsics,
        ("--shape", name),
    )


def world_playable(checkpoint: str, device: torch.device) -> tuple[Playable, str]:
    """Return an exported world for the ladder, and its name."""
    folder = find_world(checkpoint)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    loaded = load_world(folder, device, dtype)
    file = loaded.file
    width, height = file.size
    picture = to_signed(torch.from_numpy(loaded.starts[0][1]).permute(2, 0, 1)[None]).to(device)
    playable = Playable(
        lambda: load_world(folder, device, dtype).world,
        loaded.codec,
        file.causal,
        file.backbone,
        (height // loaded.codec.cell_px, width // loaded.codec.cell_px),
        loaded.encode_text([""]).to(device),
        picture,
        torch.tensor([file.intrinsics], device=device),
        ("--world", checkpoint),
    )
    return playable, f"{file.name}, {width}x{height} px"


def table(
    playable: Playable,
    left_s: Callable[[], float],
    compile_backend: str = "inductor",
    rungs: Sequence[Rung] = RUNGS,
    seconds: float = 4.0,
) -> Iterator[str]:
    """Yield the rows of a table in Markdown, one as each rung is done. left_s: seconds until the last row should be there."""
    columns: list[str] = []
    best, best_fps = _PLAIN, 0.0
    for rung in rungs:
        switched = replace(best, **rung.switches)
        if switched.compile:
            switched = replace(switched, compile_backend=compile_backend)
        reason = cannot_run(rung, playable)
        changes_graphs = not {"compile", "weights", "attention"}.isdisjoint(rung.switches)
        compiles = switched.compile and compile_backend == "inductor" and changes_graphs  # others come from the disk's cache
        if not reason and left_s() < (45 if compiles else 20):
            reason = "no time left"
        if not reason:
            try:
                if rung.ranks > 1:
                    measured = measure_on_ranks(playable, switched, seconds, left_s())
                else:
                    measured = measure(playable, switched, left_s, seconds)
            except InputError as error:
                reason = str(error).removeprefix("--accelerate: ")
            except Exception as error:  # one rung must not lose the others
                reason = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if reason:
            yield f"| {rung.name} | {reason} |"
            continue
        if not columns:
            columns = ["core FPS", "client FPS", *measured.cells, "kept", "public"]
            yield "| | " + " | ".join(columns) + " |"
            yield "|---" * (len(columns) + 1) + "|"
        faster = measured.client_fps > best_fps
        cells = [f"{measured.core_fps:.2f}", f"{measured.client_fps:.2f}", *measured.cells.values()]
        cells += ["yes" if faster else "no", rung.public]
        yield f"| {rung.name} | " + " | ".join(cells) + " |"
        if faster:
            best, best_fps = switched, measured.client_fps


def cannot_run(rung: Rung, playable: Playable) -> str:
    """Return why a rung cannot run on this machine; empty where it can."""
    if rung.ranks == 1:
        return ""
    heads, tokens = playable.backbone.num_attention_heads, throughput.count_tokens(playable.backbone, (1, *playable.grid))
    for what, count in (("heads", heads), ("tokens a latent", tokens)):
        if count % rung.ranks:
            return f"{count} {what} do not divide among {rung.ranks} ranks"
    is_gpu = playable.device.type == "cuda"
    devices = torch.cuda.device_count() if is_gpu else os.cpu_count() or 1
    if devices < rung.ranks:
        return f"needs {rung.ranks} {'GPUs' if is_gpu else 'cores'}, this machine has {devices}"
    return ""


def measure_on_ranks(playable: Playable, spec: AccelerateSpec, seconds: float, limit_s: float) -> Measured:
    """Measure in as many new processes as the switches name. RuntimeError, with the first error of theirs, where they fail."""
    torch.cuda.empty_cache()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(spec.sequence_parallel)]
    command += ["--master-port", str(_free_port()), "-m", "bench.ladder", *playable.source, "--device", playable.device.type]
    command += ["--seconds", str(seconds), "--switches", json.dumps(asdict(spec))]
    timeout = None if math.isinf(limit_s) else max(1.0, limit_s)
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            return Measured(*json.loads(line.removeprefix(_RESULT)))
    # The ranks write their errors first; the launcher adds its own.
    errors = [line for line in done.stderr.splitlines() if re.match(r"(\[rank\d+\]:)?\s*[\w.]*(Error|Exception)\b.*:", line)]
    said = errors[0] if errors else " ".join(done.stderr.split())[-300:]
    raise RuntimeError(said.strip() or "the ranks said nothing")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def measure(
    playable: Playable,
    spec: AccelerateSpec,
    left_s: Callable[[], float],
    seconds: float = 4.0,
    mesh: DeviceMesh | None = None,
) -> Measured:
    """Play until the window is full and everything is compiled, then blocks for some seconds.

    mesh: ranks that do the same. They must make as many blocks, so that they make the fewest, not as many as fill the time.
    """
    device, causal = playable.device, playable.causal
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    notes: list[str] = []
    began = time.perf_counter()
    accelerator = Accelerator(playable.world(), causal, spec, mesh, notes.append)
    grid, decoder = TokenGrid.of(accelerator.world.high.expert, *playable.grid), accelerator.decoder(playable.codec)
    stream = Rollout(
        accelerator.world,
        playable.codec,
        causal,
        StreamStart(playable.picture, playable.intrinsics, playable.text),
        0,
        accelerator.cache(grid),
        accelerator.passes(),
        spec.keeps_text,
        decoder,
    )
    thread = accelerator.decode_thread(decoder)
    wait(device)
    start_s = time.perf_counter() - began
    warm, number, frames = causal.window // causal.block + 2, 0, stream.block_frames
    stages: dict[str, list[float]] = {"denoise": [], "decode": [], "pictures": [], "commit": []}
    blocks: list[float] = []
    pending: Future[list[bytes]] | None = None
    warm_s, last = 0.0, time.perf_counter()
    while number < warm + _LEAST or (mesh is None and sum(blocks) < seconds and left_s() > 12):
        poses = [PlayerState(z=0.03 * i, yaw_deg=2.0 * i).pose for i in range(number * frames, (number + 1) * frames)]
        pose = torch.from_numpy(np.stack(poses)).float()[None].to(device)
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            wait(device)
            marks.append(time.perf_counter())

        stream.generate(pose)
        mark()
        if thread is None:
            video = stream.decode()
            mark()
            encode_pictures(video)
            mark()
        else:
            coming = thread.then(encode_pictures, stream.decode_in(thread.submit))
            mark()
            if pending is not None:  # the block before: it was decoded while this one was made
                pending.result()
            pending = coming
            mark()
        stream.commit()
        mark()
        number += 1
        now = time.perf_counter()
        if number > warm:
            for times, before, after in zip(stages.values(), marks, marks[1:], strict=False):
                times.append(after - before)
            blocks.append(now - last)
        else:
            warm_s += now - last
        last = now
    if thread is not None:
        assert pending is not None
        pending.result()
        thread.close()
    means = {stage: float(np.mean(times)) for stage, times in stages.items()}
    core_s = means["denoise"] + means["commit"]
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    share = flops(playable) / core_s / throughput.peak_flops(device, next(accelerator.world.parameters()).dtype)
    cells = {
        "block ms p50/p99": f"{1e3 * np.percentile(blocks, 50):.0f}/{1e3 * np.percentile(blocks, 99):.0f}",
        "stages ms": ", ".join(f"{stage} {1e3 * value:.0f}" for stage, value in means.items()),
        "share of bfloat16 peak" if device.type == "cuda" else "share of peak": f"{share:.0%}",
        "start s": f"{start_s:.1f}",
        "warm-up s": f"{warm_s:.1f}",
        "peak GiB": f"{peak_gib:.1f}",
        "notes": "; ".join(notes),
    }
    return Measured(frames / core_s, frames / float(np.mean(blocks)), cells)


def flops(playable: Playable) -> float:
    """Return the operations of a block's passes once the window is full: of each step, and of the commit."""
    spec, (rows, columns) = playable.causal, playable.grid
    tokens = throughput.count_tokens(playable.backbone, (spec.block, rows, columns))
    keys = tokens // spec.block * (spec.sink + spec.window + spec.block)
    passes = (2 * len(spec.steps) - 1 if spec.sampler == "heun" else len(spec.steps)) + 1
    return passes * throughput.forward_flops(playable.backbone, tokens, keys, playable.text.shape[1])


def encode_pictures(video: Tensor) -> list[bytes]:
    """Return the frames of a block as JPEGs, as a viewer gets them."""
    import cv2

    frames = to_uint8(video[0].permute(1, 2, 3, 0)).cpu().numpy()
    return [cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes() for frame in frames]


def wait(device: torch.device) -> None:
    """Wait for what a GPU was given to do on the current stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one rung on this rank; rank 0 prints what it reached."""
    parser = argparse.ArgumentParser(prog="bench.ladder", description=main.__doc__)
    parser.add_argument("--world")
    parser.add_argument("--shape", choices=sorted(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--switches", required=True, help="an AccelerateSpec as JSON")
    options = parser.parse_args(arguments)
    rank, ranks, device = dist.start()
    mesh = init_device_mesh(device.type, (ranks,))
    playable = random_playable(options.shape, device) if options.shape else world_playable(options.world, device)[0]
    spec = AccelerateSpec(**json.loads(options.switches))
    measured = measure(playable, spec, lambda: math.inf, options.seconds, mesh)
    if rank == 0:
        print(_RESULT + json.dumps(measured), flush=True)
    dist.stop()


if __name__ == "__main__":
    main()
