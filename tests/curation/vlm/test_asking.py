import json
from dataclasses import replace

import pytest

from curation.vlm import CacheOnlyVlm, Prompt, Reply, VlmSettings, ask, load

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class ScriptedVlm:
    """A model that gives prepared replies, and keeps the prompts."""

    name = "scripted"

    def __init__(self, *texts):
        self.texts, self.prompts = list(texts), []

    def replies(self, prompts):
        for number, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            yield number, Reply(self.texts.pop(0), prompt_tokens=3, completion_tokens=2)


def test_equal_questions_are_asked_once_and_any_difference_is_another_question(cache, jpeg):
    first = Prompt("q", "What?", SCHEMA, (jpeg(),), ("Frame 1:",))
    others = [
        replace(first, text="What now?"),
        replace(first, frames=(jpeg(30),)),
        replace(first, labels=("Frame 2:",)),
        replace(first, schema={**SCHEMA, "title": "x"}),
        replace(first, name="r"),
    ]
    scripted = ScriptedVlm(*(f'{{"n": {k}}}' for k in range(6)))
    assert [a.value["n"] for a in ask(scripted, [first, *others])] == list(range(6))
    assert [a.value["n"] for a in ask(scripted, [first, *others])] == list(range(6))
    assert len(scripted.prompts) == 6
    other_model = ScriptedVlm('{"n": 7}')
    other_model.name = "another"
    assert ask(other_model, [first])[0].value == {"n": 7}


def test_what_did_not_fit_is_not_kept(cache):
    question = Prompt("q", "What?", SCHEMA)
    assert ask(ScriptedVlm("nothing", "nothing"), [question])[0].error
    assert ask(ScriptedVlm('{"n": 1}'), [question])[0].value == {"n": 1}


def test_half_an_entry_of_the_cache_is_asked_again(cache):
    question = Prompt("q", "What?", SCHEMA)
    ask(ScriptedVlm('{"n": 1}'), [question])
    (entry,) = cache.rglob("*.json")
    entry.write_text(json.dumps({"text": '{"n": 1}'})[:7])
    assert ask(ScriptedVlm('{"n": 2}'), [question])[0].value == {"n": 2}


def test_without_a_folder_nothing_is_kept():
    question = Prompt("q", "What?", SCHEMA)
    scripted = ScriptedVlm('{"n": 1}', '{"n": 2}')
    assert [ask(scripted, [question])[0].value["n"] for _ in range(2)] == [1, 2]


def test_questions_answered_elsewhere_are_collected_and_come_out_of_the_cache(cache, usage):
    cached = load(VlmSettings("vllm", "scripted"))
    assert isinstance(cached, CacheOnlyVlm)
    question = Prompt("q", "What?", SCHEMA)
    assert ask(cached, [question])[0].error == "not answered yet"
    assert cached.missing == [question]
    assert usage["calls"] == 0
    ask(ScriptedVlm('{"n": 5}'), [question])
    assert ask(cached, [question])[0].value == {"n": 5}
    assert len(cached.missing) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backend": "openai"}, "backend must be one of none, http, transformers, vllm, not 'openai'"),
        ({"backend": "http"}, "backend http needs a model"),
        ({"on_error": "drop"}, "on_error must be keep or reject, not 'drop'"),
        ({"max_tokens": 0}, "max_tokens must be at least 16, not 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        VlmSettings(**wrong)
