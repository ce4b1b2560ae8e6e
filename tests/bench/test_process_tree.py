"""The CPU time and memory of a whole tree of processes, on trees that burn a known time."""

import sys

import pytest

from bench.process_tree import TIMED_OUT, ProcessTimes, lost_cpu_s, measure

BURN = "import time\nwhile time.process_time() < 0.15: pass\n"
CHILD = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-ISc', {BURN!r}])\n"


def run(code, **options):
    return measure([sys.executable, "-ISc", code], **options)


def test_a_process_whose_parent_waits_for_it_counts_once():
    usage = run(CHILD + "child.wait(); raise SystemExit(3)")
    assert usage.status == 3
    assert 0.15 <= usage.cpu_s < 0.3
    assert usage.wall_s >= 0.15


def test_a_process_whose_parent_ignores_its_end_counts():
    """The kernel adds such a child to nobody's sum. Ray's raylet has its workers reaped this way."""
    ignore = "import signal, time; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    usage = run(ignore + CHILD.replace("0.15", "0.5") + "time.sleep(0.9)")
    assert 0.2 <= usage.cpu_s < 0.7, "from the last sample, which may be one interval old"


def test_a_process_that_outlives_the_command_counts():
    usage = run(CHILD + "import os; os._exit(0)")
    assert usage.status == 0
    assert 0.15 <= usage.cpu_s < 0.3


def test_a_command_past_its_limit_is_ended_with_its_children():
    usage = run("import subprocess, sys; subprocess.run([sys.executable, '-ISc', 'import time; time.sleep(60)'])", limit_s=0.3)
    assert usage.status == TIMED_OUT
    assert usage.wall_s < 5


def test_peak_memory_is_that_of_all_processes():
    hold = "held = b'x' * (60 << 20); import time; time.sleep(0.6)"
    usage = run(f"import subprocess, sys; subprocess.run([sys.executable, '-ISc', {hold!r}])")
    assert 60 < usage.peak_mib < 120


def test_output_goes_to_the_log(tmp_path):
    log = tmp_path / "log"
    assert run("print('seen')", log=str(log)).status == 0
    assert log.read_text() == "seen\n"


@pytest.mark.parametrize(("reaped_s", "lost_s"), [(0.0, 7.0), (5.0, 2.0), (7.5, 0.0)])
def test_only_time_that_no_process_has_in_its_sum_is_lost(reaped_s, lost_s):
    """A process with 4 s of its own and 3 s of its children ends; the parent's sum grows by what it reaped."""
    last = {(1, 0): ProcessTimes(0, 0, 1.0, 2.0), (2, 0): ProcessTimes(1, 0, 4.0, 3.0)}
    current = {(1, 0): ProcessTimes(0, 0, 1.0, 2.0 + reaped_s)}
    assert lost_cpu_s(last, current) == pytest.approx(lost_s)
