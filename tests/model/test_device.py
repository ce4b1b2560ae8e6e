"""No tensor stays on the processor when the model is on another device: torch's meta device refuses to mix with CPU tensors."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")

import tiny_world  # noqa: E402

from model.backbone import vlm_context  # noqa: E402
from model.backbone.dit import Expert  # noqa: E402
from model.backbone.text import ZeroTextEncoder  # noqa: E402
from model.control.encoder import CameraEncoder  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.recipes import demo, tiny  # noqa: E402
from model.sampling import sample, sampler_sigmas  # noqa: E402
from model.training import flow_matching  # noqa: E402
from model.world import ControlledExpert, World  # noqa: E402

META = torch.device("meta")
BATCH, FRAMES = 3, 5


class Elsewhere(World):
    """A pair on the meta device, where noise levels have no values: the high-noise expert runs."""

    def forward(self, x, sigma_BT, text, denoised_BT=None, **more):
        return self.high(x, sigma_BT, text, **more)


def batch(size):
    """A batch of the loader, on the processor."""
    width, height = size
    return {
        "video": torch.zeros(BATCH, 3, FRAMES, height, width, dtype=torch.uint8),
        "pose": torch.eye(4).expand(BATCH, FRAMES, 4, 4),
        "origin": torch.eye(4).expand(BATCH, 4, 4),
        "intrinsics": torch.full((BATCH, FRAMES, 4), 16.0),
        "camera_known": torch.tensor([True, False, True]),
        "text": ["a door", "", "a hall"],
        "instruction": ["open it", "", ""],
    }


def small_world(recipe, width=None):
    expert = Expert(recipe.model.backbone)
    if width:
        expert = vlm_context.with_vlm_cross_attention(expert, width)
    frames_per_latent, patch = 1, recipe.model.backbone.patch_size[1]
    camera = CameraEncoder(expert.config.width, recipe.model.control_width, patch, frames_per_latent, recipe.data.fps)
    one = ControlledExpert(expert, camera).to(META)
    return Elsewhere(one, one, NoiseSpec())


@pytest.mark.parametrize("make", [demo, tiny])
@pytest.mark.parametrize("width", [None, 12], ids=["text alone", "with a vlm"])
def test_a_small_world_takes_a_step_and_samples_on_another_device(make, width):
    recipe = make()
    world, codec = small_world(recipe, width), recipe.codec.build().to(META)
    text_encoder = ZeroTextEncoder(recipe.model.backbone.text_dim).to(META)
    vlm_encoder = (lambda frames, instructions: torch.zeros(len(instructions), 4, width)) if width else None
    encoded = flow_matching.encode_batch(batch(recipe.data.size), codec, text_encoder, META, vlm_encoder)
    assert {tensor.device for tensor in (encoded.x0, *encoded.conditioning) if tensor is not None} == {META}
    noise = torch.randn(encoded.x0.shape).to(META)
    flow_matching.loss(world, encoded, torch.full((BATCH,), 0.95).to(META), noise).mean().backward()
    assert {p.grad.device for p in world.parameters() if p.grad is not None} == {META}
    unconditional = encoded.conditioning._replace(maps=None)
    latents = sample(world, encoded.conditioning, sampler_sigmas(world.noise, 2), torch.Generator(), unconditional, 3.0)
    assert codec.decode(latents).shape == (BATCH, 3, FRAMES, *recipe.data.size[::-1])


def test_the_large_worlds_parts_are_put_together_on_another_device():
    """The video codec, four frames a latent, and a pair."""
    codec = tiny_world.codec().to(META)
    pair = Elsewhere(*(one.to(META) for one in tiny_world.experts()), NoiseSpec())
    text_encoder = ZeroTextEncoder(tiny_world.tiny().text_dim).to(META)
    encoded = flow_matching.encode_batch(batch(tiny_world.DATA.size), codec, text_encoder, META)
    flow_matching.loss(
        pair, encoded, torch.full((BATCH,), 0.95).to(META), torch.randn(encoded.x0.shape).to(META)
    ).mean().backward()
    assert encoded.conditioning.text.device == META


def test_a_tensor_left_on_the_processor_would_fail_here():
    """Without this the tests above would prove nothing."""
    recipe = tiny()
    world, codec = small_world(recipe), recipe.codec.build().to(META)
    encoded = flow_matching.encode_batch(batch(recipe.data.size), codec, ZeroTextEncoder(recipe.model.backbone.text_dim), META)
    with pytest.raises(RuntimeError, match="device"):
        flow_matching.loss(world, encoded, torch.full((BATCH,), 0.95).to(META), torch.randn(encoded.x0.shape).to(META))
