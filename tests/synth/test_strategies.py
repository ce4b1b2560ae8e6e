"""The two strategies end to end on tiny pipelines, and the choice between them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from synth import strategies, taxonomy
from synth.models.base import ModelSettings
from synth.prompts import Plan, Refused
from synth.requests import InitialFrame, Request
from synth.strategies import SynthSettings, choose_strategy

SETTINGS = ModelSettings(width=64, height=48, frames=9, image_steps=2, video_steps=2, dtype="float32", device="cpu")
PLAN = Plan("p", "e", "n", "start_end", "said so", "plain")
KNOWN = taxonomy.built_in()
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def settings(pipelines):
    return SynthSettings("diffusers", models=replace(SETTINGS, **pipelines.models))


@pytest.fixture
def frame(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8))
    return InitialFrame(path, path, token="a")


def test_start_end_edits_and_leads_there(settings, frame):
    made = strategies.synthesise(Request(KNOWN["snow"], "make it snow", frame, 1), 7, settings)
    assert made.pictures.shape == (9, 48, 64, 3)
    assert made.strategy == "start_end"
    assert made.models == (settings.models.editor, settings.models.animator)
    assert made.prompt["edit_prompt"].startswith("Make it snow.")
    assert made.initial.shape == (48, 64, 3)
    again = strategies.synthesise(Request(KNOWN["snow"], "make it snow", frame, 1), 7, settings)
    assert np.array_equal(made.pictures, again.pictures)


def test_first_frame_needs_the_animator_alone(settings, frame):
    made = strategies.synthesise(Request(KNOWN["open_door"], "open the door", frame, 1), 7, settings)
    assert made.strategy == "first_frame"
    assert made.models == (settings.models.animator,)
    assert made.truth is None


def test_a_frame_painted_on_demand_stays_in_all_attempts(settings):
    request = Request(KNOWN["open_door"], "open the door", InitialFrame("paint"), 1)
    one, two = (strategies.synthesise(request, seed, settings) for seed in (7, 8))
    assert np.array_equal(one.initial, two.initial)
    assert not np.array_equal(one.pictures, two.pictures)
    assert one.models == (settings.models.painter, settings.models.animator)


def test_the_choice():
    assert choose_strategy(KNOWN["snow"], PLAN, replace(SETTINGS, editor="e")) == ("start_end", "said so")
    assert choose_strategy(KNOWN["snow"], PLAN, SETTINGS) == ("first_frame", "no editor is set, so there is no last frame")
    assert choose_strategy(KNOWN["open_door"], PLAN, replace(SETTINGS, editor="e")) == (
        "first_frame",
        "the camera is free to move",
    )
    assert (
        choose_strategy(KNOWN["snow"], PLAN._replace(strategy="first_frame"), replace(SETTINGS, editor="e"))[0] == "first_frame"
    )


def test_what_a_backend_cannot_do_is_refused(settings, frame):
    with pytest.raises(Refused, match="films engines' places"):
        strategies.synthesise(Request(KNOWN["snow"], "snow", frame, 1), 7, SynthSettings())
    with pytest.raises(Refused, match="makes videos from pictures, not from doom:freedoom2:MAP01"):
        strategies.synthesise(Request(KNOWN["snow"], "snow", InitialFrame("doom:freedoom2:MAP01"), 1), 7, settings)
    with pytest.raises(Refused, match="doom has no script for cat"):
        strategies.synthesise(Request(KNOWN["cat"], "a cat", InitialFrame("doom:freedoom2:MAP01"), 1), 7, SynthSettings())


@pytest.mark.parametrize(("changed", "said"), [({"backend": "magic"}, "backend must be one of"), ({"each": 0}, "each must be")])
def test_wrong_settings_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        SynthSettings(**changed)
