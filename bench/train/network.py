"""The embedded quality network in torch, to train it; `exported` turns it into the arrays that `curation.iqa_net` reads."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curation.iqa import FAULTS
from curation.iqa_net import CONVOLUTIONS, SCALE

_CHANNELS = (1, 24, 48, 64)
_HIDDEN = 64
_BATCH, _PATCHES, _RATE, _DECAY = 32, 8, 2e-3, 1e-4
# Frames under this level look clean: which fault they have is not asked.
_TOLD = 0.08


class Net(nn.Module):
    """As `curation.iqa_net.forward`, with batch normalisation that `exported` folds into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(_CHANNELS, _CHANNELS[1:], CONVOLUTIONS, strict=False)
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, side, stride) for a, b, (side, stride) in pairs])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in _CHANNELS[1:]])
        self.hidden = nn.Linear(2 * _CHANNELS[-1], _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 2 + len(FAULTS))

    def forward(self, patches: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches [N, P, 64, 64] and which of them are there [N, P] -> damage [N], log of the faults' shares [N, F]."""
        x = patches.flatten(0, 1)[:, None].float()
        x = (x - x.mean((2, 3), keepdim=True)) * SCALE
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.relu(norm(convolution(x)))
        x = functional.relu(self.hidden(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))
        out = self.out(x).unflatten(0, there.shape)
        share = out[..., 0].masked_fill(~there, -torch.inf).softmax(1)
        faults = (share[..., None] * out[..., 2:].softmax(2)).sum(1)
        return (share * out[..., 1]).sum(1), torch.log(faults + 1e-6)


def train(data: dict[str, np.ndarray], held: dict[str, np.ndarray], epochs: int, seed: int) -> Net:
    """Fit the network; prints the loss and the rank correlation on held-out material after each epoch."""
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), Net()
    steps = epochs * (len(data["level"]) // _BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for epoch in range(epochs):
        net.train()
        losses = []
        order = rng.permutation(len(data["level"]))
        for where in order[: len(order) // _BATCH * _BATCH].reshape(-1, _BATCH):
            loss = _loss(net, *_batch(data, np.sort(where), rng))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        told = predict(net, held)
        print(f"epoch {epoch + 1:2}: loss {np.mean(losses):.4f}, held out: {report(told, held)}", flush=True)
    return net


def _batch(data: dict[str, np.ndarray], where: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Some patches of each frame, turned over at random; a codec's grid of 8 px stays where it is."""
    chosen = rng.random((len(where), data["patches"].shape[1]))
    chosen += np.arange(chosen.shape[1]) >= data["count"][where][:, None]
    chosen = np.argsort(chosen, 1)[:, :_PATCHES]
    picked = data["patches"][where][np.arange(len(where))[:, None], chosen]
    picked = picked[:, :, :: int(rng.choice([1, -1])), :: int(rng.choice([1, -1]))]
    picked = picked.swapaxes(2, 3) if rng.random() < 0.5 else picked
    there = chosen < data["count"][where][:, None]
    return (
        torch.from_numpy(np.ascontiguousarray(picked)),
        torch.from_numpy(there),
        torch.from_numpy(data["level"][where].astype(np.float32)),
        torch.from_numpy(data["fault"][where].astype(np.int64)),
    )


def _loss(net: Net, patches: torch.Tensor, there: torch.Tensor, level: torch.Tensor, fault: torch.Tensor) -> torch.Tensor:
    found, log_faults = net(patches, there)
    told = level > _TOLD
    wrong = functional.nll_loss(log_faults[told], fault[told]) if told.any() else 0.0
    return functional.smooth_l1_loss(found, level, beta=0.1) + 0.05 * wrong


@torch.no_grad()
def predict(net: Net, data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Level [N] and most likely fault [N] of each frame, from all of its patches."""
    net.eval()
    levels, faults = [], []
    for at in range(0, len(data["level"]), 64):
        patches = torch.from_numpy(data["patches"][at : at + 64])
        there = torch.from_numpy(np.arange(patches.shape[1]) < data["count"][at : at + 64, None])
        level, log_faults = net(patches, there)
        levels.append(level.numpy())
        faults.append(log_faults.argmax(1).numpy())
    return np.concatenate(levels), np.concatenate(faults)


def report(told: tuple[np.ndarray, np.ndarray], data: dict[str, np.ndarray]) -> str:
    """Rank correlation with the level, over all and by fault; mean error; how often the fault is the right one."""
    level, fault = told
    told_well = data["level"] > 2 * _TOLD
    by = [
        spearman(level[of], data["level"][of])
        for k in range(len(FAULTS))
        if (of := (data["fault"] == k) | (data["fault"] < 0)).any()
    ]
    return (
        f"rho {spearman(level, data['level']):.3f} ({' '.join(f'{rho:.2f}' for rho in by)}), "
        f"error {np.abs(level - data['level']).mean():.3f}, fault right {(fault == data['fault'])[told_well].mean():.2f}"
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[where]


def exported(net: Net) -> dict[str, np.ndarray]:
    """The arrays of `curation.iqa_net`, normalisation folded in, in half precision."""
    arrays: dict[str, torch.Tensor] = {}
    for number, (convolution, norm) in enumerate(zip(net.convolutions, net.norms, strict=True)):
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        kernel = convolution.weight * gain[:, None, None, None]
        arrays[f"conv{number}"] = kernel.permute(2, 3, 1, 0).flatten(0, 2)
        arrays[f"bias{number}"] = (convolution.bias - norm.running_mean) * gain + norm.bias
    arrays |= {"hidden": net.hidden.weight.T, "hidden_bias": net.hidden.bias, "out": net.out.weight.T, "out_bias": net.out.bias}
    return {name: array.detach().numpy().astype(np.float16) for name, array in arrays.items()}
