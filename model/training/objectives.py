"""What a training step minimises: flow matching (stages 1 and 2), teacher forcing, or causal consistency distillation.

An objective draws from one generator for each sample, so that losses do not depend on the number of ranks. What decides which
modules run, and how often, is drawn from a generator that all ranks share.

B batch, C channels, T latents, F frames, H W px, h w latent rows and columns, N losses: one for each noise level.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from model.backbone.frame_codec import FrameCodec
from model.backbone.vae import to_signed
from model.causal.cache import TokenGrid
from model.causal.condition import Spoil, TurnedSource, camera_maps, pose_distance, require_frame_latents, turned_condition
from model.causal.passes import BlockCondition, SequenceLayout, sequence_layout, teacher_forced
from model.causal.spec import CausalSpec
from model.noise import ExpertName, NoiseSpec
from model.sampling import sampler_sigmas
from model.training import flow_matching
from model.training.ema import EmaWeights
from model.training.parts import ModelParts
from model.training.settings import ObjectiveSettings
from model.warp import SOURCE_CHANNELS
from model.world import World

# Second sources in training are as those of a rollout: half of them the nearest by pose, half of them a recent frame.
_NEAREST_SHARE = 0.5
_MAX_DELAY = 40  # frames
# A change of text is what a prompt is; otherwise it would be in one run of ten.
_CHANGE_SHARE = 0.9
_DRAWS_AT_CHANGE = 16
_SKIP_SHARE = _STILL_SHARE = 0.5


class Objective(Protocol):
    """Computes losses of a batch for one expert."""

    text_tokens: int  # of the last batch, for the count of FLOPs

    def losses(
        self, batch: dict[str, Any], expert: ExpertName, generators: Sequence[torch.Generator], shared: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return noise levels and losses, [N] each.

        generators: one for each sample. shared: equal on all ranks, for draws that decide which modules run, and how often.
        """
        ...


