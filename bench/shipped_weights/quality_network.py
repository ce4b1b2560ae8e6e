"""Train the network of `curation.quality.embedded_backend`, and export it as the arrays that the backend reads."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.measures import spearman
from curation.quality.embedded_backend import FAR
from curation.quality.features import features
from curation.quality.iqa import FAULTS

_HIDDEN = (96, 48)
_BATCH, _RATE, _DECAY, _DROPPED, _PATCHES_OUT = 128, 3e-3, 1e-2, 0.3, 0.3
_SHIFTED = 0.2  # deviations by which all numbers of a frame are off together, as another game's are
_CLEAN_SHOWN = 4  # times an epoch: clean frames are a twentieth of the set, and where the scale must end
# Frames under this level look clean: which fault they have is not asked.
_TOLD = 0.08
_FAULT_WEIGHT = 0.05


@dataclass(frozen=True)
class Frames:
    """N frames: numbers [N, P, F] of their patches, which of those are there [N, P], level [N], fault [N] (-1 clean)."""

    features: torch.Tensor
    there: torch.Tensor
    level: torch.Tensor
    fault: torch.Tensor


def measured(data: dict[str, np.ndarray]) -> Frames:
    """The training pictures as the network sees them; absent patches are zeros."""
    most = data["patches"].shape[1]
    rows = [features(patches[:count]) for patches, count in zip(data["patches"], data["count"], strict=True)]
    padded = np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in rows])
    there = np.arange(most) < data["count"][:, None]
    return Frames(
        torch.from_numpy(padded),
        torch.from_numpy(there),
        torch.from_numpy(data["level"].astype(np.float32)),
        torch.from_numpy(data["fault"].astype(np.int64)),
    )


class Net(nn.Module):
    """As `curation.quality.embedded_backend.forward`."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.first, self.second = nn.Linear(len(mean), _HIDDEN[0]), nn.Linear(*_HIDDEN)
        self.out, self.drop = nn.Linear(_HIDDEN[1], 2 + len(FAULTS)), nn.Dropout(_DROPPED)

    def forward(self, numbers: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Level of damage [N] and the log of each fault's share [N, FAULTS]."""
        x = ((numbers - self.mean) / self.spread).clamp(-FAR, FAR)
        if self.training:
            x = x + _SHIFTED * torch.randn(len(x), 1, x.shape[2])
        for layer in (self.first, self.second):
            x = self.drop(functional.relu(layer(x)))
        out = self.out(x)
        share = out[..., 0].masked_fill(~there, -torch.inf).softmax(1)
        faults = (share[..., None] * out[..., 2:].softmax(2)).sum(1)
        return (share * out[..., 1]).sum(1), torch.log(faults + 1e-6)


def train(data: Frames, held: Frames, epochs: int, seed: int) -> Net:
    """Fit the network; prints the loss and figures on held-out material every ten epochs."""
    torch.manual_seed(seed)
    known = data.features[data.there]
    net = Net(known.mean(0), known.std(0) + 1e-6)
    shown = torch.cat([torch.arange(len(data.level)), torch.where(data.level == 0)[0].repeat(_CLEAN_SHOWN - 1)])
    steps = epochs * (len(shown) // _BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for epoch in range(epochs):
        net.train()
        losses = []
        for where in shown[torch.randperm(len(shown))][: len(shown) // _BATCH * _BATCH].reshape(-1, _BATCH):
            loss = _loss(net, data, where)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}: loss {np.mean(losses):.4f}, held out: {report(net, held)}", flush=True)
    return net


def _loss(net: Net, data: Frames, where: torch.Tensor) -> torch.Tensor:
    """Of some frames, with some of their patches left out."""
    there = data.there[where] & (torch.rand(data.there[where].shape) > _PATCHES_OUT)
    there[:, 0] = True
    level, log_faults = net(data.features[where], there)
    told = data.level[where] > _TOLD
    wrong = functional.nll_loss(log_faults[told], data.fault[where][told])
    return functional.smooth_l1_loss(level, data.level[where], beta=0.1) + _FAULT_WEIGHT * wrong


@torch.no_grad()
def report(net: Net, held: Frames) -> str:
    """Rank correlation with the level, over all and by fault; mean error; how often the fault is named; clean pictures."""
    net.eval()
    found, log_faults = net(held.features, held.there)
    level, truth, fault = found.numpy(), held.level.numpy(), held.fault.numpy()
    by = [spearman(level[of], truth[of]) for k in range(len(FAULTS)) if (of := fault == k).any()]
    named = (log_faults.argmax(1).numpy() == fault)[truth > 2 * _TOLD].mean()
    return (
        f"rho {spearman(level, truth):.3f} ({' '.join(f'{rho:.2f}' for rho in by)}), error {np.abs(level - truth).mean():.3f}, "
        f"fault named {named:.2f}, clean ones score {1 - level[fault < 0].mean():.2f}"
    )


def exported(net: Net) -> dict[str, np.ndarray]:
    """The arrays of `curation.quality.embedded_backend`."""
    arrays = {"mean": net.mean, "spread": net.spread}
    for name in ("first", "second", "out"):
        layer = getattr(net, name)
        arrays |= {name: layer.weight.T, f"{name}_bias": layer.bias}
    return {name: array.detach().numpy().astype(np.float32) for name, array in arrays.items()}
