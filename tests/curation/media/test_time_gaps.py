"""Holes in presentation time: where they are, and that nothing is made of them."""

import numpy as np
import pytest

from curation.media.time_gaps import Segment, describe_gaps, frame_step, gaps, split_at_gaps


def parts_of(*times_s, fps=None):
    times = np.array(times_s, float)
    return split_at_gaps(times, frame_step(times, fps))


def at(fps, count, first_s=0.0):
    return [first_s + k / fps for k in range(count)]


def test_a_hole_lies_from_the_end_of_a_frame_to_the_next_one():
    parts = parts_of(*at(20, 160), *at(20, 160, 60.0))
    assert parts == [Segment(0, 160, 0.0, pytest.approx(8.0)), Segment(160, 320, 60.0, pytest.approx(68.0))]
    assert list(gaps(parts)) == [(pytest.approx(8.0), pytest.approx(52.0))]
    assert describe_gaps(parts) == "no frame for 52 s at 8.0 s"


def test_over_a_second_is_a_hole_and_a_second_is_none():
    assert len(parts_of(*at(20, 40), *at(20, 40, 1.95 + 1.0))) == 1
    assert len(parts_of(*at(20, 40), *at(20, 40, 1.95 + 1.01))) == 2


def test_no_hole_no_note():
    assert describe_gaps(parts_of(*at(30, 90))) is None


@pytest.mark.parametrize("fps", [1.0, 1000 / 1001, 0.5])
def test_a_slow_source_has_its_own_step_and_no_holes(fps):
    (part,) = parts_of(*at(fps, 20))
    assert part.end_s == pytest.approx(20 / fps)


def test_frames_an_hour_apart_are_no_rate():
    assert parts_of(0.0, 3600.0, fps=1 / 3600) == [Segment(0, 1, 0.0, 1.0), Segment(1, 2, 3600.0, 3601.0)]
    assert len(parts_of(*at(0.1, 12))) == 12


def test_the_longest_holes_are_named_and_the_others_counted():
    times_s = [t for k in range(6) for t in at(20, 20, 10.0 * k + k * k)]
    words = describe_gaps(parts_of(*times_s))
    assert words == (
        "no frame for 18 s at 57.0 s, no frame for 16 s at 40.0 s, no frame for 14 s at 25.0 s, 2 more gaps of 22 s together"
    )


def test_one_frame_is_a_stretch():
    assert parts_of(0.0, fps=25.0) == [Segment(0, 1, 0.0, 0.04)]
