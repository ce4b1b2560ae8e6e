"""Passes as CUDA graphs: the thousands of kernels of a pass are launched at once.

A graph replays kernels on the addresses with which it was recorded. The ring has fixed addresses, as do its masks and rotary
tables; everything else that a pass reads is copied to a fixed place before each replay. A session has its own graphs, as it has
its own ring.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.backbone.attention import KV
from model.backbone.dit import Embedded
from model.causal.cache import History, Page, kept_experts, read_expert
from model.causal.passes import Passes, PreparedBlock, PreparedText, at_context_noise, commit, denoise
from model.causal.spec import CausalSpec
from model.noise import ExpertName
from model.world import World

# Runs a function once and returns how to run it again, and its results, which are overwritten each time.
Record = Callable[[Callable[[], Sequence[Tensor]]], tuple[Callable[[], None], Sequence[Tensor]]]


class _Recorded(NamedTuple):
    """A pass, the places of what it reads, and those of what it returns."""

    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    outputs: Sequence[Tensor]


class CudaGraphRecorder:
    """Records CUDA graphs that share their memory for what lies between input and output."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):  # libraries choose their kernels in the first runs
            for _ in range(2):
                function()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = function()
        return graph.replay, outputs


def record_plainly(function: Callable[[], Sequence[Tensor]]) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """Stand for a recorder where there is no CUDA: a replay runs the function again on the same places."""
    outputs = [each.clone() for each in function()]

    def replay() -> None:
        for place, value in zip(outputs, function(), strict=True):
            place.copy_(value)

    return replay, outputs


class GraphedPasses:
    """`denoise` and `commit` of one session by graphs, once its window is full; before, and with masks, by the plain code.

    A page is valid until the next commit: the ring copies it.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._graphs: dict[tuple[ExpertName, bool], _Recorded] = {}
        self._texts: dict[ExpertName, tuple[PreparedText, tuple[KV, ...]]] = {}

    @property
    def passes(self) -> Passes:
        return Passes(self.denoise, self.commit)

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    @torch.no_grad()
    def denoise(
        self, world: World, x: Tensor, sigma: float, prepared: PreparedBlock, history: History, name: ExpertName
    ) -> Tensor:
        if not history.layout.steady:
            return denoise(world, x, sigma, prepared, history, name)
        (velocity,) = self._run(world, x, sigma, prepared, history, name, keys_only=False)
        return velocity.clone()  # the next replay overwrites it

    @torch.no_grad()
    def commit(
        self, world: World, x0: Tensor, prepared: PreparedBlock, history: History, spec: CausalSpec, noise: Tensor | None = None
    ) -> Page:
        if not history.layout.steady:
            return commit(world, x0, prepared, history, spec, noise)
        x, sigma = at_context_noise(x0, spec, noise), spec.context_noise
        kv: dict[ExpertName, tuple[KV, ...]] = {}
        for name in kept_experts(world, spec):
            made = self._run(world, x, sigma, prepared, history, name, keys_only=True)
            kv[name] = tuple(KV(k, v) for k, v in zip(made[::2], made[1::2], strict=True))
        return Page(prepared.block.latents, kv)

    def _run(
        self,
        world: World,
        x: Tensor,
        sigma: float,
        prepared: PreparedBlock,
        history: History,
        name: ExpertName,
        keys_only: bool,
    ) -> Sequence[Tensor]:
        assert prepared.text is not None, "graphs read the text's keys"
        assert prepared.block.vlm_context is None, "play has no vision-language model"
        embedded = prepared.text.embedded(name, sigma, x.shape[2])
        text = self._text_of(name, prepared.text, embedded.text)
        values = (
            torch.cat([x, prepared.block.condition], 1),
            x.new_full((len(x), x.shape[2]), sigma),
            prepared.control[name],
            embedded.time_BTD,
            embedded.scales_BT6D,
        )
        key = name, keys_only
        if key not in self._graphs:
            self._graphs[key] = self._new(world, values, text, history, name, keys_only)
        recorded = self._graphs[key]
        for place, value in zip(recorded.inputs, values, strict=True):
            place.copy_(value)
        recorded.replay()
        return recorded.outputs

    def _new(
        self,
        world: World,
        values: tuple[Tensor, ...],
        text: tuple[KV, ...],
        history: History,
        name: ExpertName,
        keys_only: bool,
    ) -> _Recorded:
        inputs = tuple(value.clone() for value in values)
        x, sigma, control, time, scales = inputs
        past = history.past[read_expert(name, history.past)]
        layout, expert = history.layout, world.expert_named(name)

        def run() -> Sequence[Tensor]:
            made = expert(
                x,
                sigma,
                None,
                control_BLD=control,
                layout=layout,
                past=past,
                keys_only=keys_only,
                embedded=Embedded(time, scales, text),
            )
            return [part for kv in made for part in kv] if keys_only else [made.float()]

        replay, outputs = self._record(run)
        return _Recorded(inputs, replay, outputs)

    def _text_of(self, name: ExpertName, prepared: PreparedText, keys: Sequence[KV]) -> tuple[KV, ...]:
        """Return the fixed places of an expert's text, with this text in them."""
        if name not in self._texts:
            self._texts[name] = prepared, tuple(KV(k.clone(), v.clone()) for k, v in keys)
        before, places = self._texts[name]
        if before is not prepared:
            for place, key in zip(places, keys, strict=True):
                place.k_BSNH.copy_(key.k_BSNH)
                place.v_BSNH.copy_(key.v_BSNH)
            self._texts[name] = prepared, places
        return places
