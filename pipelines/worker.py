"""A worker process: does units that come through a pipe, until the pipe closes or the process that watches it is gone.

    python -m pipelines.worker PIPE PARENT           one worker; the numbers of an open file and of a process
    python -m pipelines.worker --fork CONTROL        an origin of workers (`pipelines.worker_process.Origin`)

An origin has imported what workers need and does nothing but fork them. That costs 20 ms each, and an interpreter with its
imports over a second. It starts no thread, opens nothing and loads no model, so there is nothing that a fork could break.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from curation import scratch
from curation.arrow_import import skip_pandas
from curation.partition import scan
from curation.schema import Row
from pipelines import logs
from pipelines.ledger import Record
from pipelines.phases import Phase, row_key, work
from pipelines.units import Unit

STOPPED = 143
"""The exit code of a worker that was asked to stop."""
_PARENT_CHECK_S = 1.0
_PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True)
class WorkOrder:
    """How a worker is to do a unit.

    In a phase whose operators pool rows, a pass row by row only looks for the culprit and commits nothing.
    """

    poisoned: Mapping[str, int]  # rows to reject without work on them, and how many workers each of them crashed
    row_by_row: bool


def pools_rows(phase: Phase) -> bool:
    """Whether a clip's results depend on the clips that go in with it. A pass row by row then only looks for the culprit."""
    return any(op.batch > 1 for op in phase.chain)


def main() -> None:
    """Be a worker, or the origin of workers: then this returns in each worker that was forked, when that is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole process group; the driver handles it
    skip_pandas()
    if sys.argv[1] == "--fork":
        pipe, parent = _fork_workers(socket.socket(fileno=int(sys.argv[2])))
    else:
        pipe, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: _exit_now())
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    logs.configure_worker()
    _do_units(pipe)


def _fork_workers(control: socket.socket) -> tuple[Connection, int]:
    """Fork a worker for each request. Return in the worker, with its pipe and its parent. The origin exits with its driver.

    A request is a GPU's name, or a space, with two open files: the worker's pipe, and another one for the worker's number and,
    once it has ended, its exit code.
    """
    importlib.import_module("curation.partition.detectors")  # its importers load it late, and all workers need it
    gc.freeze()  # memory that the collector does not touch stays shared with the workers
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    origin, statuses = os.getpid(), dict[int, Connection]()
    while True:
        ready = wait([control, woken])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(statuses)
        if control in ready:
            gpu, files, _, _ = socket.recv_fds(control, 256, 2)
            if not gpu:
                os._exit(0)
            status = Connection(files[1], readable=False)
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (woken, wake, control.detach()):
                    os.close(number)
                for inherited in (status, *statuses.values()):
                    inherited.close()
                if gpu.strip():
                    os.environ["CUDA_VISIBLE_DEVICES"] = gpu.decode()
                return Connection(files[0]), origin
            os.close(files[0])
            statuses[pid] = status
            with suppress(ConnectionError):
                status.send(pid)


def _report_ended(statuses: dict[int, Connection]) -> None:
    """Send the exit codes of the workers that have ended."""
    for pid in list(statuses):
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(ConnectionError), statuses.pop(pid) as status:
                status.send(os.waitstatus_to_exitcode(code))


def _do_units(pipe: Connection) -> None:
    last_phase = ""
    with suppress(EOFError, ConnectionError):
        pipe.send(("started", None))
        while True:
            phase, unit, order = pipe.recv()
            if phase.name != last_phase:
                scan.clear_caches()  # the next phase needs the memory, and not the signals of the last source
                last_phase = phase.name
            pipe.send(("done", _do_unit(pipe, phase, unit, order)))


def _do_unit(pipe: Connection, phase: Phase, unit: Unit, order: WorkOrder) -> Record:
    sent_s = time.monotonic()

    def on_progress(part: float) -> None:
        nonlocal sent_s
        if time.monotonic() - sent_s > _PROGRESS_EVERY_S:
            sent_s = time.monotonic()
            pipe.send(("part", part))

    def on_row(row: Row | None) -> None:
        pipe.send(("row", row_key(row) if row else None))

    reasons = {row: f"quarantined: killed its worker {count} times" for row, count in order.poisoned.items()}
    commits = not (order.row_by_row and pools_rows(phase))
    try:
        return work(phase, unit, on_progress, reasons, on_row if order.row_by_row else None, commits)
    finally:
        scratch.remove_folder()  # now, since Ray kills the processes that its workers started


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    _exit_now()


def _exit_now() -> None:
    """Exit at once, whatever the main thread is doing."""
    scratch.remove_folder()
    os._exit(STOPPED)


if __name__ == "__main__":
    main()
