"""A Ray cluster of several nodes on this machine, of which any but the head can be killed."""

import os
import random
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.process_tree import descendants

_STORE_BYTES = 100 << 20


class RayNodes:
    """A head without cores, on which drivers run, and nodes of one core each, which can be killed and come back."""

    def __init__(self, count: int, folder: Path, environment: Mapping[str, str]) -> None:
        """count: nodes with the head. folder: for Ray's files; its path must be short. environment: of all workers."""
        from ray.cluster_utils import Cluster

        (folder / "ray").mkdir(parents=True)
        self._temporary = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(folder)  # also for the file that names the newest cluster
        self._shared = {"env_vars": dict(environment), "object_store_memory": _STORE_BYTES}
        head = {"num_cpus": 0, "include_dashboard": False, **self._shared}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add() for _ in range(count - 1)]  # in this order, so that a seed always kills the same
        self.address: str = self._cluster.address

    def kill_node(self, rng: random.Random, whole: bool) -> None:
        """Kill a node, and add another. If not `whole`, its raylet is killed first, and the rest of the node a moment later."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        [raylet] = [info.process.pid for info in node.all_processes["raylet"]]
        for pid in [raylet, *(descendants(raylet) if whole else ())]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, **self._shared)

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()
        if self._temporary is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = self._temporary
