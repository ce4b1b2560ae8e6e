"""A real HTTP server on loopback that can be told to misbehave, and a tiny real model."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.vlm import answers, asking


class Server:
    """An OpenAI-compatible server whose `answer(body, number)` decides what becomes of the number-th chat request."""

    def __init__(self, answer):
        self.answer, self.bodies, self.headers, self.at_once, self._now = answer, [], [], 0, 0
        self._lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                _send(self, 200, {"data": []})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server._now += 1
                    server.at_once = max(server.at_once, server._now)
                try:
                    server.answer(body, number)(self)
                finally:
                    with server._lock:
                        server._now -= 1

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()


def _send(handler, status, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def say(text, prompt_tokens=10, completion_tokens=5):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return lambda handler: _send(handler, 200, {"choices": [{"message": {"content": text}}], "usage": usage})


def status(code, body=b"busy", **headers):
    return lambda handler: _send(handler, code, body, **headers)


def hang(seconds=5.0):
    return lambda handler: time.sleep(seconds)


def cut_off(handler):
    """A body shorter than it was announced to be."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


@pytest.fixture
def serve():
    """Start servers: `serve(answer)` with `answer(body, number)` one of the replies in `serve.say` and its siblings."""
    running = []

    def start(answer):
        running.append(Server(answer))
        return running[-1]

    start.say, start.status, start.hang, start.cut_off = say, status, hang, cut_off
    yield start
    for server in running:
        server.stop()


@pytest.fixture(autouse=True)
def nothing_spent():
    asking.spent.clear()
    answers.use(None)
    yield
    answers.use(None)


@pytest.fixture
def cache(tmp_path):
    answers.use(str(tmp_path / "answers"))
    return tmp_path / "answers"


@pytest.fixture
def jpeg():
    def picture(level=90):
        return bytes(cv2.imencode(".jpg", np.full((90, 120, 3), level, np.uint8))[1])

    return picture


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """The folder of a tiny random Qwen2.5-VL; built in a process of its own, which keeps transformers' warnings there."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-vlm")
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny_vlm.py")), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def spent() -> Counter:
    return asking.spent
