"""Two ways to run a phase's units: on this machine, or on Ray Data. Both watch a child process that does them (`worker`)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import pyarrow as pa

from operators.op import map_units, steps
from operators.vllm import answer_ahead
from pipelines import ledger
from pipelines.ledger import Record
from pipelines.phases import Phase, questions
from pipelines.units import Unit
from pipelines.worker import Supervisor

NAMES = ("local", "ray")
# A unit of slim rows takes about as long as handing out a task: a tenth of a second.
_SLIM_UNITS_A_TASK = 16


def run_local(phase: Phase, units: Sequence[Unit], show: Callable[[float], None]) -> Iterator[Record]:
    """Units one after the other in one child process, which is started anew where a unit kills it.

    `show` gets how many units are done, parts of one included. The child dies with this process; what it was doing is
    done again by the next run.
    """
    supervisor = Supervisor()
    try:
        for number, unit in enumerate(units):
            yield supervisor.do(phase, unit, partial(_shifted, show, number))
    finally:
        supervisor.stop()


def _shifted(show: Callable[[float], None], before: int, part: float) -> None:
    show(before + part)


def run_ray(phase: Phase, units: Sequence[Unit]) -> Iterator[Record]:
    """Units as blocks of a Ray Data pipeline, a task each; Ray starts a task again whose worker or node is lost.

    A Ray worker watches a child process that does the units: it sees how the child ends, which Ray does not tell.
    """
    import ray

    preflight(phase)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _ask_ahead(phase, units)
    size = _units_a_task(phase, len(units), int(ray.cluster_resources().get("CPU", 1)))
    texts = [unit.to_json() for unit in units]
    blocks = [pa.table({"unit": texts[first : first + size]}) for first in range(0, len(texts), size)]
    joined = steps(phase.chain)
    assert len(joined) == 1, f"{phase.name} needs one step to a unit, not {len(joined)}"
    dataset = map_units(ray.data.from_arrow(blocks), _block_work(phase), joined[0])
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for text in block["record"].to_pylist():
            yield Record.from_json(text)


def _units_a_task(phase: Phase, units: int, cores: int) -> int:
    """One that decodes or asks a model; several that only read rows, if every core still has a few tasks."""
    slim = phase.name == "relate" and not phase.recipe.caption.vlm.asked
    return max(1, min(_SLIM_UNITS_A_TASK, units // (4 * cores))) if slim else 1


def _ask_ahead(phase: Phase, units: Sequence[Unit]) -> None:
    """Let vLLM's engines on the cluster answer the questions of all units at once, where the recipe wants that."""
    model = phase.recipe.caption.vlm
    if model.backend == "vllm" and phase.name in ("caption", "relate"):
        asked = [unit.to_json() for unit in units]
        answer_ahead(asked, lambda text: questions(phase, Unit.from_json(text)), model, ledger.answers_uri(phase.out))


def _block_work(phase: Phase):  # type: ignore[no-untyped-def]
    def do_units(block: pa.Table) -> pa.Table:
        records = [_supervisor().do(phase, Unit.from_json(text)) for text in block["unit"].to_pylist()]
        return pa.table({"record": [record.to_json() for record in records]})

    do_units.__name__ = phase.name
    return do_units


@cache
def _supervisor() -> Supervisor:
    """The one of this Ray worker; its child lives as long, since starting one costs a second."""
    return Supervisor()


def start_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS or the job names, else start one on this machine's cores."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)


def preflight(phase: Phase) -> None:
    """Refuse a phase that no node of the cluster can run (ValueError); Ray itself would wait for ever, in silence."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for op in phase.chain:
        needs = {"CPU": op.num_cpus, "GPU": op.num_gpus, "memory": op.memory}
        if not any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
            has = "; ".join(_describe(node) for node in nodes)
            raise ValueError(f"phase {phase.name}: {op.name} needs {_describe(needs)} on one node, the cluster has {has}")


def _describe(resources: dict[str, float]) -> str:
    gib = resources.get("memory", 0) / 2**30
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {gib:.1f} GiB"
