"""Measure the model on a GPU: parity with the processor, fp8, kernels, training, play, and the video encoder of the chip.

sh bench/gpu.sh [--minutes N] [--out FILE.md]. Each part is a process with its own time limit, so that one that fails or hangs
does not lose the others. Tables go to stdout and into the file as they come. The parts need torch and NumPy only, and say what
else they could measure.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import gpu_parity, gpu_speed
from bench.machine import version


class Part(NamedTuple):
    """A part: what it measures, the most seconds it may take, and the function that yields its lines."""

    title: str
    limit_s: float
    lines: Callable[["Options"], Iterator[str]]


class Options(NamedTuple):
    """Options that all parts share."""

    device: str
    tiny: bool
    deadline_s: float  # by time.time()

    @property
    def left_s(self) -> float:
        """Seconds until a part should have ended."""
        return self.deadline_s - time.time()


# In the order of what would be missed most.
PARTS = {
    "environment": Part("Environment", 60, lambda options: _environment(options)),
    "parity": Part("Parity with the processor", 100, gpu_parity.lines),
    "fp8": Part("fp8 matrix products and their error", 75, gpu_speed.fp8_lines),
    "attention": Part("Attention kernels", 45, gpu_speed.attention_lines),
    "ladder-1.3b": Part("Play, 1.3B", 240, lambda options: gpu_speed.ladder_lines(options, "1.3b")),
    "ladder-14b": Part("Play, 14B", 150, lambda options: gpu_speed.ladder_lines(options, "14b")),
    "train": Part("Training steps", 110, gpu_speed.train_lines),
    "ladder-5b": Part("Play, 5B", 150, lambda options: gpu_speed.ladder_lines(options, "5b")),
}
_MINUTES = 9.0  # that the limits of the parts are meant for: most end earlier
# A part is not begun with less than this: a process needs ten seconds before it measures anything.
_MIN_S = 25.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts, or one of them in this process."""
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=f"for all parts together; default {_MINUTES:g}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--out", default="gpu.md", help="Markdown file; default gpu.md")
    parser.add_argument("--only", choices=sorted(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        for line in PARTS[options.only].lines(Options(options.device, options.tiny, options.deadline)):
            print(line, flush=True)
        return
    end = time.time() + 60 * options.minutes
    with Path(options.out).open("w", encoding="utf-8") as file:
        for name in options.parts:
            _run(name, options, end, file.write)
            file.flush()


def _run(name: str, options: argparse.Namespace, end: float, write: Callable[[str], object]) -> None:
    """Run a part in a process, and pass its lines on as they come."""
    part = PARTS[name]

    def say(line: str) -> None:
        print(line, flush=True)
        write(f"{line}\n")

    say(f"\n## {part.title}\n")
    # A processor that is shared takes minutes to import what a part needs.
    patience = 8.0 if options.device == "cpu" else min(1.0, options.minutes / _MINUTES)
    limit_s = min(patience * part.limit_s, end - time.time())
    if limit_s < _MIN_S:
        say("not run: no time left")
        return
    began = time.time()
    # The part should end by itself before it is stopped.
    command = [sys.executable, "-m", "bench.gpu", "--only", name, "--device", options.device]
    command += ["--deadline", str(began + limit_s - 8)] + (["--tiny"] if options.tiny else [])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stopper = _Stopper(process, limit_s)
        errors = _Tail(process)
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())
        process.wait()
        stopper.cancel()
    if stopper.stopped:
        say(f"\nstopped after {limit_s:.0f} s")
    elif process.returncode:
        say(f"\nfailed with status {process.returncode}:\n\n```\n{errors.text()}\n```")
    say(f"\n({time.time() - began:.0f} s)")


class _Stopper:
    """Stops a process after some seconds."""

    def __init__(self, process: "subprocess.Popen[str]", limit_s: float) -> None:
        import threading

        self.stopped, self._process = False, process
        self._timer = threading.Timer(limit_s, self._stop)
        self._timer.daemon = True
        self._timer.start()

    def _stop(self) -> None:
        self.stopped = True
        self._process.kill()

    def cancel(self) -> None:
        self._timer.cancel()


class _Tail:
    """Reads what a process writes to stderr, so that it never waits, and keeps the end."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        import threading
        from collections import deque

        self._lines: deque[str] = deque(maxlen=25)
        assert process.stderr is not None
        stream = process.stderr
        self._thread = threading.Thread(target=lambda: self._lines.extend(line.rstrip() for line in stream), daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join(5)
        return "\n".join(self._lines)


_PACKAGES = ("torch", "triton", "numpy", "torchvision", "diffusers", "torchao", "sageattention", "av", "safetensors")


def _environment(options: Options) -> Iterator[str]:
    """Describe the machine, the chip, the libraries, and whether the chip's video encoder and decoder open."""
    import torch

    from bench.machine import describe

    yield describe()
    yield ""
    yield ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    yield ""
    if options.device == "cuda":
        chip = torch.cuda.get_device_properties(0)
        yield (
            f"{chip.name}, {chip.total_memory / 2**30:.0f} GiB, {chip.multi_processor_count} multiprocessors, "
            f"compute capability {chip.major}.{chip.minor}, {torch.cuda.device_count()} of them; CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}"
        )
        yield ""
        query = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
        yield from _lines_of(["nvidia-smi", f"--query-gpu={query}", "--format=csv"])
        yield ""
    yield "| video codec of the chip | |"
    yield "|---|---|"
    for name in ("h264_nvenc", "hevc_nvenc", "av1_nvenc"):
        yield f"| {name} | {_encoder(name)} |"
    for name in ("h264_cuvid", "hevc_cuvid"):
        yield f"| {name} | {_decoder(name)} |"


def _lines_of(command: Sequence[str]) -> Iterator[str]:
    try:
        yield from subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        yield f"{command[0]}: {error}"


def _encoder(name: str) -> str:
    """Encode some frames with an encoder; say how that went."""
    try:
        import av
    except ImportError:
        return "PyAV not installed"
    import io

    import numpy as np

    try:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream(name, rate=16)
            stream.width, stream.height, stream.pix_fmt = 832, 480, "yuv420p"
            frames = np.random.default_rng(0).integers(0, 256, (30, 480, 832, 3), dtype=np.uint8)
            began = time.perf_counter()
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
            took = time.perf_counter() - began
    except Exception as error:  # the library has many, and none is a reason to stop
        return f"does not open: {type(error).__name__}: {error}"
    return f"encodes 832x480: {1e3 * took / len(frames):.1f} ms a frame"


def _decoder(name: str) -> str:
    """Decode a video of the processor's encoder; say how that went."""
    try:
        import av
    except ImportError:
        return "PyAV not installed"
    import io

    import numpy as np

    family = "libx264" if name.startswith("h264") else "libx265"
    try:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream(family, rate=16)
            stream.width, stream.height, stream.pix_fmt = 832, 480, "yuv420p"
            frame = np.linspace(0, 255, 480 * 832 * 3, dtype=np.uint8).reshape(480, 832, 3)
            for shift in range(30):
                moved = np.ascontiguousarray(np.roll(frame, 8 * shift, 1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(stream.encode())
        buffer.seek(0)
        with av.open(buffer, "r") as source:
            context: Any = av.codec.CodecContext.create(name, "r")
            context.extradata = source.streams.video[0].codec_context.extradata
            began, frames = time.perf_counter(), 0
            for packet in source.demux(video=0):
                frames += len(context.decode(packet if packet.size else None))
            took = time.perf_counter() - began
    except Exception as error:  # as above
        return f"does not open: {type(error).__name__}: {error}"
    return f"decodes {frames} of 30 frames of 832x480: {1e3 * took / max(1, frames):.1f} ms a frame"


if __name__ == "__main__":
    main()
