"""Ask a model: the cache, the validation, the second try and the usage counts, shared by all backends."""

import time
from collections.abc import Iterator, Sequence

from curation import storage
from curation.processes import per_process
from curation.vlm import answers, parsing
from curation.vlm.parsing import Answer
from curation.vlm.protocol import Prompt, Reply, Vlm, VlmSettings
from curation.worker_state import worker

PENDING = "not answered yet"


class CacheOnlyVlm:
    """A model that answers only from the cache, which engines in other processes fill. `missing`: prompts without a reply."""

    def __init__(self, model: str) -> None:
        self.name, self.missing = model, list[Prompt]()

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        self.missing += prompts
        return ((number, Reply(error=PENDING)) for number in range(len(prompts)))


@per_process
def load(settings: VlmSettings) -> Vlm:
    """Load the backend that the settings name, once for each process. Raise ValueError if the backend is none."""
    if settings.backend == "http":
        from curation.vlm.http import HttpVlm

        return HttpVlm(settings)
    if settings.backend == "transformers":
        from curation.vlm.local import LocalVlm

        return LocalVlm(settings)
    if settings.backend == "vllm":
        return CacheOnlyVlm(settings.model)
    raise ValueError("no VLM is configured: vlm.backend is none")


def ask(vlm: Vlm, prompts: Sequence[Prompt]) -> list[Answer]:
    """Return one answer for each prompt, in order.

    Prompts that are in the cache are not sent to the model. If a reply does not fit, the prompt is sent once more with the
    reason. Raise OSError if the model cannot be reached; the replies that arrived before are in the cache.
    """
    replies = _collect_replies(vlm, prompts)
    results = [_check_reply(*pair) for pair in zip(prompts, replies, strict=True)]
    worker.vlm_usage["invalid"] += sum(
        bool(answer.error) and not reply.error for answer, reply in zip(results, replies, strict=True)
    )
    invalid = [i for i, reply in enumerate(replies) if results[i].error and not parsing.stopped_early(reply)]
    retries = [prompts[i].retry(replies[i].text, results[i].error or "") for i in invalid]
    for i, prompt, reply in zip(invalid, retries, _collect_replies(vlm, retries), strict=True):
        results[i] = _check_reply(prompt, reply)
    return results


def _collect_replies(vlm: Vlm, prompts: Sequence[Prompt]) -> list[Reply]:
    """Return a reply for each prompt, from the cache or else from the model. Valid replies of the model go into the cache."""
    keys = [prompt.cache_key(vlm.name) for prompt in prompts]
    replies = storage.at_once(answers.get, keys)
    unanswered = [i for i, reply in enumerate(replies) if reply is None]
    _count_cached(vlm, [reply for reply in replies if reply is not None])
    began = time.monotonic()
    for number, reply in vlm.replies([prompts[i] for i in unanswered]) if unanswered else ():
        replies[unanswered[number]] = reply
        _count(reply)
        if _check_reply(prompts[unanswered[number]], reply).value is not None:
            answers.put(keys[unanswered[number]], reply)
    if unanswered and not isinstance(vlm, CacheOnlyVlm):
        worker.vlm_usage["milliseconds"] += round(1000 * (time.monotonic() - began))
    assert all(replies), [prompt.name for prompt, reply in zip(prompts, replies, strict=True) if reply is None]
    return [reply for reply in replies if reply is not None]


def _count_cached(vlm: Vlm, replies: Sequence[Reply]) -> None:
    """Count cached replies as free, except those that engines stored for these very questions."""
    if isinstance(vlm, CacheOnlyVlm):
        for reply in replies:
            _count(reply)
    else:
        worker.vlm_usage["cached"] += len(replies)


def _count(reply: Reply) -> None:
    if reply.error != PENDING:
        worker.vlm_usage.update(
            calls=1,
            failed=int(bool(reply.error)),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )


def _check_reply(prompt: Prompt, reply: Reply) -> Answer:
    return parsing.parse_answer(reply, prompt.schema)
