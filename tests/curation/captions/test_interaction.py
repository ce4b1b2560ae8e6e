import jsonschema
import pytest

from curation.captions import interaction
from curation.captions.caption import ClipMeasurements, MeasuredEvent
from curation.captions.interaction import InteractiveSettings, definition, event_score, judge_by_measurements, judge_by_model

LIMITS = InteractiveSettings(min_score=0.5, min_unknown_score=0.2)
DOOR = ClipMeasurements(
    6.0, (("forward", 0, 2),), (MeasuredEvent(2.0, 2.5, 3.0, 0.9),), True, motion_camera=2.0, motion_object=0.5
)
WALK = ClipMeasurements(6.0, (("forward", 0, 6),), (), True, motion_camera=4.0, motion_object=0.5)
RAIN = ClipMeasurements(6.0, (), (), True, motion_camera=0.1, motion_object=3.0)
STILL = ClipMeasurements(6.0, (), (), True, motion_camera=0.01, motion_object=0.01)
GLIMPSE = ClipMeasurements(6.0, (), (MeasuredEvent(5.9, 5.9, 6.0, 0.9),), True, motion_camera=4.0, motion_object=0.5)
SNOW = ClipMeasurements(6.0, (), (MeasuredEvent(2.0, 2.5, 3.0, 0.9, "weather"),), True, motion_camera=2.0, motion_object=0.5)
UNSURE = ClipMeasurements(
    6.0, events_unknown="the detector is not sure: confidence 0.31 < 0.6", motion_camera=2.0, motion_object=0.5
)
PERHAPS = ClipMeasurements(6.0, (), (MeasuredEvent(2.0, 2.5, 3.0, 0.4),), True, motion_camera=2.0, motion_object=0.5)
FOREIGN = ClipMeasurements(6.0, (), (MeasuredEvent(2.0, 2.5, 3.0, 0.9),), False, motion_camera=2.0, motion_object=0.5)


def answer(**changed):
    nothing = {name: {"holds": False, "evidence": ""} for name in definition()["properties"]}
    door = {"holds": True, "evidence": "the door slides up"}
    return {
        "initial_state": "a closed door", "trigger": "the player uses it", "transition": "it slides up", "final_state": "",
        "subject": "the door", "category": "actor", "level": "complex", "caption": "The player opens a door.",
        "properties": nothing | {"subject_action": door}, "negative": "none", "interactive": True, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("clip", "interactive", "reason", "negative"),
    [
        (DOOR, True, "something happens at 2.5 s: 0.90 >= 0.5", None),
        (SNOW, True, "the weather or the light changes at 2.5 s: 0.90 >= 0.5", None),
        (UNSURE, None, "the detector is not sure: confidence 0.31 < 0.6, and no model was asked", None),
        (WALK, False, "only the camera moves: 0.00 < 0.5", "motion_without_subject"),
        (RAIN, False, "no event stands out: 0.00 < 0.5", None),
        (GLIMPSE, False, "too little happens: 0.18 < 0.5", None),
        (PERHAPS, None, "perhaps something happens: 0.40 < 0.5", None),
        (STILL, False, "nothing moves", None),
        (FOREIGN, None, "the detector does not know such footage, and no model was asked", None),
    ],
)
def test_signals_alone(clip, interactive, reason, negative):
    verdict = judge_by_measurements(clip, LIMITS)
    assert (verdict.interactive, verdict.reason, verdict.negative, verdict.source) == (
        interactive,
        reason,
        negative,
        "measured",
    )
    assert verdict.category == ("environment" if clip is SNOW else None)


def test_a_measured_change_names_what_the_detector_names():
    change = interaction.measured_change_inside(SNOW)
    assert change.parts["transition"] == "the weather or the light changes from 2.0 to 3.0 s"
    assert change.parts["category"] == "environment"


def test_a_glimpse_counts_less_than_an_event_of_half_a_second():
    long, short = (ClipMeasurements(6.0, events=(MeasuredEvent(1.0, 1.0, 1.0 + s, 0.8),)) for s in (0.5, 0.1))
    assert event_score(long) == pytest.approx(0.8)
    assert event_score(short) == pytest.approx(0.16)


def test_the_models_yes_with_evidence_decides_and_says_what_it_is():
    verdict = judge_by_model(DOOR, answer(), "vlm", LIMITS)
    assert (verdict.interactive, verdict.reason) == (True, "subject action: the door slides up")
    assert (verdict.properties, verdict.category, verdict.level, verdict.source) == (
        ("subject_action",),
        "actor",
        "complex",
        "vlm",
    )
    assert verdict.score == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("clip", "changed", "reason"),
    [
        (DOOR, {"interactive": False, "negative": "stochastic_background"}, "the model sees stochastic background"),
        (DOOR, {"interactive": False}, "the model sees no interaction"),
        (DOOR, {"negative": "continuous_process"}, "the model says yes, and also continuous process"),
        (STILL, {}, "the model says yes, but nothing moves"),
        (
            DOOR,
            {"properties": {n: {"holds": True, "evidence": " "} for n in definition()["properties"]}},
            "the model says yes without evidence for a property",
        ),
    ],
)
def test_a_yes_that_is_not_borne_out_is_a_no(clip, changed, reason):
    verdict = judge_by_model(clip, answer(**changed), "vlm", LIMITS)
    assert (verdict.interactive, verdict.reason) == (False, reason)


def test_a_model_decides_where_the_detector_cannot():
    assert judge_by_model(FOREIGN, answer(), "vlm", LIMITS).interactive is True


def test_the_schema_and_the_question_hold_the_whole_definition():
    jsonschema.validate(answer(), interaction.answer_schema())
    text = interaction.clip_prompt(DOOR, [], []).text
    for part in ("properties", "negatives", "categories"):
        assert all(f"- {name}: " in text for name in definition()[part])
    assert "Something happens from 2.0 to 3.0 s" in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer(category="weather"), interaction.answer_schema())


def test_what_a_model_leaves_empty_is_null_and_never_made_up():
    change = interaction.change_from_answer(answer(category="none", subject=""), "vlm")
    assert change.caption == "The player opens a door."
    assert (change.parts["final_state"], change.parts["subject"], change.parts["category"]) == (None, None, None)
    assert change.parts["trigger"] == "the player uses it"


def test_the_change_inside_a_clip_in_measured_terms():
    change = interaction.measured_change_inside(DOOR)
    assert (
        change.caption == "While the camera moves forward, something happens from 2.0 to 3.0 s; then the camera stands still."
    )
    assert change.parts["trigger"] is change.parts["subject"] is change.parts["category"] is None
    assert interaction.measured_change_inside(WALK) is None


def test_the_change_between_clips_in_measured_terms():
    dark = ClipMeasurements(6.0, (("turn_left", 0, 6),), (), True, luma_mean=30.0)
    bright = ClipMeasurements(6.0, (("forward", 0, 6),), (MeasuredEvent(1, 2, 3, 0.9),), True, luma_mean=90.0)
    change = interaction.measured_change_between(dark, bright, across_cut=False)
    assert change.caption == (
        "The camera turns left, then moves forward; it gets brighter (mean luminance 30 to 90); something begins to happen."
    )
    assert interaction.measured_change_between(dark, dark, True).caption == "After a cut; the camera turns left."
