"""The passes that training, rollouts and play are made of: denoise a block, commit it, or do both for a whole sequence at once.

B batch, C latent channels, K condition channels, T latents, h w latent rows and columns, F frames, S tokens of a latent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from model.backbone.attention import KV, AttentionLayout, Past, SinkRotation
from model.backbone.dit import Embedded
from model.backbone.rope import rotate
from model.causal.cache import History, Page, TokenGrid, kept_experts, read_expert
from model.causal.spec import CausalSpec, dense_mask
from model.noise import TIMESTEPS, ExpertName
from model.world import ControlledExpert, World

# Below so many tokens a dense mask is as fast as flex attention.
_MIN_FLEX_TOKENS = 4096


class BlockCondition(NamedTuple):
    """What the latents of a block, or of a whole sequence, are generated from.

    condition: channels that follow the noise, [B, K, T, h, w]: the first-frame condition of Wan2.2 (mask and latents), or
    turned pictures (`model.warp`). text: [B, S, E], or of each latent [B, T, S, E]. maps: control maps [B, F, 12, H, W] of the
    latents' frames (None: no camera). vlm_context: hidden states of a vision-language model [B, U, V] (None: no instruction).
    """

    latents: range
    condition: Tensor
    text: Tensor
    maps: Tensor | None
    vlm_context: Tensor | None = None


class PreparedText:
    """A text as the blocks of the experts read it, and with it the noise levels of the steps. For play, not for training.

    Everything is computed when it is first needed, by the code of a pass, and kept: in all blocks of a stream the steps have
    the same levels, and the text rarely changes. With Wan2.2's 512 tokens an expert's keys and values take 420 MB.
    """

    def __init__(self, world: World, text_BSE: Tensor) -> None:
        self._world, self._text = world, text_BSE
        self._keys: dict[ExpertName, tuple[KV, ...]] = {}
        self._embedded: dict[tuple[ExpertName, float, int], Embedded] = {}

    @torch.no_grad()
    def embedded(self, name: ExpertName, sigma: float, latents: int) -> Embedded:
        """Return what an expert makes of the text and of a noise level of so many latents."""
        name = "low" if self._world.high is self._world.low else name
        key = name, sigma, latents
        if key not in self._embedded:
            expert = self._world.expert_named(name).expert
            if name not in self._keys:
                self._keys[name] = expert.text_keys(self._text)
            sigma_BT = torch.full((len(self._text), latents), sigma, device=self._text.device)
            self._embedded[key] = expert.embed(sigma_BT * TIMESTEPS, self._text, self._keys[name])
        return self._embedded[key]


class PreparedBlock(NamedTuple):
    """A block's condition with the camera's tokens by expert, which all passes of the block share.

    text: the condition's text where its keys are kept, None where every pass computes them.
    """

    block: BlockCondition
    control: Mapping[ExpertName, Tensor]
    text: PreparedText | None = None


def prepare(world: World, block: BlockCondition, text: PreparedText | None = None) -> PreparedBlock:
    """Compute what is equal in all passes of a block."""
    start = block.latents.start == 0
    high = world.high.control_tokens(block.maps, start)
    low = high if world.high is world.low else world.low.control_tokens(block.maps, start)
    return PreparedBlock(block, {"high": high, "low": low}, text)


def denoise(
    world: World, noisy_BCThw: Tensor, sigma: float, prepared: PreparedBlock, history: History, name: ExpertName
) -> Tensor:
    """Return the velocity of a block at a noise level, float32 [B, C, T, h, w]. It only reads the history."""
    velocity: Tensor = _run(world, noisy_BCThw, sigma, prepared, history, name, keys_only=False)
    return velocity.float()


def commit(
    world: World, x0_BCThw: Tensor, prepared: PreparedBlock, history: History, spec: CausalSpec, noise: Tensor | None = None
) -> Page:
    """Return the page of a finished block: a pass at `spec.context_noise`, without a head, by each expert that has a cache.

    noise: [B, C, T, h, w], needed where context_noise is above 0.
    """
    x, sigma = at_context_noise(x0_BCThw, spec, noise), spec.context_noise
    names = kept_experts(world, spec)
    return Page(
        prepared.block.latents,
        {name: _run(world, x, sigma, prepared, history, name, keys_only=True) for name in names},
    )


def at_context_noise(x0_BCThw: Tensor, spec: CausalSpec, noise: Tensor | None) -> Tensor:
    """Return a finished block at the noise level at which it is committed. noise: needed where that is above 0."""
    sigma = spec.context_noise
    return x0_BCThw if noise is None or not sigma else (1 - sigma) * x0_BCThw + sigma * noise


def _run(
    world: World, x: Tensor, sigma: float, prepared: PreparedBlock, history: History, name: ExpertName, keys_only: bool
) -> Tensor:
    block, control, text = prepared
    past: Sequence[Past] = history.past[read_expert(name, history.past)] if history.past else ()
    result: Tensor = world.expert_named(name)(
        torch.cat([x, block.condition], 1),
        x.new_full((len(x), x.shape[2]), sigma),
        block.text,
        vlm_context_BUV=block.vlm_context,
        control_BLD=control[name],
        layout=history.layout,
        past=past,
        keys_only=keys_only,
        embedded=None if text is None else text.embedded(name, sigma, x.shape[2]),
    )
    return result


class Passes(NamedTuple):
    """How the passes of a rollout are computed: `denoise` and `commit`, or faster functions with the same meaning."""

    denoise: Callable[[World, Tensor, float, PreparedBlock, History, ExpertName], Tensor] = denoise
    commit: Callable[[World, Tensor, PreparedBlock, History, CausalSpec, Tensor | None], Page] = commit


class SequenceLayout(NamedTuple):
    """Layouts of a pass over a sequence: of clean and noisy copies together, or of each by itself."""

    joint: AttentionLayout
    clean: AttentionLayout
    noisy: AttentionLayout
    clean_latents: int  # how many latents the clean copy has


def sequence_layout(spec: CausalSpec, grid: TokenGrid, latents: int, flex: bool | None = None) -> SequenceLayout:
    """Return where tokens stand in the pass over [clean | noisy] copies of a sequence, and what they see.

    The noisy copy has no latent 0, which is given. The clean copy has no last block, since no later block sees it. flex: masks
    for flex attention, which skips what is hidden; otherwise dense ones. None: for flex attention on CUDA, for sequences that
    are long enough to be worth the half minute in which it is compiled.
    """
    blocks = spec.blocks(latents)
    if len(blocks) < 2:
        raise ValueError(f"a sequence needs at least one block of {spec.block} latents after latent 0, not {latents} latents")
    clean, noisy = list(range(blocks[-1].start)), list(range(1, latents))
    per = grid.per_latent

    is_clean = torch.tensor([True] * len(clean) + [False] * len(noisy), device=grid.device).repeat_interleave(per)
    latent = torch.tensor(clean + noisy, device=grid.device).repeat_interleave(per)
    is_sink = is_clean & (latent < spec.sink)
    rule, count, first_noisy = spec.mask_mod(latent, is_clean), len(latent), len(clean) * per

    if flex is None:
        flex = grid.device.type == "cuda" and count >= _MIN_FLEX_TOKENS

    def mask(queries: range, keys: range) -> Tensor | BlockMask:
        if flex:

            def shifted(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return rule(b, h, q + queries.start, k + keys.start)

            return create_block_mask(shifted, None, None, len(queries), len(keys), device=str(grid.device))
        numbers = (torch.tensor(list(part), device=grid.device) for part in (queries, keys))
        return dense_mask(rule, *numbers)

    def layout(numbers: list[int], queries: range, keys: range) -> AttentionLayout:
        cuts = spec.distance_cut(numbers)
        sink = None
        if any(cuts):
            near = grid.rotary([number - cut for number, cut in zip(numbers, cuts, strict=True)])
            sink = SinkRotation(near, is_sink[keys.start : keys.stop])
        return AttentionLayout(grid.rotary(numbers), mask(queries, keys), sink)

    everything = range(count)
    return SequenceLayout(
        layout(clean + noisy, everything, everything),
        layout(clean, range(first_noisy), range(first_noisy)),
        layout(noisy, range(first_noisy, count), everything),
        len(clean),
    )


def teacher_forced(
    world: World,
    clean_BCThw: Tensor,
    clean_sigma_BT: Tensor,
    noisy_BCThw: Tensor,
    sigma_BT: Tensor,
    sequence: BlockCondition,
    spec: CausalSpec,
    layout: SequenceLayout,
    name: ExpertName,
) -> Tensor:
    """Return the velocity of latents 1.. of a sequence, each block denoised on its clean history, float32 [B, C, T - 1, h, w].

    Equal to `denoise` and `commit` block by block. clean: history, which may have noise, of the levels `clean_sigma`. Both
    copies and their sigmas have all T latents. Where the experts share keys, history is read from the low-noise expert.
    """
    past_end = layout.clean_latents
    expert, context = world.expert_named(name), world.expert_named(read_expert(name, dict.fromkeys(kept_experts(world, spec))))
    clean = torch.cat([clean_BCThw[:, :, :past_end], sequence.condition[:, :, :past_end]], 1)
    noisy = torch.cat([noisy_BCThw[:, :, 1:], sequence.condition[:, :, 1:]], 1)
    clean_sigma, sigma = clean_sigma_BT[:, :past_end], sigma_BT[:, 1:]
    clean_text, noisy_text = _texts_of_copies(sequence.text, spec, past_end)
    clean_control, noisy_control = _controls_of_copies(expert, sequence, past_end)

    def run(model: ControlledExpert, x: Tensor, levels: Tensor, text: Tensor, control: Tensor, **attention: Any) -> Any:
        return model(x, levels, text, vlm_context_BUV=sequence.vlm_context, control_BLD=control, **attention)

    if context is expert and spec.context_gradient:
        text = sequence.text if sequence.text.ndim == 3 else torch.cat([clean_text, noisy_text], 1)
        control = clean_control if clean_control.shape[1] == 1 else torch.cat([clean_control, noisy_control], 1)
        both, levels = torch.cat([clean, noisy], 2), torch.cat([clean_sigma, sigma], 1)
        velocity: Tensor = run(expert, both, levels, text, control, layout=layout.joint)
        return velocity[:, :, past_end:].float()
    with torch.set_grad_enabled(torch.is_grad_enabled() and spec.context_gradient):
        if context is not expert:
            clean_control, _ = _controls_of_copies(context, sequence, past_end)
        keys = run(context, clean, clean_sigma, clean_text, clean_control, layout=layout.clean, keys_only=True)
        past = tuple(Past(rotate(kv.k_BSNH, layout.clean.rotary_LP), kv.v_BSNH) for kv in keys)
    velocity = run(expert, noisy, sigma, noisy_text, noisy_control, layout=layout.noisy, past=past)
    return velocity.float()


def _texts_of_copies(text: Tensor, spec: CausalSpec, past_end: int) -> tuple[Tensor, Tensor]:
    """Return the text of the clean and of the noisy copy; both have the same where it does not change."""
    if text.ndim == 3:
        return text, text
    # A change of prompt commits the last block again, so history has the text of the block after it.
    later = [min(n + spec.block if n else 1, text.shape[1] - 1) for n in range(past_end)]
    return text[:, later], text[:, 1:]


def _controls_of_copies(expert: ControlledExpert, sequence: BlockCondition, past_end: int) -> tuple[Tensor, Tensor]:
    """Return the camera's tokens of the clean and of the noisy copy; the token for no camera is the same for all."""
    control = expert.control_tokens(sequence.maps)
    if control.shape[1] == 1:
        return control, control
    tokens = control.shape[1] // sequence.condition.shape[2]
    return control[:, : past_end * tokens], control[:, tokens:]
