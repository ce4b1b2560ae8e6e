"""The loop of stages 1 and 2: a step draws an expert, trains it on a batch, and notes what happened.

Nothing random is kept between steps: the expert of a step follows from the seed and the step, the noise of a sample from the
seed and the sample's number. So a run goes on bit for bit where it stopped, and one with other ranks makes the same losses.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from model.backbone.vae import Codec
from model.config import CELL
from model.data.loader import Batches, DataSettings, Listing, Windows
from model.noise import Name
from model.parallel import dist, fsdp
from model.training import checkpoint, flow_matching, sample_videos, throughput
from model.training.ema import Average
from model.training.metrics import Notes
from model.training.settings import TrainSettings
from model.world import World

# Losses are logged by noise level in so many bins: a mean over all levels hides which of them learns.
_BINS = 5


class Trainer:
    """A run in a folder: `step-*/` checkpoints, `log.jsonl`, `tensorboard/`. Made again with the same arguments it resumes from
    the newest checkpoint. outputs: one source, or none where `data` names sources. watched: outputs from which sample videos
    are made during training; by default those trained on.
    """

    def __init__(
        self,
        world: World,
        codec: Codec,
        words: flow_matching.Words,
        outputs: Sequence[str],
        data: DataSettings,
        how: TrainSettings,
        folder: str,
        rank: int = 0,
        count: int = 1,
        watched: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
        thoughts: flow_matching.Thoughts | None = None,
        pins: Mapping[str, Any] | None = None,
    ) -> None:
        """rank, count: whose samples these are; ranks that share a sample's tokens have the same (`parallel.layout.Seat`).

        pins: more of what must not change within a run, as plain data by name: what only the recipe knows, such as its codec.
        """
        self.world, self.codec, self.words, self.outputs, self.data, self.how = world, codec, words, outputs, data, how
        self.folder, self.rank, self.count, self.watched, self.say = folder, rank, count, watched, say or unsaid
        self.device, self.thoughts, self._pins = next(world.parameters()).device, thoughts, dict(pins or {})
        for expert in (world.high, world.low):
            expert.camera.requires_grad_(not how.freeze_camera)
        self.optimizer = torch.optim.AdamW(
            [p for p in world.parameters() if p.requires_grad], lr=how.rate, betas=how.betas, weight_decay=how.weight_decay
        )
        self.average = Average(world, how.average)
        self._saver = checkpoint.Saver(folder, how.keep)
        self.step, self.phase, self.position = 0, 0, 0
        self._listings: Sequence[Listing] = ()  # of the phase; none before its first step
        self._peak = throughput.peak(self.device, torch.bfloat16 if how.precision == "bfloat16" else torch.float32)
        self._resume()

    def _resume(self) -> None:
        path = checkpoint.latest(self.folder)
        if path is None:
            return
        if changed := checkpoint.differences(checkpoint.read_state(path)["spec"], self._spec()):
            raise ValueError(f"{path}: {'; '.join(changed)}; use another folder, or those settings")
        state = checkpoint.load(path, self.world, self.optimizer, self.average)
        self.step, self.phase, self.position = state["step"], state["phase"], state["position"]
        self._listings = state["shards"]

    def _spec(self) -> dict[str, Any]:
        """What must not change within a run."""
        spec = {
            "noise": asdict(self.world.noise),
            "config": self.world.high.expert.config.to_diffusers(),
            "data": _pinned(self.data),
            "seed": self.how.seed,
            "curriculum": [asdict(phase) for phase in self.how.curriculum],
            "freeze_camera": self.how.freeze_camera,
            **self._pins,
        }
        plain: dict[str, Any] = json.loads(json.dumps(spec))  # as a checkpoint gives it back: lists for tuples
        return plain

    def run(self, steps: int | None = None) -> list[dict[str, Any]]:
        """Train to the curriculum's end, or for so many steps more; returns what was logged of each step."""
        end = self.how.steps if steps is None else min(self.how.steps, self.step + steps)
        found, notes = [], Notes(self.folder) if dist.first() else None
        try:
            while self.step < end:
                phase, _ = self.how.phase_at(self.step)
                if phase != self.phase:
                    self.phase, self.position = phase, 0
                    self._listings = [[(0, listing[-1][1])] for listing in self._listings]  # new shards enter here too
                for note in self._steps_of_phase(end, notes):
                    found.append(note)
                    self._tell(note, notes)
            self._save()
            self._saver.finish()
        except BaseException:
            self._saver.leave()
            raise
        finally:
            if notes:
                self._told(notes)
                notes.close()
        return found

    def _tell(self, note: dict[str, Any], notes: Notes | None) -> None:
        """Write down what a step was, and look at what the world shows by now."""
        if notes:
            notes.step(note)
            if self.step % self.how.log_every == 0:
                self._told(notes)
        if self.how.watch_every and self.step % self.how.watch_every == 0:
            frames = self.how.curriculum[self.phase].frames
            data = sample_videos.as_played(self.data, frames, self.watched)
            with self.average.applied(self.world):
                seen = sample_videos.watch(
                    self.world, self.codec, self.words, self.watched or self.outputs, data, self.how, self.thoughts
                )
            if notes:
                notes.watched(self.step, *seen)
                self.say(f"step {self.step}: obeyed " + ", ".join(f"{kind} {value:.2f}" for kind, value in seen[0].items()))

    def _told(self, notes: Notes) -> None:
        """Write the line of the steps since the last one, if there are any."""
        line = notes.write()
        if line:
            self.say(
                f"step {line['step']}: loss {line['loss']:.4f}, {line['samples_s']:.1f} samples/s, MFU {line['mfu']:.2f}, "
                f"waited {line['waited']:.0%}" + (f", {len(line['replaced'])} replaced" if line["replaced"] else "")
            )

    def _steps_of_phase(self, end: int, notes: Notes | None) -> Iterator[dict[str, Any]]:
        number, phase = self.how.phase_at(self.step)
        data = replace(self.data, frames=phase.frames)
        windows = Windows(self.outputs, data, self._listings, self.position)
        self._listings = windows.listings
        if notes:
            notes.begun(self.step, phase.frames, windows.counts)
        batches = Batches(windows, self.how.batch, self.rank, self.count, self.how.workers, self.position)
        source = iter(batches)
        while self.step < end and self.how.phase_at(self.step)[0] == number:
            began, first = time.monotonic(), batches.position
            given = [(next(source), first + i * self.how.batch * self.count) for i in range(self.how.accumulate)]
            waited = time.monotonic() - began
            note = self._step(given)
            self.step, self.position = self.step + 1, batches.position
            if self.step % self.how.save_every == 0:
                self._save()
            yield note | self._pace(phase.frames, time.monotonic() - began, waited)

    def _pace(self, frames: int, seconds: float, waited: float) -> dict[str, float]:
        """waited: the share of the step in which it had no data yet; mfu: of one device, which may share its samples."""
        config, (width, height) = self.world.high.expert.config, self.data.size
        latents = 1 + (frames - 1) // self.codec.per, height // CELL, width // CELL
        tokens = throughput.tokens(config, latents)
        samples = self.how.batch * self.how.accumulate
        work = samples * throughput.operations(config, tokens, self.text_tokens)
        sharers = dist.count() // self.count
        return {
            "seconds": seconds,
            "waited": waited / seconds,
            "samples_s": samples * self.count / seconds,
            "tokens_s": samples * self.count * tokens / seconds,
            "mfu": work / sharers / seconds / self._peak,
        }

    def _step(self, batches: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        """One step of one expert over its passes."""
        expert = self._expert()
        rate = self.how.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses, sigmas = [], []
        for batch, first in batches:
            sigma, found = self._pass(batch, first, expert)
            (found.mean() / len(batches)).backward()
            losses.append(found.detach())
            sigmas.append(sigma)
        trained = [p for p in self.world.named(expert).parameters() if p.grad is not None]
        fsdp.average_whole(trained)
        norm = fsdp.clip(trained, self.how.most_gradient)
        self.optimizer.step()
        self.average.update(self.world)
        return {
            "step": self.step,
            "expert": expert,
            "loss": float(dist.mean(torch.cat(losses).mean())),
            "gradient": float(norm),
            "rate": rate,
            "bins": _binned(torch.cat(losses).cpu(), torch.cat(sigmas).cpu()),
            "sources": dict(Counter(name for batch, _ in batches for name in batch["source"])),
            "replaced": [words for batch, _ in batches for words in batch["replaced"]],
        }

    def _expert(self) -> Name:
        """The same on every rank."""
        expert = self.world.noise.draw_expert(_generator(self.how.seed, "expert", self.step))
        dist.agree("the expert of a step", expert)
        return expert

    def _pass(self, batch: dict[str, Any], first: int, expert: Name) -> tuple[Tensor, Tensor]:
        """Noise levels and losses [B] of a batch whose first sample has the number `first` over all ranks."""
        seen = flow_matching.encoded(batch, self.codec, self.words, self.device, self.thoughts)
        self.text_tokens = seen.given.text.shape[1]
        sigma, noise = [], []
        for i in range(len(seen.x0)):
            generator = _generator(self.how.seed, "sample", self.phase, first + self.rank + i * self.count)
            sigma.append(self.world.noise.draw_sigma(expert, 1, generator))
            noise.append(torch.randn(seen.x0.shape[1:], generator=generator))
        levels = torch.cat(sigma).to(self.device)
        return levels, flow_matching.loss(self.world, seen, levels, torch.stack(noise).to(self.device))

    def _save(self) -> None:
        state = {"phase": self.phase, "position": self.position, "shards": self._listings, "spec": self._spec()}
        self._saver.save(self.step, self.world, self.optimizer, self.average, state)


def _pinned(data: DataSettings) -> dict[str, Any]:
    """What of the data settings must not change within a run: all that decides samples, but not where they lie."""
    plain = asdict(data)
    del plain["frames"], plain["latents"]
    return {**plain, "sources": [source.share for source in data.sources]}


def unsaid(words: str) -> None:
    """Nobody listens."""


def _generator(seed: int, *what: object) -> torch.Generator:
    """Draws that belong to a thing, whoever makes them and when."""
    words = hashlib.sha256("/".join(map(str, (seed, *what))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(words[:8], "big") >> 1)


def _binned(losses: Tensor, sigmas: Tensor) -> dict[str, float]:
    """Mean loss by noise level: "0.6-0.8" and the like, those that occurred."""
    which = (sigmas * _BINS).long().clamp(max=_BINS - 1)
    return {f"{i / _BINS:.1f}-{(i + 1) / _BINS:.1f}": float(losses[which == i].mean()) for i in which.unique().tolist()}
