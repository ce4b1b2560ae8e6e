"""Experts with cameras: the base until they are trained, and the right one of the pair."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.backbone.dit import Expert  # noqa: E402
from model.config import tiny  # noqa: E402
from model.control.pluecker import control_maps  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.world import ControlledExpert, World  # noqa: E402

NOISE = NoiseSpec()


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    pose = torch.eye(4).repeat(1, 9, 1, 1)
    pose[0, :, 2, 3] = 0.1 * torch.arange(9)
    maps = control_maps(pose, torch.tensor([30.0, 30.0, 16.0, 16.0]).expand(1, 9, 4), 32, 32)
    return torch.randn(1, 36, 3, 4, 4), torch.randn(1, 5, tiny().text_dim), maps


def test_a_fresh_camera_leaves_the_base_as_it_is_bit_for_bit(inputs):
    x, text, maps = inputs
    world = ControlledExpert(Expert(tiny()))
    sigma = torch.full((1, 3), 0.4)
    with torch.no_grad():
        assert torch.equal(world(x, sigma, text, maps), world.expert(x, 1000 * sigma, text))


def test_the_camera_of_a_block_further_on_is_that_of_whole_latents(inputs):
    x, text, maps = inputs
    world = ControlledExpert(Expert(tiny()))
    with torch.no_grad():
        assert world(x[:, :, :2], torch.full((1, 2), 0.4), text, maps[:, 1:], start_of_stream=False).shape == (1, 16, 2, 4, 4)


def test_the_pair_runs_the_expert_of_the_frames_that_are_denoised(inputs):
    x, text, _ = inputs
    high, low = ControlledExpert(Expert(tiny())), ControlledExpert(Expert(tiny()))
    pair, sigma = World(high, low, NOISE), torch.tensor([[0.0, 0.95, 0.95]])
    with torch.no_grad():
        assert torch.equal(pair(x, sigma, text, denoised_BT=torch.tensor([[False, True, True]])), high(x, sigma, text))
        middle = torch.full((1, 3), 0.5)
        assert torch.equal(pair(x, middle, text), low(x, middle, text))
    with pytest.raises(ValueError, match="both sides"):
        pair(x, sigma, text)


def test_experts_of_two_sizes_are_no_pair():
    other = Expert(replace(tiny(), num_layers=1))
    with pytest.raises(ValueError, match="differ in size"):
        World(ControlledExpert(Expert(tiny())), ControlledExpert(other), NOISE)


def test_no_camera_is_one_thing_whether_none_is_given_or_zeros_beside_samples_that_have_one(inputs):
    """With a trained encoder. A camera at rest is different from no camera."""
    x, text, maps = inputs
    world = ControlledExpert(Expert(tiny()))
    for weight in world.camera.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    sigma = torch.full((1, 3), 0.4)
    rest = control_maps(torch.eye(4).expand(1, 9, 4, 4), torch.tensor([30.0, 30.0, 16.0, 16.0]).expand(1, 9, 4), 32, 32)
    with torch.no_grad():
        none = world(x, sigma, text)
        both = torch.cat([torch.zeros_like(maps), maps])
        mixed = world(x.expand(2, -1, -1, -1, -1), sigma.expand(2, -1), text.expand(2, -1, -1), both)
        later = world(x[:, :, :2], sigma[:, :2], text, torch.zeros_like(maps)[:, 1:], start_of_stream=False)
        torch.testing.assert_close(mixed[:1], none, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(later, world(x[:, :, :2], sigma[:, :2], text, start_of_stream=False), rtol=1e-5, atol=1e-5)
        for other in (mixed[1:], world(x, sigma, text, rest), world.expert(x, 1000 * sigma, text)):
            assert (other - none).norm() > 1e-3 * none.norm()
