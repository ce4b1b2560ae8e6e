"""The arithmetic of the cost of curation."""

from collections import Counter

import pytest

pytest.importorskip("vizdoom", reason="the benchmark records its footage")

from bench.curate import beyond_floor


def test_what_is_beyond_the_floor_adds_up():
    stages = Counter({"scan_source": 9.0, "measure_quality": 0.5, "encode_clip": 22.0})
    floor = {"one decode": 4.0, "cut out and scaled": 2.0, "one encode": 15.0}
    beyond = beyond_floor(stages, floor, 4.5)
    assert list(beyond.values()) == pytest.approx([5.0, 4.5, 1.0])
    assert sum(beyond.values()) == pytest.approx(stages.total() - sum(floor.values()))
