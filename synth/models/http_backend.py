"""A served model: OpenAI's protocol for images and videos, which `sglang serve`, `vllm serve --omni` and hosted servers speak.

    POST /images/generations          paint: JSON in, base64 out
    POST /images/edits                edit: a form with the picture in, base64 out
    POST /videos, GET /videos/ID, GET /videos/ID/content     animate: a form with the first frame in, an mp4 out when it is done

`seed` and `negative_prompt` are fields that open servers take beside OpenAI's own. The protocol knows no last frame, so that
start_end needs pipelines in this process. A server that cannot be reached is an OSError: the next run tries the unit again.
"""

import base64
import json
import os
import time
from typing import Any

import cv2
import numpy as np
import urllib3

from curation import scratch
from curation.errors import ServerGone, Unavailable, UnreadableVideo
from curation.media import decode
from curation.media.decode import Span
from synth.media import from_bytes, to_png
from synth.models.base import ModelSettings, NotMade, Words

_POLL_S = 2.0
# No key, no money, no right, no such model: no attempt's fault.
_REFUSED = (401, 402, 403, 404)
_ERROR_CHARS = 200


class HttpModel:
    """One model on a server."""

    def __init__(self, name: str, how: ModelSettings) -> None:
        self.name, self._how = name, how
        key = os.environ.get(how.server.api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = urllib3.PoolManager()

    def paint(self, words: Words, seed: int) -> np.ndarray:
        """A picture from words."""
        body = {**self._told(words, seed), "n": 1, "response_format": "b64_json", "num_inference_steps": self._how.image_steps}
        return _decoded(self._json("POST", "images/generations", json=body), self.name)

    def edit(self, picture: np.ndarray, words: Words, seed: int) -> np.ndarray:
        """A picture changed as the words say."""
        fields = {**self._told(words, seed), "n": "1", "response_format": "b64_json"}
        fields |= {"num_inference_steps": self._how.image_steps}
        return _decoded(self._json("POST", "images/edits", fields=_form(fields, "image", picture)), self.name)

    def animate(self, first: np.ndarray, last: np.ndarray | None, words: Words, seed: int) -> np.ndarray:
        """A video from its first frame; asked for, then waited for."""
        if last is not None:
            raise ValueError("the servers' protocol takes no last frame: use synth.backend diffusers for start_end")
        how = self._how
        asked = {**self._told(words, seed), "fps": f"{how.fps:g}", "num_frames": how.frames}
        asked |= {"seconds": f"{how.frames / how.fps:g}", "num_inference_steps": how.video_steps}
        job = self._json("POST", "videos", fields=_form(asked, "input_reference", first))
        deadline = time.monotonic() + how.timeout_s
        while job.get("status") not in ("completed", "failed", "cancelled"):
            if time.monotonic() > deadline:
                raise NotMade(f"{self.name} gave nothing within {how.timeout_s:g} s (status {job.get('status')})")
            time.sleep(min(_POLL_S, how.timeout_s / 10))
            job = self._json("GET", f"videos/{job['id']}")
        if job["status"] != "completed":
            raise NotMade(f"{self.name}: {job['status']}: {str(job.get('error'))[:_ERROR_CHARS]}")
        return _frames(self._asked("GET", f"videos/{job['id']}/content"), self.name)

    def _told(self, words: Words, seed: int) -> dict[str, Any]:
        size = f"{self._how.width}x{self._how.height}"
        told = {"model": self.name, "prompt": words.prompt, "size": size, "seed": seed}
        return told | ({"negative_prompt": words.negative} if words.negative else {})

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        data = self._asked(method, path, **content)
        try:
            answer: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise NotMade(f"{self.name}: the server's answer to {path} is no JSON") from error
        return answer

    def _asked(self, method: str, path: str, **content: Any) -> bytes:
        server = self._how.server
        timeout = urllib3.Timeout(connect=server.timeout_s, read=self._how.timeout_s)
        url = f"{server.url.rstrip('/')}/{path}"
        try:
            response = self._pool.request(method, url, headers=self._headers, timeout=timeout, retries=False, **content)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise NotMade(f"{self.name} gave nothing within {self._how.timeout_s:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServerGone(f"no model answers at {server.url}; start it, or correct synth.models.server.url") from error
        if response.status in _REFUSED:
            raise Unavailable(
                f"{self.name} at {server.url} refuses (HTTP {response.status}); correct the key or the model's name"
            )
        if response.status != 200:
            said = " ".join(response.data.decode("utf-8", "replace").split())[:_ERROR_CHARS]
            raise NotMade(f"{self.name}: the server answered {response.status}: {said}")
        return bytes(response.data)


def _form(fields: dict[str, Any], name: str, picture: np.ndarray) -> dict[str, Any]:
    """A multipart form with a picture as PNG."""
    return {key: str(value) for key, value in fields.items()} | {name: ("frame.png", to_png(picture), "image/png")}


def _decoded(answer: dict[str, Any], name: str) -> np.ndarray:
    try:
        data = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
        found = from_bytes(data)
    except (LookupError, TypeError, ValueError, cv2.error) as error:
        raise NotMade(f"{name}: the server's answer holds no picture ({type(error).__name__})") from error
    if found is None:
        raise NotMade(f"{name}: the server's answer holds no picture that can be read")
    return found


def _frames(mp4: bytes, name: str) -> np.ndarray:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".mp4", dir=scratch.folder()) as file:
        file.write(mp4)
        file.flush()
        try:
            return decode.read_frames(file.name, Span(0.0, float("inf"))).rgb
        except UnreadableVideo as error:
            raise NotMade(f"{name}: the server's video cannot be read: {error}") from error
