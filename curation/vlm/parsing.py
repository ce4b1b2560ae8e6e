"""Parse replies: the one place that decides whether a reply contains an answer, and if not, why.

Models write their reasoning before the answer, put fences around it, or stop before its end. Reasoning and fences do not change
the answer.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curation.vlm.protocol import Reply

_ERROR_CHARS = 240
# Where a model's reasoning begins and ends, if the server does not remove it: Qwen and DeepSeek, Magistral, Kimi-VL, gpt-oss.
_REASONING = re.compile(r"<think(?:ing)?>|<thoughts?>|<reasoning>|\[THINK\]|◁think▷|<\|channel\|>analysis", re.I)
_REASONING_END = re.compile(
    r"</think(?:ing)?>|</thoughts?>|</reasoning>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.I
)
_FENCE = re.compile(r"(?:```+|~~~+)[ \t]*(?:\w+(?=\s))?\s*(?=[{\[])")
_FENCE_END = re.compile(r"\s*(?:```|~~~|$)")
_JSON = json.JSONDecoder(strict=False)  # models put raw line breaks into strings

# Stop reasons of servers other than that the model has finished.
_CUT_OFF, _WITHHELD = ("length", "max_tokens", "model_length"), ("content_filter", "safety", "recitation")


@dataclass(frozen=True)
class Answer:
    """A value that fits its schema, or the reason why there is none."""

    value: dict[str, Any] | None = None
    error: str | None = None


def parse_answer(reply: Reply, schema: Mapping[str, Any]) -> Answer:
    """Return the reply's value, or why there is none: the server's error, why the model stopped, or what does not fit."""
    if reply.error:
        return Answer(error=reply.error)
    result = validate_text(reply.text, schema)
    if result.value is not None:
        return result
    if reply.stop in _CUT_OFF:
        return Answer(error=f"the reply is cut off by max_tokens after {reply.completion_tokens} tokens; raise vlm.max_tokens")
    if reply.stop in _WITHHELD:
        return Answer(error="the reply is withheld by the server's content filter")
    return result


def stopped_early(reply: Reply) -> bool:
    """Whether a second try would end in the same way, because the reply was cut off, withheld, or never arrived."""
    return bool(reply.error) or reply.stop in (*_CUT_OFF, *_WITHHELD)


def validate_text(text: str, schema: Mapping[str, Any]) -> Answer:
    """Read a text as JSON that fits the schema. Reasoning before it and a fence around it are removed; other prose is not."""
    bodies = [text[end.end() :] for end in reversed(list(_REASONING_END.finditer(text)))]
    results = [_validate_json(body, schema, fenced=False) for body in (text, *bodies)]
    if text.lstrip().startswith(("```", "~~~")) or not (bodies or _REASONING.search(text)):
        bodies.append(text)  # in all other cases a fence before the end of the reasoning is a draft
    fenced = [body[fence.end() :] for body in bodies for fence in reversed(list(_FENCE.finditer(body)))]
    results += [_validate_json(body, schema, fenced=True) for body in fenced]
    return next((result for result in results if result.value is not None), results[-1])


def _validate_json(body: str, schema: Mapping[str, Any], fenced: bool) -> Answer:
    """Read a text that is JSON and nothing else. If `fenced`, the end of a fence and more text may follow."""
    body = body.strip()
    if not body:
        return Answer(error="the reply is empty")
    try:
        value, end = _JSON.raw_decode(body)
        if not (_FENCE_END.match(body, end) if fenced else end == len(body)):
            raise json.JSONDecodeError("Extra data", body, end)
    except (json.JSONDecodeError, RecursionError) as error:
        return Answer(error=f"the reply is not JSON: {error}"[:_ERROR_CHARS])
    import jsonschema  # here: most processes ask no model

    value = _clean_strings(value)
    misfit = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(value)), None)
    if misfit is not None:
        where = "".join(f".{step}" for step in misfit.absolute_path)
        return Answer(
            error=f"the reply breaks the schema{f' at {where[1:]}' if where else ''}: {misfit.message}"[:_ERROR_CHARS]
        )
    return Answer(value)


def _clean_strings(value: Any) -> Any:
    """Remove control characters and join blanks in all strings of a value, because a caption is one line."""
    if isinstance(value, dict):
        return {key: _clean_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_strings(item) for item in value]
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", value).split()) if isinstance(value, str) else value


def chat_reply(choice: Mapping[str, Any], usage: Mapping[str, Any]) -> Reply:
    """Return the reply in a choice of OpenAI's chat protocol, from whichever field the server uses.

    The content is a string or a list of parts. If it is empty, a server with a reasoning parser may have mistaken a constrained
    answer for reasoning; prose in that field is not an answer. Raise LookupError, TypeError or AttributeError if `choice` has
    another form.
    """
    message = choice["message"]
    content = message.get("content")
    refusal = message.get("refusal")
    if isinstance(content, list):
        refusal = refusal or _join_parts(content, "refusal")
        content = _join_parts(content, "text")
    text = content if isinstance(content, str) else ""
    if not text.strip():
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        text = reasoning if isinstance(reasoning, str) and reasoning.lstrip().startswith(("{", "```")) else text
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    if refusal and not text.strip():
        return Reply("", f"the model refuses: {' '.join(str(refusal).split())}"[:_ERROR_CHARS], *tokens)
    return Reply(text, None, *tokens, stop=str(choice.get("finish_reason") or "stop").lower())


def _join_parts(content: list[Any], name: str) -> str:
    """Join the parts of one kind of a message."""
    return "".join(part[name] for part in content if isinstance(part, dict) and isinstance(part.get(name), str))
