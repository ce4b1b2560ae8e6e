"""The sampler, the frame codec, the averaged weights and the throughput of stage 1's small world."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from model.backbone.dit import Expert  # noqa: E402
from model.backbone.frame_codec import FrameCodec  # noqa: E402
from model.backbone.vae import Codec  # noqa: E402
from model.config import tiny  # noqa: E402
from model.control.encoder import CameraEncoder  # noqa: E402
from model.control.pluecker import control_maps  # noqa: E402
from model.data.loader import _mirror, _reverse  # noqa: E402
from model.evaluation import control_accuracy  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.recipes import demo  # noqa: E402
from model.sampling import Conditioning, sample, sampler_sigmas  # noqa: E402
from model.training import throughput  # noqa: E402
from model.training.ema import EmaWeights  # noqa: E402


class Oracle:
    """A world that knows the video: its velocity is the true one of the path from any noise."""

    high = SimpleNamespace(expert=SimpleNamespace(config=SimpleNamespace(out_channels=16)))

    def __init__(self, x0):
        self.x0, self.sigmas = x0, []

    def __call__(self, x, sigma_BT, text, **_):
        self.sigmas.append(float(sigma_BT[0, 0]))
        return (x[:, :16] - self.x0) / sigma_BT[0, 0]


@pytest.mark.parametrize("steps", [1, 4])
def test_the_sampler_ends_at_the_video_of_a_true_velocity(steps):
    torch.manual_seed(0)
    world = Oracle(torch.randn(2, 16, 3, 4, 4))
    conditioning = Conditioning(torch.zeros(2, 20, 3, 4, 4), torch.zeros(2, 1, 8), None)
    found = sample(world, conditioning, sampler_sigmas(NoiseSpec(), steps), torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, world.x0, atol=1e-5, rtol=0)
    assert world.sigmas == pytest.approx(sampler_sigmas(NoiseSpec(), steps)[:-1])


def test_sigmas_are_even_before_the_shift():
    assert sampler_sigmas(NoiseSpec(shift=5.0), 4) == pytest.approx([1, 0.9375, 0.83333, 0.625, 0], abs=1e-4)
    assert sampler_sigmas(NoiseSpec(shift=1.0), 4) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(ValueError, match="at least one step"):
        sampler_sigmas(NoiseSpec(), 0)


def test_guidance_leads_away_from_no_text():
    conditioning = Conditioning(torch.zeros(1, 20, 1, 2, 2), torch.ones(1, 1, 8), None)
    unconditional = conditioning._replace(text=torch.zeros(1, 1, 8))

    def world(x, sigma, text, **_):
        return text.mean() * torch.ones_like(x[:, :16])

    world.high = Oracle.high
    plain, away = (
        sample(world, conditioning, [1.0, 0.0], torch.Generator().manual_seed(0), unconditional, g) for g in (1.0, 3.0)
    )
    torch.testing.assert_close(plain - away, torch.full_like(plain, 2.0))


def test_a_frame_codec_knows_each_frame_alone_and_its_grey_is_the_video_codecs():
    torch.manual_seed(0)
    codec = FrameCodec(channels=8, width=8).eval()
    video = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    latents = codec.encode(video)
    assert latents.shape == (2, 8, 5, 2, 3)
    torch.testing.assert_close(codec.encode(video[:, :, 3:4]), latents[:, :, 3:4])
    assert codec.decode(latents).shape == video.shape
    torch.testing.assert_close(codec.encode_first_frame(video[:, :, 0], 5), Codec.encode_first_frame(codec, video[:, :, 0], 5))


def test_a_frame_codecs_cells_are_principal_components():
    """The loss equals the variance of the other components, by numpy's decomposition."""
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.rand(40, 3, 6, 6) * 2 - 1, scale_factor=8 / 3, mode="bilinear")
    codec = FrameCodec(channels=12, width=8)
    codec.fit(pictures)
    latents = codec.encode(pictures[:, :, None])[:, :, 0]
    assert latents.var((0, 2, 3)).mean() == pytest.approx(1, rel=0.02)
    assert (latents.var((0, 2, 3)).diff() < 0).all(), "the first still counts most"
    lost = (codec.decode_linear(latents) - pictures).square().mean() * 192
    cells = torch.nn.functional.pixel_unshuffle(pictures, 8).movedim(1, -1).reshape(-1, 192).double().numpy()
    values = np.linalg.eigvalsh(np.cov(cells.T, bias=True))
    assert float(lost) == pytest.approx(values[:-12].sum(), rel=1e-3)
    assert torch.equal(codec.decode_pictures(latents), codec.decode_linear(latents)), "nothing is changed before training"


def test_one_frame_a_latent_has_its_steps_from_frame_to_frame():
    pose = torch.eye(4).repeat(1, 4, 1, 1)
    pose[0, :, 2, 3] = torch.tensor([0.0, 1.0, 3.0, 3.0])
    inner = torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(1, 4, 4)
    steps = control_maps(pose, inner, 16, 16, frames_per_latent=1)[0, :, 6:9]  # o x d grows with the step
    size = steps.abs().amax((1, 2, 3))
    assert size[0] == size[3] == 0
    assert size[2] == pytest.approx(2 * float(size[1]), rel=1e-5)


