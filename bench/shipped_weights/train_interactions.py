"""Train the detector of interactions and control regimes (`curation.actions.learned`) on play with the engines' ground truth.

    python -m synth.engines.label_set FOLDER                        record play
    python -m bench.shipped_weights.train_interactions FOLDER       train on it, write the weights
    python -m bench.shipped_weights.train_interactions FOLDER --without minetest --out without-minetest.npz

Recordings named `test` are never read, all others are trained on. `--without` leaves an engine out and prints figures of it.
Several networks, which differ in their random seed, are trained one by one and written together to
`curation/actions/interactions.npz`. `rebuild_interactions` does all of it.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from bench.labelled_ticks import LabelledTicks, labelled_ticks, recordings_in
from bench.machine import describe
from bench.measures import auc
from curation.actions import learned
from curation.actions.confidence import FEATURES
from curation.actions.learned import KINDS, REGIMES

WIDTH, BATCH, TICKS = 64, 8, 64
NETWORKS, _RATE, _WARM_UP = 5, 2e-3, 200
STEPS = 500  # for each engine that is trained on, so that each is seen as often
_AVERAGED_FROM = 1 / 3  # of the steps: from there on a network's weights are averaged over the steps
_QUIET_SHARE = 0.3  # of the windows: those in which nothing happens
_KIND_LOSS, _REGIME_LOSS = 0.5, 0.5  # relative to the loss of events
_NEARBY = (1, 2, 1)  # the ticks whose probabilities are averaged
_INPUTS = learned.PLANES + learned.CONTEXT_PLANES
_GAIN = 0.7  # how much stronger or weaker flow and changes may be than recorded, as a logarithm, beside smaller factors
_SPEED, _PACED = 0.4, 0.4  # how much faster or slower a window may be played, as a logarithm; share of batches that are
_HIDDEN = 0.5  # share of windows in which a rectangle at the picture's edge stands still, as a game's panel does
# Planes in px/s (flow, unevenness, flow without the camera's) and in grey levels.
_MOTION, _CHANGE = [0, 1, 5, 6, 7], [2, 3, 4]
# For mirroring left to right: the planes' signs, and the index of each mirrored regime.
_MIRROR = torch.tensor([-1.0, 1, 1, 1, 1, 1, -1, 1, 1, 1, 1])[:, None, None]
_SWAP = torch.tensor([0, 1, 2, 4, 3, 6, 5, 7, 8])


class Net(nn.Module):
    """A network of `curation.actions.learned.Detector` in torch, for training."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (_INPUTS, 24, 32, 48)
        for layer, stride in enumerate((1, 2, 2)):
            self.add_module(f"space{layer}", nn.Conv2d(sizes[layer], sizes[layer + 1], 3, stride, 1))
        # The stored weights carry the names of these modules.
        self.look = nn.Linear(sizes[-1] * (3 * 4 + 1), WIDTH)
        for layer, dilation in enumerate(learned._DILATIONS):
            self.add_module(f"time{layer}", nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * dilation, dilation=dilation))
        self.head = nn.Linear(WIDTH, 1 + len(REGIMES) + len(KINDS))
        self.drop = nn.Dropout(0.2)

    def forward(self, planes: Tensor) -> Tensor:
        """Classify ticks [B, T, 11, 12, 16] -> logits [B, T, 20]: event, regimes, kinds."""
        x = planes.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # a quarter faster
        for layer in range(3):
            x = functional.relu(getattr(self, f"space{layer}")(x))
        cells = torch.cat([x.contiguous().flatten(1), x.amax((2, 3))], 1)  # each place, and the highest of all places
        x = self.drop(functional.relu(self.look(cells.unflatten(0, planes.shape[:2])))).transpose(1, 2)
        for layer in range(len(learned._DILATIONS)):
            x = x + self.drop(functional.relu(getattr(self, f"time{layer}")(x)))
        return self.head(x.transpose(1, 2))


