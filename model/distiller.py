"""The training loop of stages 3 and 4: student and critic are trained on the student's own rollouts.

Each step rolls out once. The critic learns from that window in every step, the student in one step of `update_ratio`. In a step
one expert of each is trained: the student's is that of the exit step, the critic's is that of its noise levels. Gradients that
other experts get, by committing blocks or as context, are dropped.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from model.noise import ExpertName, seeded_generator
from model.parallel import dist, fsdp
from model.trainer import Trainer, loss_by_noise
from model.training import checkpoint, throughput
from model.training.ema import reshard
from model.training.self_forcing import Draws, SelfForcing, draw
from model.training.stop_criteria import StopCriteria, broken
from model.world import World

# Settings of `DistillationSettings` that may change within a run: where the teacher lies, rates, and when it stops.
_RATES = ("lr_high", "lr_low", "critic_lr_high", "critic_lr_low")
_MAY_CHANGE = {"teacher", *_RATES, "measure_every", "max_variance_ratio", "min_flow_ratio", "stop"}


class Distiller(Trainer):
    """A run of self-forcing in a folder; see `Trainer`."""

    def _build_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer_of(self.world, critic=False)

    def _build_critic(self) -> checkpoint.Critic:
        assert self.parts.critic is not None, "self-forcing needs the run that distillation.teacher names"
        return checkpoint.Critic(self.parts.critic, self._optimizer_of(self.parts.critic, critic=True))

    def _optimizer_of(self, world: World, critic: bool) -> torch.optim.Optimizer:
        """Return an optimizer whose groups name their expert, which has its own learning rate."""
        settings = self.recipe.distillation
        groups = []
        for name in _names(world):
            trained = (p for p in world.expert_named(name).parameters() if p.requires_grad)
            groups += fsdp.optimizer_groups(trained, lr=settings.lr(name, critic), expert=name)
        return torch.optim.AdamW(groups, betas=settings.betas, weight_decay=self.settings.weight_decay)

    def _prepare(self) -> None:
        self._self_forcing = SelfForcing(self.parts, self.recipe.causal, self.recipe.distillation)
        self._criteria = StopCriteria()
        self._draws: Draws | None = None  # of the last step

    def _restore(self, state: dict[str, Any]) -> None:
        self._criteria = StopCriteria(**state["criteria"])

    def _state(self) -> dict[str, Any]:
        return {"criteria": self._criteria.state()}

    def _more_spec(self) -> dict[str, Any]:
        settings = asdict(self.recipe.distillation)
        return {"distillation": {name: value for name, value in settings.items() if name not in _MAY_CHANGE}}

    def _step(self, passes: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        settings, critic = self.recipe.distillation, self.critic
        assert critic is not None
        draws = self._draw()
        self._set_rates()
        self.optimizer.zero_grad(set_to_none=True)
        critic.optimizer.zero_grad(set_to_none=True)
        sigmas, losses, student_losses = [], [], []
        for batch, first in passes:
            generators = self._generators(batch, first)
            rolled = self._self_forcing.roll_out(batch, draws, generators)
            self._criteria.add(*self._self_forcing.measured(rolled))
            if draws.student:
                loss = self._self_forcing.student_loss(batch, rolled, draws, generators)
                (loss.mean() / len(passes)).backward()
                student_losses.append(loss.detach())
            sigma, loss = self._self_forcing.critic_loss(batch, rolled, draws, generators)
            (loss.mean() / len(passes)).backward()
            sigmas.append(sigma)
            losses.append(loss.detach())
        self.text_tokens = self._self_forcing.text_tokens
        values: dict[str, float] = {}
        if draws.student:
            norm = self._update(self.world, self.optimizer, draws.exit_expert)
            self.ema.update(self.world, 0.0 if self.step // settings.update_ratio < settings.ema_from else None)
            values["student loss"] = float(dist.mean(torch.cat(student_losses).mean()))
            values["student gradient"] = norm
        gradient = self._update(critic.module, critic.optimizer, draws.critic_expert)
        values |= self._measure()
        return {
            "step": self.step,
            "expert": draws.critic_expert,
            "loss": float(dist.mean(torch.cat(losses).mean())),
            "gradient": gradient,
            "rate": self.optimizer.param_groups[0]["lr"],
            "bins": loss_by_noise(torch.cat(losses).cpu(), torch.cat(sigmas).cpu()),
            "values": values,
            "sources": dict(Counter(name for batch, _ in passes for name in batch["source"])),
            "replaced": [reason for batch, _ in passes for reason in batch["replaced"]],
        }

    def _draw(self) -> Draws:
        """Draw what this step does, the same on every rank."""
        latents = 1 + (self._frames() - 1) // self.parts.codec.frames_per_latent
        shared = seeded_generator(self.settings.seed, "distillation", self.step)
        draws = draw(self.recipe.distillation, self.recipe.causal, self.world.noise, latents, self.step, shared)
        dist.check_agreement("what a step does", repr(draws))
        self._draws = draws
        return draws

    def _set_rates(self) -> None:
        assert self.critic is not None
        scale = self.settings.lr_at(self.step) / self.settings.lr
        for optimizer, critic in ((self.optimizer, False), (self.critic.optimizer, True)):
            for group in optimizer.param_groups:
                group["lr"] = scale * self.recipe.distillation.lr(group["expert"], critic)

    def _update(self, world: World, optimizer: torch.optim.Optimizer, name: ExpertName) -> float:
        """Step one expert by its gradients, and drop those of the other. Return the norm of its gradient."""
        reshard(world)  # passes without gradient have left weights gathered, of which only the sharded ones are stepped
        trained = [p for p in world.expert_named(name).parameters() if p.grad is not None]
        kept = {id(p) for p in trained}
        for parameter in world.parameters():
            if id(parameter) not in kept:
                parameter.grad = None  # the optimizer leaves such a parameter and its averages as they are
        fsdp.average_unsharded_gradients(trained)
        norm = fsdp.clip_gradients(trained, self.settings.max_grad_norm)
        optimizer.step()
        return float(norm)

    def _measure(self) -> dict[str, float]:
        """Return both stop criteria where a measurement is due, and log those that are broken."""
        settings = self.recipe.distillation
        if (self.step + 1) % settings.measure_every:
            return {}
        measured, self._criteria = self._criteria.measured(), StopCriteria()
        ratios = f"variance ratio {measured['variance_ratio']:.2f}, flow ratio {measured['flow_ratio']:.2f}"
        self.log(f"step {self.step + 1}: {ratios}")
        for reason in broken(measured, settings):
            self.log(f"step {self.step + 1}: {reason}; use an earlier checkpoint")
            self._stopped = settings.stop
        return {name.replace("_", " "): value for name, value in measured.items()}

    def _flops_of_sample(self, tokens: int) -> float:
        """Count the operations of the last step's rollout, scores and critic; `tokens` are those of the longest rollout."""
        assert self._draws is not None
        draws, settings, spec = self._draws, self.recipe.distillation, self.recipe.causal
        latents = 1 + (self._frames() - 1) // self.parts.codec.frames_per_latent
        per = tokens // latents
        config, text = self.world.high.expert.config, self.text_tokens

        def forward(queries: int, keys: int) -> float:
            return throughput.forward_flops(config, queries * per, keys * per, text)

        seen = spec.sink + spec.window + spec.block
        before, within = draws.window.start - 1, len(draws.window)
        commits = 2 if self.recipe.model.two_experts and spec.sharing == "per_expert" else 1
        passes = (
            (0 if draws.forced else before * len(spec.steps)) + within * (draws.exit_step + 1) + commits * (before + within)
        )
        rollout = forward(passes, seen)
        window = forward(1 + within, 1 + within)
        if not draws.student:
            return rollout + 3 * window
        trained = within * (1 + commits * spec.context_gradient)
        scores = window * (2 if settings.guidance == 1 else 3)
        return rollout + 2 * forward(trained, seen) + scores + 3 * window


def _names(world: World) -> Iterator[ExpertName]:
    """Yield the names of a world's experts that are networks of their own."""
    yield "high"
    if world.low is not world.high:
        yield "low"
