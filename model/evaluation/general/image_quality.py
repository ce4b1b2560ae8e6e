"""Image quality of a video's frames, by the quality backends of curation: MUSIQ by pyiqa as in the paper, or our own network."""

from functools import cache

import numpy as np

from curation.media import decode
from curation.media.decode import Span
from curation.quality.backends import load_iqa
from curation.quality.iqa import Iqa, IqaSettings
from model.evaluation.general.metric import Metric
from model.evaluation.videos import duration_s

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


def image_quality(uri: str, settings: IqaSettings) -> float:
    """Return the quality of a video, 0 to 1; NaN where its pictures are too small. Unavailable where weights are missing."""
    backend = _backend(settings)
    frames = [frame for _, frame in decode.frames_at_rate(uri, Span(0.0, duration_s(uri)), 1 / settings.every_s, "evaluate")]
    rows = [backend(frames[k : k + backend.batch]) for k in range(0, len(frames), backend.batch)]
    scores = np.concatenate(rows)[:, 0] if rows else np.empty(0)
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if len(known) else float("nan")
