"""Faster passes for worlds on a processor: traced by PyTorch, or run by onnxruntime. The fastest is measured at the start.

A small world spends most of a pass on calling operators, not in them. Shapes of a ring cache never change, so a pass can be
traced once. Blocks after the first are accelerated; the start image is committed by the plain code.
"""

import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.accelerate.spec import BACKENDS
from model.backbone.attention import KV, AttentionLayout, Past
from model.causal.cache import History, Page, RingCache, TokenGrid, kept_experts
from model.causal.passes import BlockCondition, Passes, PreparedBlock, at_context_noise, commit, denoise, prepare
from model.causal.rollout import EAGER
from model.causal.spec import CausalSpec
from model.noise import ExpertName
from model.world import ControlledExpert, World

_MEASURE_S = 0.25  # a backend
# Larger worlds spend their time in the operators.
_MAX_WEIGHTS = 50_000_000

# Runs a pass: x, sigma, text, control, cosines, sines, mask, past keys, past values -> its outputs.
_Run = Callable[..., Sequence[Tensor]]


class Backend(NamedTuple):
    """A way to compute passes, by name."""

    name: str
    passes: Passes


class _Pass(nn.Module):
    """A pass of one expert with tensors as arguments. Past keys and values have all layers: [layers, B, S, N, H]."""

    def __init__(self, expert: ControlledExpert, keys_only: bool) -> None:
        super().__init__()
        self._expert, self._keys_only = expert, keys_only

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        text: Tensor,
        control: Tensor,
        cosine: Tensor,
        sine: Tensor,
        mask: Tensor,
        past_k: Tensor,
        past_v: Tensor,
    ) -> Any:
        past = [Past(k, v) for k, v in zip(past_k.unbind(0), past_v.unbind(0), strict=True)]
        layout = AttentionLayout((cosine, sine), mask)
        made = self._expert(x, sigma, text, control_BLD=control, layout=layout, past=past, keys_only=self._keys_only)
        if not self._keys_only:
            return made
        return torch.stack([kv.k_BSNH for kv in made]), torch.stack([kv.v_BSNH for kv in made])


class _StaticPasses:
    """`denoise` and `commit` by functions for the shapes of a block after the first, and by the plain code otherwise."""

    def __init__(self, run_denoise: _Run, run_commit: _Run) -> None:
        self._run_denoise, self._run_commit = run_denoise, run_commit
        self._of: History | None = None
        self._past: tuple[Tensor, Tensor, Tensor] | None = None

    def arguments(self, x: Tensor, sigma: float, prepared: PreparedBlock, history: History) -> list[Tensor]:
        """Return the tensors that a pass takes. The world has one expert, so one past."""
        block, name = prepared.block, next(iter(history.past))
        if self._of is not history:  # the passes of a block share their past
            self._past, self._of = _past_without_own(history, name), history
        assert self._past is not None
        sigmas = x.new_full((len(x), x.shape[2]), sigma)
        inputs = torch.cat([x, block.condition], 1)
        return [inputs, sigmas, block.text, prepared.control[name], *history.layout.rotary_LP, *self._past]

    def denoise(
        self, world: World, x: Tensor, sigma: float, prepared: PreparedBlock, history: History, name: ExpertName
    ) -> Tensor:
        if not history.past:
            return denoise(world, x, sigma, prepared, history, name)
        return self._run_denoise(*self.arguments(x, sigma, prepared, history))[0].float()

    def commit(
        self, world: World, x0: Tensor, prepared: PreparedBlock, history: History, spec: CausalSpec, noise: Tensor | None = None
    ) -> Page:
        if not history.past:
            return commit(world, x0, prepared, history, spec, noise)
        x = at_context_noise(x0, spec, noise)
        keys, values = self._run_commit(*self.arguments(x, spec.context_noise, prepared, history))
        kept = next(iter(history.past))
        return Page(prepared.block.latents, {kept: tuple(map(KV, keys.unbind(0), values.unbind(0)))})


