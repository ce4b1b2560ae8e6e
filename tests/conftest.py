"""Fixtures for every test: where the shared footage lies, and an S3 store on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from curation import storage


@pytest.fixture(scope="session")
def footage() -> Path:
    """The folder of shared footage; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("GAMECRAFT_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared footage at {folder}; set GAMECRAFT_SHARED")
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
    storage._s3.cache_clear()
    client = storage._s3()
    bucket = f"b{abs(hash(request.node.nodeid)):x}"
    client.create_bucket(Bucket=bucket)
    fetched: list[int] = []
    client.meta.events.register("after-call.s3.GetObject", lambda parsed, **_: fetched.append(parsed.get("ContentLength", 0)))
    yield SimpleNamespace(uri=f"s3://{bucket}", bucket=bucket, client=client, fetched=fetched)
    client.close()
    storage._s3.cache_clear()
