"""Rollouts of the student in training, and what student and critic are trained on (stages 3 and 4).

The student rolls out as in play: the same passes, cache, pictures and prompts (`model.causal.rollout`). Blocks before the
window carry no gradient. In the window all blocks end at the same step, the exit step, which alone has a gradient, so only one
expert is trained in a step. What decides which modules run, and how often, is drawn from a generator that all ranks share.

B batch, C latent channels, K latents of the window, F frames, h w latent rows and columns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.backbone.vae import to_signed
from model.causal.condition import require_frame_latents
from model.causal.rollout import Rollout, StreamStart
from model.causal.spec import CausalSpec
from model.noise import ExpertName, NoiseSpec, draw_noise
from model.parallel import dist
from model.training import flow_matching, lora
from model.training.parts import ModelParts
from model.training.scores import Score, Window, build_score, distribution_matching_loss, predict_x0, text_at
from model.training.settings import DistillationSettings
from model.training.stop_criteria import flow_length, variance

# At most so many samples of a batch are measured for the stop criteria.
_MEASURED_SAMPLES = 4


class Draws(NamedTuple):
    """What all ranks do alike in a step."""

    student: bool  # whether the student is trained, too
    window: range  # latents that are scored; nothing is rolled out after them
    forced: bool  # whether what precedes the window is ground truth
    exit_step: int  # the step with the gradient
    exit_expert: ExpertName  # the student's expert at that step, which alone is trained
    score_expert: ExpertName  # experts of the scores at the noise levels of the student's loss
    critic_expert: ExpertName  # the critic's expert at the noise levels of its loss


def draw(
    settings: DistillationSettings, spec: CausalSpec, noise: NoiseSpec, latents: int, step: int, shared: torch.Generator
) -> Draws:
    """Draw what a step does. latents: of the longest rollout, latent 0 included. shared: equal on all ranks."""

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=shared))

    window, block = settings.window // spec.block, spec.block
    blocks = window + below((latents - 1) // block - window + 1)
    start = 1 + block * (below(blocks - window + 1) if settings.window_at == "uniform" else blocks - window)
    exit_step = below(len(spec.steps))
    exit_expert = spec.plan(noise, first=False)[exit_step][1]
    forced = float(torch.rand((), generator=shared)) < settings.teacher_forcing_share
    score_expert, critic_expert = noise.draw_expert(shared), noise.draw_expert(shared)
    if settings.score_levels == "exit_expert":
        score_expert = exit_expert
    student = step % settings.update_ratio == 0
    return Draws(student, range(start, start + settings.window), forced, exit_step, exit_expert, score_expert, critic_expert)


class RolledWindow(NamedTuple):
    """A window of the student's rollout, as the fake and as the real score see it, and the video that it should be like."""

    fake: Window  # with the predicted frames before it; its latents carry the gradient
    real: Window  # the same latents, with the true frames before them
    truth: Tensor  # the true frames of the window with the one before, in [-1, 1], [B, 3, F, H, W]


