"""All stages against a real vLLM server on this machine, with a tiny random Qwen2.5-VL: `make test-vlm`.

The answers mean nothing. The tests show that they fit the schemas, that a server may die in the middle, and that no question is
asked twice.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import fields, replace
from pathlib import Path

import pytest

from curation.captions.consistency import ConsistencySettings
from curation.vlm import EngineSettings, ServerSettings, VlmSettings
from curation.vlm.frames import FrameSettings
from pipelines import ledger, recipes, run
from pipelines.setting_comments import to_commented_yaml

PYTHON = os.environ.get("GAMECRAFT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="GAMECRAFT_VLLM_PYTHON names no Python with vLLM; see `make test-vlm`"),
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore"),
]
MODEL = "tiny-vl"
QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}  # fmt: skip
# Without this option random weights fill the reply with blanks, which JSON allows between its parts.
ARGUMENTS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "8192", "--max-num-seqs", "8"),
    *("--limit-mm-per-prompt", '{"image": 16, "video": 1}'),
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
_UP_S = 300


class VllmServer:
    """`python -m vllm.entrypoints.openai.api_server` on a separate port, in a separate process group."""

    def __init__(self, model, port, log):
        self.model, self.port, self.log = model, port, log
        self.url = f"http://127.0.0.1:{port}/v1"
        self._process = None

    def start(self):
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model), "--host", "127.0.0.1"]
        words = [PYTHON, *words, "--port", str(self.port), "--served-model-name", MODEL, *ARGUMENTS]
        alone = {"env": {**os.environ, **QUIET}, "stderr": subprocess.STDOUT, "start_new_session": True}
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(words, stdout=log, **alone)
        until = time.monotonic() + _UP_S
        while not self._answers():
            assert self._process.poll() is None, f"the server stopped: {Path(self.log).read_text()[-2000:]}"
            assert time.monotonic() < until, f"no server after {_UP_S} s: {Path(self.log).read_text()[-2000:]}"
            time.sleep(0.5)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self):
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def chats(self):
        """Return the number of chat requests answered since the first start."""
        return Path(self.log).read_text().count('POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / MODEL
    build = Path(__file__).parents[1] / "curation" / "vlm" / "tiny_vlm.py"
    subprocess.run([sys.executable, str(build), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    running = VllmServer(model, port, str(tmp_path_factory.mktemp("log") / "server.log"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    write_video = runpy.run_path(str(Path(__file__).parents[1] / "pipelines" / "conftest.py"))["write_video"]
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", seconds=13, seed=4)


@pytest.fixture
def ray_folder():
    """Yield a folder with a short path, because the paths of sockets in it may have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="gc-") as folder:
        yield folder


def recipe(url, retries=3, form="images", **vlm):
    smoke = recipes.smoke()
    settings = {"backend": "http", "model": MODEL, "max_tokens": 3000, **vlm}
    model = VlmSettings(**settings, server=ServerSettings(url, concurrency=4, retries=retries, timeout_s=300, backoff_s=0.5))
    only_flag = ConsistencySettings(
        **{rule.name: "flag" for rule in fields(ConsistencySettings)}
    )  # what random weights see is no reason
    caption = replace(
        smoke.caption,
        vlm=model,
        frames=FrameSettings(count=4, width_px=112, form=form, total_pixels=100_000),
        consistency=only_flag,
    )
    return replace(smoke, caption=caption)


def questions_of(rows):
    return 3 * len(rows) + sum(row["interaction_next"] is not None for row in rows)


def all_valid_or_explained(rows):
    for row in rows:
        assert row["consistency_status"] == "checked" or row["consistency_status"].startswith("failed: ")
        assert row["caption_source"] == MODEL or row["caption_error"]
        assert row["action_source"] == MODEL or row["action_error"]
        assert row["interaction_next"] is None or row["interaction_source"] == MODEL or row["interaction_error"]


