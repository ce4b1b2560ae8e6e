"""The loop of stages 1 and 2: a step draws an expert, trains it on a batch, and notes what happened.

Nothing random is kept between steps: the expert of a step follows from the seed and the step, the noise of a sample from the
seed and the sample's number. So a run goes on bit for bit where it stopped, and one with other ranks makes the same losses.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from model.backbone.text import TextEncoder
from model.backbone.vae import VideoCodec
from model.data.loader import Batches, DataSettings, Windows
from model.experts import Name
from model.parallel import fsdp, ranks
from model.training import checkpoint, flow
from model.training.average import Average
from model.training.settings import TrainSettings
from model.world import World

# Losses are logged by noise level in so many bins: a mean over all levels hides which of them learns.
_BINS = 5


class Trainer:
    """A run in a folder: `step-*/` checkpoints, `log.jsonl`. Made again with the same arguments it goes on from the newest."""

    def __init__(
        self,
        world: World,
        codec: VideoCodec,
        words: TextEncoder,
        outputs: Sequence[str],
        data: DataSettings,
        how: TrainSettings,
        folder: str,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.world, self.codec, self.words, self.outputs, self.data, self.how = world, codec, words, outputs, data, how
        self.folder, self.rank, self.count = folder, rank, count
        self.device = next(world.parameters()).device
        for expert in (world.high, world.low):
            expert.camera.requires_grad_(not how.freeze_camera)
        self.optimizer = torch.optim.AdamW(
            [p for p in world.parameters() if p.requires_grad], lr=how.rate, betas=how.betas, weight_decay=how.weight_decay
        )
        self.average = Average(world, how.average)
        self.step, self.phase, self.position = 0, 0, 0
        self._resume()

    def _resume(self) -> None:
        path = checkpoint.latest(self.folder)
        if path is None:
            return
        spec = checkpoint.read_state(path)["spec"]
        if spec != self._spec():
            raise ValueError(f"{path} was made with {spec}, not {self._spec()}; use another folder, or those settings")
        state = checkpoint.load(path, self.world, self.optimizer, self.average)
        self.step, self.phase, self.position = state["step"], state["phase"], state["position"]

    def _spec(self) -> dict[str, Any]:
        """What must not change within a run."""
        return {
            "noise": asdict(self.world.noise),
            "config": self.world.high.expert.config.to_diffusers(),
            "seed": self.how.seed,
        }

    def run(self, steps: int | None = None) -> list[dict[str, Any]]:
        """Train to the curriculum's end, or for so many steps more; returns what was logged of each step."""
        end = self.how.steps if steps is None else min(self.how.steps, self.step + steps)
        notes = []
        while self.step < end:
            phase, _ = self.how.phase_at(self.step)
            if phase != self.phase:
                self.phase, self.position = phase, 0
            for note in self._steps_of_phase(end):
                notes.append(note)
        self._save()
        return notes

    def _steps_of_phase(self, end: int) -> Iterator[dict[str, Any]]:
        number, phase = self.how.phase_at(self.step)
        windows = Windows(self.outputs, replace(self.data, frames=phase.frames))
        batches = Batches(windows, self.how.batch, self.rank, self.count, self.how.workers, self.position)
        source = iter(batches)
        while self.step < end and self.how.phase_at(self.step)[0] == number:
            began, first = time.monotonic(), batches.position
            note = self._step([(next(source), first + i * self.how.batch * self.count) for i in range(self.how.accumulate)])
            self.step, self.position = self.step + 1, batches.position
            yield self._noted({**note, "seconds": time.monotonic() - began})
            if self.step % self.how.save_every == 0:
                self._save()

    def _step(self, batches: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        """One step of one expert over its passes."""
        expert = self._expert()
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.rate * min(1.0, (self.step + 1) / max(1, self.how.warm_up))
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
            "loss": float(ranks.mean(torch.cat(losses).mean())),
            "gradient": float(norm),
            "bins": _binned(torch.cat(losses).cpu(), torch.cat(sigmas).cpu()),
            "replaced": [words for batch, _ in batches for words in batch["replaced"]],
        }

    def _expert(self) -> Name:
        """The same on every rank."""
        expert = self.world.noise.draw_expert(_generator(self.how.seed, "expert", self.step))
        ranks.agree("the expert of a step", expert)
        return expert

    def _pass(self, batch: dict[str, Any], first: int, expert: Name) -> tuple[Tensor, Tensor]:
        """Noise levels and losses [B] of a batch whose first sample has the number `first` over all ranks."""
        seen = flow.encoded(batch, self.codec, self.words, self.device)
        sigma, noise = [], []
        for i in range(len(seen.x0)):
            generator = _generator(self.how.seed, "sample", self.phase, first + self.rank + i * self.count)
            sigma.append(self.world.noise.draw_sigma(expert, 1, generator))
            noise.append(torch.randn(seen.x0.shape[1:], generator=generator))
        levels = torch.cat(sigma).to(self.device)
        return levels, flow.loss(self.world, seen, levels, torch.stack(noise).to(self.device))

    def _noted(self, note: dict[str, Any]) -> dict[str, Any]:
        if self.rank == 0 and (self.step % self.how.log_every == 0 or note["replaced"]):
            os.makedirs(self.folder, exist_ok=True)
            with open(os.path.join(self.folder, "log.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")
        return note

    def _save(self) -> None:
        state = {"phase": self.phase, "position": self.position, "spec": self._spec()}
        checkpoint.save(self.folder, self.step, self.world, self.optimizer, self.average, state)


def _generator(seed: int, *what: object) -> torch.Generator:
    """Draws that belong to a thing, whoever makes them and when."""
    words = hashlib.sha256("/".join(map(str, (seed, *what))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(words[:8], "big") >> 1)


def _binned(losses: Tensor, sigmas: Tensor) -> dict[str, float]:
    """Mean loss by noise level: "0.6-0.8" and the like, those that occurred."""
    which = (sigmas * _BINS).long().clamp(max=_BINS - 1)
    return {f"{i / _BINS:.1f}-{(i + 1) / _BINS:.1f}": float(losses[which == i].mean()) for i in which.unique().tolist()}
