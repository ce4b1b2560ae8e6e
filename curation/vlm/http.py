"""Any server that speaks OpenAI's chat protocol: `vllm serve`, SGLang, llama.cpp, or a hosted one.

Answers are constrained by the server to the schema (`response_format`), and checked again here like any other. A request that
times out, is cut off or answered with an error is tried again with growing pauses, then is that prompt's reason. Where nothing
answers any more, not even the list of models, it is nobody's fault: `ServerGone`, and the unit is done again by the next run.
"""

import base64
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import urllib3

from curation.vlm.protocol import Prompt, Reply, VlmSettings

_RETRIED = (408, 429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 60.0
_ERROR_CHARS = 200
# To a question as simple as "are you there" a server that lives answers in less, however busy its GPUs are.
_PROBE_S = 10.0


class ServerGone(ConnectionError):
    """Nothing answers at the address."""


class HttpVlm:
    """One server; `settings.server.concurrency` requests in flight keep its batches full."""

    def __init__(self, settings: VlmSettings) -> None:
        self.name, self._settings, self._server = settings.model, settings, settings.server
        key = os.environ.get(self._server.api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = urllib3.PoolManager(maxsize=self._server.concurrency, block=True)

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        gone = threading.Event()
        with ThreadPoolExecutor(self._server.concurrency) as threads:
            asked = {threads.submit(self._unless, gone, prompt): i for i, prompt in enumerate(prompts)}
            trouble: ServerGone | None = None
            for done in as_completed(asked):
                if isinstance(error := done.exception(), ServerGone):
                    trouble = trouble or error
                else:
                    yield asked[done], done.result()
        if trouble:
            raise trouble

    def _unless(self, gone: threading.Event, prompt: Prompt) -> Reply:
        """The reply; `ServerGone` at once where another thread has found that out."""
        if gone.is_set():
            raise ServerGone(self._server.url)
        try:
            return self._reply(prompt)
        except ServerGone:
            gone.set()
            raise

    def _reply(self, prompt: Prompt) -> Reply:
        server, timeout = self._server, urllib3.Timeout(total=self._server.timeout_s)
        retries = urllib3.Retry(
            total=server.retries,
            status_forcelist=_RETRIED,
            allowed_methods=None,
            backoff_factor=server.backoff_s,
            backoff_max=_LONGEST_PAUSE_S,
            backoff_jitter=server.backoff_s / 2,
            raise_on_status=False,
        )
        try:
            body, url = _request(prompt, self._settings), f"{server.url.rstrip('/')}/chat/completions"
            response = self._pool.request("POST", url, json=body, headers=self._headers, timeout=timeout, retries=retries)
        except urllib3.exceptions.HTTPError as error:
            self._require_a_server(error)
            return Reply(error=f"no answer after {server.retries + 1} tries of {server.timeout_s:g} s: {_cause(error)}")
        return _read(response)

    def _require_a_server(self, trouble: Exception) -> None:
        """`ServerGone` unless the list of models can still be had."""
        url = f"{self._server.url.rstrip('/')}/models"
        timeout = min(_PROBE_S, self._server.timeout_s)
        try:
            self._pool.request("GET", url, headers=self._headers, timeout=timeout, retries=False)
        except urllib3.exceptions.HTTPError:
            raise ServerGone(
                f"no VLM answers at {self._server.url} ({_cause(trouble)}); start the server (vllm serve MODEL), or correct "
                "vlm.server.url in the recipe"
            ) from trouble


def _cause(error: Exception) -> str:
    """What urllib3 wraps, in its own words without the objects' addresses."""
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {str(reason).rpartition('>: ')[2] or reason}"[:_ERROR_CHARS]


def _request(prompt: Prompt, settings: VlmSettings) -> dict[str, Any]:
    schema = {"name": prompt.name, "schema": prompt.schema, "strict": True}
    return {
        "model": settings.model,
        "messages": messages(prompt),
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": 0,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as a chat in OpenAI's form: labelled frames, the question, and what was wrong with an earlier reply."""
    content: list[dict[str, Any]] = []
    for number, frame in enumerate(prompt.frames):
        if number < len(prompt.labels):
            content.append({"type": "text", "text": prompt.labels[number]})
        url = f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    chat: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": prompt.text}]}]
    if prompt.earlier:
        reply, told = prompt.earlier
        chat += [{"role": "assistant", "content": reply}, {"role": "user", "content": [{"type": "text", "text": told}]}]
    return chat


def _read(response: urllib3.BaseHTTPResponse) -> Reply:
    if response.status != 200:
        return Reply(error=f"the server answered {response.status}: {_words(response.data)}")
    try:
        body = json.loads(response.data)
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Reply(error=f"the server's answer is no chat completion ({type(error).__name__}): {_words(response.data)}")
    said = text if isinstance(text, str) else ""
    return Reply(said, None, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _words(data: bytes) -> str:
    """The beginning of a body, on one line."""
    return " ".join(data.decode("utf-8", "replace").split())[:_ERROR_CHARS] or "nothing"
