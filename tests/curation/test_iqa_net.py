import os

import numpy as np

from curation.iqa import FAULTS
from curation.iqa_features import features
from curation.iqa_net import WEIGHTS, load


def test_the_weights_ship_with_the_package_and_are_small():
    assert os.path.getsize(WEIGHTS) <= 2 << 20
    assert load(WEIGHTS)["out"].shape[1] == 2 + len(FAULTS)


def test_features_are_finite_whatever_the_picture():
    rng = np.random.default_rng(0)
    odd = [np.zeros((64, 64)), np.full((64, 64), 255), rng.integers(0, 256, (64, 64)), np.indices((64, 64)).sum(0) % 2 * 255]
    found = features(np.array(odd, np.uint8))
    assert found.shape == (4, len(load(WEIGHTS)["mean"]))
    assert np.isfinite(found).all()
