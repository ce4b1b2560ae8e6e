"""A frame codec learned from the shards, before stage 1 of a small world; Wan's comes trained.

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

from model.backbone.frame_codec import FrameCodec
from model.backbone.vae import signed
from model.data.loader import Batches, DataSettings, Windows

# Added to latents: what a decoder must bear, since a sampler is never exact.
_NOISE = 0.1


@dataclass(frozen=True)
class CodecSettings:
    """A frame codec's sizes and its training. channels: of a latent. width: of the convolutions that mend seams, trained for so
    many steps. batch: clips of so many frames. fitted: clips from which the components are taken.
    """

    channels: int = 32
    width: int = 48
    fitted: int = 400
    steps: int = 400
    frames: int = 5
    batch: int = 4
    rate: float = 2e-3


def trained(
    outputs: Sequence[str], data: DataSettings, how: CodecSettings, path: str, device: torch.device, say: Callable[[str], None]
) -> FrameCodec:
    """The codec in a file, or one trained now and put there. Same seed and threads: same codec. ValueError where the file's
    codec has other sizes.
    """
    torch.manual_seed(data.seed)
    codec = FrameCodec(how.channels, how.width).to(device)
    if os.path.exists(path):
        try:
            codec.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            sizes = f"codec.channels {how.channels}, codec.width {how.width}"
            raise ValueError(f"{path} is no codec of {sizes}; set those it was trained with: {error}") from error
    else:
        _train(codec, outputs, data, how, say)
        save_file(codec.state_dict(), f"{path}.partial")
        os.replace(f"{path}.partial", path)
    return codec.eval().requires_grad_(False)


def taken_over(start: str, path: str) -> None:
    """Copy the codec of the run `start` to a file. The weights of that run know no other latents.

    ValueError where the file holds another codec, or neither run has one.
    """
    source = os.path.join(start, os.path.basename(path))
    if not os.path.exists(source):
        if not os.path.exists(path):
            raise ValueError(f"{source}: no such file; the run that model.start names needs its codec: copy it back there")
        return
    if not os.path.exists(path):
        shutil.copyfile(source, f"{path}.partial")
        os.replace(f"{path}.partial", path)
    elif (ours := fingerprint(path)) != (theirs := fingerprint(source)):
        raise ValueError(f"{path} is codec {ours}, that of model.start is {theirs}; delete it, or use another folder")


def fingerprint(place: str) -> str:
    """16 hex digits over the bytes of a codec: a file, or all files of a diffusers folder. OSError where it is not there."""
    names = sorted(os.listdir(place)) if os.path.isdir(place) else [""]
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode())
        with open(os.path.join(place, name) if name else place, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _train(
    codec: FrameCodec, outputs: Sequence[str], data: DataSettings, how: CodecSettings, say: Callable[[str], None]
) -> None:
    windows, device = Windows(outputs, replace(data, frames=how.frames)), codec.mean.device
    first = next(iter(Batches(windows, how.fitted, workers=0)))
    codec.fit(pictures(first["video"]).to(device))
    optimizer = torch.optim.AdamW(codec.parameters(), how.rate, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, how.steps))
    for step, batch in enumerate(islice(Batches(windows, how.batch, workers=0, position=how.fitted), how.steps)):
        real = pictures(batch["video"]).to(device)
        latents = codec.encode(real.transpose(0, 1)[None])[0].transpose(0, 1)
        plain = codec.plain(latents + _NOISE * torch.randn_like(latents))
        mended = codec.mended(plain)
        error = difference(mended, real)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        plan.step()
        if step % 200 == 0 or step == how.steps - 1:
            found = (float(psnr(p.detach().clamp(-1, 1), real)) for p in (plain, mended))
            say("codec: step {}, {:.1f} dB with seams, {:.1f} dB mended".format(step, *found))


def pictures(video_B3FHW: Tensor) -> Tensor:
    """The frames of videos uint8, in [-1, 1]: [N, 3, H, W]."""
    return signed(video_B3FHW.transpose(1, 2).flatten(0, 1))


def difference(a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
    """Mean absolute error of the pictures and, as much again, of their slopes: edges count."""
    error = a_N3HW - b_N3HW
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of pictures in [-1, 1], dB."""
    return -10 * torch.log10((a - b).square().mean() / 4)
