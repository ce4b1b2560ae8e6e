"""From bucket to bucket: the same rows and shards as on a local disk."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("moto", reason="the S3 store of the tests is in the extra 'dev'")

from curation import s3 as s3_module
from curation import shards, storage
from pipelines import cli, ledger, recipes, run
from pipelines.report.page import write_report


@pytest.fixture
def bucket(s3, raw):
    for name in ("a.mp4", "b.mp4", "broken.mp4", "copy of a.mp4"):
        storage.put(f"{s3.uri}/raw/{name}", (raw / name).read_bytes())
    return s3.uri


def test_bucket_to_bucket_equals_disk_to_disk(bucket, raw, tmp_path):
    here = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke())
    there = run.curate([f"{bucket}/raw"], f"{bucket}/out", recipes.smoke())
    assert there.failures == []
    for name in storage.names(storage.join(here.out, "shards")):
        assert storage.read(f"{bucket}/out/shards/{name}") == storage.read(storage.join(here.out, "shards", name)), name
    statuses = {Path(v["uri"]).name: v["status"] for v in ledger.videos(there.out).to_pylist()}
    assert statuses == {"a.mp4": "ok", "b.mp4": "ok", "broken.mp4": "unreadable", "copy of a.mp4": "duplicate"}
    assert shards.read_dataset(there.out)["counts"]["kept"] == here.kept
    again = run.curate([f"{bucket}/raw"], f"{bucket}/out", recipes.smoke())
    assert again.records == []
    assert write_report(there.out) == f"{bucket}/out/report.html"
    assert not any(name.startswith("lock") for name in storage.names(f"{bucket}/out"))


def test_a_bucket_that_is_not_there(s3, raw):
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket-here"):
        run.curate(["s3://no-such-bucket-here/raw"], f"{s3.uri}/out", recipes.smoke())
    with pytest.raises(ValueError, match=r"s3://no-such-bucket-here/out: cannot be written"):
        run.curate([str(raw)], "s3://no-such-bucket-here/out", recipes.smoke())
    with pytest.raises(ValueError, match=rf"{s3.uri}/empty: no video"):
        run.curate([f"{s3.uri}/empty"], f"{s3.uri}/out", recipes.smoke())


def test_throttling_is_in_the_summary_of_a_run(front, raw, monkeypatch, capsys):
    monkeypatch.setattr(s3_module, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    storage.put(f"{front.uri}/raw/b.mp4", (raw / "b.mp4").read_bytes())
    tries = set()

    def busy(request):
        """Every first try of a ranged read: workers make those."""
        name = request.headers.get("amz-sdk-invocation-id")
        if request.ranged and name not in tries:
            tries.add(name)
            return front.refusal(503, "SlowDown")
        return None

    front.before = busy
    words = [
        "gamecraft",
        "curate",
        f"{front.uri}/raw",
        "--out",
        f"{front.uri}/out",
        "--recipe",
        "smoke",
        "--phase",
        "partition",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = re.search(r"  S3 throttled (\d+) of (\d+) requests \(503 or 429\); they are repeated", capsys.readouterr().out)
    throttled, asked = (int(number) for number in said.groups())
    assert 0 < throttled == len(tries) < asked
