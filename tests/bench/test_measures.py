import numpy as np
import pytest

from bench.measures import Hits, auc, count_contained, match_instants, spearman


def test_auc_of_a_perfect_a_random_and_an_inverted_ranking():
    flags = np.array([False, False, True, True])
    assert auc(np.array([1, 2, 3, 4]), flags) == 1
    assert auc(np.array([4, 3, 2, 1]), flags) == 0
    assert auc(np.array([7, 7, 7, 7]), flags) == 0.5


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    score, flags = rng.integers(0, 9, 60), rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in score[flags] for b in score[~flags]]
    assert auc(score, flags) == pytest.approx(np.mean(pairs))


def test_auc_of_one_kind_only_is_not_a_number():
    assert np.isnan(auc(np.arange(3), np.ones(3, bool)))


def test_spearman_knows_order_and_ties():
    assert spearman(np.array([1, 2, 3]), np.array([10, 20, 400])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1, 1, 2, 2]), np.array([1, 2, 3, 4])) == pytest.approx(2 / np.sqrt(5))
    assert np.isnan(spearman(np.ones(3), np.arange(3)))


def test_each_instant_is_matched_once():
    assert match_instants([1.0, 1.1], [1.05], 0.25) == Hits(1, 1, 2)
    assert match_instants([1.0], [0.9, 1.1], 0.25) == Hits(1, 2, 1)
    assert match_instants([1.25, 3.0], [1.0, 2.0], 0.25) == Hits(1, 2, 2)


def test_f1_of_hits():
    assert Hits(8, 10, 10).f1 == pytest.approx(0.8)
    assert Hits(8, 10, 10).plus(Hits(2, 2, 2)).false == 2
    assert Hits().f1 == 0


def test_an_interval_is_contained_with_some_room():
    assert count_contained([(1.0, 2.0)], [(1.2, 1.9)], 0.25) == 1
    assert count_contained([(1.0, 2.0)], [(1.3, 2.0)], 0.25) == 0
    assert count_contained([(1.0, 2.0), (5.0, 6.0)], [(0.0, 3.0)], 0.25) == 1
