"""Image quality of a video's frames, by curation's backends: MUSIQ by pyiqa as in the paper, or our own network."""

from functools import cache

import av
import numpy as np

from curation.quality.backends import load_iqa
from curation.quality.iqa import Iqa, IqaSettings
from model.evaluation.general.metric import Metric

METRIC = Metric(
    "Image quality",
    "0 to 1",
    "up",
    "Mean over frames, taken at a fixed interval of time, of a no-reference quality score scaled to 0 to 1.",
    "VBench (Huang et al. 2024) uses MUSIQ trained on SPAQ (`pyiqa:musiq-spaq`); the default is curation's embedded network.",
)


@cache
def _backend(settings: IqaSettings) -> Iqa:
    return load_iqa(settings)


def image_quality(frames_NHW3: np.ndarray, settings: IqaSettings) -> float:
    """Return the quality of frames uint8 [N, H, W, 3], `settings.every_s` apart, 0 to 1; NaN where they are too small.

    Unavailable where weights are missing.
    """
    backend = _backend(settings)
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames_NHW3]
    rows = [backend(frames[k : k + backend.batch]) for k in range(0, len(frames), backend.batch)]
    scores = np.concatenate(rows)[:, 0] if rows else np.empty(0)
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if len(known) else float("nan")
