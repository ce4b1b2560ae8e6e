"""Ranks on a Ray cluster. Under torchrun nothing is needed: `ranks.start` reads what it sets."""

import os
from collections.abc import Callable
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
