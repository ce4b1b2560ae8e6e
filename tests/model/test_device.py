"""Nothing is made on a processor where the model is elsewhere: all of it on torch's meta device, which adds no CPU tensor."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")

import tiny_world  # noqa: E402

from model.backbone import vlm_context  # noqa: E402
from model.backbone.dit import Expert  # noqa: E402
from model.backbone.frame_codec import FrameCodec  # noqa: E402
from model.backbone.text import NoWords  # noqa: E402
from model.control.encoder import CameraEncoder  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.recipes import demo, tiny  # noqa: E402
from model.sampling import levels, sample  # noqa: E402
from model.training import flow_matching  # noqa: E402
from model.world import ControlledExpert, World  # noqa: E402

META = torch.device("meta")
BATCH, FRAMES = 3, 5


class Elsewhere(World):
    """A pair on the meta device, where a noise level cannot be looked at: the high-noise expert runs."""

    def forward(self, x, sigma_BT, text, denoised_BT=None, **more):
        return self.high(x, sigma_BT, text, **more)


def batch(size):
    """What a loader gives, on the processor."""
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
        expert = vlm_context.widened(expert, width)
    per, patch = 1, recipe.model.backbone.patch_size[1]
    camera = CameraEncoder(expert.config.width, recipe.model.control_width, patch, per, recipe.data.fps)
    one = ControlledExpert(expert, camera).to(META)
    return Elsewhere(one, one, NoiseSpec())


@pytest.mark.parametrize("make", [demo, tiny])
@pytest.mark.parametrize("width", [None, 12], ids=["text alone", "with a vlm"])
def test_a_small_world_takes_a_step_and_samples_on_another_device(make, width):
    recipe = make()
    world, codec = small_world(recipe, width), FrameCodec(recipe.codec.channels, recipe.codec.width).to(META)
    words = NoWords(recipe.model.backbone.text_dim).to(META)
    thoughts = (lambda frames, told: torch.zeros(len(told), 4, width)) if width else None
    seen = flow_matching.encoded(batch(recipe.data.size), codec, words, META, thoughts)
    assert {tensor.device for tensor in (seen.x0, *seen.given) if tensor is not None} == {META}
    noise = torch.randn(seen.x0.shape).to(META)
    flow_matching.loss(world, seen, torch.full((BATCH,), 0.95).to(META), noise).mean().backward()
    assert {p.grad.device for p in world.parameters() if p.grad is not None} == {META}
    nothing = seen.given._replace(maps=None)
    latents = sample(world, seen.given, levels(world.noise, 2), torch.Generator(), nothing, 3.0)
    assert codec.decode(latents).shape == (BATCH, 3, FRAMES, *recipe.data.size[::-1])


def test_the_large_worlds_parts_are_put_together_on_another_device():
    """The video codec, four frames a latent, and a pair."""
    codec = tiny_world.codec().to(META)
    pair = Elsewhere(*(one.to(META) for one in tiny_world.experts()), NoiseSpec())
    words = NoWords(tiny_world.tiny().text_dim).to(META)
    seen = flow_matching.encoded(batch(tiny_world.DATA.size), codec, words, META)
    flow_matching.loss(pair, seen, torch.full((BATCH,), 0.95).to(META), torch.randn(seen.x0.shape).to(META)).mean().backward()
    assert seen.given.text.device == META


def test_a_tensor_left_on_the_processor_would_fail_here():
    """What the tests above rest on."""
    recipe = tiny()
    world, codec = small_world(recipe), FrameCodec(recipe.codec.channels, recipe.codec.width).to(META)
    seen = flow_matching.encoded(batch(recipe.data.size), codec, NoWords(recipe.model.backbone.text_dim), META)
    with pytest.raises(RuntimeError, match="device"):
        flow_matching.loss(world, seen, torch.full((BATCH,), 0.95).to(META), torch.randn(seen.x0.shape).to(META))
