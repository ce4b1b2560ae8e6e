"""Program that test_accelerate_ranks.py starts in each rank: do tasks from stdin on the tiny world that is played.

A task is a line of JSON: where results go, and what to do. Rank 0 answers each with a line.
"""

import contextlib
import json
import sys
from dataclasses import replace

import diffusers
import numpy as np
import torch
from tiny_play import SPEC, TEXTS, grid, play, world  # next to this program
from torch._dynamo.testing import CompileCounter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp_groups

from curation.errors import InputError
from model.accelerate.apply import Accelerator
from model.accelerate.spec import AccelerateSpec, parse
from model.accelerate.split_decode import SplitWanDecoder
from model.backbone.vae import VideoCodec
from model.control.spec import ControlState
from model.parallel import dist, fsdp
from model.play.engine import Start
from model.play.ranks import follow
from model.play.world import load_engine

BLOCKS = 9


def played(ranks, switches):
    """Latents of a stream with switches, and what its cache holds of heads."""
    spec = parse([*switches.split(), f"sequence_parallel={ranks}"])
    counter = CompileCounter()
    if spec.compile:
        torch._dynamo.reset()
        spec = replace(spec, compile_backend=counter)
    mesh = init_device_mesh("cpu", (ranks,)) if ranks > 1 else None
    model = world()
    accelerated = Accelerator(model, SPEC, spec, mesh)
    cache = accelerated.cache(grid(model))
    latents, _ = play(model, cache, BLOCKS, passes=accelerated.passes(), keeps_text=True, texts=TEXTS)
    return latents, cache._shape[2], counter.frame_count


def played_by_engine(rank, ranks, folder):
    """Frames of a session of an exported world that all ranks share; only rank 0 is asked."""
    spec = AccelerateSpec(sequence_parallel=ranks) if ranks > 1 else None
    engine = load_engine(folder, lambda _: None, "eager", spec)
    if rank > 0:
        follow(engine)
        return None
    session, first = engine.start(Start(engine.info.start_images[0].picture))
    other, _ = engine.start(Start(engine.info.start_images[0].picture, seed=5))
    frames = [first.frames]
    for number in range(7):
        if number == 3:
            session.set_prompt("it snows", blend_blocks=2)
            with contextlib.suppress(InputError):
                engine.start(Start(np.zeros((4, 4, 3), np.uint8)))  # refused by all ranks, which go on
        frames.append(session.generate([ControlState(frozenset({"W"}))] * engine.info.block_frames).frames)
        session.commit()
        if number == 4:
            other.generate([ControlState()] * engine.info.block_frames)
            other.commit()
            del other
    if engine.caller is not None:
        engine.caller.stop()
    return np.concatenate(frames)


def decoded(ranks, parts):
    """Frames of a video that is decoded in pieces and in parts, and those of the whole."""
    torch.manual_seed(0)
    codec = VideoCodec(diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1))
    latents = torch.randn(1, 16, 5, 4, 33)
    group = init_device_mesh("cpu", (ranks,)).get_group() if ranks > 1 else None
    split, whole = SplitWanDecoder(codec.vae, codec.to_decoder, parts, group), codec.stream_decoder()
    pieces = latents.split([1, 1, 3], 2)
    return torch.cat([split.decode(p) for p in pieces], 2), torch.cat([whole.decode(p) for p in pieces], 2)


def gathered():
    """How often the weights of each expert's blocks are gathered by a step of the low-noise expert alone."""
    model = world().requires_grad_(True)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for expert in (model.high, model.low):
        fsdp.shard(expert, mesh)
    names = {id(module): name for name in ("high", "low") for module in getattr(model, name).modules()}
    counts, plain = {"high": 0, "low": 0}, fsdp_groups.FSDPParamGroup.unshard

    def counted(group, *arguments, **options):
        counts[names[id(group.modules[0])]] += not group.is_unsharded
        return plain(group, *arguments, **options)

    fsdp_groups.FSDPParamGroup.unshard = counted
    try:
        x, text = torch.randn(1, 12, 3, 2, 3), torch.ones(1, 3, 16)
        model(x, torch.full((1, 3), 0.5), text).square().mean().backward()
    finally:
        fsdp_groups.FSDPParamGroup.unshard = plain
    touched = {name: sum(p.grad is not None for p in getattr(model, name).parameters()) for name in counts}
    return {"gathered": counts, "gradients": touched}


def work(rank, folder, what):
    ranks = torch.distributed.get_world_size()
    if what == "gathered":
        return gathered()
    if what.startswith("engine"):
        frames = played_by_engine(rank, ranks, what.removeprefix("engine "))
        if rank == 0:
            np.save(folder, frames)
        return None
    if what.startswith("decode"):
        made, whole = decoded(ranks, int(what.split()[1]))
        assert made.shape == whole.shape
        return [float((made - whole).abs().max()), float(whole.std())]
    latents, heads, graphs = played(ranks, what.removeprefix("play").strip())
    if rank == 0:
        torch.save(latents, folder)
    return [heads, graphs]


def main():
    rank, _, _ = dist.start()
    for line in sys.stdin:
        try:
            answer = work(rank, *json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        if rank == 0:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    dist.stop()


if __name__ == "__main__":
    main()
