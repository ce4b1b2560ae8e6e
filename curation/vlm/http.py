"""Any server that speaks OpenAI's chat protocol: `vllm serve`, SGLang, llama.cpp, or a hosted one.

Answers are constrained by the server to the schema (`response_format`), and checked again here like any other. A request that
times out, is cut off or answered with an error is tried again with growing pauses. Where it fails for good, one more question
decides whose fault that is: a plain one about a grey picture. If the server answers it, the failure is that prompt's reason. If
not, it is no prompt's fault (a wrong key, a model that is not there, a spent quota, a server that is gone): `Unavailable`, and
the unit is done again by the next run.
"""

import base64
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from typing import Any

import cv2
import numpy as np
import urllib3

from curation.errors import ServerGone, Unavailable
from curation.vlm.parsing import chat_reply
from curation.vlm.protocol import Prompt, Reply, VlmSettings

_RETRIED = (408, 429, 500, 502, 503, 504)
# Also answered with 429, and no pause helps.
_SPENT = (b"insufficient_quota", b"billing")
_LONGEST_PAUSE_S = 60.0
_ERROR_CHARS = 200
# What hosted servers refuse in a schema, each others of them; every answer is held against the whole schema anyway.
_BOUNDS = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern")
)
_YES_NO = {
    "type": "object",
    "properties": {"anything": {"type": "boolean"}},
    "required": ["anything"],
    "additionalProperties": False,
}
_REMEDIES = {
    400: "see what the server takes: pictures, and a response_format with a JSON schema",
    401: "set the environment variable {key} to a valid key",
    402: "add credit to the account, or name another server",
    403: "give the key the right to use the model",
    404: "name a model that the server has (caption.vlm.model), and the address up to and with /v1 (caption.vlm.server.url)",
    429: "wait until the quota is there again, or lower caption.vlm.server.concurrency",
}


class HttpVlm:
    """One server; `settings.server.concurrency` requests in flight keep its batches full."""

    def __init__(self, settings: VlmSettings) -> None:
        self.name, self._settings, self._server = settings.model, settings, settings.server
        self._pool = urllib3.PoolManager(maxsize=self._server.concurrency, block=True)
        self._bounded = True

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        gone = threading.Event()
        with ThreadPoolExecutor(self._server.concurrency) as threads:
            asked = {threads.submit(self._unless, gone, prompt): i for i, prompt in enumerate(prompts)}
            trouble: Unavailable | None = None
            for done in as_completed(asked):
                if isinstance(error := done.exception(), Unavailable):
                    trouble = trouble or error
                else:
                    yield asked[done], done.result()
        if trouble:
            raise trouble

    def _unless(self, gone: threading.Event, prompt: Prompt) -> Reply:
        """The reply; `Unavailable` at once where another thread has found that out."""
        if gone.is_set():
            raise ServerGone(self._server.url)
        try:
            return self._reply(prompt)
        except Unavailable:
            gone.set()
            raise

    def _reply(self, prompt: Prompt) -> Reply:
        """The prompt's reply, or its own failure; `Unavailable` where the server does not answer a plain question either."""
        reply, status = self._asked(prompt, self._server.retries)
        if status == 200:
            return reply
        said = reply
        if not _form_refused(reply, status):
            plain = Prompt("picture", "Is there anything to be seen?", _YES_NO, (_grey(),))
            said, status = self._asked(plain, min(1, self._server.retries))
            if status == 200:
                return reply
        url = self._server.url
        if status is None:
            raise ServerGone(
                f"no VLM answers at {url} ({said.error}); start the server (vllm serve MODEL), or correct "
                "caption.vlm.server.url in the recipe"
            )
        remedy = _REMEDIES.get(status, "see the server's log").format(key=self._server.api_key_env)
        raise Unavailable(f"the VLM at {url} answers no question ({said.error}); {remedy}, and run again")

    def _asked(self, prompt: Prompt, tries: int) -> tuple[Reply, int | None]:
        """A reply and the status that it came with; None where nothing came, and what is no chat completion counts as 502."""
        retries = urllib3.Retry(
            total=tries,
            backoff_factor=self._server.backoff_s,
            backoff_max=_LONGEST_PAUSE_S,
            backoff_jitter=self._server.backoff_s / 2,
        )
        error: Exception
        while True:
            try:
                response = self._post(prompt)
            except urllib3.exceptions.HTTPError as trouble:
                error, response = trouble, None
            if response is not None and (response.status not in _RETRIED or any(w in response.data for w in _SPENT)):
                break
            try:
                retries = retries.increment("POST", self._server.url, response, error if response is None else None)
            except urllib3.exceptions.HTTPError:
                break
            retries.sleep(response)
        if response is None:
            words = f"no answer after {tries + 1} tries of {self._server.timeout_s:g} s: {_cause(error)}"
            return Reply(error=words), None
        return _read(response)

    def _post(self, prompt: Prompt) -> urllib3.BaseHTTPResponse:
        server = self._server
        key = os.environ.get(server.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url, timeout = f"{server.url.rstrip('/')}/chat/completions", urllib3.Timeout(total=server.timeout_s)

        def post() -> urllib3.BaseHTTPResponse:
            body = _request(prompt, self._settings, self._bounded)
            return self._pool.request("POST", url, json=body, headers=headers, timeout=timeout, retries=False)

        response = post()
        if self._bounded and _form_refused(*_read(response)):
            self._bounded = False  # it may be the bounds in the schema
            response = post()
        return response


def _form_refused(reply: Reply, status: int | None) -> bool:
    """Whether a server takes no question of this form; another clip's would be refused as well."""
    return status == 400 and any(word in (reply.error or "") for word in ("schema", "response_format"))


@cache
def _grey() -> bytes:
    """A JPEG in which nothing is to be seen."""
    return bytes(cv2.imencode(".jpg", np.full((112, 112, 3), 128, np.uint8))[1])


def _cause(error: Exception) -> str:
    """What urllib3 wraps, in its own words without the objects' addresses."""
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {str(reason).rpartition('>: ')[2] or reason}"[:_ERROR_CHARS]


def _request(prompt: Prompt, settings: VlmSettings, bounded: bool) -> dict[str, Any]:
    schema = {"name": prompt.name, "schema": prompt.schema if bounded else _without_bounds(prompt.schema), "strict": True}
    return {
        "model": settings.model,
        "messages": messages(prompt),
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": 0,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def _without_bounds(schema: Any) -> Any:
    """A schema's structure alone: what a property is called is no bound."""
    if isinstance(schema, list):
        return [_without_bounds(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {name: part for name, part in schema.items() if name not in _BOUNDS}
    inside = kept.get("properties", {})
    return {
        name: {key: _without_bounds(of) for key, of in inside.items()} if part is inside else _without_bounds(part)
        for name, part in kept.items()
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


def _read(response: urllib3.BaseHTTPResponse) -> tuple[Reply, int]:
    if response.status != 200:
        return Reply(error=f"the server answered {response.status}: {_words(response.data)}"), response.status
    try:
        body = json.loads(response.data)
        return chat_reply(body["choices"][0], body.get("usage") or {}), 200
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        words = f"the server's answer is no chat completion ({type(error).__name__}): {_words(response.data)}"
        return Reply(error=words), 502


def _words(data: bytes) -> str:
    """The beginning of a body, on one line."""
    return " ".join(data.decode("utf-8", "replace").split())[:_ERROR_CHARS] or "nothing"
