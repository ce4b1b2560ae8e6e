"""Self-forcing: rollouts with gradients, windows as scores see them, and the mistakes that others made in it."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

import tiny_ladder as tiny  # noqa: E402 (after the package is known to be here)
import tiny_world  # noqa: E402

from model.backbone.attention import AttentionLayout, SinkRotation, attend  # noqa: E402
from model.backbone.vae import to_signed  # noqa: E402
from model.causal.cache import TokenGrid  # noqa: E402
from model.causal.condition import camera_maps  # noqa: E402
from model.causal.spec import dense_mask  # noqa: E402
from model.control.pluecker import relative_to_origin  # noqa: E402
from model.noise import NoiseSpec, seeded_generator  # noqa: E402
from model.parallel.recompute import recompute_blocks  # noqa: E402
from model.training import flow_matching, lora  # noqa: E402
from model.training.scores import (  # noqa: E402
    FirstFrameScore,
    Window,
    distribution_matching_loss,
    predict_x0,
    sample_of,
)
from model.training.self_forcing import SelfForcing, draw  # noqa: E402
from model.training.settings import DistillationSettings  # noqa: E402
from model.training.stop_criteria import StopCriteria, broken, flow_length, variance  # noqa: E402
from model.world import World  # noqa: E402

SETTINGS = DistillationSettings(teacher="teacher", window=4)
BOTH = pytest.mark.parametrize("spec", [tiny.PLAIN, tiny.WARPED], ids=["first frame", "turned frames"])


def forcing(spec=tiny.PLAIN, two=True, settings=SETTINGS, parts=None):
    return SelfForcing(parts or tiny.parts(spec, two), spec, settings)


def gradients(world):
    return {name: p.grad.clone() for name, p in world.named_parameters() if p.grad is not None}


def reference_rollout(parts, spec, batch, draws, generators):
    """The window of a rollout without a cache: every pass sees a growing list of latents, and computes their keys again.

    What precedes the window is without gradient: its keys and values are detached in every layer.
    """
    codec, world = parts.codec, parts.world
    video = to_signed(batch["video"])
    seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
    sizes = video.shape[-2] // codec.cell_px, video.shape[-1] // codec.cell_px
    grid = TokenGrid.of(world.high.expert, *sizes)
    made = [codec.encode(video[:, :, :1])]
    known = draws.window.start * grid.per_latent

    def truncated(q, k, v, mask=None, scale=None):
        k, v = (torch.cat([each[:, :known].detach(), each[:, known:]], 1) for each in (k, v))
        return attend(q, k, v, mask, scale)

    for expert in (world.high, world.low):
        for layer in expert.expert.blocks:
            layer.attn1.attend = truncated
    for block in spec.blocks(draws.window.stop)[1:]:
        count, in_window = block.stop, block.start >= draws.window.start
        numbers = torch.arange(count).repeat_interleave(grid.per_latent)
        is_clean = numbers < block.start
        cuts = [
            max(0, block.start - spec.window - spec.sink) if number >= block.start else cut
            for number, cut in enumerate(spec.distance_cut(list(range(count))))
        ]
        sink = None
        if any(cuts):
            sink = SinkRotation(grid.rotary([n - cut for n, cut in enumerate(cuts)]), numbers < spec.sink)
        everything = torch.arange(len(numbers))
        mask = dense_mask(spec.mask_mod(numbers, is_clean), everything, everything)
        layout = AttentionLayout(grid.rotary(list(range(count))), mask, sink)
        pose = batch["pose"][:, :count]
        intrinsics = batch["intrinsics"][:, :count]
        maps = camera_maps(spec, codec, pose, intrinsics, sizes, pose[:, 0], None)
        condition = codec.encode_first_frame(video[:, :, 0], count)
        text = parts.text_encoder([spans[0][1] for spans in batch["spans"]])
        blocks = [seeded_generator(seed, block.start) for seed in seeds]
        shape = made[0].shape[1], len(block), *made[0].shape[3:]

        def noise(blocks=blocks, shape=shape):
            return torch.stack([torch.randn(shape, generator=each) for each in blocks])

        x = noise()
        plan = spec.plan(world.noise, first=False)
        for number, (sigma, name) in enumerate(plan):
            with torch.set_grad_enabled(in_window and number == draws.exit_step):
                latents = torch.cat([torch.cat(made, 2), x], 2)
                levels = torch.zeros(len(x), count)
                levels[:, block.start :] = sigma
                expert = world.expert_named(name)
                velocity = expert(torch.cat([latents, condition], 1), levels, text, maps, layout=layout)
                x = x - sigma * velocity[:, :, block.start :].float()
            if (in_window and number == draws.exit_step) or number == len(plan) - 1:
                break
            x = (1 - plan[number + 1][0]) * x + plan[number + 1][0] * noise()
        made.append(x)
    return torch.cat(made, 2)[:, :, draws.window.start : draws.window.stop]


@pytest.mark.parametrize("exit_step", [0, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_of_a_rollout_is_that_of_a_growing_list_without_a_cache(exit_step, recompute):
    spec = tiny.PLAIN
    expert = spec.plan(NoiseSpec(), first=False)[exit_step][1]
    draws = tiny.draws(range(5, 9), exit_step, expert)
    weight = torch.randn(2, tiny.CHANNELS, 4, 2, 3, generator=torch.Generator().manual_seed(2))
    plain = tiny.parts(spec)
    reference = reference_rollout(plain, spec, tiny.batch(), draws, tiny.generators(2))
    (reference * weight).sum().backward()
    parts = tiny.parts(spec)
    if recompute:
        for each in (parts.world.high, parts.world.low):
            recompute_blocks(each.expert)
    rolled = forcing(spec, parts=parts).roll_out(tiny.batch(), draws, tiny.generators(2))
    (rolled.fake.x0 * weight).sum().backward()
    assert (rolled.fake.x0 - reference).abs().max() < 1e-4
    ours, theirs = gradients(parts.world), gradients(plain.world)
    assert any(gradient.norm() > 1e-3 for gradient in theirs.values())
    for name, gradient in theirs.items():
        if not name.endswith("to_k.bias") and f"{expert}." in name:
            assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_context_without_gradient_is_a_choice_that_changes_the_gradient():
    draws, weight = tiny.draws(range(1, 5)), torch.randn(2, tiny.CHANNELS, 4, 2, 3)
    found = []
    for context_gradient in (True, False):
        spec = replace(tiny.PLAIN, context_gradient=context_gradient)
        parts = tiny.parts(spec)
        rolled = forcing(spec, parts=parts).roll_out(tiny.batch(), draws, tiny.generators(2))
        (rolled.fake.x0 * weight).sum().backward()
        found.append((rolled.fake.x0.detach(), gradients(parts.world)["high.expert.blocks.0.ffn.net.2.weight"]))
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).norm() > 0.01 * found[0][1].norm()


@BOTH
def test_blocks_before_the_window_have_no_gradient_and_a_critics_step_has_none(spec):
    parts = tiny.parts(spec)
    rolled = forcing(spec, parts=parts).roll_out(tiny.batch(), tiny.draws(range(5, 9)), tiny.generators(2))
    assert rolled.fake.x0.requires_grad
    assert not rolled.fake.before.requires_grad
    passive = tiny.draws(range(5, 9), student=False)
    assert not forcing(spec, parts=parts).roll_out(tiny.batch(), passive, tiny.generators(2)).fake.x0.requires_grad


@BOTH
def test_a_rollout_in_training_is_the_one_in_play(spec):
    """The cache of training is never written in place, and inference reads the same keys (pitfalls 1 and 2)."""
    from model.causal.cache import RingCache
    from model.causal.rollout import Rollout, StreamStart

    parts, batch = tiny.parts(spec), tiny.batch(1)
    last = len(spec.steps) - 1
    trained = forcing(spec, parts=parts).roll_out(batch, tiny.draws(range(5, 9), last), tiny.generators(1)).fake.x0
    video, grid = to_signed(batch["video"]), TokenGrid.of(parts.world.high.expert, 2, 3)
    text = parts.text_encoder([""])
    start = StreamStart(video[:, :, 0], batch["intrinsics"][:, 0], text)
    seed = int(torch.randint(2**62, (), generator=tiny.generators(1)[0]))
    with torch.no_grad():
        ring = RingCache(spec, grid, parts.world)
        rollout = Rollout(parts.world, parts.codec, spec, start, [seed], ring)
        made = []
        while rollout.latents < 9:
            frames = slice(rollout.latents, rollout.latents + rollout.block_frames)
            made.append(rollout.generate(batch["pose"][:, frames]))
            rollout.decode()
            rollout.commit()
    assert (torch.cat(made, 2)[:, :, 4:8] - trained).abs().max() < 1e-4


@BOTH
def test_the_view_of_a_true_window_is_a_fresh_bidirectional_sample(spec):
    """First frame, mask, cameras and text of the window are its own, not those of the stream."""
    texts = [[(0, "a"), (6, "b")], [(0, "c")]]
    parts, batch, window = tiny.parts(spec), tiny.batch(texts=texts), range(5, 9)
    score = forcing(spec, parts=parts)._score
    video = to_signed(batch["video"])
    view = score.view(batch, Window(parts.codec.encode(video[:, :, 5:9]), window, video[:, :, :5]))
    frames = slice(4, 9)
    fresh = batch | {
        "video": batch["video"][:, :, frames],
        "pose": relative_to_origin(batch["pose"][:, frames]).float(),
        "intrinsics": batch["intrinsics"][:, frames],
        "spans": [[(0, "a"), (2, "b")], [(0, "c")]],
        "text": ["b", "c"],
    }
    if spec.warp:
        teacher = parts.teacher_causal
        expected = tiny_sample_of_teacher(parts, teacher, fresh)
        assert torch.equal(view.x0, expected.x0)
        assert torch.equal(view.condition.text, expected.condition.text)
        assert torch.equal(view.condition.maps, expected.condition.maps)
        first = 8 + tiny.CHANNELS  # channels of the first source; the second is one of earlier frames
        assert torch.equal(view.condition.condition[:, :first], expected.condition.condition[:, :first])
        assert view.condition.condition[:, first:, 1:].abs().sum() > 0
        return
    expected = flow_matching.encode_batch(fresh, parts.codec, parts.text_encoder, torch.device("cpu"))
    assert torch.equal(view.x0, expected.x0)
    image, text, maps, _ = expected.conditioning
    assert torch.equal(view.condition.condition, image)
    assert torch.equal(view.condition.text, text)
    assert torch.equal(view.condition.maps, maps)


def tiny_sample_of_teacher(parts, spec, fresh):
    from model.training.objectives import TeacherForcing
    from model.training.settings import ObjectiveSettings

    settings = ObjectiveSettings("teacher_forcing", source_noise=0.0, context_noise=0.0)
    return TeacherForcing(parts, spec, settings).encode(fresh, tiny.generators(2))


@BOTH
def test_the_fake_score_sees_the_predicted_frame_before_the_window_and_the_real_one_the_true_frame(spec):
    batch = tiny.batch()
    rolled = forcing(spec).roll_out(batch, tiny.draws(range(5, 9)), tiny.generators(2))
    true = to_signed(batch["video"])[:, :, 4]
    assert torch.equal(rolled.real.before[:, :, -1], true)
    assert (rolled.fake.before[:, :, -1] - true).abs().mean() > 0.01
    assert rolled.fake.before.shape == rolled.real.before.shape if spec.warp else True
    assert torch.equal(rolled.fake.x0, rolled.real.x0)
    assert rolled.truth.shape[2] == 5


@BOTH
def test_a_window_after_true_history_differs_from_one_after_a_rollout(spec):
    own, forced = (
        forcing(spec).roll_out(tiny.batch(), tiny.draws(range(5, 9), forced=each), tiny.generators(2)) for each in (False, True)
    )
    assert torch.equal(forced.fake.before, forced.real.before)
    assert (own.fake.x0 - forced.fake.x0).abs().max() > 1e-3


def test_a_change_of_text_reaches_the_blocks_after_it():
    plain, changed = (
        forcing().roll_out(tiny.batch(texts=texts), tiny.draws(range(1, 7)), tiny.generators(2)).fake.x0
        for texts in ([[(0, "a")]] * 2, [[(0, "a"), (3, "b")], [(0, "a")]])
    )
    assert torch.equal(plain[:, :, :2], changed[:, :, :2])
    assert (plain[0, :, 2:] - changed[0, :, 2:]).abs().max() > 1e-4
    assert (plain[1] - changed[1]).abs().max() < 1e-4, "a sample whose text stays is not changed"


def test_guidance_leads_from_the_unconditional_prediction():
    """u + g (c - u), as everywhere in this package; Self-Forcing's c + g (c - u) is u + (g + 1)(c - u) (pitfall 5)."""
    parts = tiny.parts(tiny.PLAIN)
    score, batch = FirstFrameScore(parts), tiny.batch(texts=[[(0, "a")]] * 2)
    video = to_signed(batch["video"])
    view = score.view(batch, Window(parts.codec.encode(video[:, :, 1:5]), range(1, 5), video[:, :, :1]))
    sigma, noise = torch.tensor([0.95, 0.99]), torch.randn(view.x0.shape)
    with torch.no_grad():
        with_text, without = (
            predict_x0(score, parts.teacher, each, sigma, noise, "high") for each in (view, score.unconditional(view))
        )
        guided = predict_x0(score, parts.teacher, view, sigma, noise, "high", guidance=4.0)
    assert (with_text - without).abs().max() > 1e-3
    assert torch.allclose(guided, without + 4 * (with_text - without), atol=1e-5)
    assert torch.allclose(guided, with_text + 3 * (with_text - without), atol=1e-5)


