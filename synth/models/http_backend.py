"""Call a served model by OpenAI's protocol for images and videos: `sglang serve`, `vllm serve --omni`, hosted servers.

    POST /images/generations          paint: JSON in, base64 out
    POST /images/edits                edit: a form with the picture in, base64 out
    POST /videos, GET /videos/ID, GET /videos/ID/content     animate: a form with the first frame in, an mp4 out when it is done

`seed` and `negative_prompt` are fields that open servers accept in addition to OpenAI's. The protocol has no last frame, so
start_end needs the backend diffusers. A server that does not answer raises `ServerGone`: the next run tries the unit again.
"""

import base64
import json
import os
import tempfile
import time
from typing import Any

import cv2
import numpy as np
import urllib3

from curation import scratch
from curation.errors import InputError, ServerGone, Unavailable, UnreadableVideo
from curation.media import decode
from curation.media.decode import Span
from synth.media import decode_picture, to_png
from synth.models.base import ModelFailed, ModelSettings, PromptPair

_POLL_S = 2.0
# A wrong key, no credit, no permission, an unknown model: the attempt is not at fault, so the unit stays for the next run.
_UNAVAILABLE = (401, 402, 403, 404)
_ERROR_CHARS = 200


class HttpModel:
    """One model on a server."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        self.name, self._settings = name, settings
        key = os.environ.get(settings.server.api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = urllib3.PoolManager()

    def paint(self, prompts: PromptPair, seed: int) -> np.ndarray:
        """Make a picture from a prompt."""
        fields = {**self._fields(prompts, seed), "n": 1, "response_format": "b64_json"}
        fields |= {"num_inference_steps": self._settings.image_steps}
        return _picture(self._request_json("POST", "images/generations", json=fields), self.name)

    def edit(self, picture: np.ndarray, prompts: PromptPair, seed: int) -> np.ndarray:
        """Change a picture as the prompt says."""
        fields = {**self._fields(prompts, seed), "n": "1", "response_format": "b64_json"}
        fields |= {"num_inference_steps": self._settings.image_steps}
        return _picture(self._request_json("POST", "images/edits", fields=_form(fields, "image", picture)), self.name)

    def animate(self, first: np.ndarray, last: np.ndarray | None, prompts: PromptPair, seed: int) -> np.ndarray:
        """Make a video from its first frame: start a job, and poll until it is done."""
        if last is not None:
            raise InputError("the servers' protocol has no last frame: use synth.backend diffusers for start_end")
        settings = self._settings
        fields = {**self._fields(prompts, seed), "fps": f"{settings.fps:g}", "num_frames": settings.frames}
        fields |= {"seconds": f"{settings.frames / settings.fps:g}", "num_inference_steps": settings.video_steps}
        job = self._request_json("POST", "videos", fields=_form(fields, "input_reference", first))
        deadline = time.monotonic() + settings.timeout_s
        while job.get("status") not in ("completed", "failed", "cancelled"):
            if time.monotonic() > deadline:
                raise ModelFailed(f"{self.name} gave nothing within {settings.timeout_s:g} s (status {job.get('status')})")
            time.sleep(min(_POLL_S, settings.timeout_s / 10))
            job = self._request_json("GET", f"videos/{job['id']}")
        if job["status"] != "completed":
            raise ModelFailed(f"{self.name}: {job['status']}: {str(job.get('error'))[:_ERROR_CHARS]}")
        return _video(self._request("GET", f"videos/{job['id']}/content"), self.name)

    def _fields(self, prompts: PromptPair, seed: int) -> dict[str, Any]:
        size = f"{self._settings.width}x{self._settings.height}"
        fields = {"model": self.name, "prompt": prompts.prompt, "size": size, "seed": seed}
        return fields | ({"negative_prompt": prompts.negative} if prompts.negative else {})

    def _request_json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        data = self._request(method, path, **content)
        try:
            answer: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise ModelFailed(f"{self.name}: the server's answer to {path} is not JSON") from error
        return answer

    def _request(self, method: str, path: str, **content: Any) -> bytes:
        server, timeout_s = self._settings.server, self._settings.timeout_s
        timeout = urllib3.Timeout(connect=server.timeout_s, read=timeout_s)
        url = f"{server.url.rstrip('/')}/{path}"
        try:
            response = self._pool.request(method, url, headers=self._headers, timeout=timeout, retries=False, **content)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise ModelFailed(f"{self.name} gave nothing within {timeout_s:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerGone(f"no model answers at {server.url}; start it, or correct synth.models.server.url") from error
        if response.status in _UNAVAILABLE:
            raise Unavailable(
                f"{self.name} at {server.url} refuses (HTTP {response.status}); correct the key or the model's name"
            )
        if response.status != 200:
            message = " ".join(response.data.decode("utf-8", "replace").split())[:_ERROR_CHARS]
            raise ModelFailed(f"{self.name}: the server answered {response.status}: {message}")
        return bytes(response.data)


def _form(fields: dict[str, Any], name: str, picture: np.ndarray) -> dict[str, Any]:
    """Return a multipart form with a picture as PNG."""
    return {key: str(value) for key, value in fields.items()} | {name: ("frame.png", to_png(picture), "image/png")}


def _picture(answer: dict[str, Any], name: str) -> np.ndarray:
    try:
        data = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
        picture = decode_picture(data)
    except (LookupError, TypeError, ValueError, cv2.error) as error:
        raise ModelFailed(f"{name}: the server's answer holds no picture ({type(error).__name__})") from error
    if picture is None:
        raise ModelFailed(f"{name}: the server's answer holds no picture that can be read")
    return picture


def _video(mp4: bytes, name: str) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".mp4", dir=scratch.folder()) as file:
        file.write(mp4)
        file.flush()
        try:
            return decode.read_frames(file.name, Span(0.0, float("inf"))).rgb
        except UnreadableVideo as error:
            raise ModelFailed(f"{name}: the server's video cannot be read: {error}") from error