def _past_without_own(history: History, name: ExpertName) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mask for [past | own], and keys and values of the past of all layers, [layers, B, S, N, H].

    What was the room for own keys is hidden: these passes write nothing in place, and their own keys follow the past.
    """
    past, own = history.past[name], history.layout.rotary_LP[0].shape[0]
    keys, values = (torch.stack(parts) for parts in list(zip(*past, strict=True))[:2])
    seen = torch.ones(1, 1, 1, keys.shape[2], dtype=torch.bool, device=keys.device)
    if history.layout.mask is not None:
        assert isinstance(history.layout.mask, Tensor)
        seen = history.layout.mask.clone()
    assert past[0].own_L is not None
    seen[..., past[0].own_L] = False
    return torch.cat([seen, seen.new_ones(1, 1, 1, own)], -1), keys, values


def choose(world: World, spec: CausalSpec, block: BlockCondition, wanted: str = "auto", exports: str | None = None) -> Backend:
    """Return the fastest backend for blocks like this one, or the wanted one.

    exports: path and beginning of the names of exported files for onnxruntime, which takes some ten seconds to export. Without
    such files it is used only where it is wanted, and makes them.

    The measurement takes a second or two. Only small worlds with one expert on a processor are accelerated. ValueError for an
    unknown backend, RuntimeError for one that cannot run here.
    """
    if wanted not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, not {wanted!r}")
    weights = sum(p.numel() for p in world.high.parameters())
    device = block.condition.device
    small = device.type == "cpu" and len(kept_experts(world, spec)) == 1 and world.high is world.low and weights < _MAX_WEIGHTS
    if wanted == "eager" or (wanted == "auto" and not small):
        return Backend("eager", EAGER)
    if not small:
        raise RuntimeError(f"backend {wanted} is for small worlds with one expert on a processor")
    grid = TokenGrid.of(world.high.expert, *block.condition.shape[-2:])
    example = _example(world, spec, grid, block)
    if wanted != "auto":
        try:
            static = _traced(world, *example) if wanted == "traced" else _onnxruntime(world, *example, exports)
        except ImportError as error:
            raise RuntimeError(f"backend {wanted} is not installed: {error}; pip install 'gamecraft[onnx]'") from error
        return Backend(wanted, Passes(static.denoise, static.commit))
    traced = _traced(world, *example)
    backends = [Backend("eager", EAGER), Backend("traced", Passes(traced.denoise, traced.commit))]
    if exports and all(os.path.exists(_export_path(exports, keys_only)) for keys_only in (False, True)):
        with contextlib.suppress(Exception):  # an old or damaged file is no reason not to play
            exported = _onnxruntime(world, *example, exports)
            backends.append(Backend("onnxruntime", Passes(exported.denoise, exported.commit)))
    return min(backends, key=lambda backend: _seconds(backend, world, *example))


def _example(world: World, spec: CausalSpec, grid: TokenGrid, block: BlockCondition) -> tuple[Tensor, PreparedBlock, History]:
    """Return inputs of a pass: a block after the start image."""
    cache = RingCache(spec, grid, world, static=True)
    channels = world.high.expert.config.out_channels
    condition = block.condition.new_zeros(1, block.condition.shape[1], 1, *block.condition.shape[-2:])
    maps = None if block.maps is None else block.maps[:, :1]
    start = BlockCondition(range(1), condition, block.text, maps, block.vlm_context)
    with torch.no_grad():
        x = condition.new_zeros(1, channels, 1, *condition.shape[-2:])
        cache.with_page(commit(world, x, prepare(world, start), cache.history(range(1)), spec))
        prepared, history = prepare(world, block), cache.history(block.latents)
    return condition.new_zeros(1, channels, len(block.latents), *condition.shape[-2:]), prepared, history


@torch.no_grad()
def _seconds(backend: Backend, world: World, x: Tensor, prepared: PreparedBlock, history: History) -> float:
    """Return the shortest time of a pass."""
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < _MEASURE_S or len(times) < 3:
        start = time.perf_counter()
        backend.passes.denoise(world, x, 0.5, prepared, history, "high")
        times.append(time.perf_counter() - start)
    return min(times)


def _examples(x: Tensor, prepared: PreparedBlock, history: History) -> tuple[Tensor, ...]:
    static = _StaticPasses(lambda *_: (), lambda *_: ())
    return tuple(static.arguments(x, 0.5, prepared, history))


@torch.no_grad()
def _traced(world: World, x: Tensor, prepared: PreparedBlock, history: History) -> _StaticPasses:
    """Trace passes with TorchScript, which keeps the operators and drops Python."""
    arguments = _examples(x, prepared, history)

    def trace(keys_only: bool) -> _Run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but torch.compile takes minutes on a processor
            traced = torch.jit.trace(_Pass(world.high, keys_only).eval(), arguments, check_trace=False)
            frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
            frozen(*arguments)  # the second call specialises the graph

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            with torch.no_grad():
                made = frozen(*inputs)
            return made if keys_only else (made,)

        return run

    return _StaticPasses(trace(False), trace(True))


def _export_path(exports: str, keys_only: bool) -> str:
    return f"{exports}-{'commit' if keys_only else 'denoise'}.onnx"


def _onnxruntime(world: World, x: Tensor, prepared: PreparedBlock, history: History, exports: str | None) -> _StaticPasses:
    """Run passes by onnxruntime with as many threads as PyTorch has; exports them where there are no files of them.

    ImportError where it is missing.
    """
    import onnxruntime

    arguments = _examples(x, prepared, history)

    def exported(keys_only: bool) -> bytes:
        path = _export_path(exports, keys_only) if exports else ""
        if path and os.path.exists(path):
            with open(path, "rb") as source:
                return source.read()
        import onnxscript  # noqa: F401 (the exporter needs it)

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(_Pass(world.high, keys_only).eval(), arguments, dynamo=True, verbose=False)
        buffer = io.BytesIO()
        program.save(buffer)
        if path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(f"{path}.partial", "wb") as out:
                out.write(buffer.getvalue())
            os.replace(f"{path}.partial", path)
        return buffer.getvalue()

    def session(keys_only: bool) -> _Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        loaded = onnxruntime.InferenceSession(exported(keys_only), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in loaded.get_inputs()]

        def run(*inputs: Tensor) -> Sequence[Tensor]:
            arrays: dict[str, np.ndarray] = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            return [torch.from_numpy(made) for made in loaded.run(None, arrays)]

        return run

    return _StaticPasses(session(False), session(True))