def test_the_loss_of_a_sample_does_not_depend_on_its_batch():
    """The divisor is of the sample (pitfall 6)."""
    x0, fake, real = torch.randn(3, 2, tiny.CHANNELS, 4, 2, 3).unbind(0)
    real = real * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)
    both = distribution_matching_loss(x0, fake, real)
    alone = distribution_matching_loss(x0[:1], fake[:1], real[:1])
    assert torch.equal(both[:1], alone)


def test_the_gradient_of_the_loss_leads_from_the_fake_to_the_real_prediction():
    x0 = torch.randn(2, tiny.CHANNELS, 4, 2, 3, requires_grad=True)
    fake, real = torch.randn(2, *x0.shape).unbind(0)
    distribution_matching_loss(x0, fake, real).sum().backward()
    expected = (fake - real) / (x0 - real).abs().mean((1, 2, 3, 4), keepdim=True)
    direction = torch.nn.functional.cosine_similarity(x0.grad.flatten(), expected.detach().flatten(), 0)
    assert float(direction) > 0.999


def test_draws_depend_on_the_shared_generator_only():
    """Exit step, length, window and experts are equal on all ranks (pitfall 7): they come from seed and step."""
    settings = replace(SETTINGS, window_at="uniform", teacher_forcing_share=0.5, update_ratio=2)
    drawn = [draw(settings, tiny.PLAIN, NoiseSpec(), 21, step, seeded_generator(0, step)) for step in range(400)]
    assert drawn == [draw(settings, tiny.PLAIN, NoiseSpec(), 21, step, seeded_generator(0, step)) for step in range(400)]
    assert [each.student for each in drawn[:4]] == [True, False, True, False]
    assert {each.exit_step for each in drawn} == {0, 1, 2}
    assert all(each.exit_expert == ("low" if each.exit_step == 2 else "high") for each in drawn)
    assert 0.4 < sum(each.forced for each in drawn) / 400 < 0.6
    starts = {each.window.start for each in drawn}
    assert starts == set(range(1, 18, 2)), "every whole block, from the first to the last"
    assert all(len(each.window) == 4 and each.window.stop <= 21 for each in drawn)


