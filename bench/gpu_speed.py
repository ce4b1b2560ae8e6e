"""Speeds on a GPU: fp8 and attention kernels, training steps, and play."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.shapes import SHAPES, Shape, has_diffusers, random_world
from model.accelerate.fp8 import Fp8Linear, quantize_rows, scaled_product
from model.config import BackboneConfig
from model.training import throughput


def seconds(work: Callable[[], Any], device: torch.device, least_s: float = 0.3) -> float:
    """Return the mean seconds of a call, after two to warm up, over as many as fill `least_s`."""
    for _ in range(2):
        work()
    _wait(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < least_s:
        for _ in range(4):
            work()
        _wait(device)
        count += 4
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_line(error: Exception) -> str:
    words = str(error).splitlines()
    return f"{type(error).__name__}: {words[0][:160] if words else ''}"


def fp8_lines(options: Any) -> Iterator[str]:
    """Compare products of a block's layers in bfloat16 and fp8: speed, and error against float64 of the same numbers."""
    device = torch.device(options.device)
    names = ("tiny",) if options.tiny else ("1.3b", "5b", "14b")
    tokens = 96 if options.tiny else 4680
    yield "A block's products, three latents of tokens. Error: norm of the difference over the norm, against float32."
    yield ""
    columns = ["bfloat16 ms", "TFLOP/s", "product alone in fp8 ms", "TFLOP/s", "layer in fp8 ms", "the same compiled"]
    columns += ["torchao compiled", "error bfloat16", "error fp8", "error torchao"]
    yield "| layer | " + " | ".join(columns) + " |"
    yield "|---" * 11 + "|"
    for name in names:
        config = SHAPES[name].backbone
        for k, n in ((config.width, config.width), (config.width, config.ffn_dim), (config.ffn_dim, config.width)):
            if options.left_s < 5:
                yield f"| {name} {k} to {n} | no time left |" + " |" * 9
                continue
            compiles = n == config.ffn_dim and options.left_s > 20  # it takes seconds: one layer of each size
            try:
                yield _fp8_row(f"{name} {k} to {n}", tokens, k, n, device, compiles)
            except Exception as error:  # one layer must not lose the others
                yield f"| {name} {k} to {n} | {_first_line(error)} |" + " |" * 9


