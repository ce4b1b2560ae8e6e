"""The two strategies end to end on tiny pipelines, and the choice between them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from synth import strategies, taxonomy
from synth.models.base import ModelSettings
from synth.prompts import Plan, Refused
from synth.requests import Frame, Request
from synth.strategies import SynthSettings, choose

HOW = ModelSettings(width=64, height=48, frames=9, image_steps=2, video_steps=2, dtype="float32", device="cpu")
PLAN = Plan("p", "e", "n", "start_end", "said so", "plain")
KNOWN = taxonomy.built_in()
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def how(pipelines):
    return SynthSettings("diffusers", models=replace(HOW, **vars(pipelines)))


@pytest.fixture
def frame(tmp_path):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8))
    return Frame(path, path, token="a")


def test_start_end_edits_and_leads_there(how, frame):
    made = strategies.make(Request(KNOWN["snow"], "make it snow", frame, 1), 7, how)
    assert made.pictures.shape == (9, 48, 64, 3)
    assert made.strategy == "start_end"
    assert made.models == (how.models.editor, how.models.animator)
    assert made.prompt["edit_prompt"].startswith("Make it snow.")
    assert made.initial.shape == (48, 64, 3)
    again = strategies.make(Request(KNOWN["snow"], "make it snow", frame, 1), 7, how)
    assert np.array_equal(made.pictures, again.pictures)


def test_first_frame_needs_the_animator_alone(how, frame):
    made = strategies.make(Request(KNOWN["open_door"], "open the door", frame, 1), 7, how)
    assert made.strategy == "first_frame"
    assert made.models == (how.models.animator,)
    assert made.truth is None


def test_a_frame_painted_on_demand_stays_in_all_attempts(how):
    request = Request(KNOWN["open_door"], "open the door", Frame("paint"), 1)
    one, two = (strategies.make(request, seed, how) for seed in (7, 8))
    assert np.array_equal(one.initial, two.initial)
    assert not np.array_equal(one.pictures, two.pictures)
    assert one.models == (how.models.painter, how.models.animator)


def test_the_choice():
    assert choose(KNOWN["snow"], PLAN, replace(HOW, editor="e")) == ("start_end", "said so")
    assert choose(KNOWN["snow"], PLAN, HOW) == ("first_frame", "no editor is set, so there is no last frame")
    assert choose(KNOWN["open_door"], PLAN, replace(HOW, editor="e")) == ("first_frame", "the camera is free to move")
    assert choose(KNOWN["snow"], PLAN._replace(strategy="first_frame"), replace(HOW, editor="e"))[0] == "first_frame"


def test_what_a_backend_cannot_do_is_refused(how, frame):
    with pytest.raises(Refused, match="films maps"):
        strategies.make(Request(KNOWN["snow"], "snow", frame, 1), 7, SynthSettings())
    with pytest.raises(Refused, match="makes videos from pictures, not from doom:freedoom2:MAP01"):
        strategies.make(Request(KNOWN["snow"], "snow", Frame("doom:freedoom2:MAP01"), 1), 7, how)
    with pytest.raises(Refused, match="has no script for cat"):
        strategies.make(Request(KNOWN["cat"], "a cat", Frame("doom:freedoom2:MAP01"), 1), 7, SynthSettings())


@pytest.mark.parametrize(("changed", "said"), [({"backend": "magic"}, "backend must be one of"), ({"each": 0}, "each must be")])
def test_wrong_settings_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        SynthSettings(**changed)
