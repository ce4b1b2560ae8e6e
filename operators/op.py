"""An operator is a function from rows to rows (or a class built once a worker) with the columns it reads and writes.

Neighbouring operators of equal resources are joined into one step, which takes each row through all of them before the next
row: with a one-clip frame cache a clip is then decoded once, however many operators look at it. `run_local` and `run_ray` run
the same steps. A row that fails is marked and passes by; it never stops the others.
"""

import copy
import inspect
import os
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from curation.errors import is_machine_fault
from curation.media import container
from curation.schema import CLIP, Row, columns, conform, is_dropped
from curation.worker_state import worker

if TYPE_CHECKING:
    from ray.data import Dataset

WHOLE_UNIT = 0


@dataclass(frozen=True)
class Op:
    """What runs, what it reads and writes, and what it needs.

    `batch` rows go in at once; WHOLE_UNIT for an operator that relates rows of one video (if it fails, all of them are
    marked). `dataset` is the one escape, for stages that exist only as Dataset -> Dataset.
    """

    fn: Callable[..., Any]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    memory: int = 0
    dataset: "Callable[[Dataset], Dataset] | None" = None

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def resources(self) -> tuple[float, float, int]:
        return self.num_cpus, self.num_gpus, self.memory

    def start(self) -> Callable[[list[Row]], list[Row]]:
        """The callable that one process uses; a class is built here, once."""
        if inspect.isclass(self.fn):
            return cast(Callable[[list[Row]], list[Row]], self.fn(**self.args))
        return lambda rows: self.fn(rows, **self.args)


def check(chain: Sequence[Op], have: Iterable[str]) -> None:
    """Refuse a chain in which an operator reads a column that nothing before it writes (ValueError)."""
    known = set(have)
    for op in chain:
        if missing := set(op.reads) - known:
            raise ValueError(f"{op.name} reads {sorted(missing)}, which nothing before it writes")
        known |= set(op.writes)


def steps(chain: Sequence[Op]) -> list[list[Op]]:
    """The chain as runs of neighbours that share a process: equal resources, and none of them a `dataset` stage."""
    keyed = groupby(enumerate(chain), lambda item: (item[1].resources, item[0] if item[1].dataset else None))
    return [[op for _, op in group] for _, group in keyed]


class Step:
    """Joined operators in one process. Calling it takes rows through all of them; `cpu_s` sums the time of each.

    `on_row` gets each row before it is worked on, and rows then go one by one: that is how a clip that kills its worker is
    found. Without it they go in the operators' own batches. Rows that an operator relates go together; for those it gets None.
    `tell` gets the part of the rows that is done.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)
        self._runs = [(batch, list(run)) for batch, run in groupby(ops, lambda op: op.batch)]
        self._started: dict[int, Callable[[list[Row]], list[Row]]] = {}
        share_cores(max(1, int(ops[0].num_cpus)))

    def __call__(
        self,
        rows: list[Row],
        on_row: Callable[[Row | None], None] | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> list[Row]:
        for batch, ops in self._runs:
            size = 1 if on_row and batch != WHOLE_UNIT else batch or len(rows) or 1
            done: list[Row] = []
            for i in range(0, len(rows), size):
                if on_row:
                    on_row(rows[i] if batch != WHOLE_UNIT else None)
                done += self._through(ops, rows[i : i + size])
                if tell:
                    tell(min(1.0, (i + size) / len(rows)))
            rows = done
        return rows

    def _through(self, ops: Iterable[Op], rows: list[Row]) -> list[Row]:
        for op in ops:
            began = time.process_time()
            rows = guarded(self._callable(op), rows, op)
            self.cpu_s[op.name] += time.process_time() - began
        return rows

    def _callable(self, op: Op) -> Callable[[list[Row]], list[Row]]:
        if id(op) not in self._started:
            self._started[id(op)] = op.start()
        return self._started[id(op)]


def guarded(work: Callable[[list[Row]], list[Row]], rows: list[Row], op: Op) -> list[Row]:
    """Rows through one operator, in order: those already out pass by, those that fail are marked.

    A failing batch is halved until the rows at fault are found; work gets copies, so that what a failed try changed is gone.
    An operator on a whole unit is not tried on parts, since a part would give wrong neighbours without an error. What the
    machine did (`errors.is_machine_fault`) is no row's fault: it is raised, and the unit is tried again by the next run.
    """
    done: list[Row] = []
    for out, group in groupby(rows, is_dropped):
        run = list(group)
        done += run if out else _attempt(work, run, op)
    return done


def _attempt(work: Callable[[list[Row]], list[Row]], rows: list[Row], op: Op) -> list[Row]:
    try:
        return list(work(copy.deepcopy(rows)))
    except Exception as error:
        if is_machine_fault(error):
            raise
        if len(rows) == 1 or op.batch == WHOLE_UNIT:
            worker.note_unexpected(error)
            return [{**row, "error": _reason(op, error)} for row in rows]
        half = len(rows) // 2
        return _attempt(work, rows[:half], op) + _attempt(work, rows[half:], op)


def _reason(op: Op, error: Exception) -> str:
    """The operator, the exception with its message, and the line of ours that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = where.filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{op.name}: {type(error).__name__}: {error} ({file}:{where.lineno})"


