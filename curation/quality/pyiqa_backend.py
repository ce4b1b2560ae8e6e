"""The quality backends `pyiqa:METRIC`: any no-reference metric of pyiqa (MUSIQ, as in the paper; NIQE, BRISQUE, PIQE ...).

pyiqa and its weights are for non-commercial use only (PolyForm Noncommercial and NTU S-Lab licences), and a run that uses them
says so. docs/quality.md has the command that installs pyiqa with one OpenCV.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import av
import numpy as np

from curation import model_files
from curation.errors import InputError, Unavailable
from curation.model_files import Weights
from curation.quality.iqa import FAULTS, PATCH

_HUB = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_FILES = {
    "musiq": "musiq_koniq_ckpt-e95806b9.pth",
    "musiq-ava": "musiq_ava_ckpt-e8d3f067.pth",
    "musiq-spaq": "musiq_spaq_ckpt-358bb6af.pth",
    "musiq-paq2piq": "musiq_paq2piq_ckpt-364c0c84.pth",
    "niqe": "niqe_modelparameters.mat",
    "brisque": "brisque_svm_weights.pth",
}
_WITHOUT_WEIGHTS = frozenset({"piqe"})
# Worst and best value of metrics whose range as pyiqa declares it (0 to 100) is not the range of real pictures.
_SCORE_RANGES = {"niqe": (20.0, 0.0), "niqe_matlab": (20.0, 0.0), "ilniqe": (100.0, 0.0)}
_BATCH_ON_GPU = 8


class PyiqaIqa:
    """One metric of pyiqa. Scores are scaled to 0 to 1 with 1 the best, also for metrics where less is better (NIQE, PIQE).

    `options` are pyiqa's own options of the metric; a test uses `pretrained=False`.
    """

    def __init__(self, metric: str, file: str | None = None, **options: Any) -> None:
        table = _metric_table()
        if metric not in table.DEFAULT_CONFIGS or table.DEFAULT_CONFIGS[metric].get("metric_mode") != "NR":
            raise InputError(f"pyiqa has no no-reference metric {metric!r}; correct partition.iqa.backend in the recipe")
        self.name = f"pyiqa:{metric}"
        self._metric = _create_metric(metric, {**options, **(_weight_options(metric, file) if not options else {})})
        self._worst, self._best = _SCORE_RANGES.get(metric) or _score_range(table.DEFAULT_CONFIGS[metric])
        self.batch = _BATCH_ON_GPU if self._metric.device.type == "cuda" else 1

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        rows = np.full((len(frames), 1 + len(FAULTS)), np.nan, np.float32)
        if min(frames[0].width, frames[0].height) >= PATCH:
            rows[:, 0] = np.clip((self._values(frames) - self._worst) / (self._best - self._worst), 0, 1)
        return rows

    def _values(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        """Return the metric's own values [N] of pictures as coded, without applying a rotation."""
        import torch

        rgb = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        pictures = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return self._metric(pictures).double().cpu().numpy().reshape(-1)


def _metric_table() -> Any:
    """Return pyiqa's table of metrics. Raise Unavailable if the package is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pyiqa
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"pyiqa cannot be imported ({error}): {model_files.INSTALL_PYIQA} (docs/quality.md has pip's way); or choose "
            f"partition.iqa.backend: embedded, which needs nothing, with score.quality.min_iqa: 0.45"
        ) from error
    return pyiqa.models.inference_model


def _create_metric(metric: str, options: dict[str, Any]) -> Any:
    """Create the metric, on the GPU if there is one. pyiqa downloads weights that are not in `_FILES` itself.

    Raise Unavailable if a package or the weights are missing.
    """
    import pyiqa

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pyiqa.create_metric(metric, **options)
    except ModuleNotFoundError as error:
        raise Unavailable(f"pyiqa:{metric} needs a package that is not installed on this machine: {error}") from error
    except OSError as error:
        raise Unavailable(
            f"pyiqa:{metric}: its weights are not on this machine and cannot be downloaded ({error}). Give their file as "
            f"partition.iqa.weights, or let pyiqa download them on another machine and copy its cache (torch hub's pyiqa/)"
        ) from error


def _weight_options(metric: str, file: str | None) -> dict[str, str]:
    """Return the options of a metric that name the file with its weights."""
    if metric in _WITHOUT_WEIGHTS or (file is None and metric not in _FILES):
        return {}
    name = _FILES.get(metric, metric)
    weights = Weights(f"pyiqa:{metric}", f"pyiqa/{name}", name, _HUB + name, hub_folder="pyiqa")
    return {"pretrained_model_path": str(model_files.find_or_download(weights, file))}


def _score_range(config: dict[str, Any]) -> tuple[float, float]:
    """Return the worst and the best value of a metric as pyiqa declares them ("~0, ~100")."""
    low, high = (float(part.strip(" ~")) for part in config.get("score_range", "0, 1").split(","))
    return (high, low) if config.get("lower_better") else (low, high)
