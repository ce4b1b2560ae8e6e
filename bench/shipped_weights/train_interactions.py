"""Train the detector of interactions and control regimes (`curation.actions.learned`) on play with the engine's ground truth.

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
# For mirroring left to right: the planes' signs, and the index of each mirrored regime.
_MIRROR = torch.tensor([-1.0, 1, 1, 1, 1, 1])[:, None, None]
_SWAP = torch.tensor([0, 1, 2, 4, 3, 6, 5])
_UNIT = torch.from_numpy(learned._UNIT)[:, None, None]


@dataclass(frozen=True)
class LabelledTicks:
    """A recording as T ticks."""

    planes: np.ndarray  # [T, 6, 12, 16]
    event: np.ndarray  # [T], whether an interaction happens
    regime: np.ndarray  # [T], index in `learned.REGIMES`
    known: np.ndarray  # [T], False where the ground truth does not tell whether an interaction is visible


class Net(nn.Module):
    """`curation.actions.learned.Detector` in torch, for training."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (6, 24, 32, 48)
        for layer, stride in enumerate((1, 2, 2)):
            self.add_module(f"space{layer}", nn.Conv2d(sizes[layer], sizes[layer + 1], 3, stride, 1))
        # The stored weights carry the names of these modules.
        self.look = nn.Linear(sizes[-1] * 3 * 4, WIDTH)
        for layer, dilation in enumerate(learned._DILATIONS):
            self.add_module(f"time{layer}", nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * dilation, dilation=dilation))
        self.head = nn.Linear(WIDTH, 1 + len(learned.REGIMES))
        self.drop = nn.Dropout(0.2)

    def encode(self, planes: Tensor) -> Tensor:
        """Encode ticks [N, 6, 12, 16] -> [N, D]."""
        for layer in range(3):
            planes = functional.relu(getattr(self, f"space{layer}")(planes))
        return functional.relu(self.look(planes.flatten(1)))

    def forward(self, planes: Tensor) -> Tensor:
        """Classify ticks [B, T, 6, 12, 16] -> logits [B, T, 8]."""
        batch, ticks = planes.shape[:2]
        x = self.drop(self.encode(planes.flatten(0, 1))).unflatten(0, (batch, ticks)).transpose(1, 2)
        for layer in range(len(learned._DILATIONS)):
            x = x + self.drop(functional.relu(getattr(self, f"time{layer}")(x)))
        return self.head(x.transpose(1, 2))


def labelled_ticks(path: Path) -> LabelledTicks:
    """Measure a recording, or read its stored measurement."""
    stored = path.with_suffix(".npz")
    if not stored.exists():
        signals = scan(str(path), ScanSettings(FlowSettings(backend="dis")))
        ground_truth = truth.read_truth(path.with_suffix(".jsonl"))
        frames = np.minimum(signals.pair_frame, len(ground_truth) - 1)
        regimes = np.array(lasting_regimes(ground_truth))[np.maximum(frames - 1, 0)]
        # A weapon that is not drawn on screen still lights the room when it fires.
        hidden = ground_truth.weapon_busy & ~truth.interactions(ground_truth)
        np.savez_compressed(
            stored,
            planes=learned.inputs(signals.cells, signals.change_cells, signals.fps).astype(np.float16),
            event=truth.interactions(ground_truth)[frames],
            regime=np.array([learned.REGIMES.index(name) for name in regimes]),
            known=~hidden[frames],
        )
    return LabelledTicks(**dict(np.load(stored)))


