"""What the GPU computes, compared with the processor: optical flow, a pass, a rollout, the codec, the world that ships."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.shapes import SHAPES, random_world
from model.backbone.frame_codec import FrameCodec
from model.causal.cache import PageCache, RingCache, TokenGrid
from model.causal.passes import BlockCondition, sequence_layout, teacher_forced
from model.causal.rollout import Rollout, StreamStart
from model.control.trajectory import PlayerState
from model.parallel.fsdp import is_unsharded

_HEADER = ("| part | largest difference | of values up to | bound | |", "|---|---|---|---|---|")


def lines(options: Any) -> Iterator[str]:
    """Yield a row for each comparison; one that fails says why, and the others go on."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    device = torch.device(options.device)
    yield "float32 without TF32 unless the row says otherwise."
    yield ""
    yield from _HEADER
    for name, bound, compare in _COMPARISONS:
        if options.left_s < 3:
            yield f"| {name} | | | | no time left |"
            continue
        try:
            there, here = compare(device, options.tiny)
        except ImportError as missing:
            yield f"| {name} | | | | not installed: {missing.name or missing} |"
            continue
        except Exception as error:  # each row by itself
            yield f"| {name} | | | | {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} |"
            continue
        difference = float((there.double().cpu() - here.double()).abs().max())
        size = float(here.double().abs().max())
        verdict = "holds" if difference <= bound * size else "**does not hold**"
        yield f"| {name} | {difference:.2g} | {size:.3g} | {bound:g} of them | {verdict} |"


Pair = tuple[Tensor, Tensor]  # on the device, on the processor


def _flow(device: torch.device, tiny: bool) -> Pair:
    """RAFT of the curation with random weights, or those of $GAMECRAFT_RAFT; in float16 on a GPU."""
    from torchvision.models.optical_flow import raft_small

    from curation.partition.optical_flow import FramePair, RaftFlow

    path = os.environ.get("GAMECRAFT_RAFT", "")
    torch.manual_seed(0)
    state = torch.load(path, weights_only=True) if path else raft_small(weights=None).state_dict()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    pair = FramePair(picture, np.roll(picture, 3, 1))
    there, here = (RaftFlow(state, 2 if tiny else 8, device=kind)([pair])[0] for kind in (device.type, "cpu"))
    return torch.from_numpy(there), torch.from_numpy(here)


def _conditions(shape: Any, latents: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, BlockCondition]:
    """Return clean and noisy latents, noise levels and the condition of a sequence, on the processor."""
    generator = torch.Generator().manual_seed(1)
    config, (rows, columns) = shape.backbone, shape.grid
    size = batch, config.out_channels, latents, rows, columns
    clean, noisy = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    condition = torch.randn(batch, config.in_channels - config.out_channels, *size[2:], generator=generator)
    text = torch.randn(batch, 8, config.text_dim, generator=generator)
    frames = 1 + 4 * (latents - 1)
    maps = 0.1 * torch.randn(batch, frames, 12, 8 * rows, 8 * columns, generator=generator)
    sigma = torch.rand(batch, 1, generator=generator).expand(-1, latents).contiguous()
    return clean, noisy, sigma, BlockCondition(range(latents), condition, text, maps)


def _on(device: torch.device, condition: BlockCondition) -> BlockCondition:
    assert condition.maps is not None
    return condition._replace(
        condition=condition.condition.to(device), text=condition.text.to(device), maps=condition.maps.to(device)
    )


def _small(tiny: bool) -> Any:
    """A shape that a processor passes in a second: two layers of the 1.3B model."""
    if tiny:
        return SHAPES["tiny"]
    from dataclasses import replace

    large = SHAPES["1.3b"]
    return replace(large, backbone=replace(large.backbone, num_layers=2), grid=(16, 16))


def _pass(dtype: torch.dtype) -> Callable[[torch.device, bool], Pair]:
    def compare(device: torch.device, tiny: bool) -> Pair:
        shape, results = _small(tiny), []
        clean, _, sigma, condition = _conditions(shape, 4)
        world = random_world(shape, torch.device("cpu"), torch.float32)
        for where, kind in ((device, dtype), (torch.device("cpu"), torch.float32)):
            world.to(where)
            if kind != torch.float32:
                for name, parameter in world.named_parameters():
                    if not is_unsharded(name.partition(".")[2]):
                        parameter.data = parameter.data.to(kind)
            there = _on(where, condition)
            with torch.no_grad():
                inputs = torch.cat([clean.to(where), there.condition], 1)
                results.append(world.high(inputs, sigma.to(where), there.text, there.maps).float())
            world = random_world(shape, torch.device("cpu"), torch.float32)
        return results[0], results[1]

    return compare


def _gradient(device: torch.device, _tiny: bool) -> Pair:
    """Teacher forcing: compiled flex attention on a GPU, a dense mask on the processor; gradients of all weights."""
    shape = SHAPES["tiny"]
    clean, noisy, sigma, condition = _conditions(shape, 10)
    results = []
    for where in (device, torch.device("cpu")):
        world = random_world(shape, torch.device("cpu"), torch.float32).to(where).requires_grad_(True)
        grid = TokenGrid.of(world.high.expert, *shape.grid)
        layout = sequence_layout(shape.causal, grid, 10, flex=where.type == "cuda")
        c, c_sigma, n, n_sigma = (part.to(where) for part in (clean, torch.zeros_like(sigma), noisy, sigma))
        there = _on(where, condition)
        velocity = teacher_forced(world, c, c_sigma, n, n_sigma, there, shape.causal, layout, "low")
        (velocity * clean[:, :, 1:].to(where)).sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in world.parameters() if p.grad is not None]))
    return results[0], results[1]


