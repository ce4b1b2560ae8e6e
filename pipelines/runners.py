"""Two ways to run a phase's units: on this machine, or on Ray Data. Both watch a child process that does them (`worker`)."""

import atexit
import json
import logging
import math
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa

from curation.output_folder import OutputFolder
from operators.op import map_units, steps
from operators.vllm import answer_ahead
from pipelines.ledger import Record
from pipelines.phases import Phase, questions
from pipelines.units import Unit
from pipelines.worker import Supervisor

NAMES = ("local", "ray")
# A unit of slim rows takes about as long as handing out a task: a tenth of a second.
_SLIM_UNITS_A_TASK = 16
# What Ray's head and a network answer in, if they answer at all.
_PROBE_S = 5.0
_CLIENT_PORT = 10001
_HTTP2_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# Whose questions vLLM's engines answer.
ENGINE_PHASES = ("caption", "relate")


def run_local(phase: Phase, units: Sequence[Unit], show: Callable[[float], None]) -> Iterator[Record]:
    """Do units one after the other in one child process, which is replaced where a unit kills it.

    show: called with how many units are done, parts of one included. The child dies with this process, and the next run repeats
    what it was doing. It serves all phases of a run, since starting one costs more than most units; one that may hold a model
    leaves the memory to the next phase. `local_worker` ends it.
    """
    supervisor = _supervisor()
    for number, unit in enumerate(units):
        yield supervisor.do(phase, unit, partial(_shifted, show, number))
    if any(op.num_gpus for op in phase.chain) or phase.recipe.caption.vlm.backend == "transformers":
        supervisor.stop()


@contextmanager
def local_worker() -> Iterator[None]:
    """End the child process of `run_local`, if there is one, at the end of the context."""
    try:
        yield
    finally:
        _supervisor().close()


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
    return max(1, min(_SLIM_UNITS_A_TASK, units // (4 * max(1, cores)))) if slim else 1


def _ask_ahead(phase: Phase, units: Sequence[Unit]) -> None:
    """Let vLLM's engines on the cluster answer the questions of all units at once, where the recipe wants that."""
    model = phase.recipe.caption.vlm
    if model.backend == "vllm" and phase.name in ENGINE_PHASES:
        asked = [unit.to_json() for unit in units]
        answer_ahead(asked, lambda text: questions(phase, Unit.from_json(text)), model, OutputFolder(phase.out).answers)


def _block_work(phase: Phase):  # type: ignore[no-untyped-def]
    def do_units(block: pa.Table) -> pa.Table:
        records = [_supervisor().do(phase, Unit.from_json(text)) for text in block["unit"].to_pylist()]
        return pa.table({"record": [record.to_json() for record in records]})

    do_units.__name__ = phase.name
    return do_units


@cache
def _supervisor() -> Supervisor:
    """Return the supervisor of this process. Its child lives on between units, since starting one costs a second."""
    supervisor = Supervisor()
    atexit.register(supervisor.close)
    return supervisor


def start_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS or the job names, else start one on this machine's cores.

    ValueError within seconds where nothing of Ray's answers at the address; Ray itself would try for minutes.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    with _quiet_backend() if address not in ("", "local") else nullcontext():
        import ray

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if ray.is_initialized():
            return
        _require_ray_at(address)
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        except Exception as error:  # Ray raises bare ones where a node does not start
            named = f"RAY_ADDRESS is {address}: " if address else ""
            raise ValueError(f"{named}Ray cannot be started: {' '.join(str(error).split())}") from error


@contextmanager
def _quiet_backend() -> Iterator[None]:
    """Keep Ray's C++ side from printing each of its tries to connect. It reads this once; processes started later do not."""
    name = "RAY_BACKEND_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "error"
    try:
        yield
    finally:
        if not before:
            del os.environ[name]


def _require_ray_at(address: str) -> None:
    """Refuse an address at which no head of Ray answers. Words such as `auto` and `local` are left to Ray."""
    scheme, _, rest = address.rpartition("://")
    if not rest or (not scheme and ":" not in rest):
        return
    advice = (
        "Check the address and that the cluster runs (`ray status` on it), or unset RAY_ADDRESS to use this machine's cores"
    )
    try:
        place = urlsplit(f"//{rest}")
        host, port = place.hostname, place.port or (_CLIENT_PORT if scheme == "ray" else None)
    except ValueError:
        host, port = None, None
    if scheme in ("http", "https") or not host or not port:
        raise ValueError(
            f"RAY_ADDRESS is {address}: it must be HOST:PORT of a head (port 6379 by default), ray://HOST:{_CLIENT_PORT}, auto "
            "or local; http:// is the dashboard's, for `ray job submit`"
        )
    if scheme in ("", "ray"):
        try:
            _speak_http2(host, port)
        except OSError as error:
            raise ValueError(f"RAY_ADDRESS is {address}: no head of Ray answers there ({error}). {advice}") from error


def _speak_http2(host: str, port: int) -> None:
    """Greet as gRPC does, on which Ray's own protocols are built, and expect a greeting. OSError where none comes."""
    with socket.create_connection((host, port), _PROBE_S) as probe:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2_SETTINGS)
        if probe.recv(len(_HTTP2_SETTINGS))[3:4] != _HTTP2_SETTINGS[3:4]:
            raise ConnectionError("what answers is another service")


class _Cluster(NamedTuple):
    """What a cluster has: the resources of its nodes, of those that its autoscaler may add (with how many), and whether it may
    add others that it does not tell of.
    """

    nodes: list[dict[str, float]]
    more: list[tuple[dict[str, float], float]]
    grows: bool

    def on_one_node(self, needs: dict[str, float]) -> bool:
        kinds = [*self.nodes, *(node for node, _ in self.more)]
        return any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in kinds)

    def total(self, name: str) -> float:
        return sum(node.get(name, 0) for node in self.nodes) + sum(node.get(name, 0) * count for node, count in self.more)

    def __str__(self) -> str:
        has = "; ".join(
            f"{count} nodes of {words}" if count > 1 else words for words, count in Counter(map(_describe, self.nodes)).items()
        )
        more = "; ".join(f"{'any number' if math.isinf(count) else count} of {_describe(node)}" for node, count in self.more)
        return (has or "no node") + (f", and its autoscaler may add {more}" if more else "")


