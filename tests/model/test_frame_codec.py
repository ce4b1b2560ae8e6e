"""The frame codec: exact linear part, projection, and the training of its decoder."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from torch.nn import functional  # noqa: E402

from curation.errors import InputError  # noqa: E402
from model.backbone.frame_codec import FrameCodec  # noqa: E402
from model.backbone.vae import Codec, to_signed  # noqa: E402
from model.evaluation.pictures import Lpips, load_lpips, sharpness  # noqa: E402
from model.training import frame_codec  # noqa: E402
from model.training.discriminator import PatchDiscriminator, discriminator_loss  # noqa: E402
from model.training.frame_codec import CodecSettings, load, measure, save, spoil_latents, train_decoder  # noqa: E402

SETTINGS = CodecSettings(channels=8, cell_px=16, width=8, steps=12, batch=4, lr=1e-2, idempotence_weight=0.01, save_every_s=1e9)


@pytest.fixture(scope="module")
def pictures():
    """uint8 [24, 3, 32, 48]: discs in two colours, edges that 8 numbers a cell do not show."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    centre, radius = torch.rand(24, 2, 1, 1, generator=generator), 4 + 8 * torch.rand(24, 1, 1, generator=generator)
    inside = ((y - 32 * centre[:, 0]) ** 2 + (x - 48 * centre[:, 1]) ** 2).sqrt() < radius
    return torch.where(inside[:, None], 220, torch.tensor([40, 80, 120])[:, None, None]).byte()


@pytest.fixture
def codec(pictures):
    torch.manual_seed(0)
    fresh = SETTINGS.build()
    fresh.fit(to_signed(pictures))
    return fresh


def disturbed(codec):
    """Give the decoder an output, as if it was trained."""
    for parameter in codec.requires_grad_(False).decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)


