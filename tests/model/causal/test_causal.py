"""The causal core: one meaning of mask, pages and ring, in value and gradient."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.backbone.attention import AttentionLayout  # noqa: E402 (after the package is known to be here)
from model.backbone.dit import Expert, mean_of_tokens  # noqa: E402
from model.causal.cache import History, PageCache, RingCache, TokenGrid  # noqa: E402
from model.causal.passes import BlockCondition, commit, denoise, prepare, sequence_layout, teacher_forced  # noqa: E402
from model.causal.spec import CausalSpec, dense_mask  # noqa: E402
from model.config import BackboneConfig  # noqa: E402
from model.control.encoder import CameraEncoder  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.parallel.recompute import recompute_blocks  # noqa: E402
from model.world import ControlledExpert, World  # noqa: E402

CONFIG = BackboneConfig(
    num_attention_heads=2,
    attention_head_dim=18,
    num_layers=3,
    ffn_dim=48,
    in_channels=12,
    out_channels=4,
    text_dim=12,
    freq_dim=16,
)
# Window 6 of 16 latents: blocks leave it.
SPEC = CausalSpec(block=3, sink=1, window=6)
LATENTS, BATCH, ROWS, COLUMNS = 16, 2, 2, 3


def tiny_world(seed=0, config=CONFIG):
    """Two experts with perturbed weights: fresh ones hide swapped tables, and a fresh camera says nothing."""
    torch.manual_seed(seed)
    experts = [
        ControlledExpert(Expert(config), CameraEncoder(config.width, 8, config.patch_size[1], frames_per_latent=1))
        for _ in range(2)
    ]
    with torch.no_grad():
        for expert in experts:
            for weight in expert.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return World(*experts, NoiseSpec())


def sequence(seed=1, latents=LATENTS):
    torch.manual_seed(seed)
    height, width = 2 * ROWS, 2 * COLUMNS
    clean, noisy = torch.randn(2, BATCH, 4, latents, height, width)
    noisy[:, :, 0] = clean[:, :, 0]
    sigma = torch.rand(BATCH, latents)
    sigma = sigma[:, :1].expand(-1, latents).clone()
    condition = torch.randn(BATCH, 8, latents, height, width)
    maps = torch.randn(BATCH, latents, 12, 8 * height, 8 * width)
    return clean, noisy, sigma, BlockCondition(range(latents), condition, torch.randn(BATCH, 5, 12), maps)


def part(whole, block):
    """The condition of a block of a sequence."""
    cut = slice(block.start, block.stop)
    return whole._replace(latents=block, condition=whole.condition[:, :, cut], maps=whole.maps[:, cut])


def grid(world):
    return TokenGrid.of(world.high.expert, 2 * ROWS, 2 * COLUMNS)


def by_blocks(world, spec, name, clean, noisy, sigma, whole, cache):
    """Denoise block by block on committed clean history."""
    made = []
    for block in spec.blocks(clean.shape[2]):
        cut = slice(block.start, block.stop)
        prepared, history = prepare(world, part(whole, block)), cache.history(block)
        if block.start:
            made.append(
                world.expert_named(name)(
                    torch.cat([noisy[:, :, cut], prepared.block.condition], 1),
                    sigma[:, cut],
                    whole.text,
                    control_BLD=prepared.control[name],
                    layout=history.layout,
                    past=history.past[name if name in history.past else "low"],
                )
            )
        cache = cache.with_page(commit(world, clean[:, :, cut], prepared, history, spec))
    return torch.cat(made, 2)


def by_sequence(world, spec, name, clean, noisy, sigma, whole, flex=False):
    layout = sequence_layout(spec, grid(world), clean.shape[2], flex)
    return teacher_forced(world, clean, torch.zeros_like(sigma), noisy, sigma, whole, spec, layout, name)


def gradients(world, name, out):
    """Gradients of a fixed weighing of the output, by parameter, of the expert and of the one whose keys it reads."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    world.zero_grad(set_to_none=True)
    (out * weight).sum().backward()
    return {key: p.grad.clone() for key, p in world.named_parameters() if p.grad is not None}


