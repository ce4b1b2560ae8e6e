"""What a run logs: lines in `log.jsonl`; curves and contact sheets of sample videos for TensorBoard."""

import json
import os
from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor

_PACE = ("gradient", "rate", "seconds", "samples_s", "tokens_s", "mfu", "waited")


class MetricsLog:
    """The log of a run's folder, written by rank 0. A resumed run may log a step again; the last line of a step counts."""

    def __init__(self, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, "log.jsonl")
        self._board = SummaryWriter(os.path.join(folder, "tensorboard"))
        self._unwritten: list[dict[str, Any]] = []

    def add_phase(self, step: int, frames: int, windows: dict[str, int]) -> None:
        """Write that clips of `frames` frames are trained on from this step, and how many windows each source has."""
        self._append({"step": step, "frames": frames, "windows": windows})

    def add_step(self, metrics: dict[str, Any]) -> None:
        """Keep the metrics of a training step for the next line."""
        self._unwritten.append(metrics)

    def write(self) -> dict[str, Any] | None:
        """Write and return one line for the steps since the last call, None where there were none.

        It holds means over the steps, losses by expert and by noise level, this rank's samples by source, and every sample that
        was replaced.
        """
        if not self._unwritten:
            return None
        line = _merge(self._unwritten)
        self._unwritten = []
        self._append(line)
        for group in ("experts", "bins"):
            for name, value in line[group].items():
                self._board.add_scalar(f"loss by {'expert' if group == 'experts' else 'noise'}/{name}", value, line["step"])
        for name, value in line["values"].items():
            self._board.add_scalar(f"distillation/{name}", value, line["step"])
        for name in _PACE:
            self._board.add_scalar(f"run/{name}", line[name], line["step"])
        return line

    def add_samples(self, step: int, control_accuracy: dict[str, float], videos_B3FHW: Tensor) -> None:
        """Write sample videos (uint8), and the share of them that followed their controls, by direction."""
        self._append({"step": step, "control_accuracy": control_accuracy})
        for name, value in control_accuracy.items():
            self._board.add_scalar(f"control accuracy/{name}", value, step)
        self._board.add_image("samples", contact_sheet(videos_B3FHW), step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        self._board.close()

    def _append(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _merge(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one line for several steps, with the number of the last."""
    experts = [{step["expert"]: step["loss"]} for step in steps]
    means = {name: float(np.mean([step[name] for step in steps])) for name in ("loss", *_PACE)}
    grouped: dict[str, Any] = {"experts": _means_by_name(experts), "bins": _means_by_name([step["bins"] for step in steps])}
    grouped["values"] = _means_by_name([step.get("values", {}) for step in steps])
    grouped["sources"] = dict(sum((Counter(step["sources"]) for step in steps), Counter[str]()))
    return {
        "step": steps[-1]["step"],
        **means,
        **grouped,
        "replaced": [reason for step in steps for reason in step["replaced"]],
    }


def _means_by_name(groups: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for group in groups for name in group})
    return {name: float(np.mean([group[name] for group in groups if name in group])) for name in names}


def contact_sheet(videos_B3FHW: Tensor, max_videos: int = 12) -> np.ndarray:
    """Return videos as one picture uint8 [H, W, 3]: one row per video, time to the right."""
    rows = videos_B3FHW[:max_videos].permute(0, 3, 2, 4, 1).flatten(2, 3)
    return np.asarray(rows.flatten(0, 1).cpu())
