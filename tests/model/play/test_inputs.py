"""The input law: what keys and mouse do to the frames of a block."""

import pytest

from model.control.spec import ControlState
from model.play.inputs import Inputs


def keys(sample):
    return ["+".join(sorted(state.keys)) for state in sample.controls]


def test_without_input_nothing_acts_and_no_message_is_named():
    sample = Inputs(16).sample(4)
    assert sample.controls == (ControlState(),) * 4
    assert (sample.seq, sample.received_s) == (0, None)


def test_a_held_key_acts_in_all_frames_of_all_blocks():
    inputs = Inputs(16)
    inputs.receive(1, ["W"], 0, 0, 1.0)
    for _ in range(3):
        assert keys(inputs.sample(4)) == ["W"] * 4
    inputs.receive(2, [], 0, 0, 2.0)
    assert keys(inputs.sample(4)) == [""] * 4


@pytest.mark.parametrize(("held_s", "frames"), [(0.02, 4), (0.3, 5), (5.0, 12)])
def test_a_tap_between_two_samples_is_a_pulse_of_a_latent_at_least(held_s, frames):
    inputs = Inputs(16)
    inputs.receive(1, ["D"], 0, 0, 1.0)
    inputs.receive(2, [], 0, 0, 1.0 + held_s)
    assert keys(inputs.sample(12)) == ["D"] * frames + [""] * (12 - frames)
    assert keys(inputs.sample(12)) == [""] * 12


def test_a_tap_beside_a_held_key_adds_to_it():
    inputs = Inputs(16)
    inputs.receive(1, ["W"], 0, 0, 1.0)
    inputs.sample(8)
    inputs.receive(2, ["W", "LEFT"], 0, 0, 1.1)
    inputs.receive(3, ["W"], 0, 0, 1.12)
    assert keys(inputs.sample(8)) == ["LEFT+W"] * 4 + ["W"] * 4


def test_a_key_that_has_acted_and_is_let_go_is_no_tap():
    inputs = Inputs(16)
    inputs.receive(1, ["W"], 0, 0, 1.0)
    inputs.sample(4)
    inputs.receive(2, [], 0, 0, 1.01)
    assert keys(inputs.sample(4)) == [""] * 4


def test_mouse_counts_are_spread_over_the_frames_and_none_is_lost():
    inputs = Inputs(16)
    for seq, (dx, dy) in enumerate([(8, -2), (4, 0), (0, -6)], start=1):
        inputs.receive(seq, [], dx, dy, 1.0)
    assert inputs.sample(4).controls == (ControlState(frozenset(), 3.0, -2.0),) * 4
    assert inputs.sample(4).controls == (ControlState(),) * 4


def test_an_older_message_is_ignored_until_a_new_connection_counts_again():
    inputs = Inputs(16)
    inputs.receive(5, ["W"], 0, 0, 1.0)
    assert not inputs.receive(4, [], 9, 9, 1.1)
    assert not inputs.receive(5, [], 9, 9, 1.1)
    sample = inputs.sample(4)
    assert keys(sample) == ["W"] * 4
    assert (sample.seq, sample.received_s) == (5, 1.0)
    inputs.restart_sequence()
    inputs.receive(1, ["S"], 0, 0, 2.0)
    assert inputs.sample(4).seq == 1


def test_only_what_a_person_does_counts_as_activity():
    inputs = Inputs(16)
    assert not inputs.receive(1, [], 0, 0, 1.0)
    assert inputs.receive(2, ["W"], 0, 0, 1.0)
    assert inputs.receive(3, ["W"], 0, 0, 1.0)
    assert inputs.receive(4, [], 0, 0, 1.0)
    assert inputs.receive(5, [], 0, 1, 1.0)
    assert not inputs.receive(6, [], 0, 0, 1.0)


def test_release_forgets_keys_taps_and_mouse():
    inputs = Inputs(16)
    inputs.receive(1, ["W", "A"], 5, 5, 1.0)
    inputs.receive(2, ["W"], 0, 0, 1.01)
    inputs.release()
    assert inputs.sample(4).controls == (ControlState(),) * 4