def share_cores(count: int) -> None:
    """Keep NumPy's BLAS, cv2, codecs and torch to the cores that the step was given; each takes all it can see otherwise."""
    import sys

    import cv2
    import threadpoolctl

    cv2.setNumThreads(count)
    container.set_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by what is loaded later
    threadpoolctl.threadpool_limits(count, "blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def run_local(chain: Sequence[Op], rows: list[Row]) -> list[Row]:
    """A unit's rows through a chain, in this process."""
    for ops in steps(chain):
        if ops[0].dataset is not None:
            raise ValueError(f"{ops[0].name} exists only as a Ray Data stage; use the ray runner")
        rows = Step(ops)(rows)
    return rows


def run_ray(chain: Sequence[Op], dataset: "Dataset") -> "Dataset":
    """A dataset of one block a unit through a chain, one Ray Data stage a step; blocks keep the declared schema."""
    known = set(dataset.schema().names)
    for ops in steps(chain):
        known |= {name for op in ops for name in op.writes}
        own = ops[0].dataset
        dataset = own(dataset) if own else map_units(dataset, _block_fn(ops, known), ops)
    return dataset


def map_units(dataset: "Dataset", fn: Callable[[pa.Table], pa.Table], ops: Sequence[Op]) -> "Dataset":
    """One Ray Data stage over whole blocks, with the resources of a step."""
    cpus, gpus, memory = ops[0].resources
    return dataset.map_batches(
        fn, batch_size=None, batch_format="pyarrow", num_cpus=cpus, num_gpus=gpus or None, memory=memory or None
    )


def _block_fn(ops: Sequence[Op], known: set[str]) -> Callable[[pa.Table], pa.Table]:
    built: list[Step] = []

    def work(block: pa.Table) -> pa.Table:
        if not built:  # once a worker: Ray keeps the function, and with it this list, between blocks
            built.append(Step(ops))
        return conform(built[0](block.to_pylist()), columns(CLIP, known | {"reject", "error"}))

    work.__name__ = "_".join(op.name for op in ops)
    return work


def each(fn: Callable[..., Row]) -> Callable[..., list[Row]]:
    """An operator from a function of one row to one row."""

    def rows_fn(rows: list[Row], **args: Any) -> list[Row]:
        return [fn(row, **args) for row in rows]

    rows_fn.__name__, rows_fn.__doc__, rows_fn.__qualname__ = fn.__name__, fn.__doc__, fn.__qualname__
    rows_fn.__module__ = fn.__module__
    return rows_fn
