"""Measure the speed of play: frames a second, time of a block by stage, memory, and the order of commit and emission.

gamecraft bench infer [WORLD ...] [--seconds 30] [--threads N]. Each world is played with changing keys by one session, as fast
as it goes. It reports three numbers: *core* is the time of the model's passes; *client* is what a viewer waits for from
sampled controls to encoded frames; *block* is the whole cycle with the commit after the frames are sent. Warm-up ends when the
window is full.

Every world is played in three orders: emit, then commit; commit, then emit; and, by the plain code, in the order of
Self-Forcing's published code, which writes the keys of the block into the cache in every pass, and emits after the last one.

--age BLOCKS plays a session for that long first, and then takes turns with fresh ones, whose blocks cost what young blocks cost
under the same load of the machine.

--ablate climbs from plain play to the fastest, switch by switch (`bench.ladder`). --shape plays a world of Wan's sizes with
random weights instead. --accelerate plays with these switches.
"""

import argparse
import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from bench import ladder
from bench.machine import describe
from bench.shapes import SHAPES
from model.accelerate.spec import BACKENDS, parse
from model.backbone.attention import KV
from model.control.spec import ControlState
from model.play.engine import Session, Start
from model.play.keys import parse_keys
from model.play.world import WorldEngine, load_engine
from model.training import throughput

