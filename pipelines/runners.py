"""Two ways to run a phase's units: on this machine, or on a Ray cluster. Both use a child process (`pipelines.worker`)."""

import atexit
import itertools
import json
import logging
import math
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from curation.errors import GamecraftError, InputError, Unavailable
from curation.output_folder import OutputFolder
from operators.op import fuse_ops
from operators.vllm import fill_answer_cache
from pipelines import chunk_units
from pipelines.ledger import Record
from pipelines.phases import Phase, questions
from pipelines.supervisor import Supervisor
from pipelines.units import Unit
from pipelines.worker_pool import WorkerPool, only_reads_rows

log = logging.getLogger(__name__)

_pool: WorkerPool | None = None  # of `run_local`

RUNNERS = ("local", "ray")
# A unit that only reads rows takes about as long as scheduling a Ray task: a tenth of a second.
_MAX_LIGHT_UNITS_PER_TASK = 16
_TASKS_PER_CORE = 4
# How often Ray repeats a task of `run_tasks` after its worker or node is lost. These tasks decode no footage, so no clip can
# crash them.
_TASK_RETRIES = 20
_RECOUNT_S = 10.0  # how often the cores of a cluster are counted again
# If Ray's head answers at all, it does so within this time.
_PROBE_TIMEOUT_S = 5.0
_CLIENT_PORT = 10001
_HTTP2_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
# The phases that ask a VLM. With the backend vllm, engines on the cluster answer them.
ENGINE_PHASES = ("caption", "relate")


def run_local(phase: Phase, units: Sequence[Unit], on_part: Callable[[float], None]) -> Iterator[Record]:
    """Do units in child processes, and yield their records in the order in which they end.

    on_part: gets how much of the current units is done, summed over the children. A child is replaced if a unit kills it, and
    ends with this process: the next run repeats what it was doing. It serves all phases of a run, since starting one costs more
    than most units, and `local_workers` ends it.
    """
    assert _pool, "run_local needs the context local_workers"
    yield from _pool.do(phase, units, on_part)


@contextmanager
def local_workers(count: int) -> Iterator[None]:
    """Let `run_local` use so many child processes (0: one for each core) in this context, and end them at its end."""
    global _pool
    pool = _pool = WorkerPool(count)
    try:
        yield
    finally:
        pool.close()
        _pool = None


def run_ray(phase: Phase, units: Sequence[Unit]) -> Iterator[Record]:
    """Run units in tasks on the cluster, and yield their records in the order in which tasks end.

    Each Ray worker does its units in a child process and sees how that ends: Ray itself does not report how a worker ended. It
    repeats a task whose worker or node is lost.
    """
    import ray

    preflight(phase)
    _answer_with_engines(phase, units)
    size = _units_per_task(phase, len(units), _count_cpus())
    steps = fuse_ops(phase.chain)
    assert len(steps) == 1, f"phase {phase.name} must be one step, not {len(steps)}"
    cpus, gpus, declared = steps[0][0].resources
    options = {"num_cpus": cpus, "num_gpus": gpus or None, "max_retries": -1, "scheduling_strategy": "SPREAD"}
    function, shared, largest = ray.remote(_do_units), ray.put(phase), _cluster().most_memory({"CPU": cpus, "GPU": gpus})

    def submit(*some: Unit) -> Any:
        needed = declared + max(chunk_units.joining_memory(unit, phase.recipe) for unit in some)
        if needed > largest:  # a task that fits no node would wait for ever
            sizes = needed / 2**30, largest / 2**30
            log.warning("%s: a long source needs %.1f GiB, the largest node has %.1f", phase.name, *sizes)
        memory = int(min(largest, needed)) or None
        return function.options(name=phase.name, memory=memory, **options).remote(shared, *some)

    for records in _run_windowed(submit, (units[first : first + size] for first in range(0, len(units), size))):
        yield from records


def _do_units(phase: Phase, *units: Unit) -> list[Record]:
    return [_supervisor().do(phase, unit) for unit in units]


