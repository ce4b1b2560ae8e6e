"""Controls as text, both ways."""

import pytest

from curation.errors import InputError
from model.control.spec import ControlState
from model.play.keys import format_keys, parse_keys


def state(*keys, dx=0.0, dy=0.0):
    return ControlState(frozenset(keys), dx, dy)


def test_words_are_keys_and_numbers_of_frames():
    controls = parse_keys("W*2 D+W LEFT*3 .*2 @3,-1.5*2 w@1,0")
    assert controls == [
        *[state("W")] * 2, state("D", "W"), *[state("LEFT")] * 3, *[state()] * 2, *[state(dx=3, dy=-1.5)] * 2, state("W", dx=1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("W*16 X*3", "'X*3' has the unknown key 'X'; known are A, D"),
        ("W*0", "'W*0' lasts for 0 frames"),
        ("W**3", "cannot read 'W**3'"),
        ("W* 3", "cannot read 'W*'"),
        ("W@3*2", "cannot read 'W@3*2'"),
        ("W+*2", "unknown key ''"),
        ("*3", "cannot read '*3'"),
        ("W*99999 W*9", "'W*9' makes it longer than 100000 frames"),
        ("  ", "--keys is empty; an example is"),
    ],
)
def test_an_error_names_the_word(script, message):
    with pytest.raises(InputError, match="--keys") as caught:
        parse_keys(script)
    assert message in str(caught.value)


def test_text_and_controls_are_each_others_inverse():
    controls = [state("W"), state("W"), state(), state("D", "W", dx=0.1, dy=-1e-7), state(dx=1 / 3), state(dx=1 / 3)]
    text = format_keys(controls)
    assert text == "W*2 . D+W@0.1,-1e-07 @0.3333333333333333,0.0*2"
    assert parse_keys(text) == controls