def augment(planes: Tensor, event: Tensor, regime: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Vary ticks [B, T, 6, 12, 16] as another game might show them: mirrored, brighter or duller, noisier, cropped."""

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


def batches(recordings: list[LabelledTicks], rng: np.random.Generator) -> list[list[Tensor]]:
    """Return shuffled batches of windows of `TICKS` from all recordings, in which each tick occurs about once."""
    picks = [
        (i, int(rng.integers(0, max(1, len(x.event) - TICKS))))
        for i, x in enumerate(recordings)
        for _ in range(len(x.event) // TICKS)
    ]
    rng.shuffle(picks)
    epoch = []
    for first in range(0, len(picks) - BATCH + 1, BATCH):
        chosen = picks[first : first + BATCH]
        epoch.append(
            [
                torch.from_numpy(np.stack([getattr(recordings[i], name)[at : at + TICKS] for i, at in chosen]))
                for name in ("planes", "event", "regime", "known")
            ]
        )
    return epoch


def train(recordings: list[LabelledTicks], valid: list[LabelledTicks], seed: int, epochs: int) -> Net:
    torch.manual_seed(seed)
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    steps = epochs * len(batches(recordings, np.random.default_rng(0)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for epoch in range(epochs):
        net.train()
        losses = []
        for planes, event, regime, known in batches(recordings, rng):
            planes, event, regime = augment(planes.float(), event, regime, draws)
            loss = loss_of(net(planes), event, regime, known)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}; validation {validation_figures(net, valid)}", flush=True)
    return net


def loss_of(logits: Tensor, event: Tensor, regime: Tensor, known: Tensor) -> Tensor:
    event_loss = functional.binary_cross_entropy_with_logits(logits[..., 0], event.float(), reduction="none")
    return (event_loss * known).mean() + 0.5 * functional.cross_entropy(logits[..., 1:].flatten(0, 1), regime.flatten())


def validation_figures(net: Net, recordings: list[LabelledTicks]) -> str:
    """Return the AUC of events and the share of right regimes, over all ticks of all recordings, as text."""
    net.eval()
    with torch.inference_mode():
        logits = [net(torch.from_numpy(x.planes).float()[None])[0] for x in recordings]
    score = torch.cat([out[:, 0] for out in logits]).numpy()
    known, event, regime = (np.concatenate([getattr(x, name) for x in recordings]) for name in ("known", "event", "regime"))
    right = torch.cat([out[:, 1:].argmax(1) for out in logits]).numpy() == regime
    each = " ".join(f"{auc(out[:, 0].numpy(), x.event):.2f}" for out, x in zip(logits, recordings, strict=True))
    return f"AUC {auc(score[known], event[known]):.3f} ({each}), regimes right {right.mean():.3f}"


def export(net: Net, recordings: list[LabelledTicks], target: Path) -> None:
    """Write the weights as half floats, and the distribution of the training set's `learned.motion_statistics`."""
    known = np.concatenate(
        [learned.mean_over_ten_seconds(learned.motion_statistics(x.planes.astype(np.float32)))[::20] for x in recordings]
    )
    # Shrunk towards uncorrelated statistics: the windows of eighty minutes overlap, so they are fewer than they seem.
    spread = known.std(0) + 1e-3
    correlation = 0.8 * np.corrcoef(known.T) + 0.2 * np.eye(known.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(correlation)).T / spread[:, None]
    distance = np.sqrt((((known - known.mean(0)) @ whiten) ** 2).mean(1))
    weights = {name: value.numpy().astype(np.float16) for name, value in net.state_dict().items()}
    distribution = {"known.mean": known.mean(0), "known.whiten": whiten, "known.limit": np.quantile(distance, 0.99)}
    np.savez_compressed(
        target, allow_pickle=False, **weights, **{name: np.float32(value) for name, value in distribution.items()}
    )


def main() -> None:
    """Measure the recordings, train on them, print validation figures, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path(learned.__file__).with_name("interactions.npz"))
    options = parser.parse_args()
    print(describe())
    paths = sorted(path for path in options.folder.glob("*.mp4") if path.with_suffix(".jsonl").exists())
    sets = {kind: [labelled_ticks(path) for path in paths if path.name.startswith(kind)] for kind in ("train", "valid")}
    print(
        {
            kind: f"{len(of_kind)} recordings, {sum(len(x.event) for x in of_kind) / 600:.0f} min"
            for kind, of_kind in sets.items()
        }
    )
    net = train(sets["train"], sets["valid"], options.seed, options.epochs)
    export(net, sets["train"], options.out)


if __name__ == "__main__":
    main()