def assert_gradients_equal(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for key, gradient in ours.items():
        if not key.endswith("to_k.bias"):  # softmax hardly sees it: its gradient is rounding
            assert (gradient - theirs[key]).norm() <= tolerance * theirs[key].norm() + 1e-6, key


@pytest.mark.parametrize("name", ["high", "low"])
@pytest.mark.parametrize("sharing", ["per_expert", "low_noise"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_masked_sequence_is_block_by_block_on_pages(name, sharing, recompute):
    spec, world = replace(SPEC, sharing=sharing), tiny_world()
    if recompute:
        for expert in (world.high, world.low):
            recompute_blocks(expert.expert)
    inputs = sequence()
    whole = by_sequence(world, spec, name, *inputs)
    by_page = by_blocks(world, spec, name, *inputs, PageCache(spec, grid(world)))
    assert whole.abs().max() > 0.5
    assert (whole - by_page).abs().max() < 1e-5
    assert_gradients_equal(gradients(world, name, whole), gradients(world, name, by_page))


def test_pooled_text_is_the_same_by_blocks_and_a_new_part_that_begins_as_nothing():
    fresh = Expert(replace(CONFIG, pooled_text=True))
    fresh.load_state_dict(Expert(CONFIG).state_dict(), strict=False)
    x, time, text = torch.randn(1, 12, 2, 4, 6), torch.rand(1, 2), torch.randn(1, 5, 12)
    plain = Expert(CONFIG)
    plain.load_state_dict({name: value for name, value in fresh.state_dict().items() if "pooled_text" not in name})
    assert torch.equal(fresh(x, time, text), plain(x, time, text))

    world = tiny_world(config=replace(CONFIG, pooled_text=True))
    clean, noisy, sigma, condition = sequence()
    whole = by_sequence(world, SPEC, "low", clean, noisy, sigma, condition)
    by_page = by_blocks(world, SPEC, "low", clean, noisy, sigma, condition, PageCache(SPEC, grid(world)))
    assert (whole - by_page).abs().max() < 1e-5
    assert_gradients_equal(gradients(world, "low", whole), gradients(world, "low", by_page))
    by_latent = condition._replace(text=condition.text[:, None].expand(-1, LATENTS, -1, -1))
    assert (by_sequence(world, SPEC, "low", clean, noisy, sigma, by_latent) - whole).abs().max() < 1e-5


def test_the_pooled_text_is_the_mean_of_words_without_padding():
    words = torch.tensor([[[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0]] * 3]])
    assert mean_of_tokens(words).tolist() == [[[2.0, 3.0], [0.0, 0.0]]]


@pytest.mark.parametrize("name", ["high", "low"])
@pytest.mark.parametrize("sharing", ["per_expert", "low_noise"])
@pytest.mark.parametrize("sink", [1, 4])
@pytest.mark.parametrize("static", [False, True])
def test_the_ring_is_the_pages(name, sharing, sink, static):
    spec, world = replace(SPEC, sharing=sharing, sink=sink), tiny_world()
    inputs = sequence(latents=31)
    with torch.no_grad():
        pages = by_blocks(world, spec, name, *inputs, PageCache(spec, grid(world)))
        ring = by_blocks(world, spec, name, *inputs, RingCache(spec, grid(world), world, BATCH, static))
    assert (pages - ring).abs().max() < 1e-5


@pytest.mark.parametrize("static", [False, True])
def test_the_ring_has_a_mask_only_while_its_window_fills(static):
    world, (clean, _, _, whole) = tiny_world(), sequence(latents=31)
    ring = RingCache(SPEC, grid(world), world, BATCH, static)
    masked, lengths = [], []
    with torch.no_grad():
        for block in SPEC.blocks(31):
            history = ring.history(block)
            if block.start:
                masked.append(history.layout.mask is not None)
                lengths.append(history.past["low"][0].k_BSNH.shape[1] // grid(world).per_latent)
            page = commit(world, clean[:, :, block.start : block.stop], prepare(world, part(whole, block)), history, SPEC)
            ring = ring.with_page(page)
    assert masked == [static] * 2 + [False] * 8
    assert lengths == ([10] * 10 if static else [4, 7] + [10] * 8), "sink 1, window 6, and the block itself"


def test_the_ring_does_not_take_a_page_whose_values_were_overwritten():
    """Passes of a block write over the block that has left the window: then the block before cannot be committed again."""
    world, (clean, noisy, _, whole) = tiny_world(), sequence()
    ring = RingCache(SPEC, grid(world), world, BATCH)
    with torch.no_grad():
        for block in SPEC.blocks(13):
            history = ring.history(block)
            page = commit(world, clean[:, :, block.start : block.stop], prepare(world, part(whole, block)), history, SPEC)
            ring.with_page(page)
        ring.history(range(10, 13))  # the last block again: fine
        denoise(world, noisy[:, :, 13:16], 0.5, prepare(world, part(whole, range(13, 16))), ring.history(range(13, 16)), "low")
    with pytest.raises(ValueError, match="latent 4, which range\\(10, 13\\) sees, is not in the cache"):
        ring.history(range(10, 13))


@pytest.mark.parametrize("sink", [1, 4])
@pytest.mark.parametrize("positions", ["window", "stream"])
def test_longer_sinks_and_stream_positions(sink, positions):
    spec, world = replace(SPEC, sink=sink, positions=positions), tiny_world()
    inputs = sequence()
    with torch.no_grad():
        whole = by_sequence(world, spec, "low", *inputs)
        by_page = by_blocks(world, spec, "low", *inputs, PageCache(spec, grid(world)))
    assert (whole - by_page).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_and_dense_masks_are_one_rule():
    world, inputs = tiny_world(), sequence()
    with torch.no_grad():
        dense = by_sequence(world, SPEC, "low", *inputs)
        flex = by_sequence(world, SPEC, "low", *inputs, flex=True)
    assert (dense - flex).abs().max() < 1e-5


def test_history_without_gradient_is_a_choice():
    world, inputs = tiny_world(), sequence()
    whole = gradients(world, "low", by_sequence(world, SPEC, "low", *inputs))
    cut = gradients(world, "low", by_sequence(world, replace(SPEC, context_gradient=False), "low", *inputs))
    values = [by_sequence(world, replace(SPEC, context_gradient=g), "low", *inputs) for g in (True, False)]
    assert (values[0] - values[1]).abs().max() < 1e-5
    weight = "low.expert.blocks.0.attn1.to_v.weight"
    assert (whole[weight] - cut[weight]).norm() > 0.01 * whole[weight].norm()


def test_a_mask_by_hand():
    """Block 1, sink 1, window 1: latent 3 sees clean 0 and 2, and itself noisy."""
    latent, clean = torch.tensor([0, 1, 2, 1, 2, 3]), torch.tensor([True] * 3 + [False] * 3)
    mask = dense_mask(CausalSpec(block=1, window=1).mask_mod(latent, clean), torch.arange(6), torch.arange(6))
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1],
    ]


def test_what_a_late_block_sees_and_where_it_stands():
    assert SPEC.visible(range(37, 40)) == ([0], [31, 32, 33, 34, 35, 36])
    assert SPEC.places(range(37, 40)) == ([0], [1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert SPEC.places(range(4, 7)) == ([0], [1, 2, 3], [4, 5, 6])
    assert replace(SPEC, positions="stream").places(range(37, 40))[2] == [37, 38, 39]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 7}, "window must be whole blocks of 3"),
        ({"sink": 2}, "sink must be 1 and whole blocks of 3"),
        ({"steps": (0.9, 0.5)}, "steps must fall from 1"),
        ({"steps": (1.0, 1.0)}, "steps must fall from 1"),
        ({"memory": "keyframes"}, "set warp"),
        ({"version": 2}, "causal.version is 2"),
    ],
)
def test_a_spec_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)