def _rollout(device: torch.device, _tiny: bool) -> Pair:
    """Eight blocks, which leave the window: the static ring on the device, immutable pages on the processor."""
    shape, results = SHAPES["tiny"], []
    codec = FrameCodec(16, 8).eval()
    for where in (device, torch.device("cpu")):
        world = random_world(shape, torch.device("cpu"), torch.float32).to(where)
        grid = TokenGrid.of(world.high.expert, *shape.grid)
        cache: Any = RingCache(shape.causal, grid, world) if where is device else PageCache(shape.causal, grid)
        picture = torch.linspace(-1, 1, 3 * 32 * 64).view(1, 3, 32, 64).to(where)
        intrinsics = torch.tensor([[40.0, 40.0, 32.0, 16.0]], device=where)
        start = StreamStart(picture, intrinsics, torch.zeros(1, 8, 32, device=where))
        stream = Rollout(_one_frame_a_latent(world, where), codec.to(where), shape.causal, start, 0, cache)
        poses = [PlayerState(z=0.05 * i, yaw_deg=4.0 * i).pose for i in range(1, 25)]
        pose = torch.from_numpy(np.stack(poses)).float()[None].to(where)
        results.append(stream.extend(pose).float())
    return results[0], results[1]


def _one_frame_a_latent(world: Any, where: torch.device) -> Any:
    """Give a world a camera encoder of frames that are latents by themselves."""
    from model.control.encoder import CameraEncoder

    torch.manual_seed(3)
    expert = world.high
    camera = CameraEncoder(expert.expert.config.width, 8, expert.expert.config.patch_size[1], 1)
    torch.nn.init.normal_(camera.out.weight, std=0.05)
    expert.camera = camera.requires_grad_(False).to(where)
    return world


def _codec(direction: str) -> Callable[[torch.device, bool], Pair]:
    def compare(device: torch.device, tiny: bool) -> Pair:
        from diffusers import AutoencoderKLWan

        from model.backbone.vae import VideoCodec

        torch.manual_seed(0)
        sizes: dict[str, Any] = {"base_dim": 8, "num_res_blocks": 1} if tiny else {}
        build: Any = AutoencoderKLWan
        codec = VideoCodec(build(**sizes))
        video = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        latents = codec.encode(video)
        results = []
        for where in (device, torch.device("cpu")):
            codec.to(where)
            if direction == "encode":
                results.append(codec.encode(video.to(where)))
            else:
                stream = codec.stream_decoder()
                results.append(torch.cat([stream.decode(part.to(where)) for part in latents.split([1, 2], 2)], 2))
        return results[0], results[1]

    return compare


def _frame_codec(device: torch.device, _tiny: bool) -> Pair:
    loaded = _demo(torch.device("cpu"))
    _, picture = loaded.starts[0]
    video = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    results = []
    for where in (device, torch.device("cpu")):
        codec = loaded.codec.to(where)
        results.append(codec.decode(codec.encode(video.to(where))))
    return results[0], results[1]


def _demo(device: torch.device) -> Any:
    from model.world_files import DEMO, load_world

    return load_world(DEMO, device)


def _demo_frames(device: torch.device, tiny: bool) -> Pair:
    """Thirty frames of the world that ships, walking and turning, in levels of 255."""
    results = []
    for where in (device, torch.device("cpu")):
        loaded = _demo(where)
        spec = loaded.file.causal
        _, picture = loaded.starts[0]
        video = (torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1).to(where)
        intrinsics = torch.tensor([loaded.file.intrinsics], device=where)
        rows, columns = (side // loaded.codec.cell_px for side in video.shape[2:])
        grid = TokenGrid.of(loaded.world.high.expert, rows, columns)
        start = StreamStart(video, intrinsics, loaded.encode_text([""]).to(where))
        stream = Rollout(loaded.world, loaded.codec, spec, start, 0, RingCache(spec, grid, loaded.world))
        poses = [PlayerState(z=0.03 * i, yaw_deg=2.0 * i).pose for i in range(1, (6 if tiny else 31))]
        pose = torch.from_numpy(np.stack(poses)).float()[None].to(where)
        results.append((stream.extend(pose).float() + 1) * 127.5)
    return results[0], results[1]


_COMPARISONS: tuple[tuple[str, float, Callable[[torch.device, bool], Pair]], ...] = (
    ("optical flow, RAFT (float16 on a GPU), px", 0.05, _flow),
    ("a pass of the transformer", 1e-4, _pass(torch.float32)),
    ("the same, bfloat16 on the GPU", 5e-2, _pass(torch.bfloat16)),
    ("gradients of teacher forcing, flex attention on the GPU", 1e-4, _gradient),
    ("eight blocks of a rollout, ring on the GPU and pages here", 1e-3, _rollout),
    ("encoding, Wan's autoencoder", 1e-3, _codec("encode")),
    ("decoding in pieces, Wan's autoencoder", 1e-3, _codec("decode")),
    ("frame codec of the world that ships", 1e-4, _frame_codec),
    ("frames of the world that ships, levels of 255", 2e-2, _demo_frames),
)