def test_stage_three_scores_the_end_of_a_rollout_of_random_length():
    drawn = [draw(SETTINGS, tiny.PLAIN, NoiseSpec(), 9, step, seeded_generator(0, step)) for step in range(100)]
    assert {each.window.stop for each in drawn} == {5, 7, 9}
    assert not any(each.forced for each in drawn)


def test_score_levels_can_be_those_of_the_expert_that_is_trained():
    settings = replace(SETTINGS, score_levels="exit_expert")
    drawn = [draw(settings, tiny.PLAIN, NoiseSpec(), 9, step, seeded_generator(0, step)) for step in range(100)]
    assert all(each.score_expert == each.exit_expert for each in drawn)
    assert {each.score_expert for each in drawn} == {"high", "low"}


@pytest.mark.parametrize("name", ["high", "low"])
def test_levels_of_a_score_belong_to_its_expert(name):
    """The boundary is a shifted noise level (pitfall 3), also where levels are clamped."""
    levels, _ = forcing()._levels_and_noise(torch.zeros(300, 1, 1, 1, 1), name, tiny.generators(300))
    assert NoiseSpec().expert_for(levels) == name
    assert levels.min() >= SETTINGS.min_level
    assert levels.max() <= SETTINGS.max_level


def test_noise_of_a_sample_does_not_depend_on_its_batch_or_rank():
    """Per-sample generators (pitfall 8, and randomness under context parallel)."""
    batch = tiny.batch(2)
    both = forcing().roll_out(batch, tiny.draws(range(1, 5)), tiny.generators(2)).fake.x0
    second = {name: value[1:] if hasattr(value, "__len__") and len(value) == 2 else value for name, value in batch.items()}
    alone = forcing().roll_out(second, tiny.draws(range(1, 5)), tiny.generators(2)[1:]).fake.x0
    assert (both[1:] - alone).abs().max() < 1e-4


