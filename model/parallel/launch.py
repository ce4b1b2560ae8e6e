"""Start ranks on a Ray cluster. torchrun needs nothing from here: `dist.start` reads the variables that it sets."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from curation.errors import GamecraftError, Unavailable


def run_on_ray(work: Callable[[dict[str, Any]], None], config: dict[str, Any], workers: int, folder: str) -> None:
    """Run work(config) in `workers` ranks of a Ray cluster (Ray Train), with a GPU each where it has any; wait for all.

    workers: 0 means one for each GPU, or one without GPUs. folder: where Ray Train keeps its own files; all nodes must see it.
    Ranks that die, alone or with their node, are started again up to three times, and a run resumes from its newest checkpoint.
    After that this raises the error of a rank, or Unavailable where ranks or nodes were lost.
    """
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    gpus = int(ray.cluster_resources().get("GPU", 0))
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(num_workers=workers or gpus or 1, use_gpu=gpus > 0),
        run_config=train.RunConfig(
            name="ranks", storage_path=os.path.abspath(folder), failure_config=train.FailureConfig(max_failures=3)
        ),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        raise _error_of_ranks(error) from error


def _error_of_ranks(error: Exception) -> Exception:
    """Return what an error of Ray Train is about: what a rank raised, or else Unavailable: ranks were lost or never ran."""
    failures: list[Exception] = [*getattr(error, "worker_failures", {}).values()]
    raised = [failure for failure in failures if not type(failure).__module__.startswith("ray.")]
    # Where one rank fails, others fail as they wait for it: what our own code says is what to read.
    ours = [each for each in raised if isinstance(each, GamecraftError)]
    if ours or raised:
        return (ours or raised)[0]
    cause = failures[0] if failures else getattr(error, "controller_failure", error)
    reason = " ".join(str(cause).split())[:300]
    if not failures:  # no rank ran, or its node was taken away: the cluster may lack what the run asks for
        return Unavailable(f"Ray Train could not go on: {reason}")
    return Unavailable(f"Ray Train lost ranks of this run ({reason}); run the same command again to resume")


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
