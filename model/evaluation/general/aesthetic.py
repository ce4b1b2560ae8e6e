"""Aesthetic score of a video's frames: CLIP's image embedding and a linear head that was trained on ratings of people."""

from collections.abc import Callable
from functools import cache

import numpy as np

from curation import model_files
from curation.errors import InputError
from model.evaluation.general.metric import Metric

METRIC = Metric(
    "Aesthetic",
    "0 to 1",
    "up",
    "Mean over frames of a linear head on the normalised CLIP embedding, divided by 10.",
    "LAION's aesthetic predictor, version 1 (CLIP ViT-L/14), as VBench's aesthetic_quality uses it.",
)
Score = Callable[[np.ndarray], np.ndarray]


@cache
def load_aesthetic(clip: str, head: str) -> Score:
    """Load CLIP by its folder or hub name, and the head from a file of torch (`weight` [1, C], `bias` [1]).

    InputError where the head does not fit CLIP's embedding. The result takes uint8 [N, H, W, 3] and returns scores [N].
    """
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    with model_files.explain_if_missing(clip):
        folder = model_files.resolve_model(clip)
        network, processor = CLIPVisionModelWithProjection.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    try:
        state = torch.load(head, map_location="cpu", weights_only=True)
        linear = torch.nn.Linear(network.config.projection_dim, 1)
        linear.load_state_dict({name: state[name] for name in ("weight", "bias")})
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{head}: no linear head for {clip}: {str(error)[:200]}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.eval().to(device)
    linear.eval().to(device)

    @torch.no_grad()
    def score(frames_NHW3: np.ndarray) -> np.ndarray:
        rows = []
        for k in range(0, len(frames_NHW3), 8):
            pixels = processor(images=list(frames_NHW3[k : k + 8]), return_tensors="pt")["pixel_values"].to(device)
            embedding = torch.nn.functional.normalize(network(pixel_values=pixels).image_embeds, dim=-1)
            rows.append(linear(embedding)[:, 0].cpu().numpy())
        return np.concatenate(rows) / 10

    return score


def aesthetic(video_FHW3: np.ndarray, score: Score) -> float:
    """Return the mean aesthetic score of a uint8 video."""
    return float(score(video_FHW3).mean())