class FlowMatching:
    """All latents of a sample at one noise level."""

    def __init__(self, parts: ModelParts) -> None:
        self._parts, self.text_tokens = parts, 0

    def losses(
        self, batch: dict[str, Any], expert: ExpertName, generators: Sequence[torch.Generator], _shared: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        parts = self._parts
        latents = flow_matching.encode_batch(batch, parts.codec, parts.text_encoder, parts.device, parts.vlm_encoder)
        self.text_tokens = latents.conditioning.text.shape[1]
        shape = latents.x0.shape[1:]
        sigma, noise = [], []
        for generator in generators:
            sigma.append(parts.world.noise.draw_sigma(expert, 1, generator))
            noise.append(torch.randn(shape, generator=generator))
        sigmas = torch.cat(sigma).to(parts.device)
        return sigmas, flow_matching.loss(parts.world, latents, sigmas, torch.stack(noise).to(parts.device))


class CausalBatch(NamedTuple):
    """A batch of sequences as a causal model is trained on it."""

    x0: Tensor  # [B, C, T, h, w]
    condition: BlockCondition
    # with warp: return the condition, given the pictures [B, 3, T, H, W] to use as previous frames
    turn: Callable[[Tensor], Tensor] | None = None
    drift: Tensor | float = 0.0  # what the noise of history has in all cells and frames, [B, C, 1, 1, 1]


class TeacherForcing:
    """Every block of a sequence is denoised on true history, all in one pass."""

    def __init__(self, parts: ModelParts, spec: CausalSpec, settings: ObjectiveSettings) -> None:
        require_frame_latents(parts.codec, spec)
        self._parts, self._spec, self._settings = parts, spec, settings
        self._layouts: dict[tuple[int, int, int], SequenceLayout] = {}
        self.text_tokens = 0

    def losses(
        self, batch: dict[str, Any], expert: ExpertName, generators: Sequence[torch.Generator], shared: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        world = self._parts.world
        sequence = self.encode(batch, generators)
        sigma_BT = self._draw_sigmas(sequence, expert, generators)
        noise = self._noise(sequence.x0, generators)
        noisy = _mix(sequence.x0, noise, sigma_BT)
        sequence, history = self._own_history(sequence, noisy, sigma_BT, expert, shared, world)
        clean, clean_sigma = self._spoil_history(history, sequence.drift, generators)
        layout = self._layout(sequence.x0)
        velocity = teacher_forced(world, clean, clean_sigma, noisy, sigma_BT, sequence.condition, self._spec, layout, expert)
        error = (velocity - (noise - sequence.x0)[:, :, 1:]).square().mean((1, 3, 4))
        return self._by_block(sigma_BT[:, 1:]), self._by_block(error)

    def _by_block(self, values_BT: Tensor) -> Tensor:
        """Return the mean of each block, [B x blocks]."""
        return values_BT.unflatten(1, (-1, self._spec.block)).mean(-1).flatten()

    def _layout(self, x0: Tensor) -> SequenceLayout:
        sizes = x0.shape[2], x0.shape[3], x0.shape[4]
        if sizes not in self._layouts:
            grid = TokenGrid.of(self._parts.world.high.expert, *sizes[1:])
            self._layouts[sizes] = sequence_layout(self._spec, grid, sizes[0])
        return self._layouts[sizes]

    def _draw_sigmas(self, sequence: CausalBatch, expert: ExpertName, generators: Sequence[torch.Generator]) -> Tensor:
        """Return a noise level for each latent, [B, T]: the same in a block, 0 for latent 0, which is given.

        Where the text changes it is the highest of some draws: little noise shows what comes, and then no text is needed.
        """
        batch, latents = len(sequence.x0), sequence.x0.shape[2]
        changes = _changes_of_text(sequence.condition.text, latents).cpu().expand(batch, -1)
        changed = changes.unflatten(1, (-1, self._spec.block)).any(-1)
        levels = draw_levels(self._parts.world.noise, expert, changed, generators).repeat_interleave(self._spec.block, 1)
        return torch.cat([levels.new_zeros(batch, 1), levels], 1).to(sequence.x0.device)

    def _noise(self, x0: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(x0.shape[1:], generator=generator) for generator in generators]).to(x0.device)

    def _drift(self, x0: Tensor, generators: Sequence[torch.Generator]) -> Tensor | float:
        if not self._settings.drift:
            return 0.0
        drawn = torch.stack([torch.randn(x0.shape[1], 1, 1, 1, generator=generator) for generator in generators])
        return self._settings.drift * drawn.to(x0.device)

    def _spoil_history(
        self, history: Tensor, drift: Tensor | float, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Return history with noise, and its levels [B, T]; the first latent stays clean."""
        settings, levels = self._settings, []
        for generator in generators:
            level, spared = torch.rand(2, generator=generator)
            levels.append(settings.context_noise * level * (spared >= settings.clean_history_share))
        sigma_BT = torch.stack(levels).to(history.device)[:, None].repeat(1, history.shape[2])
        sigma_BT[:, 0] = 0
        return _mix(history, self._noise(history, generators) + drift, sigma_BT), sigma_BT

    def encode(self, batch: dict[str, Any], generators: Sequence[torch.Generator]) -> CausalBatch:
        """Encode a batch, and draw what of it is trained on."""
        parts, spec = self._parts, self._spec
        if not spec.warp:
            encoded = flow_matching.encode_batch(batch, parts.codec, parts.text_encoder, parts.device, parts.vlm_encoder)
            image, text, maps, vlm_context = encoded.conditioning
            self.text_tokens = text.shape[1]
            latents = range(encoded.x0.shape[2])
            if spec.pose_origin == "block" and maps is not None:
                height, width = (parts.codec.cell_px * side for side in encoded.x0.shape[-2:])
                intrinsics = flow_matching.valid_intrinsics(batch, (height, width), parts.device)
                maps = self._maps(batch, batch["pose"], intrinsics, encoded.x0)
            condition = BlockCondition(latents, image, text, maps, vlm_context)
            return CausalBatch(encoded.x0, condition, drift=self._drift(encoded.x0, generators))
        return self._turned_sequence(batch, generators)

    def _maps(self, batch: dict[str, Any], pose: Tensor, intrinsics: Tensor, x0: Tensor) -> Tensor:
        """Return the control maps of a sequence from its start, zeros for samples without a camera."""
        device, size = x0.device, (x0.shape[-2], x0.shape[-1])
        known, pose = batch["camera_known"].to(device), pose.to(device)
        maps = camera_maps(self._spec, self._parts.codec, pose, intrinsics, size, pose[:, 0], None)
        return maps * known[:, None, None, None, None]

    def _turned_sequence(self, batch: dict[str, Any], generators: Sequence[torch.Generator]) -> CausalBatch:
        """Choose a run of frames in each sample, and turn earlier frames to them."""
        parts, device = self._parts, self._parts.device
        video = to_signed(batch["video"].to(device, non_blocking=True))
        frames = video.shape[2]
        count = self._settings.latents or frames
        spans = zip(batch["spans"], generators, strict=True)
        starts = torch.tensor([_start_of_run(each, frames, count, generator) for each, generator in spans], device=device)
        numbers = starts[:, None] + torch.arange(count, device=device)
        if self._settings.skip_at_change:
            numbers = vary_changes(numbers, batch["spans"], frames, self._settings.skip_at_change, generators)
        pictures = _frames(video, numbers)
        x0 = parts.codec.encode(pictures)
        pose, known = batch["pose"].to(device), batch["camera_known"].to(device).view(-1, 1, 1, 1, 1)
        intrinsics = flow_matching.valid_intrinsics(batch, (video.shape[-2], video.shape[-1]), device)
        text = self._text_by_latent(batch, numbers)
        self.text_tokens = text.shape[-2]
        run_pose, run_intrinsics = _of_frames(pose, numbers), _of_frames(intrinsics, numbers)
        maps = self._maps(batch, run_pose, run_intrinsics, x0)
        chosen = [_second_sources(pose[i].cpu(), numbers[i].cpu(), self._spec.block, g) for i, g in enumerate(generators)]
        earlier = torch.stack(chosen).to(device)
        anchors = TurnedSource(_frames(video, earlier).transpose(1, 2), _of_frames(pose, earlier))
        drift = self._drift(x0, generators)
        spoils = self._source_spoils(x0, drift, generators)

        def turn(frames_B3THW: Tensor) -> Tensor:
            """Return the condition: latent 0 has no source, and neither has a sample without a camera."""
            offset = torch.arange(count - 1, device=device) // self._spec.block * self._spec.block
            before = TurnedSource(frames_B3THW[:, :, offset].transpose(1, 2), run_pose[:, offset])
            sources: list[tuple[TurnedSource, Spoil | None, float]] = [(before, spoils[0], 0.0), (anchors, spoils[1], 0.0)]
            turned = turned_condition(parts.codec, sources, run_pose[:, 1:], run_intrinsics[:, 1:]) * known
            return torch.cat([torch.zeros_like(turned[:, :, :1]), turned], 2)

        condition = BlockCondition(range(count), turn(pictures), text, maps)
        return CausalBatch(x0, condition, turn, drift)

    def _text_by_latent(self, batch: dict[str, Any], numbers_BT: Tensor) -> Tensor:
        """Return the text of each latent, [B, T, S, E], or [B, S, E] where no text changes within a sample."""
        texts = [_texts(spans, numbers.tolist()) for spans, numbers in zip(batch["spans"], numbers_BT, strict=True)]
        if all(len(set(each)) == 1 for each in texts):
            return self._parts.text_encoder([each[0] for each in texts])
        encoded = self._parts.text_encoder([text for each in texts for text in each])
        return encoded.unflatten(0, (len(texts), -1))

    def _source_spoils(self, x0: Tensor, drift: Tensor | float, generators: Sequence[torch.Generator]) -> tuple[Spoil, Spoil]:
        """Spoil the frame before as a rollout would, the second source seldom: it is mostly a true or an early frame."""
        levels = torch.stack([torch.rand(3, generator=g) for g in generators]).to(x0.device)
        before = self._settings.source_noise * levels[:, 0]
        second = 0.6 * self._settings.source_noise * levels[:, 1] * (levels[:, 2] < 0.3)
        nothing = torch.zeros_like(second)
        return (
            Spoil(self._noise(x0[:, :, 1:], generators) + drift, before, 1.2 * before),
            Spoil(self._noise(x0[:, :, 1:], generators), second, nothing),
        )

    def _own_history(
        self,
        sequence: CausalBatch,
        noisy: Tensor,
        sigma_BT: Tensor,
        expert: ExpertName,
        shared: torch.Generator,
        world: World,
    ) -> tuple[CausalBatch, Tensor]:
        """Return the sequence and its history; in some steps history and turned frames are the model's own prediction.

        Predictions of all blocks come from one pass, each from the history before. Repeated, errors add up as in a rollout.
        They carry no gradient.
        """
        if float(torch.rand((), generator=shared)) >= self._settings.own_history_share:
            return sequence, sequence.x0
        layout, clean = self._layout(sequence.x0), torch.zeros_like(sigma_BT)
        condition, history = sequence.condition, sequence.x0
        for _ in range(self._settings.own_history_rounds):
            with torch.no_grad():
                velocity = teacher_forced(world, history, clean, noisy, sigma_BT, condition, self._spec, layout, expert)
            predicted = noisy[:, :, 1:] - sigma_BT[:, None, 1:, None, None] * velocity
            history = torch.cat([sequence.x0[:, :, :1], predicted], 2)
            if sequence.turn is not None:
                assert isinstance(self._parts.codec, FrameCodec)
                turned = sequence.turn(decode_projected(self._parts.codec, history))
                condition = condition._replace(condition=turned)
        return sequence._replace(condition=condition), history


def decode_projected(codec: FrameCodec, latents_BCThw: Tensor) -> Tensor:
    """Return pictures [B, 3, T, H, W] that look like decoded ones and have exactly these latents."""
    flat = latents_BCThw.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        pictures = codec.project(codec.decode_pictures(flat).clamp(-1, 1), flat)
    return pictures.unflatten(0, (len(latents_BCThw), -1)).transpose(1, 2)


class Consistency(TeacherForcing):
    """Causal consistency distillation (Causal-Forcing): no rollouts, all blocks of a sequence in one pass.

    At one of `levels` noise levels the student predicts the clean block. Its aim is what the averaged student predicts after
    one Euler step of the teacher to the next lower level. At the lowest level it is the clean end of that step.

    Each pass runs the expert of its own noise level. So at the boundary of the experts the high-noise student is led by the
    averaged low-noise student: both then agree about the block that one hands to the other.
    """

    def __init__(
        self, parts: ModelParts, spec: CausalSpec, settings: ObjectiveSettings, teacher: World, ema: EmaWeights
    ) -> None:
        super().__init__(parts, spec, settings)
        self._teacher, self._ema = teacher, ema

    def losses(
        self, batch: dict[str, Any], expert: ExpertName, generators: Sequence[torch.Generator], shared: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        world, spec = self._parts.world, self._spec
        sequence = self.encode(batch, generators)
        pairs = level_pairs(world.noise, self._settings.levels)[expert]
        # One pair for the batch: its passes run one expert each.
        sigma, next_sigma = pairs[int(torch.randint(len(pairs), (), generator=shared))]
        levels = sequence.x0.new_full((len(sequence.x0), sequence.x0.shape[2]), sigma)
        levels[:, 0] = 0
        noise = self._noise(sequence.x0, generators)
        noisy = _mix(sequence.x0, noise, levels)
        sequence, history = self._own_history(sequence, noisy, levels, expert, shared, world)
        clean, clean_sigma = self._spoil_history(history, sequence.drift, generators)
        layout = self._layout(sequence.x0)

        def predict(model: World, x: Tensor, level: float, condition: BlockCondition) -> Tensor:
            sigmas = levels.new_full(levels.shape, level)
            name = model.noise.expert_for(torch.tensor([level]))
            return teacher_forced(model, clean, clean_sigma, x, sigmas, condition, spec, layout, name)

        with torch.no_grad():
            velocity = predict(self._teacher, noisy, sigma, sequence.condition)
            if self._settings.guidance != 1:
                plain = predict(self._teacher, noisy, sigma, self._unconditional(sequence.condition))
                velocity = plain + self._settings.guidance * (velocity - plain)
            stepped = noisy.clone()
            stepped[:, :, 1:] += (next_sigma - sigma) * velocity
            aim = stepped[:, :, 1:]
            if next_sigma > 0:
                with self._ema.applied(world):
                    aim = aim - next_sigma * predict(world, stepped, next_sigma, sequence.condition)
        x0 = noisy[:, :, 1:] - sigma * predict(world, noisy, sigma, sequence.condition)
        error = (x0 - aim).square().mean((1, 3, 4))
        return self._by_block(levels[:, 1:]), self._by_block(error)

    def _unconditional(self, condition: BlockCondition) -> BlockCondition:
        """Return the condition without text and camera; with `CausalSpec.warp` without text, since its pictures are turned."""
        text = self._parts.text_encoder([""] * len(condition.text))
        maps = condition.maps if self._spec.warp else None
        return condition._replace(text=text, maps=maps, vlm_context=None)


def level_pairs(noise: NoiseSpec, levels: int) -> dict[ExpertName, list[tuple[float, float]]]:
    """Return pairs of neighbouring noise levels, the higher first, by the expert that the higher one belongs to."""
    sigmas = sampler_sigmas(noise, levels)
    pairs: dict[ExpertName, list[tuple[float, float]]] = {"high": [], "low": []}
    for sigma, next_sigma in pairwise(sigmas):
        pairs[noise.expert_for(torch.tensor([sigma]))].append((sigma, next_sigma))
    return pairs


@torch.no_grad()
def measure_remainder(parts: ModelParts, spec: CausalSpec, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Return the deviation of frames from the turned frame before, by channel [C], where that is known."""
    objective = TeacherForcing(parts, spec, ObjectiveSettings("teacher_forcing", source_noise=0.0))
    squares, count = torch.zeros(parts.world.high.expert.config.out_channels), 0
    for batch in batches:
        generators = [torch.Generator().manual_seed(0) for _ in batch["text"]]
        sequence = objective.encode(batch, generators)
        channels = len(squares)
        coverage = sequence.condition.condition[:, :1, 1:]
        turned = sequence.condition.condition[:, SOURCE_CHANNELS : SOURCE_CHANNELS + channels, 1:]
        known = coverage > 0.98
        squares += ((sequence.x0[:, :, 1:] - turned).square() * known).sum((0, 2, 3, 4)).cpu()
        count += int(known.sum())
    return (squares / max(1, count)).sqrt().clamp(min=1e-3)


def _mix(x0: Tensor, noise: Tensor, sigma_BT: Tensor) -> Tensor:
    sigma = sigma_BT[:, None, :, None, None]
    return (1 - sigma) * x0 + sigma * noise


def _frames(video_B3FHW: Tensor, numbers_BT: Tensor) -> Tensor:
    """Return chosen frames [B, 3, T, H, W]."""
    return torch.stack([video[:, numbers] for video, numbers in zip(video_B3FHW, numbers_BT, strict=True)])


def _start_of_run(spans: Sequence[tuple[int, str]], frames: int, count: int, generator: torch.Generator) -> int:
    """Draw the first frame of a run. Where the text changes in a sample, most of its runs contain the change."""
    place, change = torch.rand(2, generator=generator).tolist()
    low, high = 0, frames - count
    if len(spans) > 1 and change < _CHANGE_SHARE:
        low, high = max(low, spans[1][0] - count + 1), min(high, spans[1][0] - 1)
    return low + int(place * (max(low, high) - low + 1))


def _texts(spans: Sequence[tuple[int, str]], frames: Sequence[int]) -> list[str]:
    """Return the text of each frame, given the texts of spans from a frame on."""
    return [next(text for first, text in reversed(spans) if first <= frame) for frame in frames]


def draw_levels(noise: NoiseSpec, expert: ExpertName, changed_BN: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return a noise level for each of N blocks, [B, N]; the highest of some draws where the text of a block has changed."""
    shape = _DRAWS_AT_CHANGE, changed_BN.shape[1]
    drawn = torch.stack([noise.draw_sigma(expert, shape[0] * shape[1], g).view(shape) for g in generators])
    return torch.where(changed_BN, drawn.amax(1), drawn[:, 0])


def vary_changes(
    numbers_BT: Tensor,
    spans: Sequence[Sequence[tuple[int, str]]],
    frames: int,
    most: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Vary the frames around the first change of text within a run.

    In half of such runs up to `most` frames are left out from the change on: what begins slowly is then plain to see at once.
    In half of them the last frame before the change is repeated: whoever gives a prompt may stand still, while in recordings
    how the player moves could tell the model what comes. numbers: of the frames of runs within samples of `frames` frames.
    spans: of each sample, the frames from which texts hold.
    """
    rows = []
    for numbers, (_, *changes), generator in zip(numbers_BT, spans, generators, strict=True):
        share, how_many, still, since = torch.rand(4, generator=generator).tolist()
        skipped = int(how_many * (min(most, frames - 1 - int(numbers[-1])) + 1)) if share < _SKIP_SHARE else 0
        first = next((frame for frame, _ in changes if int(numbers[0]) < frame <= int(numbers[-1])), None)
        if first is not None:
            before = int((numbers < first).sum())
            held = int(since * before) if still < _STILL_SHARE else before
            numbers = torch.where(numbers >= first, numbers + skipped, numbers)
            numbers[held:before] = first - 1
        rows.append(numbers)
    return torch.stack(rows)


def _changes_of_text(text: Tensor, latents: int) -> Tensor:
    """Return whether the text of each latent but the first differs from that before it, bool [B, T - 1]; [1, T - 1] if none."""
    if text.ndim == 3:
        return torch.zeros(1, latents - 1, dtype=torch.bool)
    return (text[:, 1:] != text[:, :-1]).flatten(2).any(-1)


def _of_frames(values_BFx: Tensor, numbers_BT: Tensor) -> Tensor:
    return torch.stack([values[numbers] for values, numbers in zip(values_BFx, numbers_BT, strict=True)])


def _second_sources(pose_F44: Tensor, numbers_T: Tensor, block: int, generator: torch.Generator) -> Tensor:
    """Return the frame of the second source for each latent of a run but the first, [T - 1]: one from before its block."""
    chosen, numbers = [], numbers_T[1:].tolist()
    for i, number in enumerate(numbers):
        nearest, delay = torch.rand(2, generator=generator).tolist()
        last = max(0, numbers[i // block * block] - 1 - int(delay * _MAX_DELAY))
        if nearest < _NEAREST_SHARE:
            chosen.append(int(pose_distance(pose_F44[number], pose_F44[: last + 1]).argmin()))
        else:
            chosen.append(last)
    return torch.tensor(chosen)


def build_objective(parts: ModelParts, spec: CausalSpec, settings: ObjectiveSettings, ema: EmaWeights) -> Objective:
    """Return the objective that the settings name."""
    if settings.kind == "flow":
        return FlowMatching(parts)
    if settings.kind == "teacher_forcing":
        return TeacherForcing(parts, spec, settings)
    assert parts.teacher is not None, "consistency distillation needs the model that model.init_from names"
    return Consistency(parts, spec, settings, parts.teacher, ema)
