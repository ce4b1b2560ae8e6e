"""Generation speed: frames a second of a set of videos, with the machine that made them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.evaluation.cases import Case
from model.evaluation.general.metric import Metric
from model.evaluation.videos import frame_times

METRIC = Metric(
    "FPS",
    "1/s",
    "up",
    "Frames of all videos by the seconds that their generation took, encoder and decoder included, files written excluded.",
    "The paper's table 4, which does not say what is included.",
)


def frames_per_second(cases: Sequence[Case]) -> float:
    """Return the speed over the cases whose `seconds` are known; NaN where none is."""
    timed = [case for case in cases if case.seconds > 0]
    frames = sum(len(frame_times(case.video)) for case in timed)
    return frames / float(np.sum([case.seconds for case in timed])) if timed else float("nan")


def environment() -> dict[str, Any]:
    """Return what generates on this machine: devices, threads, versions."""
    import platform

    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "devices": torch.cuda.device_count() if cuda else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
