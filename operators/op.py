"""Operators: functions from rows to rows, with the columns that they read and write. An operator may also be a class, which
each worker builds once.

Neighbouring operators with equal resources are fused into one step, which takes each row through all of them before the next
row. With a one-clip frame cache a clip is then decoded once, however many operators read it. `run_chain` and
`run_chain_on_ray` run the same steps. A row that fails gets an `error` and skips the remaining operators; it never stops the
other rows.
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
    """One operator: its function, its columns, and the resources it needs."""

    fn: Callable[..., Any]  # a function from a list of rows to a list of rows, or a class whose instances are such functions
    reads: tuple[str, ...]  # columns it reads
    writes: tuple[str, ...]  # columns it writes
    args: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `fn`
    # Rows that go in at once. WHOLE_UNIT: all rows of a unit, for an operator that relates rows of one video. If such an
    # operator fails, all of the rows get its error.
    batch: int = 1
    num_cpus: float = 1  # cores
    num_gpus: float = 0
    memory: int = 0  # bytes; 0: no reservation
    dataset: "Callable[[Dataset], Dataset] | None" = None  # only for a stage that Ray Data has as Dataset -> Dataset

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def resources(self) -> tuple[float, float, int]:
        return self.num_cpus, self.num_gpus, self.memory

    def build(self) -> Callable[[list[Row]], list[Row]]:
        """Return the callable that one process uses. A class is instantiated here, once."""
        if inspect.isclass(self.fn):
            return cast(Callable[[list[Row]], list[Row]], self.fn(**self.args))
        return lambda rows: self.fn(rows, **self.args)


def check_chain(chain: Sequence[Op], available: Iterable[str]) -> None:
    """Raise ValueError if an operator reads a column that nothing before it writes, or gets an argument that it does not take.

    available: the columns that the chain begins with.
    """
    known = set(available)
    for op in chain:
        if unknown := set(op.args) - set(inspect.signature(op.fn).parameters):
            raise ValueError(f"{op.name} takes no argument {sorted(unknown)}")
        if missing := set(op.reads) - known:
            raise ValueError(f"{op.name} reads {sorted(missing)}, which nothing before it writes")
        known |= set(op.writes)


def fuse_ops(chain: Sequence[Op]) -> list[list[Op]]:
    """Group neighbouring operators that share a process: those with equal resources. A `dataset` stage is always alone."""
    keyed = groupby(enumerate(chain), lambda item: (item[1].resources, item[0] if item[1].dataset else None))
    return [[op for _, op in group] for _, group in keyed]


class Step:
    """Fused operators in one process. A call takes rows through all of them; `cpu_s` sums the CPU seconds of each operator.

    on_row: gets each row before the operators do. The rows then go one by one, which finds a clip that kills its worker.
    Without it rows go in the operators' own batches. The rows of a WHOLE_UNIT operator go together; for them it gets None.
    on_progress: gets the part of the rows that is done, 0 to 1.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)
        self._batches = [(batch, list(group)) for batch, group in groupby(ops, lambda op: op.batch)]
        self._built: dict[int, Callable[[list[Row]], list[Row]]] = {}
        limit_threads(max(1, int(ops[0].num_cpus)))

    def __call__(
        self,
        rows: list[Row],
        on_row: Callable[[Row | None], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> list[Row]:
        for batch, ops in self._batches:
            size = 1 if on_row and batch != WHOLE_UNIT else batch or len(rows) or 1
            done: list[Row] = []
            for i in range(0, len(rows), size):
                if on_row:
                    on_row(rows[i] if batch != WHOLE_UNIT else None)
                done += self._apply(ops, rows[i : i + size])
                if on_progress:
                    on_progress(min(1.0, (i + size) / len(rows)))
            rows = done
        return rows

    def _apply(self, ops: Iterable[Op], rows: list[Row]) -> list[Row]:
        for op in ops:
            began = time.process_time()
            rows = apply_isolating_errors(self._function(op), rows, op)
            self.cpu_s[op.name] += time.process_time() - began
        return rows

    def _function(self, op: Op) -> Callable[[list[Row]], list[Row]]:
        if id(op) not in self._built:
            self._built[id(op)] = op.build()
        return self._built[id(op)]


def apply_isolating_errors(fn: Callable[[list[Row]], list[Row]], rows: list[Row], op: Op) -> list[Row]:
    """Apply one operator to rows, in order. Rows that are already dropped stay as they are; a row that fails gets an `error`.

    A failing batch is halved until the rows at fault are found. `fn` gets copies, so that changes by a failed try are lost.
    A WHOLE_UNIT operator is not tried on parts of a unit, since a part would give wrong neighbours without an error. A fault
    of the machine (`errors.is_machine_fault`) says nothing about a row: it is raised, and the next run tries the unit again.
    """
    done: list[Row] = []
    for dropped, group in groupby(rows, is_dropped):
        batch = list(group)
        done += batch if dropped else _apply_or_bisect(fn, batch, op)
    return done


def _apply_or_bisect(fn: Callable[[list[Row]], list[Row]], rows: list[Row], op: Op) -> list[Row]:
    try:
        return list(fn(copy.deepcopy(rows)))
    except Exception as error:
        if is_machine_fault(error):
            raise
        if len(rows) == 1 or op.batch == WHOLE_UNIT:
            worker.note_unexpected(error)
            return [{**row, "error": _describe_error(op, error)} for row in rows]
        half = len(rows) // 2
        return _apply_or_bisect(fn, rows[:half], op) + _apply_or_bisect(fn, rows[half:], op)


def _describe_error(op: Op, error: Exception) -> str:
    """Name the operator, the exception with its message, and the line that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = where.filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{op.name}: {type(error).__name__}: {error} ({file}:{where.lineno})"


def limit_threads(count: int) -> None:
    """Limit NumPy's BLAS, cv2, codecs and torch to the cores of a step. Without a limit each uses every core of the machine."""
    import sys

    import cv2
    import threadpoolctl

    cv2.setNumThreads(count)
    container.set_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by what is loaded later
    threadpoolctl.threadpool_limits(count, "blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def run_chain(chain: Sequence[Op], rows: list[Row]) -> list[Row]:
    """Take a unit's rows through a chain, in this process."""
    for ops in fuse_ops(chain):
        if ops[0].dataset is not None:
            raise ValueError(f"{ops[0].name} exists only as a Ray Data stage; use the ray runner")
        rows = Step(ops)(rows)
    return rows


def run_chain_on_ray(chain: Sequence[Op], dataset: "Dataset") -> "Dataset":
    """Take a dataset of one block per unit through a chain, as one Ray Data stage per step. Blocks keep the declared schema."""
    known = set(dataset.schema().names)
    for ops in fuse_ops(chain):
        known |= {name for op in ops for name in op.writes}
        stage = ops[0].dataset
        dataset = stage(dataset) if stage else map_units(dataset, _block_function(ops, known), ops)
    return dataset


def map_units(dataset: "Dataset", fn: Callable[[pa.Table], pa.Table], ops: Sequence[Op]) -> "Dataset":
    """Add one Ray Data stage over whole blocks, with the resources of a step."""
    cpus, gpus, memory = ops[0].resources
    return dataset.map_batches(
        fn, batch_size=None, batch_format="pyarrow", num_cpus=cpus, num_gpus=gpus or None, memory=memory or None
    )


def _block_function(ops: Sequence[Op], known: set[str]) -> Callable[[pa.Table], pa.Table]:
    built: list[Step] = []

    def apply(block: pa.Table) -> pa.Table:
        if not built:  # once in a worker: Ray keeps the function, and with it this list, between blocks
            built.append(Step(ops))
        return conform(built[0](block.to_pylist()), columns(CLIP, known | {"reject", "error"}))

    apply.__name__ = "_".join(op.name for op in ops)
    return apply


def each(fn: Callable[..., Row]) -> Callable[..., list[Row]]:
    """Turn a function from one row to one row into an operator's function. A decorator."""

    def rows_fn(rows: list[Row], **args: Any) -> list[Row]:
        return [fn(row, **args) for row in rows]

    rows_fn.__name__, rows_fn.__doc__, rows_fn.__qualname__ = fn.__name__, fn.__doc__, fn.__qualname__
    rows_fn.__module__, rows_fn.__wrapped__ = fn.__module__, fn  # type: ignore[attr-defined]
    return rows_fn