@pytest.mark.parametrize("kind", ["pages", "ring"])
def test_committing_the_last_block_again_with_the_same_prompt_changes_nothing(kind):
    world, (clean, _, _, whole) = tiny_world(), sequence()
    cache = PageCache(SPEC, grid(world)) if kind == "pages" else RingCache(SPEC, grid(world), world, BATCH)
    with torch.no_grad():
        for block in SPEC.blocks(LATENTS):
            prepared, history = prepare(world, part(whole, block)), cache.history(block)
            page = commit(world, clean[:, :, block.start : block.stop], prepared, history, SPEC)
            cache = cache.with_page(page)
        again = commit(world, clean[:, :, -3:], prepared, cache.history(block), SPEC)
        assert all(
            torch.equal(a, b)
            for name in page.kv
            for x, y in zip(page.kv[name], again.kv[name], strict=True)
            for a, b in zip(x, y, strict=True)
        )
        other = prepare(world, part(whole._replace(text=whole.text + 1), block))
        changed = commit(world, clean[:, :, -3:], other, cache.history(block), SPEC)
    assert (changed.kv["low"][1].k_BSNH - page.kv["low"][1].k_BSNH).abs().max() > 1e-3


def test_the_position_of_a_block_in_the_stream_does_not_matter():
    """At latent 5011 a block is made as at latent 13, where the positions of a stream have long ended."""
    world, (clean, noisy, _, whole) = tiny_world(), sequence()
    far = 4998

    @torch.no_grad()
    def made(spec, offset):
        cache = PageCache(spec, grid(world))
        for block in (range(1), range(7, 10), range(10, 13)):  # those that the block at 13 sees
            alone = History(AttentionLayout(grid(world).rotary(list(range(len(block))))), {})
            page = commit(world, clean[:, :, block.start : block.stop], prepare(world, part(whole, block)), alone, spec)
            shift = offset if block.start else 0
            cache = cache.with_page(page._replace(latents=range(block.start + shift, block.stop + shift)))
        prepared = prepare(world, part(whole, range(13, 16)))
        return denoise(world, noisy[:, :, 13:16], 0.5, prepared, cache.history(range(13 + offset, 16 + offset)), "low")

    assert torch.equal(made(SPEC, 0), made(SPEC, far))
    with pytest.raises(ValueError, match="an axis has 1024 positions"):
        made(replace(SPEC, positions="stream"), far)


def test_a_missing_page_is_an_error():
    world = tiny_world()
    with pytest.raises(ValueError, match="are not the latents"):
        PageCache(SPEC, grid(world)).history(range(1, 4))
    with pytest.raises(ValueError, match="latent 0, which range\\(1, 4\\) sees, is not in the cache"):
        RingCache(SPEC, grid(world), world).history(range(1, 4))
