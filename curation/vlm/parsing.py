"""What a model's reply says: the one place that decides whether a reply holds an answer, and why it holds none.

Models put thoughts before their answer, fences around it, and stop before its end. None of that changes what was answered.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from curation.vlm.protocol import Reply

_ERROR_CHARS = 240
# A model's thoughts where the server does not take them off: Qwen and DeepSeek, Magistral, Kimi-VL, gpt-oss.
_THOUGHTS = re.compile(r"<think(?:ing)?>|<thoughts?>|<reasoning>|\[THINK\]|◁think▷|<\|channel\|>analysis", re.I)
_THOUGHTS_END = re.compile(
    r"</think(?:ing)?>|</thoughts?>|</reasoning>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.I
)
_FENCE = re.compile(r"(?:```+|~~~+)[ \t]*(?:\w+(?=\s))?\s*(?=[{\[])")
_FENCE_END = re.compile(r"\s*(?:```|~~~|$)")
_JSON = json.JSONDecoder(strict=False)  # models put raw line breaks into strings

# Why a model stopped, in the words of servers, where that was not of its own accord.
_CUT_OFF, _WITHHELD = ("length", "max_tokens", "model_length"), ("content_filter", "safety", "recitation")


@dataclass(frozen=True)
class Answer:
    """A value that fits its schema, or the reason why there is none."""

    value: dict[str, Any] | None = None
    error: str | None = None


def answer(reply: Reply, schema: Mapping[str, Any]) -> Answer:
    """Return the reply's value, or why there is none: what the server said, why the model stopped, or what does not fit."""
    if reply.error:
        return Answer(error=reply.error)
    found = validated(reply.text, schema)
    if found.value is not None:
        return found
    if reply.stop in _CUT_OFF:
        return Answer(error=f"the reply is cut off by max_tokens after {reply.completion_tokens} tokens; raise vlm.max_tokens")
    if reply.stop in _WITHHELD:
        return Answer(error="the reply is withheld by the server's content filter")
    return found


def stopped_early(reply: Reply) -> bool:
    """Whether the same question would be stopped again: its reply was cut off, withheld, or never came."""
    return bool(reply.error) or reply.stop in (*_CUT_OFF, *_WITHHELD)


def validated(text: str, schema: Mapping[str, Any]) -> Answer:
    """The text as JSON that fits the schema. Thoughts before it and a fence around it are taken off; prose is not."""
    said = [text[end.end() :] for end in reversed(list(_THOUGHTS_END.finditer(text)))]
    found = [_validated(body, schema, fenced=False) for body in (text, *said)]
    if text.lstrip().startswith(("```", "~~~")) or not (said or _THOUGHTS.search(text)):
        said.append(text)  # else what is fenced before the end of the thoughts is a draft
    fenced = [body[fence.end() :] for body in said for fence in reversed(list(_FENCE.finditer(body)))]
    found += [_validated(body, schema, fenced=True) for body in fenced]
    return next((one for one in found if one.value is not None), found[-1])


def _validated(body: str, schema: Mapping[str, Any], fenced: bool) -> Answer:
    """JSON at the beginning of a text, and behind it nothing, or the end of a fence."""
    body = body.strip()
    if not body:
        return Answer(error="the reply is empty")
    try:
        value, end = _JSON.raw_decode(body)
        if not (_FENCE_END.match(body, end) if fenced else end == len(body)):
            raise json.JSONDecodeError("Extra data", body, end)
    except (json.JSONDecodeError, RecursionError) as error:
        return Answer(error=f"the reply is not JSON: {error}"[:_ERROR_CHARS])
    value = _plain(value)
    wrong = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(value)), None)
    if wrong is not None:
        where = "".join(f".{step}" for step in wrong.absolute_path)
        return Answer(error=f"the reply breaks the schema{f' at {where[1:]}' if where else ''}: {wrong.message}"[:_ERROR_CHARS])
    return Answer(value)


def _plain(value: Any) -> Any:
    """Strings without control characters, blanks joined: captions are lines."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", value).split()) if isinstance(value, str) else value


def chat_reply(choice: Mapping[str, Any], usage: Mapping[str, Any]) -> Reply:
    """The reply in a choice of OpenAI's chat protocol, wherever servers put it.

    The content is a string, or a list of parts. Where it is empty, a server with a parser of thoughts may have taken a
    constrained answer for one; thoughts in prose are no answer. Raises LookupError, TypeError or AttributeError where it is no
    choice.
    """
    message = choice["message"]
    content = message.get("content")
    refusal = message.get("refusal")
    if isinstance(content, list):
        refusal = refusal or _parts(content, "refusal")
        content = _parts(content, "text")
    text = content if isinstance(content, str) else ""
    if not text.strip():
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        text = thoughts if isinstance(thoughts, str) and thoughts.lstrip().startswith(("{", "```")) else text
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    if refusal and not text.strip():
        return Reply("", f"the model refuses: {' '.join(str(refusal).split())}"[:_ERROR_CHARS], *tokens)
    return Reply(text, None, *tokens, stop=str(choice.get("finish_reason") or "stop").lower())


def _parts(content: list[Any], name: str) -> str:
    """The parts of a message of one kind, one behind the other."""
    return "".join(part[name] for part in content if isinstance(part, dict) and isinstance(part.get(name), str))
