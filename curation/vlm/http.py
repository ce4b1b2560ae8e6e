"""The backend for any server that speaks OpenAI's chat protocol: `vllm serve`, SGLang, llama.cpp, or a hosted one.

The server constrains answers to the schema (`response_format`), and they are checked again here, as those of every backend. A
request that times out, is cut off or gets an error is retried after growing pauses. If all retries fail, one plain question
about a grey picture finds the cause. If the server answers that question, the prompt is the cause, and the failure is the error
of its row. If not, the server is the cause (a wrong key, an unknown model, a spent quota, no server): `Unavailable` is raised,
and the next run does the unit again.
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
from curation.vlm import qwen
from curation.vlm.parsing import chat_reply
from curation.vlm.protocol import Prompt, Reply, VlmSettings

_RETRIED = (408, 429, 500, 502, 503, 504)
# In the body of a 429 that no pause helps.
_QUOTA_ERRORS = (b"insufficient_quota", b"billing")
_LONGEST_PAUSE_S = 60.0
_ERROR_CHARS = 200
# Keywords of a schema that hosted servers refuse, each server others. Every answer is checked against the whole schema anyway.
_BOUND_KEYWORDS = frozenset(
    ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern")
)
_PLAIN_SCHEMA = {
    "type": "object",
    "properties": {"anything": {"type": "boolean"}},
    "required": ["anything"],
    "additionalProperties": False,
}
_REMEDIES = {
    400: "see what the server takes; it must accept pictures, and a response_format with a JSON schema",
    401: "set the environment variable {key} to a valid key",
    402: "add credit to the account, or name another server",
    403: "give the key the right to use the model",
    404: "name a model that the server has (caption.vlm.model), and the address up to and with /v1 (caption.vlm.server.url)",
    429: "wait until the quota is renewed, or lower caption.vlm.server.concurrency",
}


class HttpVlm:
    """A client of one server. It keeps `settings.server.concurrency` requests in flight, to keep the server's batches full."""

    def __init__(self, settings: VlmSettings) -> None:
        self.name, self._settings, self._server = settings.model, settings, settings.server
        self._pool = urllib3.PoolManager(maxsize=self._server.concurrency, block=True)
        self._sends_bounds = True

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        gone = threading.Event()
        with ThreadPoolExecutor(self._server.concurrency) as threads:
            indices = {threads.submit(self._reply_unless_gone, gone, prompt): i for i, prompt in enumerate(prompts)}
            first_error: Unavailable | None = None
            for done in as_completed(indices):
                if isinstance(error := done.exception(), Unavailable):
                    first_error = first_error or error
                else:
                    yield indices[done], done.result()
        if first_error:
            raise first_error

    def _reply_unless_gone(self, gone: threading.Event, prompt: Prompt) -> Reply:
        """Return the reply. Raise `Unavailable` at once if another thread has already raised it."""
        if gone.is_set():
            raise ServerGone(self._server.url)
        try:
            return self._reply(prompt)
        except Unavailable:
            gone.set()
            raise

    def _reply(self, prompt: Prompt) -> Reply:
        """Return the prompt's reply or failure. Raise `Unavailable` if the server does not answer a plain question either."""
        reply, status = self._request_reply(prompt, self._server.retries)
        if status == 200:
            return reply
        failure = reply
        if not _form_refused(reply, status):
            plain = Prompt("picture", "Is there anything to be seen?", _PLAIN_SCHEMA, (_grey_jpeg(),))
            failure, status = self._request_reply(plain, min(1, self._server.retries))
            if status == 200:
                return reply
        url = self._server.url
        if status is None:
            raise ServerGone(
                f"no VLM answers at {url} ({failure.error}); start the server (vllm serve MODEL), or correct "
                "caption.vlm.server.url in the recipe"
            )
        remedy = _REMEDIES.get(status, "see the server's log").format(key=self._server.api_key_env)
        raise Unavailable(f"the VLM at {url} answers no question ({failure.error}); {remedy}, and run again")

    def _request_reply(self, prompt: Prompt, max_retries: int) -> tuple[Reply, int | None]:
        """Return a reply and its status: None if nothing arrived, 502 if the body is not a chat completion."""
        retries = urllib3.Retry(
            total=max_retries,
            backoff_factor=self._server.backoff_s,
            backoff_max=_LONGEST_PAUSE_S,
            backoff_jitter=self._server.backoff_s / 2,
        )
        error: Exception
        while True:
            try:
                response = self._post(prompt)
            except urllib3.exceptions.HTTPError as failure:
                error, response = failure, None
            if response is not None and (response.status not in _RETRIED or any(w in response.data for w in _QUOTA_ERRORS)):
                break
            try:
                retries = retries.increment("POST", self._server.url, response, error if response is None else None)
            except urllib3.exceptions.HTTPError:
                break
            retries.sleep(response)
        if response is None:
            words = f"no answer after {max_retries + 1} tries of {self._server.timeout_s:g} s: {_error_cause(error)}"
            return Reply(error=words), None
        return _parse_response(response)

    def _post(self, prompt: Prompt) -> urllib3.BaseHTTPResponse:
        server = self._server
        key = os.environ.get(server.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url, timeout = f"{server.url.rstrip('/')}/chat/completions", urllib3.Timeout(total=server.timeout_s)

        def post() -> urllib3.BaseHTTPResponse:
            body = _request(prompt, self._settings, self._sends_bounds)
            return self._pool.request("POST", url, json=body, headers=headers, timeout=timeout, retries=False)

        response = post()
        if self._sends_bounds and _form_refused(*_parse_response(response)):
            self._sends_bounds = False  # the server may refuse only the bounds in the schema
            response = post()
        return response


def _form_refused(reply: Reply, status: int | None) -> bool:
    """Whether the server refuses the form of the question, so that it would refuse those of all other clips as well."""
    return status == 400 and any(word in (reply.error or "") for word in ("schema", "response_format"))


@cache
def _grey_jpeg() -> bytes:
    """Return a JPEG of plain grey."""
    return bytes(cv2.imencode(".jpg", np.full((112, 112, 3), 128, np.uint8))[1])


def _error_cause(error: Exception) -> str:
    """Return the text of the error that urllib3 wraps, without the addresses of objects."""
    reason = getattr(error, "reason", None) or error
    return f"{type(reason).__name__}: {str(reason).rpartition('>: ')[2] or reason}"[:_ERROR_CHARS]


def _request(prompt: Prompt, settings: VlmSettings, bounded: bool) -> dict[str, Any]:
    schema = {"name": prompt.name, "schema": prompt.schema if bounded else _without_bounds(prompt.schema), "strict": True}
    return {
        "model": settings.model,
        "messages": chat_messages(prompt),
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": 0,
        "response_format": {"type": "json_schema", "json_schema": schema},
        **video_options(prompt),
    }


def video_options(prompt: Prompt) -> dict[str, Any]:
    """Return vLLM's options of a request with a video: the frames are already sampled, all count, and this is their rate."""
    if not prompt.video:
        return {}
    fps = prompt.video.fps
    return {
        "mm_processor_kwargs": {"fps": fps, "do_sample_frames": False},
        "media_io_kwargs": {"video": {"num_frames": -1, "fps": fps}},
    }


def _without_bounds(schema: Any) -> Any:
    """Return a schema without its bounds. A property may have the name of a bound, so names of properties stay."""
    if isinstance(schema, list):
        return [_without_bounds(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    unbounded = {name: part for name, part in schema.items() if name not in _BOUND_KEYWORDS}
    properties = unbounded.get("properties", {})
    return {
        name: {key: _without_bounds(of) for key, of in properties.items()} if part is properties else _without_bounds(part)
        for name, part in unbounded.items()
    }


def chat_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """Return the prompt as a chat in OpenAI's form: labelled frames, the question, and the correction of an earlier reply.

    A video is one `video_url`, the frames' JPEGs in base64 with commas between them, as vLLM and SGLang read it.
    """
    content: list[dict[str, Any]] = []
    if prompt.video:
        content += [{"type": "text", "text": label} for label in prompt.labels]
        jpegs = ",".join(base64.b64encode(frame).decode() for frame in qwen.resized_frames(prompt))
        content.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{jpegs}"}})
    for number, frame in enumerate(() if prompt.video else prompt.frames):
        if number < len(prompt.labels):
            content.append({"type": "text", "text": prompt.labels[number]})
        url = f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    chat: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": prompt.text}]}]
    if prompt.earlier:
        reply, correction = prompt.earlier
        chat += [{"role": "assistant", "content": reply}, {"role": "user", "content": [{"type": "text", "text": correction}]}]
    return chat


def _parse_response(response: urllib3.BaseHTTPResponse) -> tuple[Reply, int]:
    if response.status != 200:
        return Reply(error=f"the server answered {response.status}: {_body_excerpt(response.data)}"), response.status
    try:
        body = json.loads(response.data)
        return chat_reply(body["choices"][0], body.get("usage") or {}), 200
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        words = f"the server's answer is not a chat completion ({type(error).__name__}): {_body_excerpt(response.data)}"
        return Reply(error=words), 502


def _body_excerpt(data: bytes) -> str:
    """Return the beginning of a response's body, on one line."""
    return " ".join(data.decode("utf-8", "replace").split())[:_ERROR_CHARS] or "nothing"
