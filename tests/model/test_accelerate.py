"""Each switch of play: equal to the plain code, or within its bound."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

import tiny_ladder  # noqa: E402 (after the package is known to be here)
from tiny_play import CONFIG, SPEC, TEXTS, WARPED, grid, play, ring, save_world_file, world  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402

from curation.errors import InputError  # noqa: E402
from model.accelerate import attention, fp8  # noqa: E402
from model.accelerate.apply import Accelerator  # noqa: E402
from model.accelerate.fp8_cache import Fp8RingCache, quantize_page, restore  # noqa: E402
from model.accelerate.graphs import GraphedPasses, record_plainly  # noqa: E402
from model.accelerate.overlap import DecodeThread  # noqa: E402
from model.accelerate.spec import AccelerateSpec, parse  # noqa: E402
from model.backbone.attention import attend  # noqa: E402
from model.backbone.dit import Expert  # noqa: E402
from model.causal.cache import RingCache  # noqa: E402
from model.causal.passes import BlockCondition, PreparedText, denoise, prepare  # noqa: E402
from model.causal.rollout import EAGER, Rollout, StreamStart  # noqa: E402
from model.play.check import compare  # noqa: E402

CPU = torch.device("cpu")
# The spec


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], AccelerateSpec()),
        (["compile"], AccelerateSpec(compile=True)),
        (["compile,weights=fp8", "decode_parts=2"], AccelerateSpec(compile=True, weights="fp8", decode_parts=2)),
        (["keeps_text=off"], AccelerateSpec(keeps_text=False)),
    ],
)
def test_switches_are_read(words, expected):
    assert parse(words) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("warp", "no such switch; there are backend, compile"),
        ("weights=int4", "weights must be one of as_stored, fp8, not 'int4'"),
        ("compile=maybe", "must be on or off"),
        ("decode_parts=two", "must be a whole number"),
        ("sequence_parallel=0", "sequence_parallel must be at least 1"),
        ("backend=traced,weights=fp8", "backend traced computes whole passes, so weights has no effect there"),
        ("cuda_graphs,keeps_text=off", "cuda_graphs needs keeps_text"),
        ("cuda_graphs,sequence_parallel=2", "does not record the exchange"),
    ],
)
def test_switches_that_cannot_work_are_refused(word, message):
    with pytest.raises(InputError, match=message):
        parse([word])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (AccelerateSpec(cuda_graphs=True), "cuda_graphs needs a GPU"),
        (AccelerateSpec(attention="cudnn"), "attention=cudnn needs a GPU"),
        (AccelerateSpec(attention="sage"), "SageAttention is not installed|attention=sage needs a GPU"),
        (AccelerateSpec(weights="fp8", fp8_backend="torchao"), "torchao"),
        (AccelerateSpec(sequence_parallel=2), "needs as many ranks, not 1: start it by torchrun"),
    ],
)
def test_a_switch_that_this_machine_cannot_turn_on_is_an_error_and_no_silent_fallback(spec, message):
    with pytest.raises(InputError, match=message):
        Accelerator(world(), SPEC, spec)


def test_what_switches_change_in_a_world_is_measured_and_said(tmp_path):
    lines = []
    save_world_file(str(tmp_path))
    assert compare(str(tmp_path), AccelerateSpec(backend="eager", decode="overlapped"), lines.append) == [float("inf")] * 8
    values = compare(str(tmp_path), AccelerateSpec(weights="fp8"), lines.append)
    assert 20 < values[0] < 60
    assert lines[0] == "with these switches the first block differs by nothing, block 8 by nothing"
    assert lines[1].startswith(f"with these switches the first block differs by PSNR {values[0]:.1f} dB")


# Text and noise levels kept


@pytest.mark.parametrize("two", [False, True])
def test_kept_text_and_noise_levels_are_equal_bit_for_bit(two):
    model = world(two)
    plain, kept = (play(model, ring(model), texts=TEXTS, keeps_text=keeps)[0] for keeps in (False, True))
    assert torch.equal(plain, kept)
    assert not torch.equal(plain, play(model, ring(model))[0]), "the texts change the frames"


def test_kept_text_with_pooled_text_and_turned_frames_is_equal_bit_for_bit():
    torch.manual_seed(0)

    def made(keeps):
        model = tiny_ladder.world(WARPED, two=False).eval().requires_grad_(False)
        return play(model, RingCache(WARPED, grid(model), model), 6, WARPED, keeps_text=keeps, texts=TEXTS)[0]

    assert torch.equal(made(False), made(True))


def test_keys_of_a_text_are_computed_once(monkeypatch):
    model, calls = world(), []
    plain = Expert.text_keys
    monkeypatch.setattr(Expert, "text_keys", lambda self, text: calls.append(self) or plain(self, text))
    play(model, ring(model), keeps_text=True, texts=TEXTS)
    assert len(calls) == 3 * 2, "three texts, two experts"


def test_what_is_embedded_belongs_to_its_level_and_expert():
    model = world()
    text = PreparedText(model, torch.ones(1, 3, 16))
    a, again, b, other = (text.embedded(n, s, 3) for n, s in (("high", 1.0), ("high", 1.0), ("high", 0.95), ("low", 1.0)))
    assert a is again
    assert not torch.equal(a.scales_BT6D, b.scales_BT6D)
    assert not torch.equal(a.text[0].k_BSNH, other.text[0].k_BSNH)


# fp8 weights


def test_rows_are_quantised_to_the_nearest_of_fp8():
    torch.manual_seed(0)
    x = torch.randn(5, 64) * torch.logspace(-3, 3, 5)[:, None]
    numbers, scale = fp8.quantize_rows(x)
    assert numbers.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(numbers.float().abs().amax(1), torch.full((5,), fp8.LARGEST))
    error = (numbers.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10) * 1.0001).all(), "three bits behind the first one"
    assert error.max() > 0
    zeros, _ = fp8.quantize_rows(torch.zeros(2, 16))
    assert (zeros.float() == 0).all()


def test_the_product_is_that_of_the_matrix_units():
    torch.manual_seed(0)
    a, b = torch.randn(32, 64), torch.randn(48, 64)
    (qa, sa), (qb, sb) = fp8.quantize_rows(a), fp8.quantize_rows(b)
    ours = fp8.scaled_product(qa, sa, qb, sb, torch.bfloat16)
    theirs = torch._scaled_mm(qa, qb.t(), scale_a=sa, scale_b=sb.t().contiguous(), out_dtype=torch.bfloat16)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2)
    exact = (qa.double() * sa.double()) @ (qb.double() * sb.double()).T
    torch.testing.assert_close(fp8.scaled_product(qa, sa, qb, sb, torch.float32).double(), exact, rtol=1e-5, atol=1e-5)


def test_a_layer_in_fp8_is_within_five_percent_also_with_outliers():
    torch.manual_seed(0)
    linear = nn.Linear(256, 128).requires_grad_(False)
    x = torch.randn(4, 7, 256)
    x[..., ::64] *= 20
    made, exact = fp8.Fp8Linear(linear)(x), linear(x)
    assert made.shape == exact.shape
    error = float((made - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.05


def test_all_layers_of_the_blocks_are_converted_and_counted():
    model = world()
    expert = model.high.expert
    count, backend = fp8.convert(expert, "own")
    assert (count, backend) == (10 * CONFIG.num_layers, "own")
    kinds = {name: type(module) for name, module in expert.named_modules()}
    assert sum(kind is fp8.Fp8Linear for kind in kinds.values()) == count
    assert {name for name, kind in kinds.items() if kind is nn.Linear and name.startswith("blocks")} == set()
    assert kinds["proj_out"] is nn.Linear
    assert kinds["condition_embedder.time_proj"] is nn.Linear


def test_a_layer_that_does_not_fit_is_an_error():
    expert = tiny_ladder.world(WARPED).high.expert  # 36 wide
    with pytest.raises(ValueError, match=r"sides divide by 16; 20 do not, the first blocks.0.attn1.to_q"):
        fp8.convert(expert, "own")
    assert isinstance(expert.blocks[0].attn1.to_q, nn.Linear), "nothing is converted by half"


def test_layers_that_torchao_leaves_out_are_an_error(monkeypatch):
    expert = world().high.expert
    monkeypatch.setattr(fp8, "choose_backend", lambda *_: "torchao")
    monkeypatch.setattr(fp8, "_convert_by_torchao", lambda *_: None)
    with pytest.raises(ValueError, match=r"torchao left 20 of 20 layers as they were, the first blocks.0.attn1.to_q"):
        fp8.convert(expert, "torchao")


def test_a_world_in_fp8_plays_almost_the_same_block():
    plain = world()
    quantised = Accelerator(world(), SPEC, AccelerateSpec(weights="fp8", fp8_backend="own"))
    a, b = (play(model, ring(model), 1)[0] for model in (plain, quantised.world))
    error = float((a - b).norm() / a.norm())
    assert 1e-3 < error < 0.1


# Keys and values in fp8


def test_heads_of_a_page_have_their_own_scale():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 2, 8) * torch.tensor([1e-3, 1e3])[:, None]
    numbers, scale = quantize_page(x)
    assert scale.shape == (2, 1, 2)
    back = restore(numbers, scale, torch.float32)
    for head in range(2):
        error = (back - x)[:, :, head].norm() / x[:, :, head].norm()
        assert 1e-3 < error < 0.04


@pytest.mark.parametrize("two", [False, True])
def test_the_error_of_the_fp8_cache_does_not_grow_with_the_stream(two):
    """On given history the error of a block is that of its window, however long the stream is."""
    model = world(two)
    errors = []

    @torch.no_grad()
    def velocities(cache):
        made = []
        for block in SPEC.blocks(1 + 3 * 40):
            torch.manual_seed(block.start)
            x, noisy = torch.randn(2, 1, 4, len(block), 2, 3)
            condition = BlockCondition(block, torch.zeros(1, 8, len(block), 2, 3), torch.full((1, 3, 16), 0.5), None)
            prepared, history = prepare(model, condition), cache.history(block)
            made.append(denoise(model, noisy, 0.5, prepared, history, "low"))
            cache.with_page(EAGER.commit(model, x, prepared, history, SPEC, None))
        return made

    exact, rough = velocities(ring(model)), velocities(Fp8RingCache(SPEC, grid(model), model))
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(exact, rough, strict=True)][1:]
    assert 0 < max(errors) < 0.02
    early, late = np.mean(errors[2:12]), np.mean(errors[-10:])
    assert late < 1.25 * early


def test_a_free_rollout_on_the_fp8_cache_stays_a_rollout():
    """Small errors make another world in the end, of the same brightness and contrast."""
    model = world()
    exact, rough = (play(model, cache, 40)[0] for cache in (ring(model), Fp8RingCache(SPEC, grid(model), model)))
    first = float((exact - rough)[:, :, :3].norm() / exact[:, :, :3].norm())
    assert first < 0.02
    for measure in (torch.mean, torch.std):
        assert abs(float(measure(exact[:, :, -30:]) - measure(rough[:, :, -30:]))) < 0.05 * float(exact.std())


def test_the_fp8_cache_takes_a_third_of_the_memory():
    model = world()
    plain, small = ring(model), Fp8RingCache(SPEC, grid(model), model)
    stored = sum(t.nbytes for layers in plain._keys.values() for t in layers)
    stored += sum(t.nbytes for layers in plain._past.values() for pair in layers for t in pair)
    numbers = sum(each.numbers.nbytes for pair in small._stored.values() for layers in pair for each in layers)
    assert numbers * 6 == stored, "float32 here: three times four bytes against two of one"


# Graphs


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("kind", [RingCache, Fp8RingCache])
def test_recorded_passes_are_the_plain_ones_also_after_a_prompt(two, kind):
    model = world(two)
    graphs = GraphedPasses(record_plainly)
    plain = play(model, kind(SPEC, grid(model), model), texts=TEXTS, keeps_text=True)[0]
    recorded = play(model, kind(SPEC, grid(model), model), passes=graphs.passes, texts=TEXTS, keeps_text=True)[0]
    assert torch.equal(plain, recorded)
    assert graphs.count == (4 if two else 2), "of each expert: denoising and commits"


def test_recorded_passes_of_turned_frames_are_the_plain_ones():
    def made(passes):
        model = tiny_ladder.world(WARPED, two=False).eval().requires_grad_(False)
        return play(model, RingCache(WARPED, grid(model), model), 8, WARPED, passes, keeps_text=True, texts=TEXTS)[0]

    assert torch.equal(made(EAGER), made(GraphedPasses(record_plainly).passes))


# Compilation


def test_two_graphs_are_compiled_for_a_whole_session_and_a_second_one():
    torch._dynamo.reset()
    counter, model = CompileCounter(), world(two=False)
    accelerated = Accelerator(model, SPEC, AccelerateSpec(compile=True, compile_backend=counter))
    plain = play(world(two=False), ring(model), 12, texts=TEXTS, keeps_text=True)[0]
    made = play(model, accelerated.cache(grid(model)), 12, texts=TEXTS, keeps_text=True)[0]
    torch.testing.assert_close(made, plain, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2
    play(model, accelerated.cache(grid(model)), 5, keeps_text=True, seed=1)
    assert counter.frame_count == 2
    torch._dynamo.reset()


# Kernels of attention


def test_a_kernel_is_used_by_self_attention_alone():
    expert, calls = world().high.expert, []
    attention.use(expert, lambda *arguments, **options: calls.append(1) or attend(*arguments, **options))
    expert(torch.randn(1, 12, 2, 2, 3), torch.full((1, 2), 500.0), torch.ones(1, 3, 16))
    assert len(calls) == CONFIG.num_layers


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_makes_the_same_stream():
    spec = replace(SPEC, recache="window")  # whose commits after a prompt have masks
    model = world()
    plain = play(model, ring(model, spec), 8, spec, texts=TEXTS)[0]
    accelerated = Accelerator(world(), spec, AccelerateSpec(attention="flex"))
    made = play(accelerated.world, accelerated.cache(grid(model)), 8, spec, accelerated.passes(), texts=TEXTS)[0]
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_block_mask_hides_what_its_rule_hides():
    torch.manual_seed(0)
    seen = torch.rand(300) > 0.4
    q, k, v = torch.randn(1, 40, 2, 16), torch.randn(1, 300, 2, 16), torch.randn(1, 300, 2, 16)
    by_mask = attend(q, k, v, seen[None, None, None])
    by_blocks = attend(q, k, v, attention.block_mask(seen, 40))
    torch.testing.assert_close(by_blocks, by_mask, rtol=1e-5, atol=1e-5)


# Decoding


@pytest.mark.parametrize("spec", [SPEC, WARPED])
def test_frames_decoded_on_a_thread_are_equal_bit_for_bit(spec):
    def made(thread):
        model = tiny_ladder.world(spec, two=False).eval().requires_grad_(False)
        return play(model, RingCache(spec, grid(model), model), 8, spec, thread=thread)

    thread = DecodeThread(CPU)
    try:
        for plain, overlapped in zip(made(None), made(thread), strict=True):
            assert torch.equal(plain, overlapped)
    finally:
        thread.close()


def test_the_next_block_is_made_while_the_last_one_is_decoded():
    import threading

    model, gate, thread = world(), threading.Event(), DecodeThread(CPU)
    start = StreamStart(torch.zeros(1, 3, 16, 24), torch.tensor([[20.0, 20.0, 12.0, 8.0]]), torch.ones(1, 3, 16))
    stream = Rollout(model, tiny_ladder.codec(), SPEC, start, 0, ring(model))
    plain = stream._decoder.decode
    stream._decoder.decode = lambda latents: gate.wait(60) and plain(latents)
    try:
        pose = torch.eye(4).expand(1, stream.block_frames, 4, 4)
        stream.generate(pose)
        first = thread.then(lambda video: video.shape, stream.decode_in(thread.submit))
        stream.commit()
        stream.generate(pose)
        second = stream.decode_in(thread.submit)
        assert not first.done()
        gate.set()
        assert first.result(60) == second.result(60).shape == (1, 3, 3, 16, 24)
    finally:
        gate.set()
        thread.close()


def test_an_error_of_a_decoding_reaches_who_waits_for_its_frames():
    thread = DecodeThread(CPU)

    def broken(_):
        raise RuntimeError("out of memory")

    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            thread.then(lambda video: video, thread.submit(broken, torch.zeros(1))).result(60)
    finally:
        thread.close()
