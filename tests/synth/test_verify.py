"""Verdicts on metrics, by interaction: the reason of each rule with both numbers, and the VLM's answer."""

import pytest

from curation.vlm import Answer
from synth import taxonomy, verify
from synth.metrics import VideoMetrics
from synth.verify import VerifySettings, rejection_reason

GOOD = VideoMetrics(
    first_error=2.0, cuts=0, shifted=0.0, change_peak=0.6, change_brief=0.7, change_end=0.6, kept=0.95, hands=0.3,
    entry=0.1, spread=0.9, motion=0.1, light_peak=20.0, light_end=20.0, onset_s=1.0,
)  # fmt: skip
ONE_PLACE = GOOD._replace(change_peak=0.1, change_brief=0.1, change_end=0.1, spread=0.3)
HELD = ONE_PLACE._replace(hands=0.95, entry=0.9, motion=0.0)
CLEAN = {"luma_mean": 60.0, "iqa": 0.9}


def said(metrics, name, **scores):
    return rejection_reason(metrics, CLEAN | scores, taxonomy.built_in()[name], VerifySettings())


@pytest.mark.parametrize(
    ("metrics", "name"), [(GOOD, "snow"), (GOOD._replace(motion=0.0), "fog"), (HELD, "draw_gun"), (ONE_PLACE, "human")]
)
def test_what_is_as_described_is_accepted(metrics, name):
    assert said(metrics, name) is None


@pytest.mark.parametrize(
    ("changed", "name", "reason"),
    [
        ({"first_error": 30.0}, "snow", "not the initial frame: difference 30 > 8"),
        ({"cuts": 1}, "snow", "jumps: cuts 1 > 0"),
        ({"shifted": 0.8}, "snow", "the camera moves: share of pictures 0.8 > 0.3"),
        ({"change_peak": 0.0}, "snow", "nothing changes: share of the picture 0 < 0.04"),
        ({"kept": 0.0}, "snow", "gone before the end: share of the change kept 0 < 0.15"),
        ({"change_peak": 0.1}, "snow", "changes only in places: share of the picture 0.1 < 0.3"),
        ({"change_end": 0.9}, "human", "changes everywhere: share of the picture 0.9 > 0.45"),
        ({"change_end": 0.3}, "human", "changes across the picture: spread 0.9 > 0.65"),
        ({"change_end": 0.3, "spread": 0.3}, "draw_gun", "not in the hands: share of the change there 0.3 < 0.6"),
        ({"motion": 0.0}, "darkness", "not darker: luma by -20 < 3"),
        ({"kept": 0.9}, "lightning", "does not pass: share of the change kept 0.9 > 0.5"),
        ({"kept": 0.1}, "lightning", "does not pass: share of the picture 0.6 > 0.04"),
    ],
)
def test_each_rule_gives_its_reason(changed, name, reason):
    assert said(GOOD._replace(**changed), name) == reason


def test_who_stands_close_is_not_in_the_hand_and_what_is_held_does_not_stand_there():
    close = ONE_PLACE._replace(hands=0.95)
    assert said(close, "human") is None
    assert said(close, "draw_gun") == "not taken in the hand: share of its beginning at the lower edge 0.1 < 0.35"
    assert said(HELD._replace(motion=0.1), "human") == (
        "taken in the hand: share of its beginning at the lower edge 0.9 >= 0.35"
    )
    assert said(HELD, "explosion").startswith("taken in the hand")
    torch = GOOD._replace(hands=0.9, entry=0.9)
    assert said(torch._replace(spread=0.1), "snow").startswith("taken in the hand"), "a torch lights all"
    assert said(torch, "snow") is None, "what changes all of the picture may begin below"


def test_who_appears_moves_and_a_placed_block_does_not():
    assert said(ONE_PLACE._replace(motion=0.0), "human") == "does not move: change between pictures 0 < 0.03"
    assert said(ONE_PLACE._replace(motion=0.0), "place_block") is None
    assert said(ONE_PLACE, "place_block") == "moves: change between pictures 0.1 > 0.05"
    assert said(ONE_PLACE._replace(motion=0.0), "red_suv") is None, "a car may have stopped"


def test_luminance_and_quality_as_for_footage():
    assert said(GOOD, "snow", luma_mean=3.0).startswith("too dark: mean luma 3 < 16")
    assert said(GOOD, "snow", iqa=0.1, iqa_fault="blurred").startswith("blurred: quality 0.1 < 0.45")


def test_a_free_camera_may_move_and_what_it_shows_must_stay():
    moved = GOOD._replace(shifted=0.9, change_end=1.0)
    assert said(moved, "open_door") is None
    assert said(moved._replace(kept=0.0), "open_door").startswith("gone before the end")


def test_a_rule_can_be_switched_off():
    limits = VerifySettings(max_shifted=None, max_cuts=None)
    assert rejection_reason(GOOD._replace(shifted=0.9, cuts=3), CLEAN, taxonomy.built_in()["snow"], limits) is None


def test_the_trigger_question_carries_instruction_question_and_end_state():
    prompt = verify.trigger_prompt(taxonomy.built_in()["open_door"], "open the door", (b"1", b"2"), ("Frame 1:", "Frame 2:"))
    assert "open the door" in prompt.text
    assert "closed in the first frame open in the last?" in prompt.text
    assert prompt.frames == (b"1", b"2")
    assert set(prompt.schema["required"]) == {"happened", "end_state_holds", "evidence"}


def test_a_models_answer():
    yes = {"happened": True, "end_state_holds": True, "evidence": "frame 5"}
    assert verify.rejection_in_answer(Answer(yes)) is None
    assert verify.rejection_in_answer(Answer(yes | {"happened": False})) == "the model sees no such interaction: frame 5"
    assert verify.rejection_in_answer(Answer(yes | {"end_state_holds": False})) == "the model sees another end: frame 5"
    assert verify.rejection_in_answer(Answer(error="late")) == "no answer whether it happened: late"
