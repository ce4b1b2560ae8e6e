"""Which replies contain an answer, and the errors of those that do not."""

import json

import pytest

from curation.vlm import Reply
from curation.vlm.parsing import chat_reply, parse_answer, validate_text

SCHEMA = {
    "type": "object",
    "properties": {"keep": {"type": "boolean"}, "why": {"type": "string"}},
    "required": ["keep"],
    "additionalProperties": False,
}
GOOD = '{"keep": true, "why": "a ```door``` </think> opens"}'
USABLE = {
    "plain": GOOD,
    "thoughts": f"<think>\nThe frames show {{a hall}}. I answer in JSON.\n</think>\n\n{GOOD}",
    "thoughts whose beginning is in the prompt": f"The frames show a hall.\n</think>\n{GOOD}",
    "thoughts with a draft": f'<think>Perhaps {{"keep": false}}?</think>{GOOD}',
    "thoughts of others": f"[THINK]A hall.[/THINK]{GOOD}",
    "thoughts, then a fence": f"<think>Hm.</think>\n```json\n{GOOD}\n```",
    "a fence": f"```json\n{GOOD}\n```",
    "a fence without a name": f"```\n{GOOD}\n```",
    "a fence in upper case": f"```JSON\n{GOOD}\n```",
    "a fence on one line": f"```json {GOOD} ```",
    "a fence on one line without a name": f"```{GOOD}```",
    "another fence": f"~~~json5\n{GOOD}\n~~~",
    "a fenced draft in the thoughts": f'<think>\n```json\n{{"keep": false}}\n```\n</think>\n```json\n{GOOD}\n```',
    "blanks": f"\n\n  {GOOD}  \n",
}


@pytest.mark.parametrize("name", USABLE)
def test_what_is_around_an_answer_does_not_hide_it(name):
    assert validate_text(USABLE[name], SCHEMA).value == {"keep": True, "why": "a ```door``` </think> opens"}


def test_words_before_a_fence_are_passed_over():
    assert validate_text('Here is the JSON:\n\n```json\n{"keep": true}\n```\nAnything else?', SCHEMA).value == {"keep": True}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the reply is empty"),
        ("<think>A hall.</think>", "the reply is empty"),
        ('<think>Perhaps {"keep": false}, or', "the reply is not JSON"),
        ('<think>Perhaps\n```json\n{"keep": false}\n```, or', "the reply is not JSON"),
        ('Sure: {"keep": true}', "the reply is not JSON"),
        ("```json\n{}\n```", "the reply breaks the schema: 'keep' is a required property"),
    ],
)
def test_what_holds_no_answer_says_why(text, reason):
    assert validate_text(text, SCHEMA).error.startswith(reason)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            Reply(GOOD[:9], completion_tokens=64, stop="length"),
            "the reply is cut off by max_tokens after 64 tokens; raise vlm.max_tokens",
        ),
        (
            Reply("", completion_tokens=9, stop="max_tokens"),
            "the reply is cut off by max_tokens after 9 tokens; raise vlm.max_tokens",
        ),
        (Reply("", stop="content_filter"), "the reply is withheld by the server's content filter"),
        (Reply(error="the model refuses: No."), "the model refuses: No."),
    ],
)
def test_a_reply_that_was_stopped_says_so(reply, reason):
    assert parse_answer(reply, SCHEMA).error == reason


def test_a_whole_answer_is_one_wherever_it_stopped():
    assert parse_answer(Reply('{"keep": true}', stop="length"), SCHEMA).value == {"keep": True}


def said(finish_reason="stop", **message):
    return chat_reply({"finish_reason": finish_reason, "message": {"role": "assistant", **message}}, {"completion_tokens": 3})


def test_an_answer_is_found_wherever_servers_put_it():
    for message in (
        {"content": GOOD},
        {"content": [{"type": "text", "text": GOOD}]},
        {
            "content": [
                {"type": "thinking", "thinking": "A hall."},
                {"type": "text", "text": GOOD[:9]},
                {"type": "text", "text": GOOD[9:]},
            ]
        },
        {"content": None, "reasoning_content": GOOD},
        {"content": "", "reasoning": f"\n{GOOD}"},
        {"content": None, "reasoning": f"```json\n{GOOD}\n```"},
    ):
        assert parse_answer(said(**message), SCHEMA).value == json.loads(GOOD), message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None, "reasoning_content": 'Perhaps {"keep": false}?'}, "the reply is empty"),
        ({"content": None, "refusal": "I can't help\nwith that."}, "the model refuses: I can't help with that."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "the model refuses: No."),
        ({"content": "", "finish_reason": "content_filter"}, "the reply is withheld by the server's content filter"),
        (
            {"content": None, "reasoning": "A hall, I", "finish_reason": "length"},
            "the reply is cut off by max_tokens after 3 tokens; raise vlm.max_tokens",
        ),
    ],
)
def test_thoughts_refusals_and_filters_are_no_answers(message, reason):
    assert parse_answer(said(**message), SCHEMA).error == reason
