import json
import os
import socket
import subprocess
import time

import pytest

from pipelines import lock, recipes, run
from pipelines.lock import locked


def hold(folder, pid, host=None, beat=None):
    note = {"token": "theirs", "host": host or socket.gethostname(), "pid": pid, "beat": beat or time.time()}
    (folder / "lock.json").write_text(json.dumps(note))


def test_two_drivers_on_one_output_are_refused(tmp_path, raw):
    words = rf"another run \(process {os.getpid()} on .*\) is writing there\. Wait for it"
    with locked(str(tmp_path / "o")), pytest.raises(ValueError, match=words):
        run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke())
    assert not (tmp_path / "o" / "lock.json").exists()


def test_the_lock_of_a_dead_process_does_not_bar(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    hold(tmp_path, gone.pid)
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_a_holder_elsewhere_bars_while_it_beats(tmp_path):
    hold(tmp_path, pid=1, host="elsewhere")
    with pytest.raises(ValueError, match="process 1 on elsewhere"), locked(str(tmp_path)):
        pass
    hold(tmp_path, pid=1, host="elsewhere", beat=time.time() - 1000)
    with locked(str(tmp_path)):
        pass


def test_a_lock_that_another_took_over_is_not_taken_away(tmp_path):
    with locked(str(tmp_path)):
        hold(tmp_path, pid=1, host="elsewhere")
    assert (tmp_path / "lock.json").exists()


def test_the_lock_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.05)
    with locked(str(tmp_path)):
        first = json.loads((tmp_path / "lock.json").read_text())["beat"]
        time.sleep(0.3)
        assert json.loads((tmp_path / "lock.json").read_text())["beat"] > first
