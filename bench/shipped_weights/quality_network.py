"""Train the network of `curation.quality.embedded_backend`, and export it as the arrays that this backend reads."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.measures import spearman
from curation.quality.embedded_backend import MAX_DEVIATIONS
from curation.quality.features import patch_features
from curation.quality.iqa import FAULTS

_HIDDEN = (96, 48)
_BATCH, _LR, _WEIGHT_DECAY, _DROPOUT, _PATCH_DROPOUT = 128, 3e-3, 1e-2, 0.3, 0.3
_SHIFT = 0.2  # standard deviations of a random offset of each feature in all patches of a frame, like that of another game
# Uses of a clean frame in an epoch. Clean frames are a twentieth of the set, and they define the end of the scale.
_CLEAN_REPEATS = 4
# Frames below this level look clean, so their fault is not part of the loss.
_MIN_FAULT_LEVEL = 0.08
_FAULT_WEIGHT = 0.05


@dataclass(frozen=True)
class TrainingFrames:
    """N frames: features [N, P, F] of their patches, a mask of the existing patches [N, P], level [N], fault [N] (-1 clean)."""

    features: torch.Tensor
    mask: torch.Tensor
    level: torch.Tensor
    fault: torch.Tensor


def extract_features(data: dict[str, np.ndarray]) -> TrainingFrames:
    """Compute the network's input from training pictures. Missing patches are zeros."""
    max_patches = data["patches"].shape[1]
    rows = [patch_features(patches[:count]) for patches, count in zip(data["patches"], data["count"], strict=True)]
    padded = np.stack([np.pad(row, ((0, max_patches - len(row)), (0, 0))) for row in rows])
    mask = np.arange(max_patches) < data["count"][:, None]
    return TrainingFrames(
        torch.from_numpy(padded),
        torch.from_numpy(mask),
        torch.from_numpy(data["level"].astype(np.float32)),
        torch.from_numpy(data["fault"].astype(np.int64)),
    )


class QualityNet(nn.Module):
    """The network of `curation.quality.embedded_backend.run_network`, in torch."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.first, self.second = nn.Linear(len(mean), _HIDDEN[0]), nn.Linear(*_HIDDEN)
        self.out, self.drop = nn.Linear(_HIDDEN[1], 2 + len(FAULTS)), nn.Dropout(_DROPOUT)

    def forward(self, numbers: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the level of damage [N] and the log of each fault's share [N, FAULTS]."""
        x = ((numbers - self.mean) / self.spread).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)
        if self.training:
            x = x + _SHIFT * torch.randn(len(x), 1, x.shape[2])
        for layer in (self.first, self.second):
            x = self.drop(functional.relu(layer(x)))
        out = self.out(x)
        share = out[..., 0].masked_fill(~mask, -torch.inf).softmax(1)
        faults = (share[..., None] * out[..., 2:].softmax(2)).sum(1)
        return (share * out[..., 1]).sum(1), torch.log(faults + 1e-6)


def train(data: TrainingFrames, held_out: TrainingFrames, epochs: int, seed: int) -> QualityNet:
    """Fit the network. Print the loss and the scores on held-out material every ten epochs."""
    torch.manual_seed(seed)
    present = data.features[data.mask]
    net = QualityNet(present.mean(0), present.std(0) + 1e-6)
    order = torch.cat([torch.arange(len(data.level)), torch.where(data.level == 0)[0].repeat(_CLEAN_REPEATS - 1)])
    steps = epochs * (len(order) // _BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_LR, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LR, total_steps=steps)
    for epoch in range(epochs):
        net.train()
        losses = []
        for batch in order[torch.randperm(len(order))][: len(order) // _BATCH * _BATCH].reshape(-1, _BATCH):
            loss = _loss(net, data, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}: loss {np.mean(losses):.4f}, held out: {evaluate(net, held_out)}", flush=True)
    return net


def _loss(net: QualityNet, data: TrainingFrames, batch: torch.Tensor) -> torch.Tensor:
    """Return the loss of a batch of frames, with some of their patches left out."""
    mask = data.mask[batch] & (torch.rand(data.mask[batch].shape) > _PATCH_DROPOUT)
    mask[:, 0] = True
    level, log_faults = net(data.features[batch], mask)
    damaged = data.level[batch] > _MIN_FAULT_LEVEL
    fault_loss = functional.nll_loss(log_faults[damaged], data.fault[batch][damaged])
    return functional.smooth_l1_loss(level, data.level[batch], beta=0.1) + _FAULT_WEIGHT * fault_loss


@torch.no_grad()
def evaluate(net: QualityNet, held_out: TrainingFrames) -> str:
    """Return a line of scores: rank correlation with the level (all, by fault), mean error, share of correct faults, clean."""
    net.eval()
    predicted, log_faults = net(held_out.features, held_out.mask)
    level, truth, fault = predicted.numpy(), held_out.level.numpy(), held_out.fault.numpy()
    by_fault = [spearman(level[of], truth[of]) for k in range(len(FAULTS)) if (of := fault == k).any()]
    named = (log_faults.argmax(1).numpy() == fault)[truth > 2 * _MIN_FAULT_LEVEL].mean()
    rhos = " ".join(f"{rho:.2f}" for rho in by_fault)
    return (
        f"rho {spearman(level, truth):.3f} ({rhos}), error {np.abs(level - truth).mean():.3f}, "
        f"fault named {named:.2f}, clean ones score {1 - level[fault < 0].mean():.2f}"
    )


def export_arrays(net: QualityNet) -> dict[str, np.ndarray]:
    """Return the arrays that `curation.quality.embedded_backend` reads."""
    arrays = {"mean": net.mean, "spread": net.spread}
    for name in ("first", "second", "out"):
        layer = getattr(net, name)
        arrays |= {name: layer.weight.T, f"{name}_bias": layer.bias}
    return {name: array.detach().numpy().astype(np.float32) for name, array in arrays.items()}