def _fp8_row(name: str, tokens: int, k: int, n: int, device: torch.device, compiles: bool) -> str:
    torch.manual_seed(0)
    linear = nn.Linear(k, n).to(device, torch.bfloat16).requires_grad_(False)
    x = torch.randn(tokens, k, device=device, dtype=torch.bfloat16)
    x[:, :: max(1, k // 16)] *= 8  # some channels of transformers are much larger than others
    flop = 2 * tokens * k * n / 1e12
    exact = functional.linear(x.float(), linear.weight.float(), linear.bias.float())
    own = Fp8Linear(linear)
    cells = []
    plain = seconds(lambda: linear(x), device)
    cells += [f"{1e3 * plain:.3f}", f"{flop / plain:.0f}"]
    q, scale = quantize_rows(x)
    product = seconds(lambda: scaled_product(q, scale, own.weight, own.scale, torch.bfloat16), device)
    cells += [f"{1e3 * product:.3f}", f"{flop / product:.0f}", f"{1e3 * seconds(lambda: own(x), device):.3f}"]
    errors = [_error(linear(x), exact), _error(own(x), exact)]
    compiled, torchao, torchao_error = "-", "-", "-"
    if compiles and device.type == "cuda":
        compiled = _compiled_time(own, x, device)
        torchao, torchao_error = _torchao(linear, x, exact, device)
    elif find_spec("torchao") is None:
        torchao = torchao_error = "not installed"
    return f"| {name} | " + " | ".join([*cells, compiled, torchao, *(f"{e:.4f}" for e in errors), torchao_error]) + " |"


def _compiled_time(layer: nn.Module, x: Tensor, device: torch.device) -> str:
    fast = torch.compile(layer, dynamic=False)
    try:
        return f"{1e3 * seconds(lambda: fast(x), device):.3f}"
    except Exception as error:  # one cell must not lose the table
        return _first_line(error)


def _error(made: Tensor, exact: Tensor) -> float:
    return float((made.float() - exact).norm() / exact.norm())


def _torchao(linear: nn.Linear, x: Tensor, exact: Tensor, device: torch.device) -> tuple[str, str]:
    """Return the time of torchao's layer, compiled, and its error."""
    if find_spec("torchao") is None:
        return "not installed", "not installed"
    try:
        from copy import deepcopy

        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

        theirs = nn.Sequential(deepcopy(linear))
        quantize_(theirs, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False))
        fast = torch.compile(theirs, dynamic=False)
        return f"{1e3 * seconds(lambda: fast(x), device):.3f}", f"{_error(theirs(x), exact):.4f}"
    except Exception as error:  # as above
        return _first_line(error), ""


def attention_lines(options: Any) -> Iterator[str]:
    """Time attention of a block: three latents that see themselves and ten before them."""
    device = torch.device(options.device)
    tokens, latents = (16, 13) if options.tiny else (1560, 13)
    yield "Queries of three latents, keys of thirteen. Error: norm of the difference over the norm, against float32."
    yield ""
    yield "| heads | kernel | ms | TFLOP/s | error |"
    yield "|---|---|---|---|---|"
    for heads in (4,) if options.tiny else (12, 24, 40):
        yield from _attention_rows(heads, tokens, latents, device, options)


def _attention_rows(heads: int, tokens: int, latents: int, device: torch.device, options: Any) -> Iterator[str]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from model.backbone.attention import attend

    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n * tokens, heads, 128, device=device, dtype=torch.bfloat16) for n in (3, latents, latents))
    flop = 4 * q.shape[1] * k.shape[1] * heads * 128 / 1e12
    exact = attend(q[:, :, :2].float(), k[:, :, :2].float(), v[:, :, :2].float())
    mask = torch.ones(1, 1, 1, k.shape[1], dtype=torch.bool, device=device)

    def by(*backends: SDPBackend) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(list(backends)):
                return attend(q, k, v)

        return run

    kernels: dict[str, Callable[..., Tensor]] = {
        "sdpa, PyTorch's choice": attend,
        "sdpa with a mask of all True": lambda q, k, v: attend(q, k, v, mask),
        "flash": by(SDPBackend.FLASH_ATTENTION),
        "cuDNN": by(SDPBackend.CUDNN_ATTENTION),
        "memory-efficient": by(SDPBackend.EFFICIENT_ATTENTION),
        "sage": _sage,
    }
    for name, kernel in kernels.items():
        if options.left_s < 4:
            yield f"| {heads} | {name} | no time left | | |"
            continue
        try:
            took = seconds(partial(kernel, q, k, v), device, 0.2)
            error = _error(kernel(q, k, v)[:, :, :2], exact)
            yield f"| {heads} | {name} | {1e3 * took:.2f} | {flop / took:.0f} | {error:.4f} |"
        except ImportError as missing:
            yield f"| {heads} | {name} | not installed: {missing} | | |"
        except Exception as failure:  # one kernel must not lose the others
            yield f"| {heads} | {name} | {_first_line(failure)} | | |"


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from sageattention import sageattn

    made: Tensor = sageattn(q, k, v, tensor_layout="NHD", is_causal=False)
    return made


def train_lines(options: Any) -> Iterator[str]:
    """Time steps of training: forward, backward, clipping and AdamW, sharded as a run shards (on one rank)."""
    from model.parallel import dist
    from model.parallel.layout import ParallelLayout

    *_, device = dist.start()
    sizes = _TINY_SIZES if options.tiny else _TRAIN_SIZES
    yield "Flow matching of one sample; weights and AdamW in float32, blocks in bfloat16, FSDP2 on one rank."
    yield ""
    yield "| model | parameters | frames | tokens | layout | ms a step | tokens/s | model TFLOP/s | MFU | peak GiB |"
    yield "|---" * 10 + "|"
    layouts = {"plain": ParallelLayout(), "compiled": ParallelLayout(compile=True)}
    layouts["recomputed, compiled"] = ParallelLayout(recompute=True, compile=True)
    if device.type == "cpu":
        layouts = {"plain": ParallelLayout(), "recomputed": ParallelLayout(recompute=True)}
    for size in sizes:
        for label, layout in layouts.items():
            if label not in size.layouts and device.type == "cuda":
                continue
            if options.left_s < 15:
                yield f"| {size.name} | | | | {label} | no time left | | | | |"
                continue
            try:
                yield _train_row(size, label, layout, device)
            except Exception as error:  # one size must not lose the others
                yield f"| {size.name} | | | | {label} | {_first_line(error)} | | | | |"
            if device.type == "cuda":
                torch.cuda.empty_cache()
    dist.stop()


