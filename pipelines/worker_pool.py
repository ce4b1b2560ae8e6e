"""The worker processes of one machine: each takes the next unit when it is free.

Which worker does a unit, and the order in which units end, change no result: a unit depends on its rows and the recipe alone.
A supervisor (`pipelines.supervisor`) waits while its worker works, so each has a thread in this process.
"""

import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue

from pipelines import chunk_units, machine
from pipelines.ledger import Record
from pipelines.phases import Phase
from pipelines.supervisor import Supervisor
from pipelines.units import Unit
from pipelines.worker_process import Origin

log = logging.getLogger(__name__)

# What a worker needs where its operators declare less: the interpreter with NumPy, OpenCV, PyAV and Arrow, and some rows.
_MIN_MEMORY = 256 << 20
# One worker does so many units that only read rows, in milliseconds each, before another one is worth its start.
_LIGHT_UNITS = 16
_MODEL_PHASES = ("caption", "relate")
_GIB = 1 << 30
THREADS = "supervisor"
"""How the names of the pool's threads begin."""


class WorkerPool:
    """Workers that are started when a phase needs them, and kept until `close`."""

    def __init__(self, size: int = 1) -> None:
        """Use at most `size` workers; 0: one for each core."""
        self._size = size or machine.count_cores()
        self._free_memory = machine.read_memory().free  # before workers take some of it
        self._origin = Origin() if self._size > 1 and sys.platform == "linux" else None
        self._supervisors: list[Supervisor] = []
        self._threads: list[threading.Thread] = []
        self._warnings: set[str] = set()

    def do(self, phase: Phase, units: Sequence[Unit], on_progress: Callable[[float], None]) -> Iterator[Record]:
        """Do units and yield their records, in the order in which they end.

        on_progress: called by threads with how much of the current units is done, summed over the workers. Workers that may
        hold a model end with the phase, to free the memory for the next one.
        """
        supervisors = self._take(*self._count_workers(phase, units))
        waiting, results = SimpleQueue[Unit](), SimpleQueue[Record | BaseException]()
        for unit in units:
            waiting.put(unit)
        parts = _Parts(on_progress)
        self._threads = [
            threading.Thread(
                target=_do_units,
                args=(supervisor, phase, waiting, results, parts.of(number)),
                name=f"{THREADS} {number}",
                daemon=True,
            )
            for number, supervisor in enumerate(supervisors)
        ]
        try:
            for thread in self._threads:
                thread.start()
            for _ in units:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
            for thread in self._threads:
                thread.join()
        except BaseException:
            self._interrupt()
            raise
        if _may_hold_model(phase):
            self._end(0)

    def _interrupt(self) -> None:
        """Give up the units that workers are at. The pool does nothing more."""
        busy = [thread for thread in self._threads if thread.is_alive()]
        if busy and self._origin:
            self._origin.kill()
        for supervisor in self._supervisors if busy else ():
            supervisor.interrupt()
        for thread in busy:
            thread.join()

    def close(self) -> None:
        """End all workers, also those that are busy: then an error has stopped whoever takes the records."""
        self._interrupt()
        self._end(0)
        if self._origin:
            self._origin.close()

    def _take(self, count: int, most: int) -> list[Supervisor]:
        """Return so many supervisors. Workers beyond `most` end, since they hold memory that this phase needs."""
        self._end(most)
        gpus = machine.list_gpus() if self._size > 1 else []
        for number in range(len(self._supervisors), count):
            self._supervisors.append(Supervisor(self._origin, gpus[number % len(gpus)] if len(gpus) > 1 else None))
        return self._supervisors[:count]

    def _end(self, first: int) -> None:
        """End the workers from this one on."""
        for supervisor in self._supervisors[first:]:
            supervisor.release()  # all at once, so that they exit at the same time
        for supervisor in self._supervisors[first:]:
            supervisor.close()
        del self._supervisors[first:]

    def _count_workers(self, phase: Phase, units: Sequence[Unit]) -> tuple[int, int]:
        """Return how many workers the units are shared out to, and for how many there is memory."""
        wanted = min(self._size, max_workers(phase, len(units)))
        declared = max(op.memory for op in phase.chain)
        need = max([_MIN_MEMORY, *(declared + chunk_units.joining_memory(unit, phase.recipe) for unit in units)])
        fitting = max(1, self._free_memory // need)
        if fitting < wanted:
            free = f"{self._free_memory / _GIB:.1f} GiB are free and the largest unit needs {need / _GIB:.2g} GiB"
            words = f"memory for {fitting} of {wanted} workers: {free}"
            if words not in self._warnings:
                log.warning("%s", words)
            self._warnings.add(words)
        return min(wanted, fitting), fitting


def max_workers(phase: Phase, units: int) -> int:
    """Return how many workers of one machine can help with so many units of a phase.

    One asks a model, which the recipe limits to so many questions at once, and which answers no question twice then. On a
    machine with GPUs each has one to itself.
    """
    if phase.name in _MODEL_PHASES and phase.recipe.caption.vlm.enabled:
        return 1
    if only_reads_rows(phase):
        units = math.ceil(units / _LIGHT_UNITS)
    gpus = len(machine.list_gpus()) if _may_use_gpu(phase) else 0
    return max(1, min(units, gpus or units))


def only_reads_rows(phase: Phase) -> bool:
    """Whether units of a phase take milliseconds, since they neither decode nor ask a model."""
    return phase.name == "score" or (phase.name in _MODEL_PHASES and not phase.recipe.caption.vlm.enabled)


def _may_use_gpu(phase: Phase) -> bool:
    """Whether a worker may use a GPU of this machine. What `partition.gpus` requests is for a cluster."""
    settings = phase.recipe.partition.scan
    measures = phase.name in ("scan", "partition", "generate")
    return any(op.num_gpus for op in phase.chain) or (
        measures and (settings.flow.backend != "dis" or settings.iqa.backend != "embedded")
    )


def _may_hold_model(phase: Phase) -> bool:
    return any(op.num_gpus for op in phase.chain) or phase.recipe.caption.vlm.backend == "transformers"


class _Parts:
    """The done parts of the units that workers are at."""

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self._on_progress, self._parts = on_progress, dict[int, float]()

    def of(self, worker: int) -> Callable[[float], None]:
        """Return a function that sets the part of a worker's unit."""

        def set_part(part: float) -> None:
            self._parts[worker] = part
            self._on_progress(sum(list(self._parts.values())))

        return set_part


def _do_units(
    supervisor: Supervisor,
    phase: Phase,
    waiting: "SimpleQueue[Unit]",
    results: "SimpleQueue[Record | BaseException]",
    set_part: Callable[[float], None],
) -> None:
    """Do waiting units until there is none. An error of the supervisor ends this and is a result."""
    while True:
        try:
            unit = waiting.get_nowait()
        except Empty:
            return
        try:
            record = supervisor.do(phase, unit, set_part)
        except BaseException as error:
            results.put(error)
            return
        set_part(0.0)
        results.put(record)
