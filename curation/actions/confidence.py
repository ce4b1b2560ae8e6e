"""How sure the interactions of a clip are: a number that holds for games that the detector was not trained on.

The networks' own probability does not: on another engine it is calm and wrong. So a logistic rule reads how decided the
networks are over the clip, how much they differ, how far their input is from the training set, and whether what they find is
of a kind that they know. Its weights were fitted on engines that the judging networks had not seen
(`bench/shipped_weights/calibrate_interactions.py`).
"""

import numpy as np

from curation.actions.learned import RATE_HZ, Prediction

FEATURES = ("entropy", "undecided_peak", "distance", "unnamed", "regime_doubt", "spread")
_SURE = 0.3  # probability from which a tick takes part in an interaction
_PEAK_TICKS = round(0.5 * RATE_HZ)  # over which the strongest moment is taken


def clip_features(prediction: Prediction, start_s: float, end_s: float) -> np.ndarray:
    """Return what the confidence is computed from, [6], each about 0 to 1 and larger where there is more doubt.

    The mean entropy of the event's probability; how undecided its highest value is; the distance to the training set, of which
    2 counts as 1; how far the kinds of what happens are from certain; how far the regimes are; and how much the networks differ
    in the strongest half second.
    """
    inside = prediction.ticks_within(start_s, end_s)
    if inside.start == inside.stop:
        return np.ones(len(FEATURES))
    event = prediction.event_probability[inside].clip(1e-6, 1 - 1e-6)
    entropy = -(event * np.log2(event) + (1 - event) * np.log2(1 - event))
    strongest = np.argsort(event)[-_PEAK_TICKS:]
    sure = event >= _SURE
    named = prediction.kind_probability[inside][sure].max(1).mean() if sure.any() else 1.0
    return np.array(
        [
            entropy.mean(),
            1 - abs(2 * event.max() - 1),
            min(float(np.median(prediction.distance[inside])), 2.0) / 2,
            1 - named,
            1 - prediction.regime_probability[inside].max(1).mean(),
            min(2 * float(prediction.spread[inside][strongest].mean()), 1.0),
        ]
    )


def clip_confidence(prediction: Prediction, start_s: float, end_s: float, weight_F: np.ndarray, bias: float) -> float:
    """Return how probable it is, 0-1, that the clip's verdict is right."""
    features = clip_features(prediction, start_s, end_s)[: len(weight_F)]  # rules of the first releases have five
    return float(1 / (1 + np.exp(-(features @ weight_F + bias))))