@pytest.mark.parametrize("cell_px", [4, 8, 16])
def test_cells_may_have_any_size_of_a_power_of_two(cell_px):
    torch.manual_seed(0)
    codec = FrameCodec(channels=8, width=8, cell_px=cell_px)
    video = torch.rand(2, 3, 3, 32, 48) * 2 - 1
    latents = codec.encode(video)
    assert codec.cell_px == cell_px
    assert latents.shape == (2, 8, 3, 32 // cell_px, 48 // cell_px)
    assert codec.decode(latents).shape == video.shape
    pictures = codec.decode_linear(latents[:, :, 0])
    assert torch.equal(codec.decode_pictures(latents[:, :, 0]), pictures), "a fresh decoder adds nothing"
    torch.testing.assert_close(codec.encode_pictures(pictures), latents[:, :, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell_px", [2, 12])
def test_other_sizes_of_cells_are_refused(cell_px):
    with pytest.raises(ValueError, match="cell_px must be a power of two from 4"):
        FrameCodec(8, 8, cell_px)
    with pytest.raises(ValueError, match="cell_px must be a power of two from 4"):
        CodecSettings(cell_px=cell_px)


def test_a_projected_picture_has_the_latents_and_is_the_nearest_such_picture(codec, pictures):
    disturbed(codec)
    real = to_signed(pictures[:3])
    latents = codec.encode_pictures(real) + 0.3 * torch.randn(3, 8, 2, 3)
    shown = codec.decode_pictures(latents)
    assert (codec.encode_pictures(shown) - latents).abs().max() > 0.01
    projected = codec.project(shown, latents)
    torch.testing.assert_close(codec.encode_pictures(projected), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(codec.project(projected, latents), projected, atol=1e-5, rtol=1e-5)
    another = codec.project(real, latents)
    away, step = (projected - shown).flatten(), (another - projected).flatten()
    assert abs(float(away @ step)) < 1e-3 * float(away.norm() * step.norm()), (
        "the change is at right angles to all such pictures"
    )


def test_what_the_decoder_adds_depends_on_the_cells_around(codec):
    disturbed(codec)
    latents = torch.randn(1, 8, 2, 3)
    changed = latents.clone()
    changed[..., 0, 0] += 1
    error = (codec.decode_pictures(latents) - codec.decode_pictures(changed)).abs().amax((0, 1))
    assert error[:16, 16:24].max() > 0


def test_a_stream_of_the_frame_codec_decodes_as_the_whole(codec, pictures):
    disturbed(codec)
    latents = codec.encode(to_signed(pictures[:4]).transpose(0, 1)[None])
    stream = codec.stream_decoder()
    parts = torch.cat([stream.decode(latents[:, :, :1]), stream.clone().decode(latents[:, :, 1:])], 2)
    torch.testing.assert_close(parts, codec.decode(latents))
    image = to_signed(pictures[:2])
    tail = codec.first_frame_stream(image)
    torch.testing.assert_close(
        torch.cat([tail.condition(1, 0), tail.condition(6, 1)], 2), Codec.encode_first_frame(codec, image, 7)
    )
    assert len(tail._latents) < 7


def test_training_improves_the_decoder_and_leaves_the_latents(codec, pictures, tmp_path):
    path, lines = str(tmp_path / "codec.safetensors"), []
    save(codec, path)
    before, hashed = measure(codec, pictures), frame_codec.fingerprint(path)
    train_decoder(codec, pictures, replace(SETTINGS, steps=60, gan_weight=1e-3), path, log=lines.append)
    after = measure(codec, pictures)
    assert after.l1 < 0.95 * before.l1
    assert frame_codec.fingerprint(path) == hashed, "the decoder is no part of what decides the latents"
    assert torch.equal(load(path, SETTINGS).decode(torch.ones(1, 8, 1, 2, 2)), codec.decode(torch.ones(1, 8, 1, 2, 2)))
    assert lines[0].startswith("codec: linear decoding, L1 0.")
    assert lines[-1].startswith("codec: step 60, ")
    assert ", LPIPS nan, PSNR " in lines[-1]
    assert "GAN " in lines[-1]


def test_interrupted_training_resumes_to_the_same_decoder(codec, pictures, tmp_path, monkeypatch):
    whole, parts = (str(tmp_path / name) for name in ("whole.safetensors", "parts.safetensors"))
    settings = replace(SETTINGS, gan_weight=0.01, gan_start=0.25)
    fresh = {name: value.clone() for name, value in codec.state_dict().items()}
    train_decoder(codec, pictures, settings, whole)
    expected = {name: value.clone() for name, value in codec.state_dict().items()}

    class Interrupted(Exception):
        pass

    step = frame_codec._DecoderTraining.take_step

    def interrupted(self, share):
        if self.step == 7:
            raise Interrupted
        step(self, share)

    codec.load_state_dict(fresh)
    monkeypatch.setattr(frame_codec._DecoderTraining, "take_step", interrupted)
    with pytest.raises(Interrupted):
        train_decoder(codec, pictures, replace(settings, save_every_s=0.0), parts)
    monkeypatch.undo()
    again = load(parts, settings)
    lines = []
    train_decoder(again, pictures, settings, parts, log=lines.append)
    assert len(lines) == 1, "it does not start over"
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_a_training_of_other_latents_is_not_resumed(codec, pictures, tmp_path):
    path = str(tmp_path / "codec.safetensors")
    train_decoder(codec, pictures, replace(SETTINGS, steps=1), path)
    codec.fit(to_signed(pictures[:5]))
    with pytest.raises(InputError, match="training of a codec with other latents"):
        train_decoder(codec, pictures, SETTINGS, path)


def test_latents_are_spoilt_as_a_sampler_spoils_them():
    latents = torch.ones(400, 8, 4, 4)
    spoilt = spoil_latents(latents, torch.Generator().manual_seed(0))
    error = spoilt - latents
    exact = (error == 0).flatten(1).all(1)
    assert 0.2 < exact.float().mean() < 0.4
    assert error[:, 0].mean().abs() < 0.01 < -error[:, -1].mean()
    assert 0.1 < error[~exact, 0].std() < 0.3


def random_lpips(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "lpips.npz"
    sizes = ((11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256))
    weights = {}
    for i, (side, channels, width) in enumerate(sizes):
        weights[f"AlexNet_0~Conv_{i}~kernel"] = rng.normal(0, 0.05, (side, side, channels, width)).astype(np.float32)
        weights[f"AlexNet_0~Conv_{i}~bias"] = np.zeros(width, np.float32)
        weights[f"NetLinLayer_{i}~Conv_0~kernel"] = np.full((1, 1, width, 1), 1 / width, np.float32)
    np.savez(file, **weights)
    return str(file)


def test_lpips_is_zero_for_equal_pictures_and_has_gradients_everywhere(tmp_path):
    lpips = load_lpips(random_lpips(tmp_path))
    assert isinstance(lpips, Lpips)
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    a = torch.rand(2, 3, 64, 64) * 2 - 1
    b = a.flip(0).requires_grad_(True)
    assert lpips(a, a).abs().max() < 1e-6
    distance = lpips(a, b)
    assert distance.shape == (2,)
    torch.testing.assert_close(distance, lpips(b, a))
    (distance.sum() + lpips(torch.zeros_like(b), 0 * b).sum()).backward()
    assert b.grad.isfinite().all()
    (tmp_path / "none.npz").write_bytes(b"")
    for name in ("none.npz", "missing.npz"):
        with pytest.raises(InputError, match="no LPIPS weights"):
            load_lpips(str(tmp_path / name))


def test_lpips_orders_real_distortions(footage, pictures):
    """With the real weights: a blurred picture is farther than one with a little more light."""
    lpips = load_lpips(str(footage.parent / "weights" / "lpips" / "lpips_alexnet.npz"))
    real = functional.interpolate(to_signed(pictures[:4]), scale_factor=2)
    blurred = functional.interpolate(functional.avg_pool2d(real, 8), scale_factor=8, mode="bilinear")
    assert (lpips(real, blurred) > 2 * lpips(real, (real + 0.05).clamp(-1, 1))).all()


def test_training_with_lpips_reports_it(codec, pictures, tmp_path):
    lines = []
    settings = replace(SETTINGS, steps=1, batch=2, lpips=random_lpips(tmp_path))
    train_decoder(
        codec, functional.pad(pictures, (0, 16, 0, 32)), settings, str(tmp_path / "codec.safetensors"), log=lines.append
    )
    assert "nan" not in lines[-1]
    assert lines[-1].count("LPIPS") == 2


def test_sharpness_is_that_of_opencv():
    cv2 = pytest.importorskip("cv2")
    pictures = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = [cv2.cvtColor(p.permute(1, 2, 0).numpy().astype(np.float32), cv2.COLOR_RGB2GRAY) for p in pictures]
    expected = np.mean([cv2.Laplacian(g, cv2.CV_32F).std() for g in grey])
    assert float(sharpness(to_signed(pictures))) == pytest.approx(float(expected), rel=1e-4)


def test_a_discriminator_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=8)
    real, decoded = torch.rand(8, 3, 32, 32) * 2 - 1, torch.rand(8, 3, 32, 32) * 0.2
    optimizer = torch.optim.Adam(critic.parameters(), 5e-3, betas=(0.5, 0.98))
    losses = []
    for _ in range(30):
        loss = discriminator_loss(critic(real), critic(decoded))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
