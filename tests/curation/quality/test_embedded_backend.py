import os

import cv2
import numpy as np

from curation.quality.embedded_backend import WEIGHTS, load_weights
from curation.quality.features import _damage_response, _slope, patch_features
from curation.quality.iqa import FAULTS


def test_the_weights_ship_with_the_package_and_are_small():
    assert os.path.getsize(WEIGHTS) <= 2 << 20
    assert load_weights(WEIGHTS)["out"].shape[1] == 2 + len(FAULTS)


def test_features_are_finite_whatever_the_picture():
    rng = np.random.default_rng(0)
    odd = [np.zeros((64, 64)), np.full((64, 64), 255), rng.integers(0, 256, (64, 64)), np.indices((64, 64)).sum(0) % 2 * 255]
    values = patch_features(np.array(odd, np.uint8))
    assert values.shape == (4, len(load_weights(WEIGHTS)["mean"]))
    assert np.isfinite(values).all()


def test_what_was_coded_before_changes_less_when_coded_again_on_its_grid():
    rng = np.random.default_rng(0)
    clean = cv2.GaussianBlur(rng.integers(0, 256, (64, 64), np.uint8), (0, 0), 1.2)
    coded = cv2.imdecode(cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)
    fresh, again = _damage_response(np.stack([clean, coded]))
    on_grid, on_less_off = 0, -1
    assert again[on_grid] < fresh[on_grid] - 1
    assert again[on_less_off] < fresh[on_less_off] - 1


def test_a_patch_hardly_sees_its_neighbours():
    rng = np.random.default_rng(1)
    both = rng.integers(0, 256, (2, 64, 64), np.uint8)
    alone = np.concatenate([_damage_response(both[:1]), _damage_response(both[1:])])
    np.testing.assert_allclose(_damage_response(both), alone, rtol=0.02, atol=0.05)


def test_slopes_do_not_depend_on_where_a_picture_lies_in_memory():
    rng = np.random.default_rng(2)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (64, 1024), np.uint8), (0, 0), 2)
    first, held = _slope(wide), []
    for _ in range(200):
        held.append(np.empty(int(rng.integers(1, 60000)), np.uint8))
        assert _slope(wide).tobytes() == first.tobytes()