IN_PLACE = "keys in place, then emit"
_KEYS = ("W", "W+LEFT", "LEFT", "S", "RIGHT", "W+RIGHT", ".")
_ROUNDS, _TURNS = 4, 40  # fresh sessions beside an old one, and blocks of each
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a row for each world and backend."""
    parser = argparse.ArgumentParser(prog="gamecraft bench infer", description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", default=["demo"])
    parser.add_argument("--seconds", type=float, default=30.0, help="of play for each row")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--backends", nargs="+", default=["auto"], choices=("auto", *BACKENDS))
    parser.add_argument("--accelerate", nargs="+", default=[], metavar="SWITCH[=VALUE]", help="see docs/play.md")
    parser.add_argument("--ablate", action="store_true", help="the ladder from plain play to the fastest")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="with --ablate: random weights of these sizes, not a world")
    parser.add_argument("--compile-backend", default="inductor", help="with --ablate: of torch.compile; default inductor")
    parser.add_argument("--age", type=int, default=0, metavar="BLOCKS", help="compare an old session with fresh ones instead")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chip = f" on {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if device.type == "cuda" else ""
    print(describe() + f", torch {torch.__version__}{chip}, {torch.get_num_threads()} threads")
    if options.ablate:
        for line in ablation(options.shape, options.worlds[0], device, options.seconds, options.compile_backend):
            print(line, flush=True)
        return
    switches = parse(options.accelerate)
    rows: list[dict[str, Any]] = []
    for world in options.worlds:
        for backend in options.backends:
            engine = load_engine(world, lambda _: None, backend, switches)
            if options.age:
                rows += aged(engine, options.age)
                continue
            for order in ("emit, then commit", "commit, then emit", IN_PLACE)[: 3 if engine.backend == "eager" else 2]:
                row = {"world": engine.info.name, "backend": engine.backend, "order": order}
                with keys_in_place(engine) if order == IN_PLACE else contextlib.nullcontext():
                    rows.append(row | measure(engine, options.seconds, commit_first=order != "emit, then commit"))
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")


def ablation(shape: str | None, world: str, device: torch.device, seconds: float, compile_backend: str) -> Iterator[str]:
    """Yield the ladder of a world, or of random weights of a shape."""
    if shape:
        playable = ladder.random_playable(shape, device)
        yield f"\nrandom weights: {SHAPES[shape].what}\n"
    else:
        playable, name = ladder.world_playable(world, device)
        yield f"\n{name}\n"
    yield from ladder.table(playable, lambda: math.inf, compile_backend, seconds=seconds)


def aged(engine: WorldEngine, blocks: int) -> list[dict[str, Any]]:
    """Return CPU time of blocks of a session after `blocks` blocks, and of fresh sessions, which take turns with it."""
    frames = engine.info.block_frames
    keys = script(frames)

    def play(session: Session) -> float:
        began = time.process_time()
        session.generate(next(keys))
        session.commit()
        return 1e3 * (time.process_time() - began)

    def start() -> Session:
        return engine.start(Start(engine.info.start_images[0].picture))[0]

    old = start()
    for _ in range(blocks):
        play(old)
    times: dict[str, list[float]] = {f"after {blocks} blocks": [], "fresh": []}
    for _ in range(_ROUNDS):
        young = start()
        for _ in range(_TURNS):
            for name, session in zip(times, (old, young), strict=True):
                times[name].append(play(session))
    return [
        {"world": engine.info.name, "backend": engine.backend, "session": name, "CPU ms of a block": f"{np.median(value):.1f}"}
        for name, value in times.items()
    ]


def script(frames: int) -> Iterator[list[ControlState]]:
    """Yield controls of blocks: keys that change."""
    rng = np.random.default_rng(0)
    while True:
        held = str(rng.choice(_KEYS))
        for state in parse_keys(f"{held}*{int(rng.integers(4, 20))}"):
            yield [state] * frames


@contextlib.contextmanager
def keys_in_place(engine: WorldEngine) -> Iterator[None]:
    """Write the keys and values of every pass into a buffer, as a cache that is written in place has it."""
    attentions = [block.attn1 for block in engine.loaded.world.high.expert.blocks]
    plain = [attention.keys for attention in attentions]

    def writing(keys: Callable[[Tensor], KV]) -> Callable[[Tensor], KV]:
        buffers: list[Tensor] = []

        def write(source: Tensor) -> KV:
            made = keys(source)
            if not buffers or buffers[0].shape != made.k_BSNH.shape:
                buffers[:] = [torch.empty_like(made.k_BSNH), torch.empty_like(made.v_BSNH)]
            return KV(buffers[0].copy_(made.k_BSNH), buffers[1].copy_(made.v_BSNH))

        return write

    for attention, keys in zip(attentions, plain, strict=True):
        attention.keys = writing(keys)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.keys


def measure(engine: WorldEngine, seconds: float, commit_first: bool) -> dict[str, Any]:
    """Play one session for some seconds; return its speed."""
    began = time.perf_counter()
    session, _ = engine.start(Start(engine.info.start_images[0].picture))
    start_s = time.perf_counter() - began
    spec, frames = engine.loaded.file.causal, engine.info.block_frames
    keys = script(frames)
    warm = spec.window // spec.block + 2
    stages: dict[str, list[float]] = {}
    client, whole, memory = [], [], []
    first_tick = 0.0
    end = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < end or number < warm + 8:
        states = next(keys)
        start = time.perf_counter()
        made = session.generate(states)
        commit_s = session.commit() if commit_first else 0.0
        encoding = time.perf_counter()
        for frame in made.frames:
            cv2.imencode(".jpg", frame[..., ::-1], _JPEG)
        sent = time.perf_counter()
        if not commit_first:
            commit_s = session.commit()
        done = time.perf_counter()
        number += 1
        if number == 1:
            first_tick = sent - start
        if number <= warm:
            continue
        for stage, value in {**made.seconds, "encode": sent - encoding, "commit": commit_s}.items():
            stages.setdefault(stage, []).append(value)
        client.append(sent - start)
        whole.append(done - start)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    means = {stage: 1e3 * float(np.mean(values)) for stage, values in stages.items()}
    core_s = (means["denoise"] + means["commit"]) / 1e3
    half = len(whole) // 2
    return {
        "start s": f"{start_s:.2f}",
        "first tick ms": f"{1e3 * first_tick:.0f}",
        "FPS core": f"{frames / core_s:.1f}",
        "FPS": f"{frames / float(np.mean(whole)):.1f}",
        "controls to frames ms p50/p99": f"{1e3 * np.percentile(client, 50):.0f}/{1e3 * np.percentile(client, 99):.0f}",
        "block ms p50/p99": f"{1e3 * np.percentile(whole, 50):.0f}/{1e3 * np.percentile(whole, 99):.0f}",
        "stages ms": ", ".join(f"{stage} {value:.1f}" for stage, value in means.items() if value >= 0.05),
        "share of peak FLOPs": f"{flops(engine) / float(np.mean(whole)) / peak(engine):.0%}",
        "second half/first": f"{float(np.mean(whole[half:]) / np.mean(whole[:half])):.2f}",
        "memory MB": f"{memory[0]:.0f} -> {memory[-1]:.0f}",
    }


def flops(engine: WorldEngine) -> float:
    """Return the floating-point operations of a block's passes: a third of a training step's for each pass."""
    file, codec = engine.loaded.file, engine.loaded.codec
    spec = file.causal
    latents = spec.block, file.size[1] // codec.cell_px, file.size[0] // codec.cell_px
    tokens = throughput.count_tokens(file.backbone, latents)
    steps = len(spec.steps)
    passes = (2 * steps - 1 if spec.sampler == "heun" else steps) + 1
    return passes * throughput.training_flops(file.backbone, tokens, 8) / 3


def peak(engine: WorldEngine) -> float:
    """Return the operations a second that the device reaches, as training measures it."""
    return throughput.peak_flops(engine.device, next(engine.loaded.world.parameters()).dtype)


if __name__ == "__main__":
    main()
