"""Training of the frame codec of a small world on its shards, before stage 1. Wan's video codec is already trained.

B batch, F frames, N = B x F pictures.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.errors import InputError
from model.backbone.frame_codec import FrameCodec
from model.backbone.vae import to_signed
from model.data.loader import Batches, DataSettings, Windows

# Noise added to latents in training: a sampler is never exact, and the decoder must tolerate that.
_NOISE = 0.1


@dataclass(frozen=True)
class CodecSettings:
    """Sizes of a frame codec, and its training."""

    channels: int = 32  # channels of a latent; must equal model.backbone.out_channels
    width: int = 48  # channels of the convolutions that remove the seams between cells
    fit_clips: int = 400  # clips from whose frames the principal components are computed
    steps: int = 400  # training steps of the convolutions
    frames: int = 5  # frames of each clip, 1 + 4k
    batch: int = 4  # clips per training step
    lr: float = 2e-3  # learning rate at the first step; it falls to zero along a cosine


def load_or_train(
    outputs: Sequence[str],
    data: DataSettings,
    settings: CodecSettings,
    path: str,
    device: torch.device,
    log: Callable[[str], None],
) -> FrameCodec:
    """Load the codec from a file, or train one and store it there. The same seed and thread count give the same codec.

    InputError where the file's codec has other sizes.
    """
    torch.manual_seed(data.seed)
    codec = FrameCodec(settings.channels, settings.width).to(device)
    if os.path.exists(path):
        try:
            codec.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            sizes = f"codec.channels {settings.channels}, codec.width {settings.width}"
            raise InputError(f"{path} is no codec of {sizes}; set those it was trained with: {error}") from error
    else:
        _train(codec, outputs, data, settings, log)
        save_file(codec.state_dict(), f"{path}.partial")
        os.replace(f"{path}.partial", path)
    return codec.eval().requires_grad_(False)


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
    """Return a hash, 16 hex digits, of a codec: a file, or all files of a diffusers folder. OSError where it is missing."""
    names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
        with open(os.path.join(path, name) if name else path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _train(
    codec: FrameCodec, outputs: Sequence[str], data: DataSettings, settings: CodecSettings, log: Callable[[str], None]
) -> None:
    windows, device = Windows(outputs, replace(data, frames=settings.frames)), codec.mean.device
    first = next(iter(Batches(windows, settings.fit_clips, workers=0)))
    codec.fit(to_pictures(first["video"]).to(device))
    optimizer = torch.optim.AdamW(codec.parameters(), settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps))
    batches = Batches(windows, settings.batch, workers=0, position=settings.fit_clips)
    for step, batch in enumerate(islice(batches, settings.steps)):
        real = to_pictures(batch["video"]).to(device)
        latents = codec.encode(real.transpose(0, 1)[None])[0].transpose(0, 1)
        seamed = codec.decode_with_seams(latents + _NOISE * torch.randn_like(latents))
        smooth = codec.remove_seams(seamed)
        error = picture_loss(smooth, real)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == settings.steps - 1:
            psnrs = (float(psnr(p.detach().clamp(-1, 1), real)) for p in (seamed, smooth))
            log("codec: step {}, {:.1f} dB with seams, {:.1f} dB without".format(step, *psnrs))


def to_pictures(video_B3FHW: Tensor) -> Tensor:
    """Return the frames of videos (uint8) as pictures in [-1, 1], [N, 3, H, W]."""
    return to_signed(video_B3FHW.transpose(1, 2).flatten(0, 1))


def picture_loss(a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
    """Return the mean absolute error of pictures plus that of their slopes, so that edges count."""
    error = a_N3HW - b_N3HW
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of pictures in [-1, 1], dB."""
    return -10 * torch.log10((a - b).square().mean() / 4)
