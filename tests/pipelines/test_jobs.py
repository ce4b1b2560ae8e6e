"""The commands of docs/cluster.md and deploy/rayjob.yaml as jobs of a Ray head here, with a bucket and its keys put in."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import yaml

from curation import shards, storage
from curation.output_folder import OutputFolder
from pipelines import ledger

pytest.importorskip("aiohttp_cors", reason="jobs need ray[default], which is in the extra 'dev'")
pytestmark = [pytest.mark.ray, pytest.mark.exhaustive, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """The address of a head's dashboard. Its own environment names no store: jobs bring theirs."""
    folder, (gcs, port) = tmp_path_factory.mktemp("h"), free_ports(2)
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("AWS_")}
    start = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={gcs}",
        f"--dashboard-port={port}",
        f"--temp-dir={folder}",
    ]
    head = subprocess.Popen([*start, "--object-store-memory=200000000"], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not answers(port) and time.monotonic() < deadline:
        assert head.poll() is None, "the head did not start"
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}"
    head.send_signal(signal.SIGTERM)
    head.wait(60)


@pytest.fixture
def bucket(s3, raw):
    """Two videos in the bucket, and the runtime environment of deploy/ with this store's endpoint and keys."""
    for name in ("a.mp4", "b.mp4"):
        storage.put(f"{s3.uri}/raw/{name}", (raw / name).read_bytes())
    environment = json.loads((ROOT / "deploy" / "runtime-env.json").read_text())
    environment["env_vars"] = {name: os.environ[name] for name in environment["env_vars"]}
    s3.runtime = json.dumps(environment)
    return s3


def submit_job(dashboard, bucket, words, *options):
    """Submit a job whose inputs and output are in the bucket."""
    words = words.replace("s3://bucket", bucket.uri)
    submit = [
        RAY,
        "job",
        "submit",
        "--address",
        dashboard,
        "--runtime-env-json",
        bucket.runtime,
        *options,
        "--",
        "bash",
        "-c",
        words,
    ]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(submit, env=ENVIRONMENT, capture_output=True, text=True)
        if "Failed to connect" not in done.stderr or time.monotonic() > deadline:
            return done


def stored(out):
    return [sample.clip_id for name in shards.list_committed(out) for sample in shards.read_samples(out, name)]


def test_the_submitted_line_of_the_docs_curates_from_bucket_to_bucket(dashboard, bucket):
    [line] = re.findall(
        r"^ray job submit --address http://head:8265 -- (gamecraft curate .*)$",
        (ROOT / "docs" / "cluster.md").read_text(),
        re.M,
    )
    done = submit_job(dashboard, bucket, line)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    out = f"{bucket.uri}/curated"
    assert len(stored(out)) == sum(row["reject"] is None for row in ledger.clips(out).to_pylist()) > 0
    assert "2 sources" in done.stdout


def test_a_rayjob_that_is_started_again_after_its_driver_died_finishes(dashboard, bucket):
    entrypoint = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())["spec"]["entrypoint"]
    out = f"{bucket.uri}/curated"
    submit_job(dashboard, bucket, entrypoint, "--no-wait")
    deadline = time.monotonic() + 120
    while not storage.names(f"{out}/clips/partition") and time.monotonic() < deadline:
        time.sleep(0.2)
    drivers = drivers_of(out)
    assert drivers, "the first driver ended before it could be killed"
    for pid in drivers:
        os.kill(pid, signal.SIGKILL)
    assert storage.exists(OutputFolder(out).lock)
    done = submit_job(dashboard, bucket, entrypoint)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert len(set(stored(out))) == len(stored(out)) == sum(row["reject"] is None for row in ledger.clips(out).to_pylist()) > 0


def drivers_of(out):
    """Processes whose command line is a curation into this output."""
    drivers = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0") if entry.name.isdigit() else []
            drivers += [int(entry.name)] if out in words and "curate" in words else []
    return drivers
