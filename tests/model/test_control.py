"""Keys to trajectory to rays to tokens: closed forms, invariants, and a game's own paths from its recorded keys."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.control.spec import ControlSpec, ControlState
from model.control.trajectory import PlayerState, integrate

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.control.encoder import CameraEncoder  # noqa: E402
from model.control.pluecker import control_maps, pluecker, relative_to_previous_latent  # noqa: E402

SHARED = Path(os.environ.get("GAMECRAFT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
SPEC = ControlSpec(fps=16)


def held(*keys, frames=16, dx=0.0, dy=0.0):
    return [ControlState(frozenset(keys), dx, dy)] * frames


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (("W",), (0, 0, 1)),
        (("S",), (0, 0, -1)),
        (("D",), (1, 0, 0)),
        (("A",), (-1, 0, 0)),
        (("W", "S"), (0, 0, 0)),
        (("W", "D"), (math.sqrt(0.5), 0, math.sqrt(0.5))),
        (("W", "A", "D"), (0, 0, 1)),
    ],
)
def test_a_second_of_keys_goes_one_unit_their_way(keys, place):
    np.testing.assert_allclose(integrate(held(*keys), SPEC)[-1][:3, 3], place, atol=1e-9)


def test_arrows_and_mouse_turn_to_the_right_and_up():
    turned = integrate(held("RIGHT"), SPEC)[-1]
    np.testing.assert_allclose(turned[:3, 2], [1, 0, 0], atol=1e-9)  # a quarter turn: what was right is ahead
    up = integrate(held("UP", frames=8), SPEC)[-1]
    np.testing.assert_allclose(up[:3, 2], [0, -0.5, math.sqrt(0.75)], atol=1e-9)  # thirty degrees, y is down
    moused = integrate(held(dx=10, dy=-5, frames=8), SPEC)[-1]
    both = PlayerState(yaw_deg=8, pitch_deg=4).pose
    np.testing.assert_allclose(moused, both, atol=1e-9)


def test_walking_while_turning_is_a_circle():
    """A unit a second and a full turn in four seconds: a circle of circumference four, back at its start."""
    path = integrate(held("W", "RIGHT", frames=64), SPEC)
    np.testing.assert_allclose(path[-1][:3, 3], 0, atol=1e-9)
    assert np.ptp(path[:, 0, 3]) == pytest.approx(4 / math.pi, rel=0.01)
    assert path[:33, 0, 3].min() > -1e-6  # the circle lies to the right


def test_looking_down_does_not_sink_the_walk_and_has_an_end():
    down = integrate(held("W", "DOWN", frames=64), SPEC)
    np.testing.assert_allclose(down[:, 1, 3], 0, atol=1e-12)
    assert math.degrees(math.asin(down[-1][1, 2])) == pytest.approx(80)
    assert np.abs(np.linalg.det(down[:, :3, :3]) - 1).max() < 1e-9


def test_gliding_tends_to_the_speed_and_runs_out():
    glide = integrate([*held("W", frames=64), *held(frames=64)], replace(SPEC, glide_s=0.25))
    speed = np.diff(glide[:, 2, 3]) * SPEC.fps
    assert speed[0] == pytest.approx(1 - math.exp(-1 / 4))
    assert speed[63] == pytest.approx(1, abs=1e-6)
    assert speed[64 + 4] == pytest.approx(math.exp(-5 / 4), rel=1e-6)


@pytest.mark.parametrize("fps", [8.75, 16, 30, 60])
def test_space_jumps_as_high_and_as_long_at_any_rate(fps):
    """v^2 / 2g = 0.25 units high and 2v / g = 0.5 s long; every frame lies on the parabola."""
    spec = replace(SPEC, fps=fps, jump_speed=2.0, gravity=8.0)
    height = -integrate([*held("SPACE", frames=1), *held(frames=round(2 * fps))], spec)[:, 1, 3]
    times_s = np.arange(len(height)) / fps
    np.testing.assert_allclose(height, np.clip(2 * times_s - 4 * times_s**2, 0, None), atol=1e-9)
    assert height.max() == pytest.approx(0.25, abs=4 / (2 * fps) ** 2 + 1e-9), "the top may lie between two frames"


def test_space_held_down_jumps_again_after_landing_and_does_nothing_where_the_spec_has_no_jump():
    spec = replace(SPEC, jump_speed=2.0, gravity=8.0)
    height = -integrate(held("SPACE", frames=32), spec)[:, 1, 3]
    assert (height >= 0).all()
    assert ((height[:-1] == 0) & (height[1:] > 0)).sum() == 4
    assert (integrate(held("SPACE"), SPEC)[:, 1, 3] == 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": 2}, "version is 2"),
        ({"jump_speed": 1.0}, "needs gravity"),
        ({"max_pitch_deg": 90.0}, "under 90"),
        ({"fps": 0.0}, "fps"),
    ],
)
def test_a_spec_says_what_is_wrong(settings, words):
    with pytest.raises(ValueError, match=words):
        ControlSpec(**settings)


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match=r"unknown keys \['Q'\]"):
        integrate(held("Q"), SPEC)


def test_the_games_paths_follow_from_its_keys():
    """VizDoom's walk: thrust and friction 0.90625 a tic. Windows of half a second, each from its true pose and speed.

    Some windows touch a wall, which the integrator does not know about, so the median is compared.
    """
    truth = recorded_truth()
    errors = {name: np.median(window_errors(truth, sign)) for name, sign in (("ours", 1), ("mirrored", -1))}
    assert errors["ours"] < 0.01
    assert errors["mirrored"] > 10 * errors["ours"]


def recorded_truth():
    path = SHARED / "data" / "vizdoom" / "doom_open_b_camera_nohud.jsonl"
    if not path.is_file():
        pytest.skip(f"no shared recording at {path}")
    from synth.doom.truth import read_truth

    return read_truth(path)


def window_errors(truth, sign):
    fps, tics = truth.fps, 17
    glide_s = -1 / (fps * math.log(0.90625))
    spec = ControlSpec(fps=fps, speed=8.33 * fps, sideways=24 / 25, glide_s=glide_s, mouse_deg=1.0, normalise_diagonals=False)
    yaw = np.radians(truth.yaw_deg)
    found = []
    for start in range(1, len(truth) - tics, tics):
        to_body = np.array([[math.sin(yaw[start]), -math.cos(yaw[start])], [math.cos(yaw[start]), math.sin(yaw[start])]])
        true = (truth.position[start : start + tics + 1, :2] - truth.position[start, :2]) @ to_body.T
        before = (truth.position[start, :2] - truth.position[start - 1, :2]) @ to_body.T * fps
        states = [
            ControlState(frozenset(truth.keys[i] & set("WASD")), sign * truth.mouse_dx_deg[i])
            for i in range(start, start + tics)
        ]
        path = integrate(states, spec, PlayerState(ground_speed=tuple(before)))[:, [0, 2], 3]
        walked = np.linalg.norm(np.diff(true, axis=0), axis=1).sum()
        if walked > 50 and not any(
            "RUN" in truth.keys[i] for i in range(start, start + tics)
        ):  # a key that this spec does not have
            found.append(np.linalg.norm(path[-1] - true[-1]) / walked)
    assert len(found) > 10
    return found


def poses(frames, seed=0):
    rng = np.random.default_rng(seed)
    states = [
        ControlState(frozenset(rng.choice(["W", "A", "S", "D", "LEFT", "RIGHT"], 2)), rng.normal() * 20)
        for _ in range(frames - 1)
    ]
    return torch.tensor(integrate(states, SPEC))[None]


INNER = torch.tensor([20.0, 20.0, 16.0, 16.0]).expand(1, 13, 4)


def test_rays_are_unit_and_moments_stand_on_them():
    rays = pluecker(poses(13), INNER, 32, 32)
    moment, d = rays[:, :, :3], rays[:, :, 3:]
    torch.testing.assert_close(d.norm(dim=2), torch.ones(1, 13, 32, 32), atol=1e-6, rtol=0)
    assert (moment * d).sum(2).abs().max() < 1e-5
    torch.testing.assert_close(rays[0, 0, 3:, 15:17, 15:17].mean((1, 2)), torch.tensor([0.0, 0.0, 1.0]), atol=2e-3, rtol=0)


def test_the_step_channels_do_not_depend_on_where_the_camera_came_from():
    """A rigid motion of the whole world does not change the step channels, and a camera at rest makes them zero."""
    pose = poses(13)
    moved = torch.tensor(PlayerState(x=60.0, z=-40.0, yaw_deg=200).pose) @ pose
    torch.testing.assert_close(relative_to_previous_latent(pose), relative_to_previous_latent(moved), atol=1e-9, rtol=0)
    still = torch.tensor(PlayerState(x=60.0, yaw_deg=45).pose).expand(1, 13, 4, 4)
    assert control_maps(still, INNER, 32, 32)[:, :, 6:].abs().max() < 1e-5


def test_a_stream_in_blocks_has_the_maps_of_the_whole():
    pose = poses(13)
    whole = control_maps(pose, INNER, 32, 32)
    head = control_maps(pose[:, :5], INNER[:, :5], 32, 32)
    tail = control_maps(pose[:, 5:], INNER[:, 5:], 32, 32, origin=pose[:, 0], before_B44=pose[:, 4])
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, atol=1e-6, rtol=0)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = CameraEncoder(width=24, hidden=32)
    with torch.no_grad():
        for weight in encoder.out.parameters():
            weight.normal_()
    return encoder


def test_a_fresh_encoder_outputs_zeros():
    maps = control_maps(poses(13), INNER, 32, 32)
    tokens = CameraEncoder(width=24)(maps)
    assert tokens.shape == (1, 4 * 2 * 2, 24)
    assert not tokens.any()


def test_a_token_knows_its_own_frames_only(encoder):
    """A token does not depend on later frames, and frames of one latent are not interchangeable."""
    maps = control_maps(poses(13), INNER, 32, 32)
    with torch.no_grad():
        tokens = encoder(maps).unflatten(1, (4, 4))
        changed = maps.clone()
        changed[:, 9:] += 1
        later = encoder(changed).unflatten(1, (4, 4))
        swapped = encoder(maps[:, [0, 2, 1, *range(3, 13)]]).unflatten(1, (4, 4))
    torch.testing.assert_close(later[:, :3], tokens[:, :3])
    assert (later[:, 3] - tokens[:, 3]).abs().max() > 1e-3
    assert (swapped[:, 1] - tokens[:, 1]).abs().max() > 1e-3


def test_a_stream_in_blocks_has_the_tokens_of_the_whole(encoder):
    maps = control_maps(poses(13), INNER, 32, 32)
    with torch.no_grad():
        parts = [encoder(maps[:, :5]), encoder(maps[:, 5:], first_alone=False)]
        torch.testing.assert_close(torch.cat(parts, 1), encoder(maps))


def test_pictures_and_clips_that_do_not_divide_are_refused(encoder):
    with pytest.raises(ValueError, match="40x32 px do not divide into tokens of 16 px"):
        encoder(torch.zeros(1, 5, 12, 32, 40))
    with pytest.raises(ValueError, match="7 frames are not a whole number of latents"):
        relative_to_previous_latent(poses(7))
