"""What makes the detector doubt a clip."""

import numpy as np
import pytest

from curation.actions.confidence import FEATURES, clip_confidence, clip_features
from curation.actions.learned import KINDS, REGIMES, Prediction


def prediction(event, kind=0.9, distance=0.5, regime=0.95, spread=0.01):
    """Return what the network says of six seconds: the same event probability, or one for each tick."""
    ticks = 60
    regimes = np.full((ticks, len(REGIMES)), (1 - regime) / (len(REGIMES) - 1))
    regimes[:, 1] = regime
    kinds = np.full((ticks, len(KINDS)), 0.01)
    kinds[:, 0] = kind
    return Prediction(
        np.arange(ticks) / 10,
        np.broadcast_to(event, ticks).astype(float),
        regimes,
        kinds,
        np.full(ticks, distance),
        np.full(ticks, spread),
    )


def test_each_feature_is_larger_where_there_is_more_doubt():
    calm = clip_features(prediction(0.98), 0, 6)
    for doubt in (
        prediction(0.5),
        prediction(0.98, kind=0.2),
        prediction(0.98, distance=1.5),
        prediction(0.98, regime=0.3),
        prediction(0.98, spread=0.3),
    ):
        assert (clip_features(doubt, 0, 6) >= calm - 1e-9).all()
        assert (clip_features(doubt, 0, 6) > calm + 0.1).any()
    np.testing.assert_allclose(clip_features(prediction(0.5), 0, 6)[:2], [1, 1])


def test_only_the_clip_itself_counts():
    event = np.where(np.arange(60) < 30, 0.99, 0.5)
    assert clip_features(prediction(event), 0, 3)[0] < 0.1 < 0.9 < clip_features(prediction(event), 3, 6)[0]


def test_the_confidence_is_logistic_in_the_features():
    weight = np.array([-2.0, 0, -1.0, 0, 0, 0])
    features = clip_features(prediction(0.5, distance=1.0), 0, 6)
    expected = 1 / (1 + np.exp(2 * features[0] + features[2] - 3))
    assert clip_confidence(prediction(0.5, distance=1.0), 0, 6, weight, 3.0) == pytest.approx(expected)


def test_a_clip_without_ticks_has_all_doubt():
    assert clip_features(prediction(0.9), 7, 8).tolist() == [1] * len(FEATURES)
