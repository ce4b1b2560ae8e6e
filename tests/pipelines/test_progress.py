"""What a run says about itself while it lasts: OUT/progress.json, and metrics on a cluster."""

import json
import threading
from types import SimpleNamespace

import pytest

from curation import storage
from pipelines import progress
from pipelines.ledger import Record
from pipelines.progress import METRICS, RunProgress


def record(phase="score", **fields):
    return Record(phase, "u", **{"rows": 4, "rejected": 1, "wall_s": 2.0, "cpu_s": {"judge": 0.5}, **fields})


def read(out):
    return json.loads(storage.read(f"{out}/progress.json"))


def test_the_file_has_counts_by_phase_and_the_time_left(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    run = RunProgress(str(tmp_path), "local")
    with run.written():
        run.plan("partition", 1, before=7)
        run.add(record("partition"))
        run.plan("score", 10, before=0)
        for _ in range(4):
            clock.now += 3
            run.add(record(s3={"all": 5}))
        run.set_part(0.5)
        run.write()
        found = read(tmp_path)
        assert (found["state"], found["phase"]) == ("running", "score")
        assert found["eta_s"] == pytest.approx(5.5 * 3), "ten units less four and a half, three seconds each"
        score = found["phases"]["score"]
        assert {name: score[name] for name in ("total", "done", "rows", "rejected", "cpu_s")} == {
            "total": 10, "done": 4, "rows": 16, "rejected": 4, "cpu_s": {"judge": 2.0},
        }  # fmt: skip
        assert found["phases"]["partition"]["before"] == 7
        assert found["s3"] == {"all": 20}
        run.add(record(failure="OSError: no"))
    assert read(tmp_path)["state"] == "ended"
    assert read(tmp_path)["phases"]["score"]["failed"] == 1


def test_the_file_is_written_while_one_unit_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY_S", 0.02)
    written = threading.Event()
    real = storage.put
    monkeypatch.setattr(storage, "put", lambda *args: (real(*args), written.set())[0])
    with RunProgress(str(tmp_path), "local").written() as run:
        run.plan("partition", 1, 0)
        assert written.wait(20)
    assert read(tmp_path)["eta_s"] is None


def test_a_run_that_fails_is_stopped_and_a_store_that_fails_ends_no_run(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), RunProgress(str(tmp_path), "local").written():
        raise KeyboardInterrupt
    assert read(tmp_path)["state"] == "stopped"
    monkeypatch.setattr(storage, "put", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with RunProgress(str(tmp_path), "local").written() as run:
        run.write()


def test_metrics_count_units_verdicts_operators_requests_and_deaths(tmp_path, monkeypatch):
    values = []

    class Metric:
        def __init__(self, name, description, tag_keys, boundaries=None):
            assert description
            self.name, self.tag_keys = name, tag_keys

        def inc(self, value, tags):
            assert set(tags) == set(self.tag_keys)
            values.append((self.name, value, *tags.values()))

        set = observe = inc

    monkeypatch.setattr("ray.util.metrics.Counter", Metric)
    monkeypatch.setattr("ray.util.metrics.Gauge", Metric)
    monkeypatch.setattr("ray.util.metrics.Histogram", Metric)
    run = RunProgress(str(tmp_path), "ray")
    run.plan("score", 3, 0)
    run.add(record(reasons={"rejected too dark": 1}, s3={"all": 9, "throttled": 0}, deaths={"SIGKILL": 2}))
    assert values == [
        ("gamecraft_units_left", 3, "score"),
        ("gamecraft_units_total", 1, "score", "done"),
        ("gamecraft_unit_seconds", 2.0, "score"),
        ("gamecraft_clips_total", 3, "score", "kept", ""),
        ("gamecraft_clips_total", 1, "score", "rejected", "too dark"),
        ("gamecraft_cpu_seconds_total", 0.5, "judge"),
        ("gamecraft_s3_requests_total", 9, "all"),
        ("gamecraft_worker_deaths_total", 2, "SIGKILL"),
        ("gamecraft_units_left", 2, "score"),
    ]
    assert {name for name, *_ in values} == set(METRICS)


def test_a_stored_record_can_be_read_by_earlier_releases():
    assert {"reasons", "deaths"}.isdisjoint(json.loads(record().to_json()))
    assert Record.from_json(record(deaths={"SIGKILL": 1}).to_json()).deaths == {"SIGKILL": 1}
