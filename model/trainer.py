"""The training loop: each step draws an expert, trains it on a batch, and records metrics.

No random state is kept between steps. The expert of a step follows from the seed and the step, the noise of a sample from the
seed and the sample's number. A resumed run therefore continues bit for bit, and a run with another number of ranks computes the
same losses.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from curation.errors import InputError
from model.data.loader import Batches, DataSettings, Listing, Windows, collate
from model.noise import ExpertName, seeded_generator
from model.parallel import dist, fsdp
from model.parallel.layout import Placement
from model.recipes import TrainRecipe
from model.training import checkpoint, sample_videos, throughput
from model.training.ema import EmaWeights
from model.training.metrics import MetricsLog
from model.training.objectives import build_objective, measure_remainder
from model.training.parts import ModelParts

# Losses are logged by noise level in this many bins, since a mean over all levels hides which of them improves.
_NOISE_BINS = 5
_MEASURED_SAMPLES = 64


def no_log(message: str) -> None:
    """Discard messages on ranks other than 0."""


class Trainer:
    """A run in a folder: `step-*/` checkpoints, `log.jsonl`, `tensorboard/`.

    A trainer that is created again with the same arguments resumes from the newest checkpoint. InputError where that run was
    made with settings that must not change.
    """

    def __init__(
        self,
        parts: ModelParts,
        placement: Placement,
        recipe: TrainRecipe,
        folder: str,
        outputs: Sequence[str],
        sample_from: Sequence[str] = (),
        log: Callable[[str], None] = no_log,
    ) -> None:
        """outputs: curated outputs that make up one source; empty where `recipe.data` names sources.

        sample_from: outputs from which sample videos are made during training; empty: those trained on.
        """
        self.parts, self.world, self.recipe, self.settings = parts, parts.world, recipe, recipe.train
        self.rank, self.ranks = placement.data_rank, placement.data_ranks
        self.folder, self.outputs, self.sample_from, self.log = folder, outputs, sample_from, log
        settings = self.settings
        for expert in (self.world.high, self.world.low):
            expert.camera.requires_grad_(not settings.freeze_camera)
        self.optimizer = self._build_optimizer()
        self.ema = EmaWeights(self.world, settings.ema_decay)
        self.critic = self._build_critic()
        self.text_tokens = 0  # of the last batch, for the count of FLOPs
        self._saver = checkpoint.Saver(folder, settings.keep_checkpoints)
        self.step, self.phase, self.position = 0, 0, 0
        self._listings: Sequence[Listing] = ()  # of the current phase; empty before its first step
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self._peak_flops = throughput.peak_flops(parts.device, dtype)
        self._stopped = False  # whether the run ends before its last step
        self._prepare()
        self._resume()

    def _build_optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        groups = fsdp.optimizer_groups(p for p in self.world.parameters() if p.requires_grad)
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)

    def _build_critic(self) -> checkpoint.Critic | None:
        """Return what is trained besides the world, with its optimizer."""
        return None

    def _prepare(self) -> None:
        """Make what steps need besides the model."""
        self._objective = build_objective(self.parts, self.recipe.causal, self.recipe.objective, self.ema)

    def _resume(self) -> None:
        path = checkpoint.latest(self.folder)
        if path is None:
            return
        if changed := checkpoint.differences(checkpoint.read_state(path)["spec"], self._spec()):
            raise InputError(f"{path}: {'; '.join(changed)}; use another folder, or those settings")
        state = checkpoint.load(path, self.world, self.optimizer, self.ema, self.critic)
        self.step, self.phase, self.position = state["step"], state["phase"], state["position"]
        self._listings = state["shards"]
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over what `_state` stored in a checkpoint."""

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint stores besides weights and the position in the data, as plain data."""
        return {}

    def _spec(self) -> dict[str, Any]:
        """Return the settings that must not change within a run, as plain data."""
        spec = {
            "noise": asdict(self.world.noise),
            "config": self.world.high.expert.config.to_diffusers(),
            "data": _data_spec(self.recipe.data),
            "seed": self.settings.seed,
            "curriculum": [asdict(phase) for phase in self.settings.curriculum],
            "freeze_camera": self.settings.freeze_camera,
            "codec": self.parts.codec_hash,
            "precision": self.settings.precision,
            "vlm": self.recipe.model.vlm_encoder,
            "control": asdict(self.recipe.control),
            "control_width": self.recipe.model.control_width,
            "objective": self.recipe.objective.kind,
            "causal": asdict(self.recipe.causal) if self.recipe.is_causal else None,
        } | self._more_spec()
        plain: dict[str, Any] = json.loads(json.dumps(spec))  # as read from a checkpoint: lists instead of tuples
        return plain

    def _more_spec(self) -> dict[str, Any]:
        """Return further settings that must not change within a run."""
        return {}

    def run(self, steps: int | None = None) -> list[dict[str, Any]]:
        """Train to the end of the curriculum, or for this many more steps. Return the metrics of each step."""
        end = self.settings.steps if steps is None else min(self.settings.steps, self.step + steps)
        history, metrics_log = [], MetricsLog(self.folder) if dist.is_first() else None
        try:
            while self.step < end and not self._stopped:
                phase, _ = self.settings.phase_at(self.step)
                if phase != self.phase:
                    self.phase, self.position = phase, 0
                    # New shards enter here too.
                    self._listings = [[(0, listing[-1][1])] for listing in self._listings]
                for metrics in self._steps_of_phase(end, metrics_log):
                    history.append(metrics)
                    self._record(metrics, metrics_log)
            self._save()
            self._saver.finish()
        except BaseException:
            self._saver.finish_after_failure()
            raise
        finally:
            if metrics_log:
                self._write_log(metrics_log)
                metrics_log.close()
        return history

    def _record(self, metrics: dict[str, Any], metrics_log: MetricsLog | None) -> None:
        """Log the metrics of a step, and make sample videos where they are due."""
        if metrics_log:
            metrics_log.add_step(metrics)
            if self.step % self.settings.log_every == 0:
                self._write_log(metrics_log)
        if self.settings.sample_every and self.step % self.settings.sample_every == 0:
            data = sample_videos.evaluation_data(self.recipe.data, self._frames(), self.sample_from)
            causal = self.recipe.causal if self.recipe.is_causal else None
            with self.ema.applied(self.world):
                accuracy, videos = sample_videos.generate(
                    self.parts, self.sample_from or self.outputs, data, self.settings, causal
                )
            if metrics_log:
                metrics_log.add_samples(self.step, accuracy, videos)
                shares = ", ".join(f"{direction} {share:.2f}" for direction, share in accuracy.items())
                self.log(f"step {self.step}: control accuracy: {shares}")

    def _frames(self) -> int:
        """Return the clip length of the current phase."""
        return self.settings.curriculum[self.phase].frames

    def _write_log(self, metrics_log: MetricsLog) -> None:
        """Write one line for the steps since the last line, if there are any."""
        line = metrics_log.write()
        if line:
            self.log(
                f"step {line['step']}: loss {line['loss']:.4f}, {line['samples_s']:.1f} samples/s, MFU {line['mfu']:.2f}, "
                f"{line['waited']:.0%} waiting for data"
                + (f", {len(line['replaced'])} unreadable samples replaced" if line["replaced"] else "")
            )

    def _steps_of_phase(self, end: int, metrics_log: MetricsLog | None) -> Iterator[dict[str, Any]]:
        """Train the rest of the current phase, at most to step `end`; yield the metrics of each step."""
        settings = self.settings
        number, phase = settings.phase_at(self.step)
        data = replace(self.recipe.data, frames=phase.frames)
        windows = Windows(self.outputs, data, self._listings, self.position)
        self._listings = windows.listings
        if metrics_log:
            metrics_log.add_phase(self.step, phase.frames, windows.counts)
        if self.step == 0:
            self._measure_remainder(windows)
        batches = Batches(windows, settings.batch, self.rank, self.ranks, settings.workers, self.position)
        source = iter(batches)
        while self.step < end and not self._stopped and settings.phase_at(self.step)[0] == number:
            began, first = time.monotonic(), batches.position
            passes = [(next(source), first + i * settings.batch * self.ranks) for i in range(settings.accumulate)]
            waited_s = time.monotonic() - began
            metrics = self._step(passes)
            self.step, self.position = self.step + 1, batches.position
            if self.step % settings.save_every == 0:
                self._save()
            yield metrics | self._pace(phase.frames, time.monotonic() - began, waited_s)

    def _measure_remainder(self, windows: Windows) -> None:
        """Measure what the turned frame before leaves to predict, in a world that starts from it and has not measured it."""
        experts = [expert for expert in (self.world.high, self.world.low) if expert.remainder is not None]
        if not experts or self._has_measured_remainder():
            return
        batches = (collate([one]) for one in sample_videos.fixed_samples(windows, _MEASURED_SAMPLES))
        remainder = measure_remainder(self.parts, self.recipe.causal, batches)
        for expert in experts:
            assert expert.remainder is not None
            expert.remainder.data.copy_(remainder)

    def _has_measured_remainder(self) -> bool:
        """Return whether the run that this one starts from turned frames to the same distance: its blocks were as long."""
        path = checkpoint.latest(self.recipe.model.init_from) if self.recipe.model.init_from else None
        if path is None:
            return bool(self.recipe.model.init_from)
        stored = checkpoint.read_state(path)["spec"].get("causal")
        return stored is not None and stored["block"] == self.recipe.causal.block

    def _pace(self, frames: int, seconds: float, waited_s: float) -> dict[str, float]:
        """Return the speed of a step.

        waited: share of the step in which it had no data yet. mfu: of one device, which may share its samples with others.
        """
        config, (width, height) = self.world.high.expert.config, self.recipe.data.size
        codec = self.parts.codec
        latents = 1 + (frames - 1) // codec.frames_per_latent, height // codec.cell_px, width // codec.cell_px
        tokens = throughput.count_tokens(config, latents)
        samples = self.settings.batch * self.settings.accumulate
        flops = samples * self._flops_of_sample(tokens)
        ranks_per_sample = dist.world_size() // self.ranks
        return {
            "seconds": seconds,
            "waited": waited_s / seconds,
            "samples_s": samples * self.ranks / seconds,
            "tokens_s": samples * self.ranks * tokens / seconds,
            "mfu": flops / ranks_per_sample / seconds / self._peak_flops,
        }

    def _flops_of_sample(self, tokens: int) -> float:
        """Count the operations of a step for a sample of so many tokens."""
        return throughput.training_flops(self.world.high.expert.config, tokens, self.text_tokens)

    def _step(self, passes: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        """Train one expert for one step. passes: batches, each with the number of its first sample over all ranks."""
        expert = self._draw_expert()
        lr = self.settings.lr_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses, sigmas = [], []
        for batch, first in passes:
            sigma, loss = self._losses(batch, first, expert)
            (loss.mean() / len(passes)).backward()
            losses.append(loss.detach())
            sigmas.append(sigma)
        trained = [p for p in self.world.expert_named(expert).parameters() if p.grad is not None]
        fsdp.average_unsharded_gradients(trained)
        norm = fsdp.clip_gradients(trained, self.settings.max_grad_norm)
        self.optimizer.step()
        self.ema.update(self.world)
        return {
            "step": self.step,
            "expert": expert,
            "loss": float(dist.mean(torch.cat(losses).mean())),
            "gradient": float(norm),
            "rate": lr,
            "bins": loss_by_noise(torch.cat(losses).cpu(), torch.cat(sigmas).cpu()),
            "sources": dict(Counter(name for batch, _ in passes for name in batch["source"])),
            "replaced": [reason for batch, _ in passes for reason in batch["replaced"]],
        }

    def _draw_expert(self) -> ExpertName:
        """Draw the expert of this step, the same on every rank."""
        expert = self.world.noise.draw_expert(seeded_generator(self.settings.seed, "expert", self.step))
        dist.check_agreement("the expert of a step", expert)
        return expert

    def _losses(self, batch: dict[str, Any], first: int, expert: ExpertName) -> tuple[Tensor, Tensor]:
        """Return noise levels and losses of a batch. first: number of its first sample over all ranks."""
        shared = seeded_generator(self.settings.seed, "step", self.phase, first)
        losses = self._objective.losses(batch, expert, self._generators(batch, first), shared)
        self.text_tokens = self._objective.text_tokens
        return losses

    def _generators(self, batch: dict[str, Any], first: int) -> list[torch.Generator]:
        """Return a generator for each sample of a batch. first: number of its first sample over all ranks."""
        numbers = (first + self.rank + i * self.ranks for i in range(len(batch["text"])))
        return [seeded_generator(self.settings.seed, "sample", self.phase, number) for number in numbers]

    def _save(self) -> None:
        position = {"phase": self.phase, "position": self.position, "shards": self._listings, "spec": self._spec()}
        self._saver.save(self.step, self.world, self.optimizer, self.ema, position | self._state(), self.critic)


def _data_spec(data: DataSettings) -> dict[str, Any]:
    """Return the data settings that must not change within a run: those that decide samples, but not where the data lies."""
    plain = asdict(data)
    del plain["frames"], plain["latents"]
    return {**plain, "sources": [source.share for source in data.sources]}


def loss_by_noise(losses: Tensor, sigmas: Tensor) -> dict[str, float]:
    """Return the mean loss of each range of noise levels that occurred, by a name like "0.6-0.8"."""
    bins = (sigmas * _NOISE_BINS).long().clamp(max=_NOISE_BINS - 1)
    return {
        f"{i / _NOISE_BINS:.1f}-{(i + 1) / _NOISE_BINS:.1f}": float(losses[bins == i].mean()) for i in bins.unique().tolist()
    }
