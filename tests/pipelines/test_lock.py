"""The lease on an output folder: who may take it, how it is kept, and what a run does that loses it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from curation import processes, shards, storage
from curation.errors import LeaseLost
from pipelines import cli, lock, recipes, run, runners
from pipelines.lock import hold_lock


def hold(folder, pid, host=None, age_s=0.0, **more):
    """Write the lock of another run, last renewed `age_s` ago."""
    note = {"token": "theirs", "host": host or socket.gethostname(), "pid": pid, **more}
    path = Path(folder, "lock.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(note))
    then = time.time() - age_s
    os.utime(path, (then, then))


def holder(folder):
    return json.loads(Path(folder, "lock.json").read_text())


def taken(folder, wait_s=0.0) -> bool:
    with hold_lock(str(folder), wait_s, lambda words: None):
        return holder(folder)["pid"] == os.getpid()


def refusal(folder, wait_s=0.0) -> str:
    with pytest.raises(ValueError, match="another run") as caught:
        taken(folder, wait_s)
    return str(caught.value)


@pytest.fixture
def quick(monkeypatch):
    """Shorten the heartbeat interval to a hundredth. The expiry is only halved, since a busy machine may pause this process."""
    for name, seconds in (("_HEARTBEAT_S", 0.2), ("_EXPIRY_S", 60.0), ("_RESTARTED_EXPIRY_S", 0.3)):
        monkeypatch.setattr(lock, name, seconds)


# Who may take it


def test_two_drivers_on_one_output_are_refused(tmp_path, raw, monkeypatch):
    real = storage.read_stamped
    monkeypatch.setattr(storage, "read_stamped", lambda uri: real(uri)._replace(age_s=0.0))  # however slow this machine is
    words = (
        rf"^{tmp_path}/o: another run \(process {os.getpid()} on .*\) holds it since \d{{4}}-.* UTC; "
        r"free in 120 s if that run is dead\. Wait for it \(--wait\), or stop it$"
    )
    with hold_lock(str(tmp_path / "o")), pytest.raises(ValueError, match=words):
        run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke())
    assert not (tmp_path / "o" / "lock.json").exists()


@pytest.fixture
def zombie():
    """Return the number of a process that has ended and that no process has waited for."""
    ended = subprocess.Popen(["true"])
    while processes.start_time(ended.pid):
        time.sleep(0.01)
    assert processes._exists(ended.pid), "its number is still in use"
    yield ended.pid
    ended.wait()


def test_the_lock_of_a_dead_process_does_not_bar(tmp_path, zombie):
    gone = subprocess.Popen(["true"])
    gone.wait()
    lives, ours = processes.start_time(os.getppid()), processes.pid_namespace()
    for number, (pid, more) in enumerate(
        [
            (gone.pid, {}),  # written by an older release
            (gone.pid, {"space": ours, "started": "1"}),
            (zombie, {"space": ours, "started": "1"}),
            (os.getppid(), {"space": ours, "started": "1"}),  # its number is in use again
            (os.getpid(), {}),  # our own number: an earlier life of this container
            (os.getpid(), {"space": ours, "started": "1"}),
        ]
    ):
        hold(tmp_path / str(number), pid, **more)
        assert taken(tmp_path / str(number)), (pid, more)
    hold(tmp_path / "lives", os.getppid(), space=ours, started=lives)
    assert "free in 120 s" in refusal(tmp_path / "lives")


def test_a_holder_elsewhere_bars_until_it_has_not_beaten_for_two_minutes(tmp_path):
    """The clock of the store counts, not the clock of the holder."""
    for beat in (0, time.time(), time.time() + 7200):
        hold(tmp_path, 1, "elsewhere", age_s=100, beat=beat)
        assert "(process 1 on elsewhere) holds it" in (words := refusal(tmp_path))
        assert "free in 20 s if that run is dead" in words
        hold(tmp_path, 1, "elsewhere", age_s=121, beat=beat)
        assert taken(tmp_path)


def test_the_clock_of_the_store_tells_the_age_on_s3(front):
    ahead = {"date": "Fri, 01 Jan 2100 00:00:00 GMT", "last-modified": "Thu, 31 Dec 2099 23:58:20 GMT"}

    def other_clock(request, answer):
        answer.headers.update({name: value for name, value in ahead.items() if name in answer.headers})

    storage.put(f"{front.uri}/o/lock.json", json.dumps({"token": "theirs", "host": "pod", "pid": 7}).encode())
    front.after = other_clock
    with pytest.raises(ValueError, match=r"process 7 on pod\) holds it; free in 20 s if"), hold_lock(f"{front.uri}/o"):
        pass
    ahead["last-modified"] = "Thu, 31 Dec 2099 23:57:59 GMT"
    with hold_lock(f"{front.uri}/o"):
        assert json.loads(storage.read(f"{front.uri}/o/lock.json"))["pid"] == os.getpid()
    assert not storage.exists(f"{front.uri}/o/lock.json")


def test_a_container_that_was_started_again_waits_a_moment_to_see_that_its_earlier_life_is_over(tmp_path, quick):
    hold(tmp_path, os.getpid(), space="another start")
    said = []
    with hold_lock(str(tmp_path), on_wait=said.append):
        pass
    assert [words.partition("; ")[2] for words in said] == ["free in 1 s if that run is dead; waiting for it"]


def test_a_container_of_the_same_name_that_lives_is_not_robbed(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "_RESTARTED_EXPIRY_S", 30.0)
    hold(tmp_path, os.getpid(), space="another start")
    beating = threading.Timer(0.15, hold, (tmp_path, os.getpid()), {"space": "another start", "beats": 1})
    beating.start()
    assert "another run" in refusal(tmp_path)
    beating.join()


def test_a_run_that_waits_gets_the_lock_when_the_other_ends(tmp_path, quick):
    hold(tmp_path, 1, "elsewhere")
    assert "another run" in refusal(tmp_path, wait_s=0.2)
    leaving = threading.Timer(0.3, os.unlink, (tmp_path / "lock.json",))
    leaving.start()
    assert taken(tmp_path, wait_s=60)
    leaving.join()


def test_wait_stands_with_and_without_a_number(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(run, "_run", lambda *arguments: waits.append(arguments[-2]) or sys.exit(7))
    (tmp_path / "a.mp4").write_bytes(b"")
    for words in ([], ["--wait"], ["--wait", "90"], ["--wait=3"], ["--wait", "--runner", "local"]):
        monkeypatch.setattr(sys, "argv", ["gamecraft", "curate", *words, str(tmp_path / "a.mp4"), "--out", str(tmp_path / "o")])
        with pytest.raises(SystemExit, match="7"):
            cli.main()
    assert waits == [0, float("inf"), 90, 3, float("inf")]


def test_of_several_that_find_a_dead_lock_one_takes_it(tmp_path):
    hold(tmp_path, 1, "elsewhere", age_s=500)
    start, all_tried, got = threading.Barrier(6), threading.Barrier(6), []

    def take():
        start.wait()
        try:
            with hold_lock(str(tmp_path)):
                got.append("taken")
                all_tried.wait(60)
        except ValueError as error:
            got.append(str(error))
            all_tried.wait(60)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count("taken") == 1
    assert all("another run" in words for words in got if words != "taken")


# What keeps it


def test_the_lock_beats(tmp_path, quick):
    with hold_lock(str(tmp_path)):
        first = holder(tmp_path)
        time.sleep(1.5)
        assert holder(tmp_path)["beats"] > first["beats"]
        assert holder(tmp_path)["token"] == first["token"]


class Flaky:
    """`storage.replace`, but the numbered calls fail: before they write, or after it, with the answer lost."""

    def __init__(self, monkeypatch, before=(), lost=(), silent=()):
        self.before, self.lost, self.silent, self.calls, self._real = before, lost, silent, 0, storage.replace
        monkeypatch.setattr(storage, "replace", self)

    def __call__(self, uri, data, token):
        self.calls += 1
        if self.calls in self.before:
            raise OSError("SlowDown")
        version = self._real(uri, data, token)
        if self.calls in self.lost:
            raise OSError("the answer got lost")
        return "" if self.calls in self.silent else version


def test_heartbeats_go_on_after_some_that_failed(tmp_path, quick, monkeypatch):
    store = Flaky(monkeypatch, before=(2, 3, 4), lost=(6,), silent=(1, 8))
    with hold_lock(str(tmp_path)):
        while store.calls < 11:
            time.sleep(0.02)
        assert holder(tmp_path)["beats"] >= 6
        lock.renew_lock(str(tmp_path))
    assert not (tmp_path / "lock.json").exists()


# Losing it


def test_a_run_whose_lock_was_taken_over_is_stopped_wherever_it_waits(tmp_path, quick):
    words = rf"^{tmp_path}: another run \(process 1 on elsewhere\) has taken it over, so this run stops and writes nothing more"
    began = time.monotonic()
    thief = threading.Timer(0.3, hold, (tmp_path, 1, "elsewhere"))
    thief.start()
    with pytest.raises(LeaseLost, match=words), hold_lock(str(tmp_path)):
        time.sleep(60)
    assert time.monotonic() - began < 30
    assert holder(tmp_path)["token"] == "theirs", "theirs stays"


def test_a_run_whose_heartbeats_fail_for_too_long_is_stopped_before_another_may_start(tmp_path, quick, monkeypatch):
    assert 4 * lock._HEARTBEAT_S < lock._Lease(str(tmp_path))._deadline_s() < lock._EXPIRY_S, "90 s of trying, and time to stop"
    monkeypatch.setattr(lock, "_EXPIRY_S", 1.2)
    store = Flaky(monkeypatch, before=range(2, 10_000))
    words = r"no heartbeat of its lock has reached the store for \d s \(last SlowDown\), so this run stops"
    with pytest.raises(LeaseLost, match=words), hold_lock(str(tmp_path)):
        time.sleep(60)
    store.before = ()
    assert taken(tmp_path, wait_s=60)


def test_a_heartbeat_that_hangs_does_not_keep_a_run_alive(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "_EXPIRY_S", 1.2)
    real, release = storage.replace, threading.Event()
    monkeypatch.setattr(storage, "replace", lambda *call: real(*call) if not call[2] else release.wait() and "")
    with pytest.raises(LeaseLost, match="no heartbeat of its lock has reached the store"), hold_lock(str(tmp_path)):
        time.sleep(60)
    release.set()


def test_a_lock_that_somebody_removed_is_lost(tmp_path):
    with hold_lock(str(tmp_path)):
        lock.renew_lock(str(tmp_path))
        time.sleep(1.1)
        os.unlink(tmp_path / "lock.json")
        with pytest.raises(LeaseLost, match=r"lock\.json was removed, so this run stops"):
            lock.renew_lock(str(tmp_path))
        with pytest.raises(LeaseLost, match=r"lock\.json was removed"):
            lock.renew_lock(str(tmp_path))
    lock.renew_lock(str(tmp_path))  # nothing is held any more


def test_a_run_that_lost_its_lock_writes_no_dataset_and_deletes_nothing(tmp_path, raw, monkeypatch):
    out, real = str(tmp_path / "o"), runners.run_local

    def robbed(phase, units, show):
        yield from real(phase, units, show)
        hold(out, 1, "elsewhere")
        time.sleep(1.1)

    run.curate([str(raw / "b.mp4")], out, recipes.smoke(), phases=["partition"])
    before = shards.read_dataset(out)
    monkeypatch.setattr(runners, "run_local", robbed)
    with pytest.raises(LeaseLost, match="has taken it over"):
        run.curate([str(raw / "b.mp4")], out, recipes.smoke())
    assert shards.read_dataset(out) == before
    assert len(storage.names(f"{out}/clips/score")) == 1
    assert storage.names(f"{out}/clips/annotate") == []
    assert holder(out)["token"] == "theirs"


# Stores that do not know conditional writes


def ignoring(header):
    return lambda request: request.headers.pop(header, None) and None


def refusing(header, refusal):
    return lambda request: refusal if request.method == "PUT" and header in request.headers else None


@pytest.mark.parametrize("header", ["if-none-match", "if-match"])
@pytest.mark.parametrize("how", ["ignore", "not implemented", "invalid"])
def test_a_store_that_cannot_write_conditionally_is_refused_at_once(how, header, front, raw, monkeypatch, capsys):
    front.before = {
        "ignore": ignoring(header),
        "not implemented": refusing(header, front.refusal(501, "NotImplemented", "A header is not implemented")),
        "invalid": refusing(header, front.refusal(400, "InvalidArgument", f"unknown header {header.title()}")),
    }[how]
    monkeypatch.setattr(sys, "argv", ["gamecraft", "curate", str(raw), "--out", f"{front.uri}/o", "--recipe", "smoke"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    name = {"if-none-match": "If-None-Match", "if-match": "If-Match"}[header]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        f"gamecraft: {front.uri}/o: this store does not know conditional writes ({name}); without them two runs could write"
    )
    assert said.err.count("\n") == 1
    assert storage.list_files(f"{front.uri}/o") == [], "nothing was done, and no probe is left"
