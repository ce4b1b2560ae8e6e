"""Turned pictures: geometry against the projection of points, and the prior against the exact answer."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.control.trajectory import PlayerState  # noqa: E402 (after the package is known to be here)
from model.warp import SOURCE_CHANNELS, assemble, from_prior, ray_change, turn  # noqa: E402

INNER = torch.tensor([[60.0, 60.0, 64.0, 40.0]])


def pose(**state):
    return torch.from_numpy(PlayerState(**state).pose).float()[None]


def test_no_turn_is_the_same_picture_and_all_of_it_known():
    picture = torch.rand(2, 3, 96, 128) * 2 - 1
    turned, known = turn(picture, pose().expand(2, 4, 4), pose(z=3.0).expand(2, 4, 4), INNER.expand(2, 4))
    assert (turned - picture).abs().max() < 1e-4
    assert known.all()


@pytest.mark.parametrize("yaw", [-25.0, -8.0, 12.0, 30.0])
def test_a_line_straight_ahead_moves_by_the_tangent_of_the_turn(yaw):
    """Turning right moves what was ahead to the left."""
    picture = -torch.ones(1, 3, 96, 128)
    picture[..., 63:65] = 1
    turned, known = turn(picture, pose(), pose(yaw_deg=yaw), INNER)
    column = 64 - 60 * math.tan(math.radians(yaw))
    assert abs(float(turned[0, 0, 40].argmax()) + 0.5 - column) <= 1
    unknown = ~known[0, 40]
    assert unknown.any()
    assert unknown[-1] == (yaw > 0)
    assert unknown[0] == (yaw < 0)


def test_there_and_back_is_the_same_where_it_was_seen():
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), size=(96, 128), mode="bilinear") * 2 - 1
    there, _ = turn(picture, pose(), pose(yaw_deg=10), INNER)
    back, known = turn(there, pose(yaw_deg=10), pose(), INNER)
    middle = known[0, :, 30:100]
    assert (back - picture)[0, :, :, 30:100].abs().amax(0)[middle].mean() < 0.02


def test_rays_change_with_the_camera_and_not_without():
    assert ray_change(pose(), pose(), INNER, 6, 8, 16).abs().max() == 0
    walked = ray_change(pose(), pose(z=0.1), INNER, 6, 8, 16)
    turned = ray_change(pose(), pose(yaw_deg=5), INNER, 6, 8, 16)
    assert walked[:, :3].abs().max() > 0.1
    assert walked[:, 3:].abs().max() < 1e-6
    assert turned[:, 3:].abs().max() > 0.1
    assert turned[:, :3].abs().max() < 1e-6


def test_unknown_cells_are_zero_and_say_so():
    known = torch.zeros(1, 32, 32, dtype=torch.bool)
    known[:, :16] = True
    channels = assemble(torch.ones(1, 4, 2, 2), known, torch.tensor([0.25]), torch.zeros(1, 6, 2, 2), 16)
    assert channels.shape == (1, SOURCE_CHANNELS + 4, 2, 2)
    assert channels[0, 0].tolist() == [[1, 1], [0, 0]]
    assert (channels[0, 1] == 0.25).all()
    assert channels[0, 8:, 1].abs().max() == 0


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.8, 1.0])
def test_the_prior_is_the_exact_velocity_of_its_guess(sigma):
    """Of frames that are normal around the guess, base is the mean velocity: x does not explain what is left."""
    torch.manual_seed(0)
    count, remainder = 200_000, torch.tensor([0.4])
    guess = torch.randn(count, 1, 1, 1, 1)
    frame = guess + 0.4 * torch.randn_like(guess)
    noise = torch.randn_like(guess)
    noisy = (1 - sigma) * frame + sigma * noise
    condition = torch.zeros(count, SOURCE_CHANNELS + 1, 1, 1, 1)
    condition[:, 0], condition[:, 8:] = 1, guess
    reads, base, scale = from_prior(noisy, condition, torch.full((count, 1), sigma), remainder)
    left = noise - frame - base
    assert abs(float(left.mean())) < 0.01
    assert abs(float((left * reads).mean())) < 0.01 * float(left.std())
    assert float(reads.std()) == pytest.approx(1, abs=0.02)
    assert float(left.std()) == pytest.approx(float(scale.mean()), rel=0.02)


def test_an_unknown_cell_has_the_variance_of_all_frames():
    condition = torch.zeros(1, SOURCE_CHANNELS + 1, 1, 1, 1)
    _, base, scale = from_prior(torch.ones(1, 1, 1, 1, 1), condition, torch.full((1, 1), 1.0), torch.tensor([0.1]))
    assert float(scale) == 1
    assert float(base) == 1
