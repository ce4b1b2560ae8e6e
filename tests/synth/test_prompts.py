"""Prompts by a VLM that sees the frame, and plain ones; an impossible instruction is refused with the reason."""

import json

import numpy as np
import pytest

from curation.vlm import ServerSettings, VlmSettings, load
from synth import prompts, taxonomy
from synth.prompts import Refused
from synth.requests import InitialFrame, Request

DOOR = Request(taxonomy.built_in()["open_door"], "open the door", InitialFrame("/a.png"), 1)
FRAME = np.full((120, 160, 3), 90, np.uint8)
ANSWER = {
    "possible": True,
    "reason": "",
    "scene": "a corridor",
    "prompt": "The grey door of the corridor slides up.",
    "edit_prompt": "Open the grey door.",
    "negative_prompt": "people",
    "strategy": "start_end",
    "strategy_reason": "the view stays",
}


def served(serve, answer, **settings):
    server = serve(lambda body, number: serve.say(json.dumps(answer)))
    how = ServerSettings(url=server.url, retries=0, timeout_s=5.0)
    load.cache_clear()
    return server, VlmSettings("http", "some-vlm", server=how, **settings)


def test_without_a_model_the_prompts_name_instruction_and_end():
    plan = prompts.make_plan(FRAME, DOOR, VlmSettings())
    assert plan.source == "plain"
    assert plan.strategy == "first_frame"
    assert plan.prompt == "Open the door. The door is open, and what lies behind it can be seen. The camera moves smoothly."
    assert "Keep everything else" in plan.edit_prompt


def test_a_model_writes_for_the_scene(serve):
    server, model = served(serve, ANSWER)
    plan = prompts.make_plan(FRAME, DOOR, model)
    assert plan == (ANSWER["prompt"], ANSWER["edit_prompt"], "people", "start_end", "the view stays", "some-vlm")
    (body,) = server.bodies
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert "open the door" in content[1]["text"]
    assert "the picture must show a closed door" in content[1]["text"]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["strategy"] == {"enum": ["start_end", "first_frame"]}


def test_an_impossible_pair_is_refused_with_the_reason(serve):
    _, model = served(serve, ANSWER | {"possible": False, "reason": "there is no door in the picture"})
    with pytest.raises(Refused, match="there is no door in the picture"):
        prompts.make_plan(FRAME, DOOR, model)


def test_an_answer_that_breaks_the_schema_is_asked_for_again_then_prompts_are_plain(serve):
    server, model = served(serve, {"possible": True})
    plan = prompts.make_plan(FRAME, DOOR, model)
    assert len(server.bodies) == 2
    assert plan.source == "plain"
    assert plan.reason.startswith("no analysis of the frame: the reply breaks the schema")
    _, strict = served(serve, {"possible": True}, on_error="reject")
    with pytest.raises(Refused, match="no analysis of the frame"):
        prompts.make_plan(FRAME, DOOR, strict)


def test_the_prompt_for_a_painted_frame_shows_what_is_needed():
    assert "a closed door straight ahead" in prompts.paint_prompt(taxonomy.built_in()["open_door"])
    assert "room for a red SUV" in prompts.paint_prompt(taxonomy.built_in()["red_suv"])
