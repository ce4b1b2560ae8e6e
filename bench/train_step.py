"""Compare a training step with diffusers' model of the same weights, and the loader with plain decoding.

The two models take steps in turn, so that a busy machine slows both. MFU is relative to the rate of a large matrix product,
measured in the same run: a data sheet does not say what this machine reaches.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import av
import diffusers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import describe
from curation import storage
from model.backbone.dit import Expert
from model.config import BackboneConfig
from model.data.loader import Batches, DataSettings, Windows
from pipelines import recipes, run
from synth.doom.record import Recording, record

# A size of Wan2.2 for a processor, and four blocks of the 14B model for a GPU.
SIZES = {
    "small": BackboneConfig(num_attention_heads=6, attention_head_dim=64, num_layers=4, ffn_dim=1536, text_dim=512),
    "a14b-4": BackboneConfig(num_attention_heads=40, attention_head_dim=128, num_layers=4, ffn_dim=13824),
}
LATENTS = {"small": (6, 16, 24), "a14b-4": (12, 60, 104)}  # frames, rows, columns
_TEXT_TOKENS, _TAKE_S, _ROUNDS = 64, 30.0, 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment and both tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench train", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=sorted(SIZES), help="default small")
    parser.add_argument("--steps", type=int, default=10, help="steps of each model, after one to warm up; default 10")
    parser.add_argument("--data", help="an output of `gamecraft curate`; default: record and curate 720p play")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{describe()}, PyTorch {torch.__version__} on {device.type} ({name}), diffusers {diffusers.__version__}\n")
    _compare_steps(options.size, options.steps, device)
    with tempfile.TemporaryDirectory() as folder:
        _compare_loading(options.data or _record_footage(folder))


class TimedStep:
    """Forward, backward, gradient clipping and AdamW on one batch, with bfloat16 products on a GPU."""

    def __init__(self, model: nn.Module, call: Callable[[Tensor, Tensor, Tensor], Tensor], size: str, device: torch.device):
        config, latents = SIZES[size], LATENTS[size]
        torch.manual_seed(0)
        self.device, self._call = device, call
        self._x = torch.randn(1, config.in_channels, *latents, device=device)
        self._time = torch.full((1, latents[0]), 700.0, device=device)
        self._text = torch.randn(1, _TEXT_TOKENS, config.text_dim, device=device)
        self._weights = list(model.parameters())
        self._optimizer = torch.optim.AdamW(self._weights, lr=1e-5)
        self.tokens = latents[0] * (latents[1] // 2) * (latents[2] // 2)

    def take(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            velocity = self._call(self._x, self._time, self._text)
        velocity.float().square().mean().backward()
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()

    def seconds(self) -> float:
        self._wait()
        began = time.perf_counter()
        self.take()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _compare_steps(size: str, steps: int, device: torch.device) -> None:
    ours, theirs = _models(size, device)
    each = LATENTS[size][1] // 2 * (LATENTS[size][2] // 2)
    kinds = {
        "gamecraft": TimedStep(ours, ours, size, device),
        "diffusers": TimedStep(
            theirs, lambda x, t, text: theirs(x, t.repeat_interleave(each, 1), text, return_dict=False)[0], size, device
        ),
    }
    with FlopCounterMode(display=False) as counted:
        kinds["gamecraft"].take()
    kinds["diffusers"].take()
    times = {name: [] for name in kinds}  # type: dict[str, list[float]]
    for _ in range(steps):
        for name, step in kinds.items():
            times[name].append(step.seconds())
    _print_steps(size, times, kinds["gamecraft"].tokens, counted.get_total_flops(), _matmul_rate(device))


def _models(size: str, device: torch.device) -> tuple[Expert, nn.Module]:
    """Return our model and diffusers' with the same random weights."""
    torch.manual_seed(0)
    settings = {name: value for name, value in SIZES[size].to_diffusers().items() if not name.startswith("_")}
    theirs: nn.Module = diffusers.WanTransformer3DModel(**settings)  # type: ignore[no-untyped-call]
    theirs.to(device)
    ours = Expert(SIZES[size]).to(device)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def _matmul_rate(device: torch.device) -> float:
    """Return the FLOP/s of a square matrix product in the dtype that the steps compute in, best of five."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _print_steps(size: str, times: dict[str, list[float]], tokens: int, flops: int, rate: float) -> None:
    millions = sum(p.numel() for p in Expert(SIZES[size]).parameters()) / 1e6 if size == "small" else None
    size_text = f", {millions:.1f} M parameters" if millions else ""
    print(
        f"{size}{size_text}, {tokens} tokens, {flops / 1e9:.0f} GFLOP a step; a matrix product runs at {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':12}{'ms a step':>10}{'tokens/s':>10}{'MFU':>8}")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:12}{1000 * middle:10.1f}{tokens / middle:10.0f}{flops / middle / rate:8.1%}")
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"gamecraft / diffusers, pair by pair: {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})\n")


def _record_footage(folder: str) -> str:
    take = Recording([("freedoom2", "MAP07", _TAKE_S)], seed=9500, style="explore", width=1280, height=720, crf=23)
    record(Path(folder) / "footage" / "explore.mp4", take)
    run.curate([f"{folder}/footage"], f"{folder}/out", recipes.load("laptop"))
    return f"{folder}/out"


def _compare_loading(out: str) -> None:
    """Print CPU-milliseconds per second of video: the samples of an epoch, and plain decoding of the clips they come from.

    All in this process. Each is measured in turn, five times; the median counts.
    """
    print(f"{'frames':>6} {'size':>9}{'samples':>9}{'loader':>9}{'to RGB':>9}{'decode':>9}  CPU-ms a second of video")
    for frames, size in ((45, (832, 480)), (81, (832, 480)), (45, (416, 240))):
        windows = Windows([out], DataSettings(frames=frames, size=size))
        clips = {clip.clip_id: clip for window in windows.windows for clip in window.clips}.values()
        videos = [storage.read(*location) for location in (clip.member("mp4") for clip in clips) if location is not None]
        whole_s = sum(clip.seconds for clip in clips)
        rgb, bare, loaded = _in_turn(
            (partial(_decode_all, videos, True), whole_s),
            (partial(_decode_all, videos, False), whole_s),
            (partial(_epoch, windows), len(windows) * frames / windows.settings.fps),
        )
        row = f"{frames:6} {size[0]:5}x{size[1]}{len(windows):8}{loaded:9.1f}{rgb:9.1f}{bare:9.1f}"
        print(f"{row}  loader's rate: {rgb / loaded:.0%} of plain to RGB")


def _in_turn(*kinds: tuple[Callable[[], object], float]) -> Iterator[float]:
    """Return the CPU-milliseconds of each kind of work per second of video, medians of several rounds."""
    rounds = [[1000 * _cpu_s(work) / video_s for work, video_s in kinds] for _ in range(_ROUNDS)]
    return map(statistics.median, zip(*rounds, strict=True))


def _epoch(windows: Windows) -> None:
    for _ in zip(range(len(windows)), Batches(windows, 1, workers=0), strict=False):
        pass


def _decode_all(videos: Sequence[bytes], rgb: bool) -> None:
    for video in videos:
        _decode(video, rgb)


def _decode(video: bytes, rgb: bool) -> int:
    """Decode all frames of a stored clip in one thread, to RGB arrays or to the decoder's own frames."""
    with cast(av.container.InputContainer, av.open(io.BytesIO(video))) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return len([frame.to_ndarray(format="rgb24") if rgb else frame for frame in container.decode(video=0)])


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
