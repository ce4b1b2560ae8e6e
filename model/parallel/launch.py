"""Ranks on a Ray cluster. Under torchrun nothing is needed: `ranks.start` reads what it sets."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def on_ray(work: Callable[[dict[str, Any]], None], config: dict[str, Any], workers: int, folder: str) -> None:
    """Run work(config) in so many ranks of a Ray cluster (Ray Train), a GPU each where it has any; returns when all are done.

    workers: 0 is one for each GPU, or one without. Ranks that die, or whose node does, are started anew up to three times, and
    a run goes on from its newest checkpoint. RuntimeError of Ray Train where they keep dying. folder: where Ray Train keeps its
    own notes; all nodes must see it.
    """
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    gpus = int(ray.cluster_resources().get("GPU", 0))
    TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=workers or gpus or 1, use_gpu=gpus > 0),
        run_config=train.RunConfig(
            name="ranks", storage_path=os.path.abspath(folder), failure_config=train.FailureConfig(max_failures=3)
        ),
    ).fit()


def each_on_ray(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """work(job) of each job in actors on a Ray cluster, a GPU each where it has any; results as they come. workers: as above.

    An actor that dies is started anew with its job up to three times; then its error is raised here.
    """
    import ray
    from ray.util import ActorPool

    gpus = int(ray.cluster_resources().get("GPU", 0))

    class Worker:
        def do(self, job: Any) -> Any:
            return work(job)

    remote = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1, max_restarts=3, max_task_retries=3)(Worker)
    pool = ActorPool([remote.remote() for _ in range(min(workers or gpus or 1, len(jobs)))])
    return iter(pool.map_unordered(lambda actor, job: actor.do.remote(job), jobs))
