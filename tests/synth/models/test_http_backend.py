"""A served model by OpenAI's protocol: the requests, the answers, and errors of the server."""

import base64
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest

from curation.vlm import ServerSettings
from synth.media import to_mp4
from synth.models.base import ModelFailed, ModelSettings, PromptPair
from synth.models.load import Models

SETTINGS = ModelSettings(painter="qwen", editor="qwen", animator="wan", width=64, height=48, frames=9, fps=8.0, timeout_s=5.0)
SNOW = PromptPair("make it snow", "text")
PICTURE = np.full((48, 64, 3), (200, 100, 50), np.uint8)


class ImageServer:
    """Answers image requests at once and video requests after a poll, and stores the requests."""

    def __init__(self):
        self.requests, self.polls, self.broken = [], 0, {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                video = {"id": "v1", "status": "queued"}
                self._say(json.dumps(video if self.path == "/v1/videos" else {"data": [{"b64_json": _png()}]}).encode())

            def do_GET(self):
                server.polls += 1
                if self.path.endswith("/content"):
                    self._say(to_mp4(np.repeat(PICTURE[None], 9, axis=0), 8.0))
                else:
                    self._say(json.dumps({"id": "v1", "status": "completed" if server.polls > 1 else "in_progress"}).encode())

            def _say(self, data):
                status, data = server.broken.get(self.path, (200, data))
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.models = Models(
            "http", replace(SETTINGS, server=ServerSettings(url=f"http://127.0.0.1:{self._http.server_port}/v1"))
        )
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


def _png():
    return base64.b64encode(cv2.imencode(".png", PICTURE[:, :, ::-1])[1]).decode()


@pytest.fixture
def server():
    running = ImageServer()
    yield running
    running.stop()


def test_a_picture_is_asked_for_with_its_seed_and_size(server):
    assert np.array_equal(server.models.paint(SNOW, 7), PICTURE)
    ((path, body),) = server.requests
    fields = json.loads(body)
    assert path == "/v1/images/generations"
    assert (fields["model"], fields["prompt"], fields["negative_prompt"]) == ("qwen", "make it snow", "text")
    assert (fields["size"], fields["seed"], fields["response_format"]) == ("64x48", 7, "b64_json")


def test_an_edit_carries_the_picture(server):
    assert np.array_equal(server.models.edit(PICTURE, SNOW, 7), PICTURE)
    ((path, body),) = server.requests
    assert path == "/v1/images/edits"
    assert b'name="image"; filename="frame.png"' in body
    assert b"\x89PNG" in body


def test_a_video_is_asked_for_and_waited_for(server):
    video = server.models.animate(PICTURE, None, SNOW, 7)
    assert video.shape == (9, 48, 64, 3)
    assert np.abs(video.astype(int) - PICTURE).max() < 8
    assert b'name="input_reference"' in server.requests[0][1]
    assert server.polls == 3


def test_the_protocol_has_no_last_frame(server):
    with pytest.raises(ValueError, match=r"use synth\.backend diffusers for start_end"):
        server.models.animate(PICTURE, PICTURE, SNOW, 7)


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/v1/images/generations", (500, b"out of memory"), "qwen: the server answered 500: out of memory"),
        ("/v1/images/generations", (200, b"hello"), "answer to images/generations is not JSON"),
        ("/v1/images/generations", (200, b'{"data": []}'), "holds no picture"),
        ("/v1/images/generations", (200, b'{"data": [{"b64_json": "AAAA"}]}'), "holds no picture"),
        ("/v1/videos/v1", (200, b'{"id": "v1", "status": "failed", "error": "too long"}'), "wan: failed: too long"),
        ("/v1/videos/v1/content", (200, b"no video"), "the server's video cannot be read"),
    ],
)
def test_a_bad_answer_is_the_attempts_reason(server, path, answer, said):
    server.broken[path] = answer
    with pytest.raises(ModelFailed, match=said):
        _ = server.models.paint(SNOW, 1) if "images" in path else server.models.animate(PICTURE, None, SNOW, 1)


def test_a_server_that_is_gone_is_no_attempts_fault(server):
    server.stop()
    with pytest.raises(OSError, match="no model answers at http://127"):
        server.models.paint(SNOW, 1)
