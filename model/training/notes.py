"""What a run says about itself: a line a logged step in `log.jsonl`; curves and sheets of sample videos for TensorBoard."""

import json
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Notes:
    """The notes of a run's folder, written by its first rank. Steps may come again after a resume; the last one counts."""

    def __init__(self, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        os.makedirs(folder, exist_ok=True)
        self._path = os.path.join(folder, "log.jsonl")
        self._board = SummaryWriter(os.path.join(folder, "tensorboard"))

    def step(self, note: dict[str, Any]) -> None:
        """A training step."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
        step = note["step"]
        self._board.add_scalar(f"loss/{note['expert']}", note["loss"], step)
        for name, value in note["bins"].items():
            self._board.add_scalar(f"loss by noise/{name}", value, step)
        for name in ("gradient", "rate", "samples_s", "tokens_s", "mfu", "waited"):
            self._board.add_scalar(f"run/{name}", note[name], step)

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


def sheet(videos_B3FHW: Tensor, most: int = 12) -> np.ndarray:
    """Videos as a contact sheet uint8 [H, W, 3]: a row each, time to the right."""
    rows = videos_B3FHW[:most].permute(0, 3, 2, 4, 1).flatten(2, 3)
    return np.asarray(rows.flatten(0, 1).cpu())


def pictures(video_B3FHW: Tensor) -> Tensor:
    """A video in [-1, 1] as uint8."""
    return ((video_B3FHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