def test_all_stages_run_on_both_runners_and_the_second_asks_nothing_that_the_first_asked(server, film, tmp_path):
    out = str(tmp_path / "local")
    done = run.curate([film], out, recipe(server.url))
    rows = ledger.kept_clips(ledger.clips(out)).to_pylist()
    assert (done.failures, done.stored) == ([], len(rows))
    assert len(rows) >= 2
    all_valid_or_explained(rows)
    assert all(row["caption_source"] == MODEL for row in rows), [row["caption_error"] for row in rows]
    assert dict(done.notes)["VLM"].startswith(f"{questions_of(rows)} calls, 0 from the cache")
    asked = server.chats()
    assert run.curate([film], out, recipe(server.url)).records == []
    assert server.chats() == asked

    by_ray = str(tmp_path / "ray")
    done = run.curate([film], by_ray, recipe(server.url), runner="ray")
    others = ledger.kept_clips(ledger.clips(by_ray)).to_pylist()
    assert (done.failures, done.stored) == ([], len(rows))
    all_valid_or_explained(others)
    assert [row["clip_id"] for row in others] == [row["clip_id"] for row in rows]


def test_clips_go_to_the_server_as_videos(server, film, tmp_path):
    out = str(tmp_path / "videos")
    done = run.curate([film], out, recipe(server.url, form="video"))
    rows = ledger.kept_clips(ledger.clips(out)).to_pylist()
    assert (done.failures, done.stored) == ([], len(rows))
    all_valid_or_explained(rows)
    assert all(row["caption_source"] == MODEL for row in rows), [row["caption_error"] for row in rows]


def test_a_server_killed_and_restarted_in_the_middle_loses_no_row_and_is_asked_nothing_twice(server, film, tmp_path):
    """The run continues if the server is back in time. Every question is answered once, as the server itself counts."""
    out, before = str(tmp_path / "o"), server.chats()
    run.curate([film], out, recipe(server.url), phases=["partition", "score", "annotate"])

    def die_and_rise():
        while server.chats() < before + 2:
            time.sleep(0.05)
        server.kill()
        server.start()

    killer = threading.Thread(target=die_and_rise)
    killer.start()
    done = run.curate([film], out, recipe(server.url, retries=1))
    killer.join()
    if done.failures:  # the server was not back in time: the next run does what is left
        assert all("no VLM answers at" in record.failure for record in done.failures)
        done = run.curate([film], out, recipe(server.url))
    rows = ledger.kept_clips(ledger.clips(out)).to_pylist()
    assert (done.failures, done.stored) == ([], len(rows))
    assert len(rows) >= 2
    all_valid_or_explained(rows)
    assert all(row["caption_source"] == MODEL for row in rows)
    assert server.chats() - before == questions_of(rows)


@pytest.mark.parametrize("form", ["images", "video"])
def test_engines_in_the_cluster_answer_the_same_questions(model, film, tmp_path, ray_folder, form):
    """Run `ray.data.llm` in the Python that has vLLM, with the first test's recipe and another backend."""
    out = str(tmp_path / "o")
    engine = EngineSettings(gpus=0, dtype="float32", max_model_len=8192, max_num_seqs=8)
    ahead = recipe("http://nowhere/v1", form=form, backend="vllm", model=str(model), engine=engine)
    (tmp_path / "recipe.yaml").write_text(to_commented_yaml(ahead))
    script = (
        "import ray, sys; from pipelines import recipes, run\n"
        "if __name__ == '__main__':\n"
        f"    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _temp_dir={ray_folder!r})\n"
        f"    done = run.curate([{film!r}], {out!r}, recipes.load({str(tmp_path / 'recipe.yaml')!r}), 'ray')\n"
        "    sys.exit(len(done.failures))\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, **QUIET, "RAY_AUTH_MODE": "disabled"}
    child = subprocess.run([PYTHON, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    rows = ledger.kept_clips(ledger.clips(out)).to_pylist()
    assert len(rows) >= 2
    assert {row["caption_source"] for row in rows} == {row["interactive_source"] for row in rows} == {str(model)}
    calls = sum(record.vlm.get("calls", 0) for record in ledger.records(out))
    assert calls == questions_of(rows)
