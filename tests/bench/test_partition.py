"""The benchmark's own arithmetic, on a recording that a test can make up."""

import numpy as np
import pytest

from bench import partition
from curation.actions.detect import Actions
from curation.actions.spans import ActionSpan
from synth.doom.map_splits import HELD_OUT, recordings

pytest.importorskip("vizdoom", reason="the benchmark records its footage")


def actions(*spans):
    return Actions(
        np.zeros(0), np.zeros(0), [ActionSpan(a, a, b, 1.0, kind, name) for a, b, kind, name in spans], "learned", 0.0
    )


def test_regimes_that_touch_change_once_where_they_touch():
    detected = actions((0.0, 2.0, "regime", "forward"), (2.0, 3.0, "regime", "back"), (2.5, 2.7, "interaction", "event"))
    assert partition.changes(detected) == [2.0, 3.0]


def test_takes_are_on_held_out_maps_and_differ_by_seed():
    one, other = (dict(partition.takes(seed)) for seed in (1, 2))
    assert list(one) == list(other)
    assert all(name in HELD_OUT for take in one.values() for _, name, _ in take.maps)
    assert sum(len(take.maps) == 11 for take in one.values()) == 3, "ten cuts each"
    assert one != other


def test_training_and_evaluation_share_no_map():
    kinds = {
        kind: {place[1] for name, r in recordings().items() if name.startswith(kind) for place in r.maps}
        for kind in ("train", "valid")
    }
    assert not kinds["train"] & kinds["valid"]
    assert not HELD_OUT & (kinds["train"] | kinds["valid"])