class _TrainSize:
    """A model that is trained, the latents of its sample, and in which layouts."""

    def __init__(self, name: str, config: BackboneConfig, latents: tuple[int, int, int], layouts: tuple[str, ...]) -> None:
        self.name, self.config, self.latents, self.layouts = name, config, latents, layouts


_TRAIN_SIZES = (
    _TrainSize(
        "0.4B",
        BackboneConfig(num_attention_heads=8, attention_head_dim=128, num_layers=24, ffn_dim=4096),
        (12, 60, 104),
        ("plain", "compiled"),
    ),
    _TrainSize("1.3B", SHAPES["1.3b"].backbone, (12, 60, 104), ("plain", "compiled", "recomputed, compiled")),
    _TrainSize("5B", SHAPES["5b"].backbone, (12, 60, 104), ("recomputed, compiled",)),
    _TrainSize("four of 14B's 40 layers", replace(SHAPES["14b"].backbone, num_layers=4), (12, 60, 104), ("compiled",)),
)
_TINY_SIZES = (_TrainSize("tiny", SHAPES["tiny"].backbone, (4, 4, 8), ()),)


def _train_row(size: _TrainSize, label: str, layout: Any, device: torch.device) -> str:
    from model.parallel import fsdp
    from model.parallel.layout import place_rank

    shape = Shape(size.config, size.latents[1:], text_tokens=512)
    expert = random_world(shape, device, torch.float32).high.requires_grad_(True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    expert = place_rank(layout, device).parallelize(expert, dtype)
    weights = [p for p in expert.parameters() if p.requires_grad]
    count = sum(p.numel() for p in weights)
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    x = torch.randn(1, size.config.in_channels, *size.latents, device=device)
    target = torch.randn(1, size.config.out_channels, *size.latents, device=device)
    sigma = torch.full((1, size.latents[0]), 0.7, device=device)
    text = torch.randn(1, shape.text_tokens, size.config.text_dim, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (expert(x, sigma, text).float() - target).square().mean().backward()
        fsdp.average_unsharded_gradients(weights)
        fsdp.clip_gradients(weights, 1.0)
        optimizer.step()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    times = []
    for _ in range(4):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - began)
    took = sorted(times)[1]
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    tokens = throughput.count_tokens(size.config, size.latents)
    flops = throughput.training_flops(size.config, tokens, shape.text_tokens)
    share = flops / took / throughput.peak_flops(device, dtype)
    return (
        f"| {size.name} | {count / 1e9:.2f} B | {1 + 4 * (size.latents[0] - 1)} | {tokens} | {label} | {1e3 * took:.0f} | "
        f"{tokens / took:.0f} | {flops / took / 1e12:.1f} | {share:.0%} | {peak_gib:.1f} |"
    )


def ladder_lines(options: Any, name: str) -> Iterator[str]:
    """Play a world of random weights, rung by rung."""
    from bench import ladder

    size, device = "tiny" if options.tiny else name, torch.device(options.device)
    shape, playable = SHAPES[size], ladder.random_playable(size, device)
    codec = "Wan's" if has_diffusers() else "TAEHV (diffusers is not installed)"
    spec = shape.causal
    yield (
        f"{shape.what}; {'bfloat16' if device.type == 'cuda' else 'float32'}, random weights; blocks of {spec.block} latents "
        f"that see {spec.sink} + {spec.window} before them, {len(spec.steps)} steps and a commit; decoder: {codec}."
    )
    yield ""
    backend = "aot_eager" if options.tiny else "inductor"
    rungs = ladder.RUNGS if name == "1.3b" else [rung for rung in ladder.RUNGS if rung.name in _FEWER_RUNGS]
    yield from ladder.table(playable, lambda: options.left_s, backend, rungs, seconds=0.5 if options.tiny else 3.0)


# Of the larger models, whose blocks take seconds.
_FEWER_RUNGS = ("eager", "+ compile", "+ fp8", "+ cuDNN's attention", "+ overlapped decode")
