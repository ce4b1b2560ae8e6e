"""The transformers backend on a tiny checkpoint of the real architecture, with random weights and a real grammar."""

import pytest

from curation.vlm import Prompt, VlmSettings, ask, load

pytest.importorskip("transformers")

SCHEMA = {
    "type": "object",
    "properties": {"keep": {"type": "boolean"}, "kind": {"enum": ["door", "shot"]}, "why": {"type": "string", "maxLength": 12}},
    "required": ["keep", "kind", "why"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def local(tiny_vlm):
    return load(VlmSettings("transformers", str(tiny_vlm), max_tokens=200))


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of a tiny product wait for each other
    yield
    torch.set_num_threads(before)


def test_a_reply_is_held_to_the_schema_while_it_is_written(local, jpeg, usage):
    pytest.importorskip("llguidance")
    prompts = [Prompt("q", f"Question {k}?", SCHEMA, (jpeg(20 * k), jpeg()), ("Frame 1:", "Frame 2:")) for k in range(3)]
    answers = ask(local, prompts)
    assert [a.error for a in answers] == [None] * 3
    assert all(a.value["kind"] in ("door", "shot") for a in answers)
    assert usage["prompt_tokens"] > 3 * 20
    assert usage["completion_tokens"] > 3 * 8


def test_the_pictures_are_looked_at(local, jpeg):
    """The prompt contains the tokens of the frames, so two frames cost more than one."""
    one, two = (local._reply(Prompt("q", "Well?", SCHEMA, (jpeg(),) * k)).prompt_tokens for k in (1, 2))
    assert two - one >= 4


def test_without_a_grammar_prose_is_the_rows_reason(local, jpeg, monkeypatch):
    monkeypatch.setitem(vars(local), "_vocabulary", None)
    (answer,) = ask(local, [Prompt("q", "Well?", SCHEMA, (jpeg(),))])
    assert answer.value is None
    assert answer.error.startswith("the reply")


def test_a_reply_that_is_cut_short_is_the_rows_reason(tiny_vlm, jpeg):
    short = load(VlmSettings("transformers", str(tiny_vlm), max_tokens=16))
    long_winded = {"type": "object", "properties": {"why": {"type": "string", "minLength": 200}}, "required": ["why"]}
    (answer,) = ask(short, [Prompt("q", "Well?", long_winded, (jpeg(),))])
    assert answer.error.startswith("the reply is cut off by max_tokens after 16 tokens")


def test_a_model_that_cannot_be_had_is_named_with_the_ways_to_provide_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"no/such-vlm: not on this machine.*GAMECRAFT_WEIGHTS/such-vlm"):
        load(VlmSettings("transformers", "no/such-vlm"))