def preflight(phase: Phase) -> None:
    """Refuse a phase that no node of the cluster can run (ValueError); Ray itself would wait for ever, in silence.

    Nodes that an autoscaler may add count. Where it does not tell which, a warning on stderr is all.
    """
    cluster = _cluster()
    if lacks := _lacking(phase, cluster):
        if not cluster.grows:
            raise ValueError(lacks)
        sys.stderr.write(f"gamecraft: {lacks}; its autoscaler does not tell what it can add, so this waits for it\n")


def foresee(phases: Iterable[Phase]) -> None:
    """Say on stderr now, not after hours, which of these phases this cluster will not be able to run."""
    cluster = _cluster()
    for words in filter(None, (_lacking(phase, cluster) for phase in phases)):
        sys.stderr.write(f"gamecraft: as this cluster is, later work will be refused: {words}\n")


def _lacking(phase: Phase, cluster: _Cluster) -> str:
    """What a phase needs that the cluster does not have; empty where it has all."""
    for op in phase.chain:
        needs = {"CPU": op.num_cpus, "GPU": op.num_gpus, "memory": op.memory}
        if not cluster.on_one_node(needs):
            return f"phase {phase.name}: {op.name} needs {_describe(needs)} on one node, the cluster has {cluster}"
    model = phase.recipe.caption.vlm
    wanted = model.engine.replicas * model.engine.gpus
    if model.backend == "vllm" and phase.name in ENGINE_PHASES and cluster.total("GPU") < wanted:
        engines = f"{model.engine.replicas} x {model.engine.gpus} GPU for vLLM"
        return (
            f"phase {phase.name}: caption.vlm.engine needs {engines}, the cluster has {cluster}. Change its replicas or gpus, "
            "or let caption.vlm.backend be http with a server elsewhere"
        )
    return ""


def _cluster() -> _Cluster:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A head without cores and nothing beside it waits for an autoscaler, or for its nodes.
    bare = not any(node.get("CPU") for node in nodes)
    if not ray.is_initialized() or ray.util.client.ray.is_connected():  # through ray:// Ray's own state cannot be asked
        return _Cluster(nodes, [], bare)
    config = ray._private.state.state.get_cluster_config()
    groups = list(config.node_group_configs) if config else []
    more = [(dict(group.resources), math.inf if group.max_count < 0 else group.max_count) for group in groups]
    return _Cluster(nodes, [kind for kind in more if kind[1]], not groups and (bare or _scales()))


def _scales() -> bool:
    """Whether an autoscaler runs. Ray's monitor reports in any case; kinds of nodes have names only where it may add some."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    report = ray.experimental.internal_kv._internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS)
    kinds = (json.loads(report or "{}").get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not re.fullmatch("node_[0-9a-f]+", kind) for kind in kinds) or is_autoscaler_v2()


def _describe(resources: dict[str, float]) -> str:
    gib = resources.get("memory", 0) / 2**30
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {gib:.1f} GiB"