def test_an_encoder_of_one_frame_a_latent_reads_rates():
    torch.manual_seed(0)
    maps = torch.randn(1, 3, 12, 16, 16)
    slow, fast = (CameraEncoder(8, hidden=4, patch=1, frames_per_latent=1, rate=rate) for rate in (1.0, 10.0))
    fast.load_state_dict(slow.state_dict())
    for encoder in (slow, fast):
        torch.nn.init.ones_(encoder.out.weight)
    scaled = maps.clone()
    scaled[:, :, 6:] *= 10
    torch.testing.assert_close(slow(scaled), fast(maps))


def test_a_mirror_shows_what_a_mirrored_camera_sees():
    """Rays through mirrored pixels of a mirrored camera are the mirrored rays."""
    torch.manual_seed(0)
    angle = torch.tensor(0.3)
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, :3, :3] = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    pose[1, :3, 3] = torch.tensor([0.5, 0.1, 0.2])
    inner = torch.tensor([[20.0, 24.0, 7.0, 8.0]]).repeat(2, 1)
    video = torch.randint(0, 255, (3, 2, 16, 16), dtype=torch.uint8)
    there = _mirror({"video": video, "pose": pose, "intrinsics": inner, "camera_known": True})
    ours, theirs = (
        control_maps(s["pose"][None], s["intrinsics"][None], 16, 16, frames_per_latent=1)
        for s in ({"pose": pose, "intrinsics": inner}, there)
    )
    sign = torch.tensor([1, -1, -1, -1, 1, 1] * 2).view(12, 1, 1)  # a moment is an axial vector
    torch.testing.assert_close(theirs.flip(-1), ours * sign, atol=1e-5, rtol=0)
    assert torch.equal(there["video"].flip(-1), video)
    again = _mirror(there)
    torch.testing.assert_close(again["pose"], pose)


def test_a_video_run_backwards_is_a_walk_back_to_where_it_began():
    """Three frames: a step ahead, then a turn to the right; backwards a turn to the left, then a step back."""
    angle = torch.tensor(0.3)
    pose = torch.eye(4).repeat(3, 1, 1)
    pose[1:, 2, 3] = 1.0
    pose[2, :3, :3] = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    video = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
    inner = torch.arange(12.0).view(3, 4)
    there = _reverse({"video": video, "pose": pose, "intrinsics": inner, "spans": [(0, "a"), (2, "b")]})
    assert there["spans"] == [(0, "b"), (1, "a")]
    assert torch.equal(there["video"][:, 0], video[:, 2])
    assert torch.equal(there["intrinsics"][0], inner[2])
    torch.testing.assert_close(there["pose"][0], torch.eye(4))
    for pair in ((pose, 1), (there["pose"], -1)):
        motion = control_accuracy.camera_motion(pair[0].double().numpy())
        assert motion.forward == pytest.approx(pair[1], abs=1e-6)
        assert math.radians(motion.yaw_deg) == pytest.approx(pair[1] * 0.3, abs=1e-6)
    torch.testing.assert_close(_reverse(there)["pose"], pose)


def test_averaged_weights_are_applied_only_inside_the_context():
    module = torch.nn.Linear(2, 1)
    ema = EmaWeights(module, 0.5)
    own = module.weight.detach().clone()
    ema.weights["weight"].fill_(7.0)
    with ema.applied(module):
        assert module.weight.tolist() == [[7.0, 7.0]]
    assert torch.equal(module.weight, own)
    assert ema.weights["weight"].tolist() == [[7.0, 7.0]]


def by_products(q, k, v):
    """Attention in matrix products, since torch's counter counts the fused kernel for processors as zero operations."""
    shares = torch.einsum("blnh,bsnh->bnls", q, k).softmax(-1)
    return torch.einsum("bnls,bsnh->blnh", shares, v)


def test_operations_are_those_that_torch_counts():
    config = replace(tiny(), num_attention_heads=4, num_layers=3, ffn_dim=256)
    expert = Expert(config, by_products)
    x, text = torch.randn(1, 36, 3, 8, 8), torch.randn(1, 7, config.text_dim)
    with FlopCounterMode(display=False) as counter:
        expert(x, torch.full((1, 3), 500.0), text).sum().backward()
    tokens = throughput.count_tokens(config, (3, 8, 8))
    assert tokens == 3 * 4 * 4
    # the rest: embedders of time and text, which a video's length does not change
    assert throughput.training_flops(config, tokens, 7) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_demo_world_fits_into_eight_megabytes():
    recipe = demo()
    expert = Expert(recipe.model.backbone)
    camera = CameraEncoder(expert.config.width, recipe.model.control_width, patch=1, frames_per_latent=1)
    codec = recipe.codec.build()
    weights = sum(p.numel() for module in (expert, camera, codec) for p in module.parameters())
    assert 2 * weights < 8e6, "in bfloat16"