class SelfForcing:
    """Rolls out the student of a run, and computes the losses of student and critic."""

    def __init__(self, parts: ModelParts, spec: CausalSpec, settings: DistillationSettings) -> None:
        require_frame_latents(parts.codec, spec)
        self._parts, self._spec, self._settings = parts, spec, settings
        self._score: Score = build_score(parts, parts.teacher_causal)
        self.text_tokens = 0  # of the last batch, for the count of FLOPs

    def roll_out(self, batch: dict[str, Any], draws: Draws, generators: Sequence[torch.Generator]) -> RolledWindow:
        """Roll out the student to the end of the window. generators: one for each sample.

        Latents of the window carry gradients where the step trains the student.
        """
        parts, spec = self._parts, self._spec
        codec, device, per = parts.codec, parts.device, parts.codec.frames_per_latent
        frames, first = 1 + (draws.window.stop - 1) * per, 1 + (draws.window.start - 1) * per
        video = to_signed(batch["video"][:, :, :frames].to(device, non_blocking=True))
        pose = batch["pose"][:, :frames].to(device)
        intrinsics = flow_matching.valid_intrinsics(batch, (video.shape[-2], video.shape[-1]), device)[:, 0]
        seeds = [int(torch.randint(2**62, (), generator=generator)) for generator in generators]
        texts = _texts(batch, 0)
        text = parts.text_encoder(texts)
        self.text_tokens = text.shape[-2]
        start = StreamStart(video[:, :, 0], intrinsics, text, camera_known=batch["camera_known"].to(device))
        with torch.no_grad():
            rollout = Rollout(parts.world, codec, spec, start, seeds)
        true_latents = codec.encode(video[:, :, :first]) if draws.forced else None
        shown = [video[:, :, :1]]  # frames of the stream before the window
        made: list[Tensor] = []
        for block in spec.blocks(draws.window.stop)[1:]:
            frame, in_window = 1 + (block.start - 1) * per, block.start >= draws.window.start
            part = pose[:, frame : frame + len(block) * per]
            rollout.gradient = in_window and draws.student
            if (changed := _texts(batch, frame)) != texts:
                texts = changed
                rollout.set_text(parts.text_encoder(texts))
            if in_window:
                made.append(rollout.generate(part, draws.exit_step))
            elif true_latents is not None:
                rollout.give(true_latents[:, :, block.start : block.stop], part)
            else:
                rollout.generate(part)
                shown.append(rollout.decode())
            if block.stop < draws.window.stop:  # no block sees the last one
                rollout.commit()
            if spec.warp and not in_window:
                shown[-1] = rollout.picture[:, :, None]
        true_before = video[:, :, :first]
        predicted = true_before if draws.forced else torch.cat(shown, 2)
        x0 = torch.cat(made, 2)
        fake, real = (Window(x0, draws.window, before) for before in (predicted, true_before))
        return RolledWindow(fake, real, video[:, :, first - 1 :])

    def student_loss(
        self, batch: dict[str, Any], rolled: RolledWindow, draws: Draws, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Return the student's losses, [B]: distribution matching at a noise level that each sample draws.

        With a video codec the first block of a window that does not begin the stream is left out: its latents remember earlier
        frames, which the scores have not seen.
        """
        parts, settings = self._parts, self._settings
        assert parts.teacher is not None
        assert parts.critic is not None
        x0, name = rolled.fake.x0, draws.score_expert
        sigma, noise = self._levels_and_noise(x0, name, generators)
        with torch.no_grad():
            detached = x0.detach()
            fake_view, real_view = (self._score.view(batch, each._replace(x0=detached)) for each in (rolled.fake, rolled.real))
            fake = predict_x0(self._score, parts.critic, fake_view, sigma, noise, name)
            with lora.switched_off(parts.teacher):
                real = predict_x0(self._score, parts.teacher, real_view, sigma, noise, name, settings.guidance)
        loss = distribution_matching_loss(x0, fake, real)
        mixed = self._spec.block if parts.codec.frames_per_latent > 1 and draws.window.start > 1 else 0
        return loss[:, mixed:].mean(1)

    @torch.no_grad()
    def measured(self, rolled: RolledWindow) -> tuple[float, float, float, float]:
        """Return variance of latents and length of flow, of the student's window and of the true one, means over the ranks.

        Both windows are decoded with the frame before them. Of a large batch the first samples are measured, since flow is
        computed on the processor.
        """
        codec, some = self._parts.codec, slice(_MEASURED_SAMPLES)
        before, truth, x0 = rolled.fake.before[some, :, -1:], rolled.truth[some], rolled.fake.x0[some].detach()
        true_x0 = codec.encode(truth)[:, :, 1:]
        video = codec.decode(torch.cat([codec.encode(before), x0], 2))
        values = variance(x0), variance(true_x0), flow_length(video), flow_length(truth)
        mean = dist.mean(torch.tensor(values, dtype=torch.float64, device=x0.device))
        return tuple(mean.tolist())

    def critic_loss(
        self, batch: dict[str, Any], rolled: RolledWindow, draws: Draws, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Return noise levels and the critic's losses, [B] each: flow matching on the window, under the frame before it."""
        assert self._parts.critic is not None
        with torch.no_grad():
            view = self._score.view(batch, rolled.fake._replace(x0=rolled.fake.x0.detach()))
        x0 = view.x0[:, :, 1:]
        sigma, noise = self._levels_and_noise(x0, draws.critic_expert, generators)
        velocity = self._score.velocity(self._parts.critic, view, sigma, noise, draws.critic_expert)
        return sigma, (velocity - (noise[:, :, 1:] - x0)).square().mean((1, 2, 3, 4))

    def _levels_and_noise(self, x0: Tensor, name: ExpertName, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Draw a noise level in an expert's range for each sample, [B], and noise for its view, [B, C, 1 + K, h, w]."""
        drawn = torch.cat([self._parts.world.noise.draw_sigma(name, 1, generator) for generator in generators])
        sigma = drawn.clamp(self._settings.min_level, self._settings.max_level)
        noise = draw_noise((len(x0), x0.shape[1], 1 + x0.shape[2], *x0.shape[3:]), generators)
        return sigma.to(x0.device), noise.to(x0.device)


def _texts(batch: dict[str, Any], frame: int) -> list[str]:
    """Return the texts of a batch at a frame of the stream: a block has the text of its first frame."""
    return [text_at(spans, frame) for spans in batch["spans"]]
