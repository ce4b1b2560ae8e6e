"""Start ranks on a Ray cluster. torchrun needs nothing from here: `dist.start` reads the variables that it sets."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def run_on_ray(work: Callable[[dict[str, Any]], None], config: dict[str, Any], workers: int, folder: str) -> None:
    """Run work(config) in `workers` ranks of a Ray cluster (Ray Train), with a GPU each where it has any; wait for all.

    workers: 0 means one for each GPU, or one without GPUs. folder: where Ray Train keeps its own files; all nodes must see it.
    Ranks that die, alone or with their node, are started again up to three times, and a run resumes from its newest checkpoint.
    After that Ray Train raises RuntimeError.
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


def map_on_ray(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """Run work(job) for each job in actors on a Ray cluster, with a GPU each where it has any; yield results as they come.

    workers: as in `run_on_ray`. An actor that dies is started again with its job up to three times; then its error is raised
    here.
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
