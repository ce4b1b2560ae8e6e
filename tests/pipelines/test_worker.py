"""A unit whose worker dies: a crash counts against a row, a kill from outside does not."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from curation.errors import Unavailable
from curation.output_folder import OutputFolder
from curation.schema import CLIP, columns
from operators.op import WHOLE_UNIT, Op
from pipelines import ledger, machine, recipes, supervisor, worker, worker_process
from pipelines.ledger import Record
from pipelines.phases import Phase
from pipelines.supervisor import Supervisor
from pipelines.units import Unit
from pipelines.worker_pool import WorkerPool
from pipelines.worker_process import Origin, WorkerDeath, WorkerProcess

CLIPS = ["c0", "c1", "c2", "c3"]
SCHEMA = columns(CLIP, ["clip_id", "video_id", "unit_id", "reject", "error", "index"])


@pytest.fixture(autouse=True)
def own_crash_notes(tmp_path, monkeypatch):
    """Use a separate notes folder: workers of other tests crash on this machine at the same time."""
    (tmp_path / "crashes").mkdir()
    monkeypatch.setattr(supervisor, "_crash_notes_folder", lambda: tmp_path / "crashes")


@dataclass(frozen=True)
class Odd(Phase):
    """The real phase with an operator that does something to its process when it meets a row."""

    deed: str = ""
    clip: str = ""
    times: int = 99
    batch: int = 1
    really: bool = False

    @property
    def chain(self):
        args = {"deed": self.deed, "clip": self.clip, "log": f"{self.out}/log", "times": self.times, "really": self.really}
        return [Op(meet, reads=("clip_id",), writes=("index",), args=args, batch=self.batch)]


class Died(BaseException):
    """Stands in for the end of the process, in tests without a child process."""


class Pipe:
    """Receives what a worker in this process sends to its parent."""

    row = None

    def send(self, message):
        self.row = message[1] if message[0] == "row" else self.row


class WorkerHere:
    """A worker in this process, which saves the second that a child takes to start."""

    def do(self, phase, unit, order, on_progress):
        pipe = Pipe()
        try:
            return worker._do_unit(pipe, phase, unit, order)
        except Died as end:
            code = int(end.args[0]) if end.args[0].isdigit() else -getattr(signal, end.args[0])
            crashed = worker_process.has_crashed(code)
            return WorkerDeath(unit.name, pipe.row, worker_process.describe_exit(code), crashed, time.time())

    def release(self):
        pass

    stop = release


def meet(rows, deed, clip, log, times, really):
    with open(log, "a+") as file:
        file.write(" ".join(row["clip_id"] for row in rows) + "\n")
        file.seek(0)
        met = sum(any(name in clip for name in line.split()) for line in file)
    if any(row["clip_id"] in clip for row in rows) and met <= times:
        if not really:
            raise Died(deed)
        os._exit(int(deed)) if deed.isdigit() else os.kill(os.getpid(), getattr(signal, deed))
    return [{**row, "index": len(rows)} for row in rows]


@pytest.fixture
def done(tmp_path):
    """Do a unit of four clips of which one does something to its process. Return its record and rows."""

    def do(deed, clip="c2", really=False, origin=None, **how):
        out = str(tmp_path)
        rows = [{"clip_id": name, "video_id": "v" * 16} for name in CLIPS]
        ledger.write_clips(out, "partition", "p-d-0of1", rows, SCHEMA, Record("partition", "p-d-0of1"))
        unit = Unit("score", "s-d-0of1", upstream=("partition/p-d-0of1",))
        watched = Supervisor(origin)
        if not really:
            watched._running = WorkerHere
        try:
            record = watched.do(Odd("score", recipes.smoke(), out, deed=deed, clip=clip, really=really, **how), unit)
        finally:
            watched.close()
        committed = Path(OutputFolder(out).clip_rows("score", unit.name)).exists()
        return record, {row["clip_id"]: row for row in ledger.read_unit(out, "score", unit.name)} if committed else None

    return do


@pytest.mark.parametrize(("deed", "really"), [("11", True), ("SIGSEGV", False), ("SIGABRT", False)])
def test_a_clip_that_crashes_two_workers_is_quarantined_and_the_others_are_not(done, deed, really):
    record, rows = done(deed, really=really)
    assert record.failure is None
    assert {name: row["reject"] for name, row in rows.items()} == {
        "c0": None,
        "c1": None,
        "c2": "quarantined: killed its worker 2 times",
        "c3": None,
    }


@pytest.mark.parametrize("batch", [1, 64])
def test_every_clip_that_crashes_is_found(done, batch):
    record, rows = done("11", clip="c0 c1 c3", batch=batch)
    assert record.failure is None
    assert [name for name, row in rows.items() if row["reject"]] == ["c0", "c1", "c3"]
    assert rows["c2"]["index"] == 1


@pytest.mark.parametrize("deed", ["SIGKILL", "SIGTERM"])
def test_a_kill_from_outside_is_no_fault_of_the_clip(done, deed):
    origin = Origin()
    record, rows = done(deed, times=3, really=True, origin=origin)
    origin.close()
    assert record.failure is None
    assert record.deaths == {deed: 3} if deed == "SIGKILL" else record.deaths == {"exit code 143": 3}
    assert {row["reject"] for row in rows.values()} == {None}


def test_a_unit_that_is_killed_again_and_again_is_left_to_the_next_run(done):
    record, rows = done("SIGKILL")
    assert (
        record.failure
        == "s-d-0of1: its worker ended for reasons outside the footage: 5 x SIGKILL; does the machine lack memory?"
    )
    assert rows is None


def test_a_crash_that_does_not_come_back_costs_nothing(done):
    record, rows = done("11", times=1)
    assert record.failure is None
    assert {row["reject"] for row in rows.values()} == {None}


def test_clips_whose_results_are_pooled_are_pooled_again_without_the_one_that_crashes(done):
    _, rows = done("11", batch=64)
    assert {name: row["index"] for name, row in rows.items()} == {"c0": 2, "c1": 2, "c2": None, "c3": 1}


def test_a_crash_that_does_not_come_back_changes_no_pooled_result(done):
    record, rows = done("11", times=1, batch=64)
    assert {row["index"] for row in rows.values()} == {4}
    assert record.rows == 4


def test_rows_that_are_related_are_not_blamed_one_by_one(done):
    record, rows = done("11", batch=WHOLE_UNIT)
    assert record.failure == "s-d-0of1: crashed its worker outside of any clip: 3 x exit code 11"
    assert rows is None


def test_crashes_of_several_units_at_once_speak_of_the_machine(done, monkeypatch):
    monkeypatch.setattr(supervisor, "_pause_s", lambda unit: 0.0)
    real = supervisor._write_crash_note

    def note(death):
        return real(death) + real(WorkerDeath("another unit", None, "SIGSEGV", True, death.time_s + 0.5))

    monkeypatch.setattr(supervisor, "_write_crash_note", note)
    record, rows = done("SIGSEGV")
    assert (
        record.failure
        == "s-d-0of1: its worker ended for reasons outside the footage: 5 x SIGSEGV; does the machine lack memory?"
    )
    assert rows is None


def test_units_that_crash_in_two_workers_at_once_are_tried_again_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_pause_s", lambda unit: 0.0)
    out, both, trying, most = str(tmp_path), threading.Barrier(2), [], []
    rows = [{"clip_id": name, "video_id": "v" * 16} for name in CLIPS]
    ledger.write_clips(out, "partition", "p-d-0of1", rows, SCHEMA, Record("partition", "p-d-0of1"))
    real = WorkerHere.do

    def do(worker_here, phase, unit, order, on_progress):
        if not order.row_by_row and not order.poisoned:
            both.wait(60)  # both crash at the same moment
            return real(worker_here, phase, unit, order, on_progress)
        trying.append(unit.name)
        most.append(len(trying))
        time.sleep(0.02)
        try:
            return real(worker_here, phase, unit, order, on_progress)
        finally:
            trying.remove(unit.name)

    monkeypatch.setattr(WorkerHere, "do", do)
    monkeypatch.setattr(supervisor, "WorkerProcess", lambda *_: WorkerHere())
    monkeypatch.setattr(supervisor, "_SAME_TIME_S", 0.01)
    monkeypatch.setattr(machine, "read_memory", lambda: machine.Memory(8 << 30, 8 << 30))
    units = [Unit("score", f"s{number}-d-0of1", upstream=("partition/p-d-0of1",)) for number in range(2)]
    odd = Odd("annotate", recipes.smoke(), out, deed="11", clip="c2")
    pool = WorkerPool(2)
    records = list(pool.do(odd, units, lambda _: None))
    pool.close()
    assert [(record.failure, record.rejected) for record in records] == [(None, 1)] * 2
    assert max(most) == 1


def test_no_note_of_a_crash_is_left(done, tmp_path):
    done("11")
    assert not (tmp_path / "crashes").exists()


def test_a_worker_that_cannot_start_is_said_at_once(done, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'pipelines.worker' in sys.orig_argv: os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    origin = Origin()
    for forked_from in (None, origin):
        with pytest.raises(Unavailable, match=r"could not start \(exit code 3\)"):
            done("11", really=True, origin=forked_from)
    origin.close()


def test_an_origin_that_was_killed_is_replaced_unless_we_killed_it():
    origin = Origin()
    first = WorkerProcess(origin)
    first.wait_until_started()
    origin._process.kill()
    other = WorkerProcess(origin)
    other.wait_until_started()
    other.stop()
    first.stop()
    origin.kill()
    with pytest.raises(Unavailable, match="could not start"):
        WorkerProcess(origin)
    origin.close()
