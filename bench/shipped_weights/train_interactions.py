"""Train the detector of interactions and control regimes (`curation.actions.learned`) on recorded play with engine truth.

    python -m synth.doom.map_splits FOLDER                       record an hour and a half of play
    python -m bench.shipped_weights.train_interactions FOLDER    train on it, write the weights, print validation figures

The weights go to `curation/actions/interactions.npz`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import describe
from bench.measures import auc, lasting_regimes
from curation.actions import learned
from curation.partition.chunks import ScanSettings
from curation.partition.optical_flow import FlowSettings
from curation.partition.scan import scan
from synth.doom import truth

WIDTH, EPOCHS, BATCH, TICKS = 64, 80, 32, 64
# Mirrored left to right: which plane changes sign, which regimes trade names.
_MIRROR = torch.tensor([-1.0, 1, 1, 1, 1, 1])[:, None, None]
_SWAP = torch.tensor([0, 1, 2, 4, 3, 6, 5])
_UNIT = torch.from_numpy(learned._UNIT)[:, None, None]


@dataclass(frozen=True)
class Lesson:
    """A recording as ticks: planes [T, 6, 12, 16], event [T], regime [T], known [T]: 0 where the truth does not say."""

    planes: np.ndarray
    event: np.ndarray
    regime: np.ndarray
    known: np.ndarray


class Net(nn.Module):
    """`curation.actions.learned.Detector`, to be trained."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (6, 24, 32, 48)
        for layer, stride in enumerate((1, 2, 2)):
            self.add_module(f"space{layer}", nn.Conv2d(sizes[layer], sizes[layer + 1], 3, stride, 1))
        self.look = nn.Linear(sizes[-1] * 3 * 4, WIDTH)
        for layer, dilation in enumerate(learned._DILATIONS):
            self.add_module(f"time{layer}", nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * dilation, dilation=dilation))
        self.head = nn.Linear(WIDTH, 1 + len(learned.REGIMES))
        self.drop = nn.Dropout(0.2)

    def seen(self, planes: Tensor) -> Tensor:
        """Ticks [N, 6, 12, 16] -> [N, D]."""
        for layer in range(3):
            planes = functional.relu(getattr(self, f"space{layer}")(planes))
        return functional.relu(self.look(planes.flatten(1)))

    def forward(self, planes: Tensor) -> Tensor:
        """Ticks [B, T, 6, 12, 16] -> logits [B, T, 8]."""
        batch, ticks = planes.shape[:2]
        x = self.drop(self.seen(planes.flatten(0, 1))).unflatten(0, (batch, ticks)).transpose(1, 2)
        for layer in range(len(learned._DILATIONS)):
            x = x + self.drop(functional.relu(getattr(self, f"time{layer}")(x)))
        return self.head(x.transpose(1, 2))


def lesson(path: Path) -> Lesson:
    """Measure a recording, or read what was measured before."""
    kept = path.with_suffix(".npz")
    if not kept.exists():
        signals, told = scan(str(path), ScanSettings(FlowSettings(backend="dis"))), truth.read_truth(path.with_suffix(".jsonl"))
        frames = np.minimum(signals.pair_frame, len(told) - 1)
        regimes = np.array(lasting_regimes(told))[np.maximum(frames - 1, 0)]
        hidden = told.weapon_busy & ~truth.interactions(told)  # a weapon that is not drawn, but lights the room
        np.savez_compressed(
            kept,
            planes=learned.inputs(signals.cells, signals.looks, signals.fps).astype(np.float16),
            event=truth.interactions(told)[frames],
            regime=np.array([learned.REGIMES.index(name) for name in regimes]),
            known=~hidden[frames],
        )
    return Lesson(**dict(np.load(kept)))


