import jsonschema
import pytest

from curation.actions.learned import KINDS
from curation.captions import caption as captions
from curation.captions.caption import HAPPENINGS, ClipMeasurements, MeasuredEvent, compose_caption, describe, find_conflicts

WALK = ClipMeasurements(
    length_s=6.0,
    motions=(("forward", 0.0, 2.4), ("turn_left", 2.4, 3.6)),
    events=(MeasuredEvent(1.2, 1.9, 2.5, 0.9),),
    events_known=True,
    luma_mean=58.0,
    motion_camera=4.2,
    motion_object=0.6,
)


def test_a_measured_caption_says_what_was_measured_and_nothing_else():
    caption = compose_caption(WALK)
    assert caption.source == "measured"
    assert caption.short == "The camera moves forward, then turns left; something happens at 1.9 s."
    assert caption.long == (
        "A clip of 6.0 s. The camera moves forward, then turns left; on average it moves (4.2 px a frame at 320 px wide). "
        "It is dim (mean luminance 58 of 255). Something happens from 1.2 to 2.5 s, strongest at 1.9 s."
    )
    known = {"camera_motion": ["forward", "turn_left"], "lighting": "dim"}
    assert caption.structured == dict.fromkeys(caption.structured) | known


def test_what_the_detector_names_is_told_with_its_confidence():
    clip = ClipMeasurements(6.0, events=(MeasuredEvent(1.0, 1.2, 1.6, 0.84, "place"),), events_known=True)
    assert compose_caption(clip).short == "The camera stands still; the player places a block at 1.2 s."
    assert "The player places a block from 1.0 to 1.6 s, strongest at 1.2 s (confidence 0.84)." in describe(clip)
    assert set(KINDS) < set(HAPPENINGS), "every kind of the detector has words"


def test_what_is_not_known_is_not_said():
    text = describe(ClipMeasurements(length_s=4.0))
    assert text == "A clip of 4.0 s. The camera stands still."
    assert "Nothing is seen to happen" in describe(ClipMeasurements(length_s=4.0, events_known=True))
    assert compose_caption(ClipMeasurements(length_s=4.0)).structured["lighting"] is None


def test_flashes_and_freezes_are_told():
    text = describe(ClipMeasurements(4.0, flashes_hz=1.5, frozen=0.25))
    assert text.endswith("The picture flashes 1.5 times a second. The picture stands still for 25% of the time.")


def test_the_estimated_cameras_words_are_told():
    assert "Camera path: dolly in, pan left." in describe(ClipMeasurements(4.0, camera_words="dolly in, pan left"))


def test_brief_stretches_are_left_out_and_equal_neighbours_joined():
    motions = (("forward", 0.0, 1.0), ("turn_left", 1.0, 1.1), ("forward", 1.1, 2.0))
    assert compose_caption(ClipMeasurements(2.0, motions)).structured["camera_motion"] == ["forward"]


def test_a_measured_caption_never_contradicts_the_measurements():
    for clip in (
        WALK,
        ClipMeasurements(5.0),
        ClipMeasurements(3.0, (("turn_left", 0.0, 1.0), ("turn_right", 1.0, 3.0)), luma_mean=20.0, motion_camera=9.0),
    ):
        assert find_conflicts(compose_caption(clip).structured, clip) == []


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ({"camera_motion": ["turn_right"]}, "says turn_right, measured is turn_left for 1.2 s"),
        ({"camera_motion": ["still"]}, "says still, the camera moves for 3.6 s"),
        ({"lighting": "bright"}, "says bright, mean luminance is 58"),
    ],
)
def test_a_claim_against_the_measurements_is_flagged(claim, problem):
    assert find_conflicts({"camera_motion": [], "lighting": None} | claim, WALK) == [problem]


def test_a_moving_camera_claimed_where_nothing_moves_is_flagged():
    still = ClipMeasurements(6.0, motion_camera=0.02)
    assert find_conflicts({"camera_motion": ["forward"], "lighting": None}, still) == ["says forward, the camera stands still"]


def test_what_is_only_doubtful_is_not_flagged():
    claims = {"camera_motion": ["forward", "turn_left", "look_up"], "lighting": "even"}
    assert find_conflicts(claims, WALK) == []
    nothing_measured = ClipMeasurements(6.0)
    assert find_conflicts({"camera_motion": ["turn_right"], "lighting": "dark"}, nothing_measured) == []


def test_the_models_answer_becomes_the_caption():
    answer = dict.fromkeys(captions.SCHEMA["required"], "x") | {
        "viewpoint": "first_person", "lighting": "dim", "camera_motion": ["forward"],
    }  # fmt: skip
    jsonschema.validate(answer, captions.SCHEMA)
    caption = captions.caption_from_answer(answer, "some-model")
    assert (caption.short, caption.source, caption.structured["viewpoint"]) == ("x", "some-model", "first_person")
    assert set(caption.structured) == set(compose_caption(WALK).structured)
