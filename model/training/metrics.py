"""What a run says about itself: a line a logged step in `log.jsonl`; curves and sheets of sample videos for TensorBoard."""

import json
import os
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PACE = ("gradient", "rate", "seconds", "samples_s", "tokens_s", "mfu", "waited")


class Notes:
    """The notes of a run's folder, written by its first rank. Steps may come again after a resume; the last one counts."""

    def __init__(self, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, "log.jsonl")
        self._board = SummaryWriter(os.path.join(folder, "tensorboard"))
        self._since: list[dict[str, Any]] = []

    def begun(self, step: int, frames: int, windows: dict[str, int]) -> None:
        """Note that clips of so many frames are trained on from this step, and how many windows each source has."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "frames": frames, "windows": windows}) + "\n")

    def step(self, note: dict[str, Any]) -> None:
        """Keep what a training step was."""
        self._since.append(note)

    def write(self) -> dict[str, Any] | None:
        """Note the steps since the last call: means of them, losses by expert and by noise level, samples of this rank by
        source, all that was replaced. None where there was no step.
        """
        if not self._since:
            return None
        line = _meant(self._since)
        self._since = []
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for group in ("experts", "bins"):
            for name, value in line[group].items():
                self._board.add_scalar(f"loss by {'expert' if group == 'experts' else 'noise'}/{name}", value, line["step"])
        for name in _PACE:
            self._board.add_scalar(f"run/{name}", line[name], line["step"])
        return line

    def watched(self, step: int, obedience: dict[str, float], videos_B3FHW: Tensor) -> None:
        """Sample videos uint8, and how many of them obeyed."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "obedience": obedience}) + "\n")
        for name, value in obedience.items():
            self._board.add_scalar(f"obedience/{name}", value, step)
        self._board.add_image("samples", sheet(videos_B3FHW), step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        self._board.close()


def _meant(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """One line for several steps, named by the last."""
    experts = [{note["expert"]: note["loss"]} for note in notes]
    plain = {name: float(np.mean([note[name] for note in notes])) for name in ("loss", *_PACE)}
    grouped: dict[str, Any] = {"experts": _by_name(experts), "bins": _by_name([note["bins"] for note in notes])}
    grouped["sources"] = dict(sum((Counter(note["sources"]) for note in notes), Counter[str]()))
    return {"step": notes[-1]["step"], **plain, **grouped, "replaced": [key for note in notes for key in note["replaced"]]}


def _by_name(parts: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for part in parts for name in part})
    return {name: float(np.mean([part[name] for part in parts if name in part])) for name in names}


def sheet(videos_B3FHW: Tensor, most: int = 12) -> np.ndarray:
    """Videos as a contact sheet uint8 [H, W, 3]: a row each, time to the right."""
    rows = videos_B3FHW[:most].permute(0, 3, 2, 4, 1).flatten(2, 3)
    return np.asarray(rows.flatten(0, 1).cpu())


def pictures(video_B3FHW: Tensor) -> Tensor:
    """A video in [-1, 1] as uint8."""
    return ((video_B3FHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
