"""The quality backends `pyiqa:METRIC`: any no-reference metric of pyiqa (MUSIQ, as in the paper; NIQE, BRISQUE, PIQE ...).

pyiqa and the weights that it offers are for non-commercial use (PolyForm Noncommercial and NTU S-Lab licences), which is why it
is an extra that is asked for by name. Install it with `pip install 'gamecraft[iqa]'` and `pip install --no-deps pyiqa==0.1.16`.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import av
import numpy as np

from curation import model_files
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
_NEEDS_NONE = frozenset({"piqe"})
# Worst and best value where what pyiqa declares (0 to 100) is not where pictures are.
_REACH = {"niqe": (20.0, 0.0), "niqe_matlab": (20.0, 0.0), "ilniqe": (100.0, 0.0)}
_BATCH_ON_GPU = 8


class Pyiqa:
    """One metric, ready. Scores are brought to 0 to 1 with 1 the best, also where less is better (NIQE, PIQE, BRISQUE).

    `options` are pyiqa's own for the metric (a test asks for `pretrained=False`).
    """

    def __init__(self, metric: str, file: str | None = None, **options: Any) -> None:
        known = _pyiqa()
        if metric not in known.DEFAULT_CONFIGS or known.DEFAULT_CONFIGS[metric].get("metric_mode") != "NR":
            raise ValueError(f"pyiqa has no no-reference metric {metric!r}")
        self.name = f"pyiqa:{metric}"
        self._metric = _created(metric, {**options, **(_weights(metric, file) if not options else {})})
        self._worst, self._best = _REACH.get(metric) or _reach(known.DEFAULT_CONFIGS[metric])
        self.batch = _BATCH_ON_GPU if self._metric.device.type == "cuda" else 1

    def __call__(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        rows = np.full((len(frames), 1 + len(FAULTS)), np.nan, np.float32)
        if min(frames[0].width, frames[0].height) >= PATCH:
            rows[:, 0] = np.clip((self._values(frames) - self._worst) / (self._best - self._worst), 0, 1)
        return rows

    def _values(self, frames: Sequence[av.VideoFrame]) -> np.ndarray:
        """The metric's own values [N], of pictures as coded: a rotation is not undone."""
        import torch

        rgb = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        pictures = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return self._metric(pictures).double().cpu().numpy().reshape(-1)


def _pyiqa() -> Any:
    """The package's table of metrics. FileNotFoundError where it is not installed: that is this machine's fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pyiqa
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"pyiqa cannot be imported ({error}): pip install 'gamecraft[iqa]', then pip install --no-deps pyiqa==0.1.16, "
            f"or choose partition.iqa.backend: embedded"
        ) from error
    return pyiqa.models.inference_model


def _created(metric: str, options: dict[str, Any]) -> Any:
    """The metric on the GPU where there is one. pyiqa fetches itself what we have no name for; that it could not is said."""
    import pyiqa

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pyiqa.create_metric(metric, **options)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(f"pyiqa:{metric} needs a package that is not installed here: {error}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"pyiqa:{metric}: its weights are not on this machine and could not be fetched ({error}). Give their file as "
            f"partition.iqa.weights, or let pyiqa fetch them where there is a network and copy its cache (torch hub's pyiqa/)"
        ) from error


def _weights(metric: str, file: str | None) -> dict[str, str]:
    """How a metric is told where its weights are."""
    if metric in _NEEDS_NONE or (file is None and metric not in _FILES):
        return {}
    name = _FILES.get(metric, metric)
    wanted = Weights(f"pyiqa:{metric}", f"pyiqa/{name}", name, _HUB + name, hub_folder="pyiqa")
    return {"pretrained_model_path": str(model_files.find_or_download(wanted, file))}


def _reach(config: dict[str, Any]) -> tuple[float, float]:
    """Worst and best value of a metric as pyiqa declares them ("~0, ~100")."""
    low, high = (float(part.strip(" ~")) for part in config.get("score_range", "0, 1").split(","))
    return (high, low) if config.get("lower_better") else (low, high)