def augmented(planes: Tensor, event: Tensor, regime: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Another game's look at the same play: mirrored, brighter or duller, noisier, part of the picture. [B, T, 6, 12, 16]."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    batch = len(planes)
    mirrored = draw(batch) < 0.5
    planes = torch.where(mirrored[:, None, None, None, None], planes.flip(4) * _MIRROR, planes)
    regime = torch.where(mirrored[:, None], _SWAP[regime], regime)
    raw = torch.sinh(planes)
    raw[:, :, 2:5] *= 0.6 + 0.9 * draw(batch, 1, 1, 1, 1)
    raw[:, :, [0, 1, 5]] *= 0.85 + 0.3 * draw(batch, 1, 1, 1, 1)
    raw = raw + 0.15 * draw(batch, 1, 1, 1, 1) * torch.randn(raw.shape, generator=rng)
    top, bottom = int(draw(1) * 3), int(draw(1) * 3)
    part = raw[:, :, :, top : learned.ROWS - bottom]
    if top or bottom:
        size = (learned.ROWS, learned.COLUMNS)
        part = functional.interpolate(part.flatten(0, 1), size=size, mode="bilinear").unflatten(0, planes.shape[:2])
    return torch.asinh(part), event, regime


def batches(lessons: list[Lesson], rng: np.random.Generator) -> list[list[Tensor]]:
    """Windows of `TICKS` from all recordings, shuffled; an epoch sees each tick about once."""
    picks = [
        (i, int(rng.integers(0, max(1, len(x.event) - TICKS))))
        for i, x in enumerate(lessons)
        for _ in range(len(x.event) // TICKS)
    ]
    rng.shuffle(picks)
    found = []
    for first in range(0, len(picks) - BATCH + 1, BATCH):
        chosen = picks[first : first + BATCH]
        found.append(
            [
                torch.from_numpy(np.stack([getattr(lessons[i], name)[at : at + TICKS] for i, at in chosen]))
                for name in ("planes", "event", "regime", "known")
            ]
        )
    return found


def train(lessons: list[Lesson], valid: list[Lesson], seed: int, epochs: int) -> Net:
    torch.manual_seed(seed)
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    steps = epochs * len(batches(lessons, np.random.default_rng(0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for epoch in range(epochs):
        net.train()
        losses = []
        for planes, event, regime, known in batches(lessons, rng):
            planes, event, regime = augmented(planes.float(), event, regime, draws)
            loss = loss_of(net(planes), event, regime, known)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}; validation {figures(net, valid)}", flush=True)
    return net


def loss_of(logits: Tensor, event: Tensor, regime: Tensor, known: Tensor) -> Tensor:
    happens = functional.binary_cross_entropy_with_logits(logits[..., 0], event.float(), reduction="none")
    return (happens * known).mean() + 0.5 * functional.cross_entropy(logits[..., 1:].flatten(0, 1), regime.flatten())


def figures(net: Net, lessons: list[Lesson]) -> str:
    """AUC of events and share of right regimes, over all ticks of all recordings."""
    net.eval()
    with torch.inference_mode():
        logits = [net(torch.from_numpy(x.planes).float()[None])[0] for x in lessons]
    score = torch.cat([out[:, 0] for out in logits]).numpy()
    known, event, regime = (np.concatenate([getattr(x, name) for x in lessons]) for name in ("known", "event", "regime"))
    right = torch.cat([out[:, 1:].argmax(1) for out in logits]).numpy() == regime
    each = " ".join(f"{auc(out[:, 0].numpy(), x.event):.2f}" for out, x in zip(logits, lessons, strict=True))
    return f"AUC {auc(score[known], event[known]):.3f} ({each}), regimes right {right.mean():.3f}"


def export(net: Net, lessons: list[Lesson], target: Path) -> None:
    """Weights as half floats, and where the training set lies in the network's own measure of a game's habits."""
    known = np.concatenate([learned.over_ten_seconds(learned.habits(x.planes.astype(np.float32)))[::20] for x in lessons])
    # Shrunk towards unrelated habits: eighty minutes are fewer windows than they seem.
    spread = known.std(0) + 1e-3
    together = 0.8 * np.corrcoef(known.T) + 0.2 * np.eye(known.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(together)).T / spread[:, None]
    away = np.sqrt((((known - known.mean(0)) @ whiten) ** 2).mean(1))
    weights = {name: value.numpy().astype(np.float16) for name, value in net.state_dict().items()}
    where = {"known.mean": known.mean(0), "known.whiten": whiten, "known.limit": np.quantile(away, 0.99)}
    np.savez_compressed(target, allow_pickle=False, **weights, **{name: np.float32(value) for name, value in where.items()})


def main() -> None:
    """Measure, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path(learned.__file__).with_name("interactions.npz"))
    options = parser.parse_args()
    print(describe())
    paths = sorted(path for path in options.folder.glob("*.mp4") if path.with_suffix(".jsonl").exists())
    sets = {kind: [lesson(path) for path in paths if path.name.startswith(kind)] for kind in ("train", "valid")}
    print({kind: f"{len(found)} recordings, {sum(len(x.event) for x in found) / 600:.0f} min" for kind, found in sets.items()})
    net = train(sets["train"], sets["valid"], options.seed, options.epochs)
    export(net, sets["train"], options.out)


if __name__ == "__main__":
    main()
