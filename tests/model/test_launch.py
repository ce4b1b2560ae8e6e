"""Ranks on a Ray cluster: one group of all, made anew where one dies; actors for jobs that need no group."""

import json
import os
import time

import numpy as np
import pytest
from typer.testing import CliRunner

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from ray.train import ControllerError, WorkerGroupError  # noqa: E402

from curation.errors import InputError, Unavailable  # noqa: E402
from model.parallel import dist  # noqa: E402
from model.parallel.launch import _error_of_ranks, map_on_ray, run_on_ray  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder = str(tmp_path_factory.mktemp("r"))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder, object_store_memory=100 << 20)
    yield
    ray.shutdown()


@pytest.mark.exhaustive  # Ray Train waits half a minute
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


def test_what_a_rank_raises_is_raised_and_what_ray_loses_is_unavailable():
    """Ray Train retries both. Its own error would end as a bug of ours, with a traceback."""
    lost = ray.exceptions.ActorDiedError()
    refused, waited = InputError("train.batch: too large"), RuntimeError("a peer closed the connection")
    assert str(_error_of_ranks(WorkerGroupError("", {0: waited, 1: refused}))) == "train.batch: too large"
    assert isinstance(_error_of_ranks(WorkerGroupError("", {0: waited, 1: lost})), RuntimeError)
    said = _error_of_ranks(WorkerGroupError("", {1: lost}))
    assert isinstance(said, Unavailable)
    assert "run the same command again to resume" in str(said)
    assert str(_error_of_ranks(ControllerError(ValueError("no GPU")))) == "Ray Train could not go on: no GPU"


@pytest.mark.exhaustive  # Ray Train tries it four times, which takes a minute
def test_an_error_of_a_rank_is_raised_here(cluster, tmp_path):
    def work(config):
        raise InputError("no clip has a camera")

    with pytest.raises(InputError, match="no clip has a camera"):
        run_on_ray(work, {}, workers=1, folder=str(tmp_path))


def test_jobs_go_over_actors_and_one_that_dies_does_its_job_again(cluster, tmp_path):
    died = str(tmp_path / "died")

    def work(job):
        if job == 3 and not os.path.exists(died):
            open(died, "w").close()
            os._exit(1)
        return 10 * job

    assert sorted(map_on_ray(work, range(5), workers=2)) == [0, 10, 20, 30, 40]
    assert os.path.exists(died)


def reply(body):
    """A judge's reply that fits the schema, whatever the question."""
    names = body["response_format"]["json_schema"]["schema"]["properties"]
    return json.dumps({name: {"evidence": "frame 1", "score": 1 if name == "trigger" else 5} for name in names})


def test_an_evaluation_over_actors_asks_no_question_twice_where_one_dies(cluster, serve, tmp_path, monkeypatch):
    from model.evaluation.cases import read_cases
    from model.evaluation.interbench import run
    from model.evaluation.interbench.judge import JudgeSettings
    from model.evaluation.interbench.results import BenchSettings
    from model.evaluation.run import judge_model
    from pipelines.cli import app
    from synth.media import to_mp4

    judge, videos, out = serve(lambda body, _: serve.say(reply(body))), tmp_path / "videos", str(tmp_path / "out")
    (videos / "snow").mkdir(parents=True)
    for k in range(3):
        (videos / "snow" / f"{k}.mp4").write_bytes(
            to_mp4(np.random.default_rng(k).integers(0, 255, (4, 48, 64, 3), np.uint8), 4)
        )
    monkeypatch.setattr(run, "_CASES_PER_JOB", 1)
    died = str(tmp_path / "died")

    def over_actors(work, jobs):
        def dies_once(job):
            result = work(job)
            if not os.path.exists(died):
                open(died, "w").close()
                os._exit(1)
            return result

        return map_on_ray(dies_once, jobs, workers=2)

    vlm = f"http:judge@{judge.url}"
    summary = run.run(
        read_cases(str(videos)), out, BenchSettings("ours", JudgeSettings(judge_model(vlm))), over_actors, lambda _: None
    )
    assert os.path.exists(died)
    assert summary["groups"][-1]["overall"] == pytest.approx(5)
    assert len(judge.bodies) == 3
    words = [
        "eval",
        "--videos",
        str(videos),
        "--out",
        out,
        "--vlm",
        vlm,
        "--runner",
        "ray",
        "--workers",
        "2",
        "--ceilings",
        "1",
    ]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert len(judge.bodies) == 3 + 2  # a coded and a still video are the ceilings
    assert "first frame repeated" in (tmp_path / "out" / "interbench.md").read_text()