def augment(planes: Tensor, event: Tensor, regime: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Vary ticks [B, T, 11, 12, 16] as another game might show them: mirrored, brighter, noisier, cropped, covered."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    batch = len(planes)
    mirrored = draw(batch) < 0.5
    planes = torch.where(mirrored[:, None, None, None, None], planes.flip(4) * _MIRROR, planes)
    regime = torch.where(mirrored[:, None], _SWAP[regime], regime)
    raw = torch.sinh(planes[:, :, : learned.PLANES + 2])
    raw[:, :, _MOTION] *= (0.85 + 0.3 * draw(batch, 1, 1, 1, 1)) * torch.exp(_GAIN * (2 * draw(batch, 1, 1, 1, 1) - 1))
    raw[:, :, _CHANGE] *= (0.6 + 0.9 * draw(batch, 1, 1, 1, 1)) * torch.exp(_GAIN * (2 * draw(batch, 1, 1, 1, 1) - 1))
    noise = 0.15 * draw(batch, 1, 1, 1, 1) * torch.randn(raw[:, :, : learned.PLANES].shape, generator=rng)
    raw[:, :, : learned.PLANES] += noise
    varied = torch.cat([torch.asinh(raw), planes[:, :, learned.PLANES + 2 :]], 2)
    top, bottom = int(draw(1) * 3), int(draw(1) * 3)
    if top or bottom:
        size = (learned.ROWS, learned.COLUMNS)
        part = varied[:, :, :, top : learned.ROWS - bottom]
        varied = functional.interpolate(part.flatten(0, 1), size=size, mode="bilinear").unflatten(0, planes.shape[:2])
    return varied * _uncovered(batch, draw), event, regime


def _uncovered(batch: int, draw: Callable[..., Tensor]) -> Tensor:
    """Return [B, 1, 1, 12, 16]: 0 inside a rectangle at the upper or lower edge, as a panel has it, else 1."""
    seen = torch.ones(batch, 1, 1, learned.ROWS, learned.COLUMNS)
    for one in seen:
        if float(draw(1)) < _HIDDEN:
            height, width = 1 + int(draw(1) * 2), 2 + int(draw(1) * (learned.COLUMNS - 2))
            left, row = int(draw(1) * (learned.COLUMNS - width + 1)), int(draw(1) * 2) * (learned.ROWS - height)
            one[..., row : row + height, left : left + width] = 0
    return seen


def play_faster(batch: dict[str, Tensor], times: float) -> dict[str, Tensor]:
    """Return windows as if the game ran `times` as fast: larger motion, in other ticks. Ticks past the end are not known."""
    ticks = torch.arange(TICKS) * times
    at = ticks.long().clamp(max=TICKS - 1)
    played = {name: part if name == "knows_kind" else part[:, at] for name, part in batch.items()}
    motion = torch.sinh(played["planes"][:, :, _MOTION].float()) * times
    played["planes"] = played["planes"].float()
    played["planes"][:, :, _MOTION] = torch.asinh(motion)
    played["known"] = played["known"] & (ticks < TICKS)
    return played


class Windows:
    """Draws windows of `TICKS`: a share with nothing happening, the others around an event of each engine and kind alike."""

    def __init__(self, recordings: list[LabelledTicks], seed: int) -> None:
        self._recordings = [padded(one) for one in recordings]
        self._rng = np.random.default_rng(seed)
        self._quiet: dict[str, list[tuple[int, int]]] = {}
        self._events: dict[str, dict[int, list[tuple[int, int]]]] = {}
        for number, one in enumerate(self._recordings):
            self._quiet.setdefault(one.engine, []).extend((number, int(tick)) for tick in np.flatnonzero(~one.event))
            for kind in np.flatnonzero(one.kinds.any(0)):
                ticks = [(number, int(tick)) for tick in np.flatnonzero(one.kinds[:, kind])]
                self._events.setdefault(one.engine, {}).setdefault(int(kind), []).extend(ticks)

    def _pick(self) -> tuple[int, int]:
        rng = self._rng
        if rng.random() < _QUIET_SHARE or not self._events:
            ticks = list(self._quiet.values())[rng.integers(len(self._quiet))]
        else:
            kinds = list(self._events.values())[rng.integers(len(self._events))]
            ticks = list(kinds.values())[rng.integers(len(kinds))]
        number, tick = ticks[rng.integers(len(ticks))]
        last = len(self._recordings[number].event) - TICKS
        return number, int(np.clip(tick - rng.integers(TICKS), 0, last))

    def batch(self, size: int) -> dict[str, Tensor]:
        """Return planes, event, kinds, knows_kind, regime and known of some windows."""
        chosen = [self._pick() for _ in range(size)]
        parts = {
            name: np.stack([getattr(self._recordings[number], name)[at : at + TICKS] for number, at in chosen])
            for name in ("planes", "event", "kinds", "regime", "known")
        }
        parts["knows_kind"] = np.stack([self._recordings[number].knows_kind for number, _ in chosen])[:, None]
        return {name: torch.from_numpy(part) for name, part in parts.items()}


def padded(one: LabelledTicks) -> LabelledTicks:
    """Lengthen a recording that is shorter than a window by ticks whose labels are not known."""
    missing = max(0, TICKS - len(one.event))
    if not missing:
        return one
    ticks = {
        name: np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        for name in ("times_s", "planes", "event", "kinds", "regime", "known")
        for part in [getattr(one, name)]
    }
    return replace(one, **ticks)


def train(recordings: list[LabelledTicks], seed: int, steps: int) -> Net:
    """Train a network. Its weights are their mean over the last two thirds of the steps.

    After a warm-up the learning rate is constant. The mean of the weights is said to lie in a flatter minimum, which serves
    data that was not seen better than the end of a decaying rate (Cha et al. 2021, SWAD).
    """
    torch.manual_seed(seed)
    net = Net()
    draws, windows = torch.Generator().manual_seed(seed), Windows(recordings, seed)
    optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / _WARM_UP, total_iters=_WARM_UP)
    averaged = AveragedModel(net)
    losses = []
    for step in range(steps):
        batch = windows.batch(BATCH)
        if float(torch.rand(1, generator=draws)) < _PACED:
            batch = play_faster(batch, math.exp(_SPEED * (2 * float(torch.rand(1, generator=draws)) - 1)))
        planes, _, batch["regime"] = augment(batch["planes"].float(), batch["event"], batch["regime"], draws)
        loss = loss_of(net(planes), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step >= _AVERAGED_FROM * steps:
            averaged.update_parameters(net)
        losses.append(loss.item())
    print(f"seed {seed}, {steps} steps: loss {np.mean(losses[-100:]):.3f}", flush=True)
    net.load_state_dict(averaged.module.state_dict())
    return net


def loss_of(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of logits [B, T, 20]: event, kinds where they are known, and regime."""
    event = functional.binary_cross_entropy_with_logits(logits[..., 0], batch["event"].float(), reduction="none")
    kinds = functional.binary_cross_entropy_with_logits(
        logits[..., 1 + len(REGIMES) :], batch["kinds"].float(), reduction="none"
    )
    kind_loss = (kinds * batch["knows_kind"] * batch["known"][..., None]).sum(-1).mean()
    regime = functional.cross_entropy(
        logits[..., 1 : 1 + len(REGIMES)].flatten(0, 1), batch["regime"].flatten(), reduction="none"
    )
    regime_loss = (regime * batch["known"].flatten()).mean()
    return (event * batch["known"]).mean() + _KIND_LOSS * kind_loss + _REGIME_LOSS * regime_loss


def figures(net: Net, recordings: list[LabelledTicks]) -> str:
    """Return for each engine the AUC of events and the share of right regimes, as text."""
    net.eval()
    texts = []
    for engine in sorted({one.engine for one in recordings}):
        own = [one for one in recordings if one.engine == engine]
        with torch.inference_mode():
            logits = torch.cat([net(torch.from_numpy(one.planes).float()[None])[0] for one in own]).numpy()
        known, event, regime = (np.concatenate([getattr(one, name) for one in own]) for name in ("known", "event", "regime"))
        right = logits[:, 1 : 1 + len(REGIMES)].argmax(1) == regime
        texts.append(f"{engine} AUC {auc(logits[known, 0], event[known]):.3f}, regimes right {right.mean():.2f}")
    return "; ".join(texts)


def export(nets: Sequence[Net], recordings: list[LabelledTicks], target: Path) -> None:
    """Write the weights as half floats, and the distribution of the training set's `learned.motion_statistics`."""
    measured = [x.planes[:, : learned.PLANES].astype(np.float32) for x in recordings]
    known = np.concatenate([learned.mean_over_ten_seconds(learned.motion_statistics(planes))[::20] for planes in measured])
    # Shrunk towards uncorrelated statistics: windows overlap, so they are fewer than they seem.
    spread = known.std(0) + 1e-3
    correlation = 0.8 * np.corrcoef(known.T) + 0.2 * np.eye(known.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(correlation)).T / spread[:, None]
    distance = np.sqrt((((known - known.mean(0)) @ whiten) ** 2).mean(1))
    weights = {f"{k}/{name}": value for k, net in enumerate(nets) for name, value in net.state_dict().items()}
    arrays = {name: value.numpy().astype(np.float16) for name, value in weights.items()}
    arrays |= {"nearby": np.array(_NEARBY, np.float16)}
    arrays |= {"confidence.weight": np.zeros(len(FEATURES), np.float16), "confidence.bias": np.zeros((), np.float16)}
    distribution = {"known.mean": known.mean(0), "known.whiten": whiten, "known.limit": np.quantile(distance, 0.99)}
    np.savez_compressed(
        target, allow_pickle=False, **arrays, **{name: np.float32(value) for name, value in distribution.items()}
    )


def build(folders: Sequence[Path], target: Path, without: str = "", networks: int = NETWORKS, steps: int = STEPS) -> None:
    """Train on the recordings of some folders and write the weights.

    without: an engine to leave out. steps: of a network, for each engine that it is trained on.
    """
    kept = [labelled_ticks(path) for path in recordings_in(folders, ("train", "valid"))]
    training, left_out = [one for one in kept if one.engine != without], [one for one in kept if one.engine == without]
    ticks = Counter[str]()
    for one in training:
        ticks[one.engine] += len(one.event)
    print(f"{len(training)} recordings: " + ", ".join(f"{n / 600:.1f} min of {engine}" for engine, n in ticks.items()))
    nets = []
    for seed in range(networks):
        nets.append(train(training, seed, steps * len(ticks)))
        if left_out:
            print(f"left out: {figures(nets[-1], left_out)}", flush=True)
    # The distance is from real games only: painted ones look like none of them.
    export(nets, [one for one in training if one.engine != "painted"], target)


def main() -> None:
    """Measure the recordings, train on them, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--without", default="", help="an engine to leave out")
    parser.add_argument("--networks", type=int, default=NETWORKS, help=f"default {NETWORKS}")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a network for each engine; default {STEPS}")
    parser.add_argument("--out", type=Path, default=Path(learned.__file__).with_name("interactions.npz"))
    options = parser.parse_args()
    print(describe())
    build(options.folders, options.out, options.without, options.networks, options.steps)


if __name__ == "__main__":
    main()
