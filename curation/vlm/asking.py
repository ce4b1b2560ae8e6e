"""Asking: the cache, validation, the second try and the accounting, once for every backend."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema

from curation import storage
from curation.processes import per_process
from curation.vlm import answers
from curation.vlm.protocol import Prompt, Reply, Vlm, VlmSettings

# What the questions of this process have cost, counted as `video.decodes` counts decodes: calls, prompt_tokens,
# completion_tokens, seconds, failed (calls without a reply), invalid (replies that do not fit), cached (not asked at all).
spent: Counter[str] = Counter()

_ERROR_CHARS = 240
NOT_YET = "not answered yet"


@dataclass(frozen=True)
class Answer:
    """A value that fits its schema, or the reason why there is none."""

    value: dict[str, Any] | None = None
    error: str | None = None


class Ahead:
    """A model whose replies engines elsewhere put into the cache beforehand; `wanted`: the prompts that are not there yet."""

    def __init__(self, model: str) -> None:
        self.name, self.wanted = model, list[Prompt]()

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        self.wanted += prompts
        return ((number, Reply(error=NOT_YET)) for number in range(len(prompts)))


@per_process
def load(settings: VlmSettings) -> Vlm:
    """The backend that the settings name, once a process; ValueError where they name none."""
    if settings.backend == "http":
        from curation.vlm.http import HttpVlm

        return HttpVlm(settings)
    if settings.backend == "transformers":
        from curation.vlm.local import LocalVlm

        return LocalVlm(settings)
    if settings.backend == "vllm":
        return Ahead(settings.model)
    raise ValueError("no VLM is configured: vlm.backend is none")


def ask(vlm: Vlm, prompts: Sequence[Prompt]) -> list[Answer]:
    """Answers in order. What the cache holds is not asked; a reply that does not fit is asked for once more, with the reason.

    OSError where the model cannot be reached; the replies that came before are in the cache.
    """
    replies = _replies(vlm, prompts)
    found = [_judged(*pair) for pair in zip(prompts, replies, strict=True)]
    bad = [i for i, reply in enumerate(replies) if found[i].error and not reply.error]
    spent["invalid"] += len(bad)
    more = [prompts[i].again(replies[i].text, found[i].error or "") for i in bad]
    for i, prompt, reply in zip(bad, more, _replies(vlm, more), strict=True):
        found[i] = _judged(prompt, reply)
    return found


def _replies(vlm: Vlm, prompts: Sequence[Prompt]) -> list[Reply]:
    keys = [prompt.key(vlm.name) for prompt in prompts]
    replies = storage.at_once(answers.get, keys)
    open_ = [i for i, reply in enumerate(replies) if reply is None]
    _count_found(vlm, [reply for reply in replies if reply is not None])
    began = time.monotonic()
    for number, reply in vlm.replies([prompts[i] for i in open_]) if open_ else ():
        replies[open_[number]] = reply
        _count(reply)
        if _judged(prompts[open_[number]], reply).value is not None:
            answers.put(keys[open_[number]], reply)
    if open_ and not isinstance(vlm, Ahead):
        spent["milliseconds"] += round(1000 * (time.monotonic() - began))
    assert all(replies), [prompt.name for prompt, reply in zip(prompts, replies, strict=True) if reply is None]
    return [reply for reply in replies if reply is not None]


def _count_found(vlm: Vlm, found: Sequence[Reply]) -> None:
    """Replies out of the cache cost nothing, save those that engines gave ahead for this very question."""
    if isinstance(vlm, Ahead):
        for reply in found:
            _count(reply)
    else:
        spent["cached"] += len(found)


def _count(reply: Reply) -> None:
    if reply.error != NOT_YET:
        spent.update(
            calls=1,
            failed=int(bool(reply.error)),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )


def _judged(prompt: Prompt, reply: Reply) -> Answer:
    return Answer(error=reply.error) if reply.error else validated(reply.text, prompt.schema)


def _plain(value: Any) -> Any:
    """Strings without control characters, blanks joined: captions are lines."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", value).split()) if isinstance(value, str) else value


def validated(text: str, schema: Mapping[str, Any]) -> Answer:
    """The text as JSON that fits the schema; a fence of ``` around it is taken off, prose is not."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL)
    body = fenced[1] if fenced else text.strip()
    if not body:
        return Answer(error="the reply is empty")
    try:
        value = _plain(json.loads(body, strict=False))  # models put raw line breaks into strings
    except (json.JSONDecodeError, RecursionError) as error:
        return Answer(error=f"the reply is not JSON: {error}"[:_ERROR_CHARS])
    wrong = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(value)), None)
    if wrong is not None:
        where = "".join(f".{step}" for step in wrong.absolute_path)
        return Answer(error=f"the reply breaks the schema{f' at {where[1:]}' if where else ''}: {wrong.message}"[:_ERROR_CHARS])
    return Answer(value)