def _run_windowed(submit: Callable[..., Any], tasks: Iterable[Sequence[Any]]) -> Iterator[Any]:
    """Submit tasks, each with its arguments, a few for each core of the cluster at a time. Yield results as tasks end.

    So neither this process nor the cluster holds more than these, however many tasks there are. More are submitted as the
    cluster grows. Tasks that are under way when this is closed are killed: the next run repeats them.
    """
    import ray

    waiting, running = iter(tasks), set[Any]()
    window, counted_s = 0, -math.inf
    try:
        while True:
            if time.monotonic() - counted_s > _RECOUNT_S:
                window, counted_s = _TASKS_PER_CORE * _count_cpus(), time.monotonic()
            running.update(submit(*task) for task in itertools.islice(waiting, max(0, window - len(running))))
            if not running:
                return
            ended, _ = ray.wait(list(running), timeout=_RECOUNT_S)
            running.difference_update(ended)
            for result in ended:
                yield ray.get(result)
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _count_cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def run_tasks(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function with each of these arguments on the cluster, and yield the results in the order of the arguments.

    A few tasks a core are submitted at a time, so that their number costs this process no memory.
    """
    import ray

    remote, waiting = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(function), deque[Any]()
    window = _TASKS_PER_CORE * _count_cpus()
    for task in tasks:
        if len(waiting) >= window:
            yield ray.get(waiting.popleft())
        waiting.append(remote.remote(*task))
    while waiting:
        yield ray.get(waiting.popleft())


@contextmanager
def on_cluster(runner: str = "ray") -> Iterator[None]:
    """Connect to Ray, if that is the runner.

    In this context Unavailable is raised where Ray loses a worker, a node, an actor or an object. Errors of this package that a
    task raised are raised as they are, without Ray's traceback.
    """
    if runner != "ray":
        yield
        return
    start_ray()
    from ray.exceptions import ActorDiedError, RayError, RayTaskError

    try:
        yield
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, GamecraftError):
            raise cause from error
        lost = cause if isinstance(cause, RayError) else error
        if isinstance(lost, RayTaskError) or (isinstance(lost, ActorDiedError) and lost.actor_init_failed):
            raise
        reason = str(lost).partition("\n")[0].removesuffix(".")
        if not isinstance(lost, _losses()):
            raise Unavailable(f"Ray: {reason}") from error
        raise Unavailable(
            f"the Ray cluster lost a part of this run ({reason}); run the same command again to resume"
        ) from error


def _losses() -> tuple[type[Exception], ...]:
    """Return the errors by which Ray says that something was lost which another run may find."""
    from ray import exceptions

    names = ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "ObjectLostError", "OutOfMemoryError")
    return tuple(getattr(exceptions, name) for name in (*names, "RayActorError", "RaySystemError", "RpcError"))


def _units_per_task(phase: Phase, units: int, cores: int) -> int:
    """Return 1 for units that decode or ask a model, and more for units that only read rows if every core has a few tasks."""
    return max(1, min(_MAX_LIGHT_UNITS_PER_TASK, units // (_TASKS_PER_CORE * cores))) if only_reads_rows(phase) else 1


def _answer_with_engines(phase: Phase, units: Sequence[Unit]) -> None:
    """Let vLLM engines on the cluster answer the questions of all units before the units run, if the recipe says so."""
    model = phase.recipe.caption.vlm
    if model.backend == "vllm" and phase.name in ENGINE_PHASES:
        texts = [unit.to_json() for unit in units]
        folder, videos = OutputFolder(phase.out).answers, phase.recipe.caption.frames.form == "video"
        fill_answer_cache(texts, lambda text: questions(phase, Unit.from_json(text)), model, folder, videos)


@cache
def _supervisor() -> Supervisor:
    """Return the supervisor of this process. Its child lives on between units, since starting one costs a second."""
    supervisor = Supervisor()
    atexit.register(supervisor.close)
    return supervisor


def start_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS or the job names. Without one, start a cluster on this machine's cores.

    InputError within seconds if no Ray head answers at the address. Ray itself would try for minutes.
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
        except Exception as error:  # Ray raises plain exceptions where a node does not start
            named = f"RAY_ADDRESS is {address}: " if address else ""
            raise InputError(f"{named}Ray cannot be started: {' '.join(str(error).split())}") from error


@contextmanager
def _quiet_backend() -> Iterator[None]:
    """Keep Ray's C++ code from printing each attempt to connect. It reads the variable once, and later processes must not."""
    name = "RAY_BACKEND_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "error"
    try:
        yield
    finally:
        if not before:
            del os.environ[name]


def _require_ray_at(address: str) -> None:
    """Raise InputError for an address at which no Ray head answers. Keywords such as `auto` and `local` are left to Ray."""
    scheme, _, rest = address.rpartition("://")
    if not rest or (not scheme and ":" not in rest):
        return
    advice = (
        "Check the address and that the cluster runs (`ray status` there), or unset RAY_ADDRESS to use this machine's cores"
    )
    try:
        parsed = urlsplit(f"//{rest}")
        host, port = parsed.hostname, parsed.port or (_CLIENT_PORT if scheme == "ray" else None)
    except ValueError:
        host, port = None, None
    if scheme in ("http", "https") or not host or not port:
        raise InputError(
            f"RAY_ADDRESS is {address}: it must be HOST:PORT of a Ray head (port 6379 by default), ray://HOST:{_CLIENT_PORT}, "
            "auto or local; an http:// address is the dashboard, for `ray job submit`"
        )
    if scheme in ("", "ray"):
        try:
            _probe_grpc(host, port)
        except OSError as error:
            raise InputError(f"RAY_ADDRESS is {address}: no Ray head answers there ({error}). {advice}") from error


def _probe_grpc(host: str, port: int) -> None:
    """Send the HTTP/2 preface of gRPC, which Ray's protocols use, and expect one back. OSError if none comes."""
    with socket.create_connection((host, port), _PROBE_TIMEOUT_S) as probe:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2_SETTINGS)
        if probe.recv(len(_HTTP2_SETTINGS))[3:4] != _HTTP2_SETTINGS[3:4]:
            raise ConnectionError("another service answers")


