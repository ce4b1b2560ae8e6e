"""Fingerprints and their comparison, on arrays: no video is decoded."""

import cv2
import numpy as np
import pytest

from curation.media.viewport import Rect
from curation.near_duplicates import Clip, Index
from curation.partition.fingerprint import FLAT, KEYS, PER_S, distance, fingerprint

FRAME = Rect(0, 0, 32, 24)


def world(seed, size=(96, 300)):
    """A smooth random ground, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 60, (size[0] // 6, size[1] // 6))
    rows = np.repeat(np.repeat(coarse, 6, 0), 6, 1) + 128
    return np.clip(rows, 0, 255)


def views(seed, seconds=8.0, rate=PER_S, speed=1.0, start_s=0.0, noise=0.0):
    """Small lumas of a view that drifts over a ground, [K, 24, 32], and their times."""
    times_s = np.arange(0, seconds / speed, 1 / rate)
    ground, rng = world(seed), np.random.default_rng(99)
    shown_s = start_s + speed * times_s
    x = 20 + 5 * shown_s + 3 * np.sin(2 * shown_s + seed)
    y = 30 + 6 * np.sin(shown_s)
    pictures = [ground[int(v) : int(v) + 24, int(u) : int(u) + 32] for u, v in zip(x, y, strict=True)]
    noisy = np.array(pictures) + rng.normal(0, noise, (len(times_s), 24, 32))
    return times_s, np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def prints(*args, **options):
    times_s, lumas = views(*args, **options)
    return fingerprint(times_s, lumas, FRAME, (32, 24))


def copies(tmp_path, *videos, min_similarity=0.75):
    index = Index(str(tmp_path))
    for video, order in videos:
        end_s = float(video.times_s[-1]) + 1 / PER_S
        index.add(video, [Clip(0.0, end_s / 2, order), Clip(end_s / 2, end_s, order)])
    return index.copies(min_similarity)


def test_noise_brightness_and_bars_change_few_bits_and_keep_most_keys():
    times_s, lumas = views(1)
    clean = fingerprint(times_s, lumas, FRAME, (32, 24))
    for other in (views(1, noise=3)[1], (255 * (lumas / 255) ** 0.8).astype(np.uint8)):
        changed = fingerprint(times_s, other, FRAME, (32, 24))
        assert np.median(distance(clean.hashes, changed.hashes)) <= 6
    # Bars of an eighth above and below: the picture is drawn at three quarters of its height.
    smaller = np.stack([cv2.resize(each, (32, 18), interpolation=cv2.INTER_AREA) for each in lumas])
    barred = np.pad(smaller, ((0, 0), (3, 3), (0, 0)))
    assert np.median(distance(clean.hashes, fingerprint(times_s, barred, Rect(0, 3, 32, 18), (32, 24)).hashes)) <= 6
    assert np.median(distance(clean.hashes, fingerprint(times_s, barred, FRAME, (32, 24)).hashes)) > 8, "bars not known"
    assert clean.keys.shape == (len(clean.key_frame), KEYS)
    assert np.median(distance(clean.hashes, prints(2).hashes)) > 20


def test_a_picture_without_structure_has_no_hash_and_no_key():
    black = fingerprint(np.arange(4) / PER_S, np.zeros((4, 24, 32), np.uint8), FRAME, (32, 24))
    assert (black.hashes == FLAT).all()
    assert len(black.keys) == 0


@pytest.mark.parametrize("options", [{"noise": 4.0}, {"rate": 5}, {"start_s": 0.3}, {"speed": 1.1}])
def test_copies_are_found_whatever_their_times(tmp_path, options):
    found = copies(tmp_path, (prints(3), (0,)), (prints(4), (0,)), (prints(3, **options), (1,)))
    assert [(each.clip, each.original) for each in found] == [(4, 0), (5, 1)]


def test_of_copies_the_first_in_order_stays_and_the_rest_name_it(tmp_path):
    found = copies(tmp_path, (prints(3, noise=2), (2,)), (prints(3), (0,)), (prints(3, noise=4), (1,)))
    assert [(each.clip, each.original) for each in found] == [(0, 2), (1, 3), (4, 2), (5, 3)]


def test_what_stands_still_is_no_copy(tmp_path):
    times_s, lumas = views(5)
    still = fingerprint(times_s, np.repeat(lumas[:1], len(lumas), 0), FRAME, (32, 24))
    assert copies(tmp_path, (still, (0,)), (still, (1,))) == []


def test_a_shared_beginning_is_no_copy(tmp_path):
    """Two takes that begin alike, as two plays of a map do, and then go their own ways."""
    times_s, lumas = views(6)
    other = np.concatenate([lumas[:12], views(7)[1][12:]])
    found = copies(tmp_path, (prints(6), (0,)), (fingerprint(times_s, other, FRAME, (32, 24)), (1,)))
    assert found == []


def test_pairs_are_linear_in_clips_although_all_share_their_keys():
    from curation.near_duplicates import _pairs_of_keys

    for count in (100, 1000):
        pairs = list(_pairs_of_keys(np.zeros(count, np.uint64), np.arange(count), np.arange(count)))
        assert sum(map(len, pairs)) <= 5 * count