@BOTH
def test_losses_are_finite_and_reach_student_and_critic(spec):
    parts = tiny.parts(spec)
    made, draws = forcing(spec, parts=parts), tiny.draws(range(5, 9))
    rolled = made.roll_out(tiny.batch(), draws, tiny.generators(2))
    loss = made.student_loss(tiny.batch(), rolled, draws, tiny.generators(2, "s"))
    assert loss.shape == (2,)
    loss.sum().backward()
    expert = spec.plan(NoiseSpec(), first=False)[1][1]
    assert gradients(parts.world)[f"{expert}.expert.blocks.0.attn1.to_q.weight"].norm() > 0
    assert not gradients(parts.critic)
    assert not gradients(parts.teacher)
    sigma, loss = made.critic_loss(tiny.batch(), rolled, draws, tiny.generators(2, "c"))
    assert (sigma >= 0.9).all()
    loss.sum().backward()
    assert gradients(parts.critic)["high.expert.blocks.0.attn1.to_q.weight"].norm() > 0


def test_low_rank_changes_are_zero_at_first_and_can_be_switched_off():
    world, plain = tiny.world(tiny.PLAIN), tiny.world(tiny.PLAIN)
    lora.add_lora(world, 3)
    trained = [name for name, p in world.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert world.state_dict().keys() - plain.state_dict().keys() == set(trained)
    x = torch.randn(1, plain.high.expert.config.in_channels, 3, 2, 3)
    sigma, text = torch.full((1, 3), 0.5), torch.zeros(1, 2, 12)
    with torch.no_grad():
        expected = plain.low(x, sigma, text)
        assert torch.equal(world.low(x, sigma, text), expected)
        for name, parameter in world.named_parameters():
            if "lora_up" in name:
                parameter.normal_()
        assert not torch.allclose(world.low(x, sigma, text), expected)
        with lora.switched_off(world):
            assert torch.equal(world.low(x, sigma, text), expected)


def test_stop_criteria_flag_a_student_that_is_oversaturated_or_stands_still():
    settings = replace(SETTINGS, max_variance_ratio=1.5, min_flow_ratio=0.5)
    random = torch.Generator().manual_seed(0)
    wide = torch.rand(1, 3, 1, 64, 160, generator=random) * 2 - 1
    wide = torch.nn.functional.avg_pool2d(wide[:, :, 0], 5, 1, 2)[:, :, None] * 3
    moving = torch.cat([wide[..., 2 * i : 2 * i + 96] for i in range(6)], 2)
    still = moving[:, :, :1].expand(-1, -1, 6, -1, -1)
    x0 = torch.randn(1, 4, 6, 8, 12, generator=random)
    assert flow_length(moving) == pytest.approx(2.0, rel=0.2)
    for student, video, words in ((x0, moving, []), (1.4 * x0, moving, ["oversaturated"]), (x0, still, ["motion fades"])):
        criteria = StopCriteria()
        criteria.add(variance(student), variance(x0), flow_length(video), flow_length(moving))
        found = broken(criteria.measured(), settings)
        assert [reason.split(":")[0] for reason in found] == words


def test_the_frame_before_a_window_is_the_one_that_was_shown():
    spec, batch = tiny.PLAIN, tiny.batch()
    parts = tiny.parts(spec)
    rolled = forcing(spec, parts=parts).roll_out(batch, tiny.draws(range(5, 9)), tiny.generators(2))
    whole = forcing(spec, parts=parts).roll_out(batch, tiny.draws(range(1, 5), exit_step=2), tiny.generators(2))
    assert torch.allclose(rolled.fake.before[:, :, -1], parts.codec.decode(whole.fake.x0)[:, :, -1].detach(), atol=1e-5)


def test_settings_that_cannot_work_are_refused():
    for change, words in (
        ({"window": 0}, "window must be at least 1"),
        ({"window_at": "start"}, "window_at must be one of end, uniform"),
        ({"lr_high": 0.0}, "lr_high must be positive"),
        ({"min_level": 0.9, "max_level": 0.5}, "min_level must be under max_level"),
        ({"teacher_forcing_share": 2.0}, "teacher_forcing_share must be from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(SETTINGS, **change)


@pytest.fixture(scope="module")
def video_parts():
    """Parts with Wan's video codec: four frames a latent, and two experts with patches of 2x2."""
    pytest.importorskip("diffusers", reason="the extra `train` is not installed")

    def world(seed):
        torch.manual_seed(seed)
        made = World(*tiny_world.experts(), NoiseSpec())
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        return made

    parts = tiny_world.parts(world(1))
    return replace(parts, teacher=world(2).requires_grad_(False), critic=world(3))


def video_batch(frames):
    made = tiny.batch(1, frames)
    smooth = torch.nn.functional.interpolate(made["video"].float().flatten(0, 1), (32, 32)).view(1, 3, frames, 32, 32)
    return made | {"video": smooth.to(torch.uint8), "intrinsics": torch.tensor([30.0, 30.0, 16.0, 16.0]).expand(1, frames, 4)}


def test_windows_of_a_video_codec_have_four_frames_a_latent(video_parts):
    spec, settings = tiny.PLAIN, replace(SETTINGS, window=4)
    made, batch = forcing(spec, settings=settings, parts=video_parts), video_batch(25)
    video = to_signed(batch["video"])
    for window in (range(1, 5), range(3, 7)):
        first = 4 * (window.start - 1)
        draws = tiny.draws(window, 0)
        rolled = made.roll_out(batch, draws, tiny.generators(1))
        assert rolled.fake.x0.shape[2] == 4
        assert torch.equal(rolled.truth, video[:, :, first : first + 17])
        assert torch.equal(rolled.real.before[:, :, -1], video[:, :, first])
        assert torch.equal(rolled.fake.before[:, :, -1], video[:, :, first]) == (window.start == 1)
        true_latents = video_parts.codec.encode(video)[:, :, window.start : window.stop]
        view = made._score.view(batch, rolled.real._replace(x0=true_latents))
        fresh = sample_of(batch, range(first, first + 17)) | {"video": batch["video"][:, :, first : first + 17]}
        device = torch.device("cpu")
        expected = flow_matching.encode_batch(fresh, video_parts.codec, video_parts.text_encoder, device)
        assert torch.equal(view.condition.condition, expected.conditioning.image)
        assert torch.equal(view.condition.maps, expected.conditioning.maps)
        assert torch.equal(view.x0[:, :, :1], expected.x0[:, :, :1])
        remembered = (view.x0 - expected.x0).abs().max()
        assert (remembered < 1e-5) == (window.start == 1), "the encoder remembers what came before a later window"
        made.student_loss(batch, rolled, draws, tiny.generators(1, "s")).sum().backward()
        assert all(each >= 0 for each in made.measured(rolled))


def test_the_first_block_of_a_later_window_of_a_video_codec_is_not_scored(video_parts):
    made, batch, draws = forcing(parts=video_parts), video_batch(25), tiny.draws(range(3, 7), 0)
    rolled = made.roll_out(batch, draws, tiny.generators(1))
    latents = rolled.fake.x0.detach().requires_grad_()
    made.student_loss(batch, rolled._replace(fake=rolled.fake._replace(x0=latents)), draws, tiny.generators(1)).sum().backward()
    assert not latents.grad[:, :, :2].any()
    assert latents.grad[:, :, 2:].any()
