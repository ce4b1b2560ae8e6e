"""Units shared out among workers: how many there are, and that each unit is done once. Supervisors here do nothing."""

import logging
import threading
from dataclasses import replace

import pytest

from curation.vlm.protocol import VlmSettings
from pipelines import machine, recipes, run, worker_pool
from pipelines.ledger import Record
from pipelines.phases import Phase
from pipelines.supervisor import Interrupted
from pipelines.units import Unit
from pipelines.worker_pool import WorkerPool, max_workers

GIB = 1 << 30
UNITS = [Unit("partition", f"u-{number}-0of1") for number in range(5)]


class Nobody:
    """A supervisor whose units are done when a meeting has come about, or fail with `error`, or else last for ever."""

    def __init__(self, meeting=None, error=None):
        self.meeting, self.error, self.closed = meeting, error, False
        self.began, self.interrupted = threading.Event(), threading.Event()

    def do(self, phase, unit, on_progress):
        self.began.set()
        on_progress(0.25)
        if self.error:
            raise self.error
        if self.meeting is None:
            self.interrupted.wait(60)
            raise Interrupted
        self.meeting.wait(60)
        return Record(phase.name, unit.name)

    def interrupt(self):
        self.interrupted.set()

    def release(self):
        pass

    def close(self):
        self.closed = True


def phase(name="partition", **settings):
    return Phase(name, replace(recipes.smoke(), **settings), "out")


def pool_of(supervisors, monkeypatch, free=64 * GIB):
    monkeypatch.setattr(machine, "read_memory", lambda: machine.Memory(64 * GIB, free))
    made = iter(supervisors)
    monkeypatch.setattr(worker_pool, "Supervisor", lambda *_: next(made))
    return WorkerPool(len(supervisors))


def test_workers_share_units_and_the_parts_of_all_count(monkeypatch):
    meeting, parts = threading.Barrier(2), []
    supervisors = [Nobody(meeting), Nobody(meeting)]
    pool = pool_of(supervisors, monkeypatch)
    records = list(pool.do(phase(), UNITS[:4], parts.append))
    assert sorted(record.unit for record in records) == [unit.name for unit in UNITS[:4]]
    assert max(parts) == 0.5, "two workers at a quarter"
    assert parts[-1] == 0
    assert not any(supervisor.closed for supervisor in supervisors), "the next phase uses them"
    pool.close()
    assert all(supervisor.closed for supervisor in supervisors)


def test_an_error_of_one_worker_interrupts_the_others(monkeypatch):
    supervisors = [Nobody(error=OSError("no interpreter")), Nobody()]
    with pytest.raises(OSError, match="no interpreter"):
        list(pool_of(supervisors, monkeypatch).do(phase(), UNITS, lambda _: None))
    assert supervisors[1].interrupted.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(worker_pool.THREADS)]


def test_a_pool_that_is_closed_amid_its_units_interrupts_them(monkeypatch):
    other = Nobody()
    supervisors = [Nobody(other.began), other]
    pool = pool_of(supervisors, monkeypatch)
    records = pool.do(phase(), UNITS, lambda _: None)
    assert next(records).failure is None, "and whoever takes it is interrupted"
    pool.close()
    assert supervisors[1].interrupted.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(worker_pool.THREADS)]


def test_short_memory_means_fewer_workers_and_is_said_once(monkeypatch, caplog):
    pool = pool_of([Nobody(threading.Barrier(1)) for _ in range(4)], monkeypatch, free=int(2.5 * GIB))
    with caplog.at_level(logging.WARNING):
        counts = [pool._count_workers(phase(name), 20 * UNITS)[0] for name in ("partition", "annotate", "score")]
    assert counts == [2, 2, 4], "operators that decode declare 1 GiB, verdicts nothing"
    assert caplog.messages == ["memory for 2 of 4 workers: 2.5 GiB are free and the largest unit needs 1 GiB"]
    hours = [replace(UNITS[0], chunks=("chunk",) * 71)]  # six of them
    need = pool._count_workers(phase(), hours + UNITS)[0]
    said = "memory for 1 of 4 workers: 2.5 GiB are free and the largest unit needs 3.4 GiB"
    assert (need, caplog.messages[1:]) == (1, [said])
    assert pool_of([Nobody(), Nobody()], monkeypatch, free=0)._count_workers(phase(), UNITS)[0] == 1


def test_a_phase_uses_as_many_workers_as_help(monkeypatch):
    monkeypatch.setattr(machine, "list_gpus", list)
    flow = recipes.smoke().partition
    may_use_gpu = phase(partition=replace(flow, flow=replace(flow.flow, backend="auto")))
    asking = phase("caption", caption=replace(recipes.smoke().caption, vlm=VlmSettings(backend="http", model="m")))
    assert max_workers(phase(), 3) == 3
    assert [max_workers(phase("score"), units) for units in (1, 16, 17)] == [1, 1, 2]
    assert max_workers(asking, 100) == 1, "the server gets as many questions at once as the recipe says"
    assert max_workers(may_use_gpu, 8) == 8
    monkeypatch.setattr(machine, "list_gpus", lambda: ["0", "1"])
    assert max_workers(may_use_gpu, 8) == 2
    assert max_workers(phase(), 8) == 8, "DIS runs on the CPU"
    monkeypatch.setattr(machine, "list_gpus", lambda: ["0"])
    shares = [run._shares_sources(recipe, "local", 2) for recipe in (phase().recipe, may_use_gpu.recipe)]
    assert shares == [True, False], "chunks would wait for the one GPU"


def test_each_worker_has_one_of_several_gpus(monkeypatch):
    gpus = []
    monkeypatch.setattr(machine, "list_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(worker_pool, "Supervisor", lambda origin, gpu: gpus.append(gpu) or Nobody())
    WorkerPool(3)._take(3, 3)
    WorkerPool(1)._take(1, 1)
    assert gpus == ["3", "5", "3", None], "one worker alone sees all"


def test_workers_that_hold_memory_of_the_next_phase_end(monkeypatch):
    supervisors = [Nobody() for _ in range(3)]
    pool = pool_of(supervisors, monkeypatch)
    pool._take(3, 3)
    pool._take(1, 2)
    assert [supervisor.closed for supervisor in supervisors] == [False, False, True]
