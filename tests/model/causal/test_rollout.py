"""Rollouts: pages and ring make the same stream, prompts change it when they should, nothing grows, nothing snaps back."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

import tiny_ladder  # noqa: E402 (after the package is known to be here)
from torch._dynamo.testing import CompileCounter  # noqa: E402

from model.backbone.attention import attend  # noqa: E402
from model.backbone.frame_codec import FrameCodec  # noqa: E402
from model.backbone.rope import rotary, rotate  # noqa: E402
from model.causal.cache import PageCache, RingCache, TokenGrid  # noqa: E402
from model.causal.condition import KeyFrameMemory, pose_distance  # noqa: E402
from model.causal.rollout import Rollout, StreamStart  # noqa: E402
from model.causal.spec import CausalSpec  # noqa: E402
from model.control.trajectory import PlayerState  # noqa: E402
from model.parallel.recompute import compile_steady_blocks  # noqa: E402

CHANNELS = 4
WARPED = CausalSpec(block=1, window=3, steps=(1.0, 0.5), pose_origin="block", warp=True, memory="keyframes")
PLAIN = CausalSpec(block=3, window=6, steps=(1.0, 0.95, 0.5))


def stream(spec, ring=False, batch=1, seed=0, two=False, compiled=None, text=None):
    """A rollout of a tiny world with random weights, a linear codec, and a start image of noise."""
    world = tiny_ladder.world(spec, two).eval().requires_grad_(False)
    if compiled:
        for expert in {world.high, world.low}:
            compile_steady_blocks(expert.expert, compiled)
    codec = FrameCodec(CHANNELS, 4, 8).eval()
    pictures = torch.rand(batch, 3, 16, 24) * 2 - 1
    text = torch.zeros(batch, 3, 12) if text is None else text
    start = StreamStart(pictures, torch.tensor([[20.0, 20.0, 12.0, 8.0]] * batch), text)
    grid = TokenGrid.of(world.high.expert, 2, 3)
    cache = RingCache(spec, grid, world, batch) if ring else PageCache(spec, grid)
    return Rollout(world, codec, spec, start, seed, cache)


def poses(first, count, batch=1, turn=3.0):
    """Cameras of a player who walks and turns."""
    made = [PlayerState(z=0.03 * i, yaw_deg=turn * i).pose for i in range(first, first + count)]
    return torch.from_numpy(np.stack(made)).float()[None].expand(batch, -1, -1, -1)


def run(rollout, blocks, texts=()):
    """Generate blocks; texts: (block, text) to set before a block. Return all latents."""
    made = []
    for block in range(blocks):
        for at, text in texts:
            if at == block:
                rollout.set_text(text)
        frames = rollout.block_frames
        made.append(rollout.generate(poses(rollout.latents, frames, len(rollout.first_frame))))
        rollout.decode()
        rollout.commit()
    return torch.cat(made, 2)


@pytest.mark.parametrize("spec", [WARPED, PLAIN, replace(PLAIN, sharing="low_noise"), replace(WARPED, sampler="heun")])
@pytest.mark.parametrize("batch", [1, 2])
def test_pages_and_ring_make_the_same_stream(spec, batch):
    texts = [(4, torch.ones(batch, 3, 12))]
    pages = run(stream(spec, batch=batch, two=not spec.warp), 9, texts)
    ring = run(stream(spec, ring=True, batch=batch, two=not spec.warp), 9, texts)
    assert pages.std() > 0.1
    assert (pages - ring).abs().max() < 1e-3
    assert not torch.equal(pages, run(stream(spec, batch=batch, two=not spec.warp), 9))


def test_noise_follows_from_seed_and_block():
    one, same, other = (run(stream(WARPED, seed=seed), 4) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().mean() > 0.05
    assert (one[:, :, 1] - one[:, :, 2]).abs().mean() > 0.01


@pytest.mark.parametrize("scope", ["block", "window"])
@pytest.mark.parametrize("ring", [False, True])
def test_a_prompt_changes_the_blocks_after_it_and_the_same_prompt_nothing(scope, ring):
    spec = replace(PLAIN, recache=scope)
    plain = run(stream(spec, ring), 7)
    same = run(stream(spec, ring), 7, [(3, torch.zeros(1, 3, 12))])
    changed = run(stream(spec, ring), 7, [(3, torch.ones(1, 3, 12))])
    assert torch.equal(plain, same)
    assert torch.equal(plain[:, :, :9], changed[:, :, :9])
    assert (plain[:, :, 9:] - changed[:, :, 9:]).abs().max() > 1e-3


@pytest.mark.parametrize("ring", [False, True])
def test_a_prompt_before_the_first_block_is_the_prompt_of_the_start(ring):
    text = torch.ones(1, 3, 12)
    assert torch.equal(run(stream(PLAIN, ring), 4, [(0, text)]), run(stream(PLAIN, ring, text=text), 4))


def test_both_scopes_of_a_new_prompt_differ():
    text = [(5, torch.ones(1, 3, 12))]
    block, window = (run(stream(replace(PLAIN, recache=scope)), 7, text) for scope in ("block", "window"))
    assert (block - window).abs().max() > 1e-4


def test_generate_and_commit_alternate():
    rollout = stream(WARPED)
    with pytest.raises(RuntimeError, match="there is no block to commit"):
        rollout.commit()
    rollout.generate(poses(1, 1))
    with pytest.raises(RuntimeError, match="not committed yet"):
        rollout.generate(poses(2, 1))


def test_graphs_are_compiled_once_from_block_3_to_40_with_eviction_and_a_prompt():
    torch._dynamo.reset()
    counter = CompileCounter()
    rollout = stream(PLAIN, ring=True, compiled=counter)
    run(rollout, 3)
    early = counter.frame_count
    assert early > 0
    run(rollout, 37, [(20, torch.ones(1, 3, 12))])
    assert counter.frame_count == early
    torch._dynamo.reset()


@pytest.mark.parametrize("latents", [400, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_a_long_rollout_has_no_error_and_no_jump_and_does_not_grow(latents):
    """Positions of the stream would end at 1024. The similarity to the first frame has no jump, and nothing is kept."""
    rollout = stream(replace(WARPED, steps=(1.0,)), ring=True)
    first = rollout.first_frame[0, :, 0].flatten()
    similarities, kept = [], []
    for latent in range(1, latents + 1):
        rollout.generate(poses(latent % 120, 1, turn=3.0))
        similarities.append(float(torch.cosine_similarity(rollout.decode()[0, :, 0].flatten(), first, dim=0)))
        rollout.commit()
        if latent in (200, latents):  # from about 200 on nothing grows
            kept.append((len(rollout._memories[0]), len(rollout._made), sum(len(k) for k in rollout._cache._keys.values())))
    assert all(np.isfinite(similarities))
    late = np.abs(np.diff(similarities[200:]))
    assert late.max() < 10 * np.median(late) + 0.2
    assert kept[0] == kept[1]


def test_a_stream_with_its_own_positions_ends_and_one_of_the_window_does_not():
    rollout = stream(replace(PLAIN, positions="stream", steps=(1.0,)))
    rollout._cache = replace(rollout._cache, grid=replace(rollout._cache.grid, positions=12))
    with pytest.raises(ValueError, match="an axis has 12 positions"):
        run(rollout, 5)
    rollout = stream(replace(PLAIN, steps=(1.0,)))
    rollout._cache = replace(rollout._cache, grid=replace(rollout._cache.grid, positions=12))
    run(rollout, 12)


def sink_share(spec, latent):
    """Return the share of attention that a block at a latent gives to the sink, where all keys and queries look alike.

    With Wan's head width; only positions differ, so the share shows what they do.
    """
    block = range(latent, latent + spec.block)
    sink, window, own = spec.places(block)
    torch.manual_seed(0)
    base = torch.randn(1, 1, 1, 128)
    places = [*sink, *window, *own]
    keys = rotate(base.expand(1, len(places), 1, 128), rotary(places, 1, 1, 128, 4096))
    query = rotate(base, rotary([own[-1]], 1, 1, 128, 4096))
    values = torch.zeros(1, len(places), 1, 128)
    values[:, : len(sink)] = 1
    return float(attend(query, keys, values, scale=128**-0.5).mean())


def test_the_sink_does_not_come_back_with_the_latents():
    """With positions of the stream attention to the sink rises and falls with the latent; published models collapse there."""
    latents = range(16, 400, 3)
    window = [sink_share(PLAIN, latent) for latent in latents]
    absolute = [sink_share(replace(PLAIN, positions="stream"), latent) for latent in latents]
    assert np.ptp(window) < 1e-6
    assert max(absolute) > 2 * np.median(absolute)


def test_a_memory_keeps_the_first_view_of_a_place_and_a_bound():
    memory = KeyFrameMemory(capacity=4, delay=2)
    for number in range(40):
        memory.add(number, torch.full((3, 2, 2), float(number)), torch.from_numpy(PlayerState(yaw_deg=9.0 * number).pose))
    assert len(memory) == 4
    picture, _ = memory.choose(40, torch.from_numpy(PlayerState(yaw_deg=2.0).pose))
    assert picture[0, 0, 0] == 0  # the first is never dropped, and is what is seen after a whole turn
    again = KeyFrameMemory()
    for number, yaw in enumerate((0, 60, 0.5)):
        again.add(number, torch.full((3, 2, 2), float(number)), torch.from_numpy(PlayerState(yaw_deg=yaw).pose))
    assert len(again) == 2


def test_what_was_seen_before_a_prompt_does_not_undo_what_it_begins():
    memory, here = KeyFrameMemory(settle=5, delay=2), torch.from_numpy(PlayerState().pose)

    def chosen(frame):
        return int(memory.choose(frame, here)[0][0, 0, 0])

    for number in range(30):
        memory.add(number, torch.full((3, 2, 2), float(number)), here)
        if number == 9:
            assert chosen(10) == 0
            memory.forget()
        if 9 <= number < 14:
            assert chosen(number + 1) == number  # the frame before, nothing older
    assert len(memory) == 1
    assert chosen(30) == 15  # the first after it has settled


def test_distance_of_poses_adds_angle_and_way():
    here = torch.from_numpy(PlayerState().pose)
    others = torch.stack(
        [torch.from_numpy(p.pose) for p in (PlayerState(yaw_deg=30), PlayerState(z=0.25), PlayerState(z=0.5, yaw_deg=-60))]
    )
    torch.testing.assert_close(pose_distance(here, others), torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64))
