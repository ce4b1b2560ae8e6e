"""Fixtures for every test: where the shared footage lies, a tiny VLM, an S3 store and a VLM server on this machine."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curation import s3 as s3_module
from curation.captions import embedding_cache
from curation.vlm import answers
from curation.worker_state import worker
from pipelines import logs

# Ray runs its workers at nice 15: beside another process of tests they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

# Files whose tests run whole phases, train, or decode for seconds: `make test-fast` leaves them out.
SLOW = frozenset(
    f"tests/{name}.py"
    for name in (
        *("bench/test_camera", "bench/test_camera_scale", "bench/test_quality_training", "curation/test_storage_s3"),
        *("curation/cameras/test_annotate", "curation/cameras/test_klt", "curation/cameras/test_vipe"),
        *("curation/media/test_decode", "curation/media/test_decode_spans", "curation/media/test_odd_media"),
        *("curation/media/test_repair", "curation/partition/test_chunks", "curation/partition/test_scan"),
        "curation/partition/test_detectors",
        *("curation/captions/test_embeddings", "curation/vlm/test_local", "operators/test_partition", "operators/test_relate"),
        *("model/test_chain", "model/test_codecs", "model/test_data", "model/test_encode_latents", "model/test_injection"),
        *("model/test_launch", "model/test_layout", "model/test_loader_s3", "model/test_parallel", "model/test_train"),
        *("model/causal/test_causal", "model/causal/test_rollout", "model/play/test_server", "model/test_training"),
        *("pipelines/test_annotate", "pipelines/test_caption", "pipelines/test_chunk_units"),
        *("pipelines/test_cli", "pipelines/test_dataset_card", "pipelines/test_lock", "pipelines/test_quarantine"),
        *("pipelines/test_retry", "pipelines/test_run", "pipelines/test_run_s3", "pipelines/test_same_outputs"),
        *("pipelines/test_sources", "pipelines/test_synth", "pipelines/test_worker", "pipelines/report/test_page"),
        *("pipelines/report/test_thresholds", "synth/models/test_load", "synth/test_doom_record", "test_docs", "test_notebook"),
        *(
            "curation/test_torchvision_guard",
            "model/causal/test_distillation",
            "model/test_memory_plan",
            "model/test_device",
            "model/test_exit",
            "model/test_frame_codec",
            "synth/test_doom_cameras",
            "synth/test_minetest",
            "synth/test_takes",
            *(
                f"model/evaluation/test_{name}"
                for name in ("control", "eval_command", "general", "interbench", "runs", "trial")
            ),
        ),
    )
)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark slow files, and let tests on Ray begin: they take longest, and wait more than they work."""
    root = Path(__file__).resolve().parents[1]
    for item in items:
        if item.path.is_relative_to(root) and item.path.relative_to(root).as_posix() in SLOW:
            item.add_marker("slow")
    yield  # -m leaves out what is marked; the order is shuffled
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def nothing_spent() -> Iterator[None]:
    """No question counted, none answered by what another test has asked, no vector of another test's output."""
    worker.vlm_usage.clear()
    answers.use_folder(None)
    embedding_cache.use_folder(None)
    yield
    answers.use_folder(None)
    embedding_cache.use_folder(None)


@pytest.fixture(autouse=True)
def logs_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that runs in this process says what is logged, and from which level on: for that test only."""
    loggers = [logging.getLogger(name) for name in logs.PACKAGES]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    monkeypatch.setenv(logs.ENVIRONMENT, os.environ.get(logs.ENVIRONMENT, "warning"))
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def footage() -> Path:
    """The folder of shared footage; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("GAMECRAFT_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared footage at {folder}; set GAMECRAFT_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """The folder of a tiny random Qwen2.5-VL; built in a process of its own, which keeps transformers' warnings there."""
    pytest.importorskip("transformers")
    build = Path(__file__).parent / "curation" / "vlm" / "tiny_vlm.py"
    folder = tmp_path_factory.mktemp("tiny-vlm")
    subprocess.run([sys.executable, str(build), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(_moto: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """An empty bucket of its own: `uri`, the client, and how many bytes each read fetched."""
    for name, value in {
        "AWS_ENDPOINT_URL": _moto,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3_module.client.cache_clear()
    client = s3_module.client()
    bucket = f"b{abs(hash(request.node.nodeid)):x}"
    client.create_bucket(Bucket=bucket)
    fetched: list[int] = []
    client.meta.events.register("after-call.s3.GetObject", lambda parsed, **_: fetched.append(parsed.get("ContentLength", 0)))
    yield SimpleNamespace(uri=f"s3://{bucket}", bucket=bucket, client=client, fetched=fetched)
    client.close()
    s3_module.client.cache_clear()


@pytest.fixture
def front(s3: SimpleNamespace, _moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The same bucket behind a server that keeps connections open and can be made to err: see `store_front.Front`."""
    kept = _beside("store_front")
    server = kept.Front(_moto)
    server.uri, server.refusal = s3.uri, kept.refusal
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    s3_module.client.cache_clear()
    yield server
    s3_module.client.cache_clear()
    server.stop()


def _beside(name: str) -> Any:
    """A module of helpers in this folder."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


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


def fitting(schema):
    """Some value of the schema: yes to every question, the first of every choice, one word for every text, no items."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema["type"]
    if kind == "object":
        return {name: fitting(part) for name, part in schema["properties"].items()}
    return {"array": [], "boolean": True, "string": "something", "integer": 1}[kind]


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

    start.say, start.status, start.hang, start.cut_off, start.fitting = say, status, hang, cut_off, fitting
    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Folders of a painter, an editor and an animator: diffusers' own classes, tiny, with random weights."""
    for package in ("diffusers", "ftfy"):
        pytest.importorskip(package, reason=f'{package} is in the extra "synth"')
    tiny = _beside("tiny_pipelines")
    folder = tmp_path_factory.mktemp("pipelines")
    models = {
        "painter": tiny.flux(folder / "flux"),
        "editor": tiny.flux(folder / "kontext", editor=True),
        "animator": tiny.wan(folder / "wan"),
    }
    return SimpleNamespace(
        **models,
        models=models,
        others={  # made where they are asked for
            "hunyuanvideo": lambda: tiny.hunyuan_video(folder / "hunyuan"),
            "helios": lambda: tiny.helios(folder / "helios"),
        },
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright; skips where either is missing."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=[*quiet.split(), "--no-first-run"])
        yield running
        running.close()
