"""Asking: the cache, validation, the second try and the accounting, once for every backend."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from curation import storage
from curation.processes import per_process
from curation.vlm import answers, parsing
from curation.vlm.parsing import Answer
from curation.vlm.protocol import Prompt, Reply, Vlm, VlmSettings

# What the questions of this process have cost, counted as `video.decodes` counts decodes: calls, prompt_tokens,
# completion_tokens, seconds, failed (calls without a reply), invalid (replies that do not fit), cached (not asked at all).
spent: Counter[str] = Counter()

NOT_YET = "not answered yet"


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
    spent["invalid"] += sum(bool(answer.error) and not reply.error for answer, reply in zip(found, replies, strict=True))
    bad = [i for i, reply in enumerate(replies) if found[i].error and not parsing.stopped_early(reply)]
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
    return parsing.answer(reply, prompt.schema)
