"""Ranks on a Ray cluster: one group of all, made anew where one dies; actors for jobs that need no group."""

import os
import time

import pytest

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.parallel import dist  # noqa: E402
from model.parallel.launch import map_on_ray, run_on_ray  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder = str(tmp_path_factory.mktemp("r"))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def test_a_rank_that_dies_is_started_again_with_the_others(cluster, tmp_path):
    def work(config):
        rank, count, _ = dist.start()
        mean = float(dist.mean(torch.tensor(float(rank))))
        died = os.path.join(config["folder"], "died")
        if rank == 1 and not os.path.exists(died):
            time.sleep(5)  # Ray Train gives up where a rank dies before all of them have started
            open(died, "w").close()
            os._exit(1)
        if rank == 0 and not os.path.exists(died):
            time.sleep(60)
        with open(os.path.join(config["folder"], f"rank{rank}"), "w") as file:
            file.write(f"{rank} of {count}, mean {mean}")

    run_on_ray(work, {"folder": str(tmp_path)}, workers=2, folder=str(tmp_path))
    assert [(tmp_path / f"rank{i}").read_text() for i in range(2)] == ["0 of 2, mean 0.5", "1 of 2, mean 0.5"]
    assert (tmp_path / "died").exists()


def test_jobs_go_over_actors_and_one_that_dies_does_its_job_again(cluster, tmp_path):
    died = str(tmp_path / "died")

    def work(job):
        if job == 3 and not os.path.exists(died):
            open(died, "w").close()
            os._exit(1)
        return 10 * job

    assert sorted(map_on_ray(work, range(5), workers=2)) == [0, 10, 20, 30, 40]
    assert os.path.exists(died)