class _Cluster(NamedTuple):
    """The resources of a cluster."""

    nodes: list[dict[str, float]]  # of each node that is up
    addable: list[tuple[dict[str, float], float]]  # of each kind of node that its autoscaler may add, and at most how many
    grows_unseen: bool  # whether an autoscaler may add nodes whose kinds it does not report

    def nodes_with(self, needs: dict[str, float]) -> list[dict[str, float]]:
        """Return the nodes, up or addable, that have so much of each resource."""
        kinds = [*self.nodes, *(node for node, _ in self.addable)]
        return [node for node in kinds if all(node.get(name, 0) >= amount for name, amount in needs.items())]

    def most_memory(self, needs: dict[str, float]) -> float:
        """Return the most memory of a node that has these, in bytes. Infinite if an autoscaler does not report its kinds."""
        return math.inf if self.grows_unseen else max((node.get("memory", 0) for node in self.nodes_with(needs)), default=0)

    def total(self, name: str) -> float:
        return sum(node.get(name, 0) for node in self.nodes) + sum(node.get(name, 0) * count for node, count in self.addable)

    def __str__(self) -> str:
        kinds = Counter(map(_describe, self.nodes)).items()
        nodes = "; ".join(f"{count} nodes of {kind}" if count > 1 else kind for kind, count in kinds)
        addable = "; ".join(
            f"{'any number' if math.isinf(count) else count} of {_describe(node)}" for node, count in self.addable
        )
        return (nodes or "no node") + (f", and its autoscaler may add {addable}" if addable else "")


def preflight(phase: Phase) -> None:
    """Raise InputError for a phase that no node of the cluster can run. Ray itself would wait for ever without a message.

    Nodes that an autoscaler may add count. If the autoscaler does not report which, this only logs a warning.
    """
    cluster = _cluster()
    if shortage := _shortage(phase, cluster):
        if not cluster.grows_unseen:
            raise InputError(shortage)
        log.warning("%s; its autoscaler does not report what it can add, so this run waits for it", shortage)


def warn_of_shortages(phases: Iterable[Phase]) -> None:
    """Warn now, and not after hours, of phases that this cluster will not be able to run."""
    cluster = _cluster()
    for shortage in filter(None, (_shortage(phase, cluster) for phase in phases)):
        log.warning("this cluster cannot run a later phase, which will be refused: %s", shortage)


def _shortage(phase: Phase, cluster: _Cluster) -> str:
    """Describe what a phase needs and the cluster lacks. Empty if it lacks nothing."""
    for op in phase.chain:
        needs = {"CPU": op.num_cpus, "GPU": op.num_gpus, "memory": op.memory}
        if not cluster.nodes_with(needs):
            shared = phase.name in ("scan", "partition") and op.num_gpus
            remedy = ". partition.gpus: 0 runs it on CPUs, where RAFT and pyiqa's metrics take long" if shared else ""
            return f"phase {phase.name}: {op.name} needs {_describe(needs)} on one node, the cluster has {cluster}{remedy}"
    model = phase.recipe.caption.vlm
    gpus = model.engine.replicas * model.engine.gpus
    if model.backend == "vllm" and phase.name in ENGINE_PHASES and cluster.total("GPU") < gpus:
        engines = f"{model.engine.replicas} x {model.engine.gpus} GPU for vLLM"
        return (
            f"phase {phase.name}: caption.vlm.engine needs {engines}, the cluster has {cluster}. Change its replicas or gpus, "
            "or set caption.vlm.backend to http with a server elsewhere"
        )
    return ""


def _cluster() -> _Cluster:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A head without cores and without other nodes waits for an autoscaler, or for its nodes.
    no_cores = not any(node.get("CPU") for node in nodes)
    if not ray.is_initialized() or ray.util.client.ray.is_connected():  # through ray:// Ray's own state cannot be read
        return _Cluster(nodes, [], no_cores)
    config = ray._private.state.state.get_cluster_config()
    groups = list(config.node_group_configs) if config else []
    addable = [(dict(group.resources), math.inf if group.max_count < 0 else group.max_count) for group in groups]
    return _Cluster(nodes, [kind for kind in addable if kind[1]], not groups and (no_cores or _has_autoscaler()))


def _has_autoscaler() -> bool:
    """Whether an autoscaler runs. Ray's monitor always reports; only kinds of nodes that an autoscaler may add have names."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    report = ray.experimental.internal_kv._internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS)
    kinds = (json.loads(report or "{}").get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not re.fullmatch("node_[0-9a-f]+", kind) for kind in kinds) or is_autoscaler_v2()


def _describe(resources: dict[str, float]) -> str:
    gib = resources.get("memory", 0) / 2**30
    return f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU, {gib:.1f} GiB"
