"""The one file that starts Ray: one cluster, the same chain, the same rows."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

ray = pytest.importorskip("ray")

from bench import relate  # noqa: E402
from curation import source_files  # noqa: E402
from curation.captions.embeddings import EncoderSettings  # noqa: E402
from curation.errors import InputError, Unavailable  # noqa: E402
from curation.quality.luminance import LuminanceLimits, QualityLimits  # noqa: E402
from curation.schema import CLIP, columns, conform  # noqa: E402
from curation.vlm import VlmSettings  # noqa: E402
from operators.op import Op, run_chain, run_chain_on_ray  # noqa: E402
from pipelines import chunk_units, ledger, phases, recipes, run, runners, source_manifest, unit_files  # noqa: E402
from pipelines.ledger import Record  # noqa: E402
from pipelines.phases import Phase  # noqa: E402
from synth.models.base import ModelSettings  # noqa: E402
from synth.strategies import SynthSettings  # noqa: E402
from synth.verify import VerifySettings  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of four slots."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder = str(tmp_path_factory.mktemp("r"))
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder, object_store_memory=200 << 20)
    yield
    ray.shutdown()


def rows_of(out):
    return ledger.clips(out).drop_columns(["source_uri"]).to_pylist()


def shards_of(out):
    return {f.name: f.read_bytes() for f in sorted((Path(out) / "shards").iterdir())}


@pytest.fixture(scope="module")
def local(raw, tmp_path_factory):
    return run.curate([str(raw)], str(tmp_path_factory.mktemp("local") / "o"), recipes.smoke())


def test_local_and_ray_give_the_same_rows_and_shards(cluster, local, raw, tmp_path):
    done = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke(), runner="ray")
    assert rows_of(done.out) == rows_of(local.out)
    assert shards_of(done.out) == shards_of(local.out)
    assert {r.phase for r in done.records} == set(recipes.CLIP_PHASES)
    again = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke(), runner="ray")
    assert again.records == []


def test_one_worker_and_four_give_the_same_rows(cluster, local, raw, tmp_path, monkeypatch):
    fuse = runners.fuse_ops
    monkeypatch.setattr(runners, "fuse_ops", lambda chain: fuse([replace(op, num_cpus=4) for op in chain]))
    done = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke(), runner="ray")
    assert rows_of(done.out) == rows_of(local.out)
    assert shards_of(done.out) == shards_of(local.out)


def in_chunks(monkeypatch):
    """Return a recipe that measures every source in chunks of two seconds."""
    monkeypatch.setattr(chunk_units, "_MIN_BYTES_PER_S", 1)
    smoke = recipes.smoke()
    return replace(smoke, partition=replace(smoke.partition, chunk_s=2.0))


def decodes(done, phase):
    return sum((Counter(record.decodes) for record in done.records if record.phase == phase), Counter())


def test_several_workers_measure_one_video_and_give_the_same(cluster, local, raw, tmp_path, monkeypatch):
    done = run.curate([str(raw)], str(tmp_path / "o"), in_chunks(monkeypatch), runner="ray")
    assert rows_of(done.out) == rows_of(local.out)
    assert shards_of(done.out) == shards_of(local.out)
    assert (decodes(done, "scan"), decodes(done, "partition")) == ({"scan chunk": 11}, {})
    assert not any((tmp_path / "o" / "sidecar" / "chunks").iterdir())


def brighten(rows):
    return [{**row, "luma_mean": row["index"] * 2.0} for row in rows]


def stumble(rows):
    if any(row["index"] == 3 for row in rows):
        raise ValueError("three")
    return rows


class Model:
    def __call__(self, rows):
        return [{**row, "luma_max": row["luma_mean"] + 1} for row in rows]


def test_a_chain_of_several_steps_gives_the_same_rows_on_both_runners(cluster):
    chain = [
        Op(brighten, reads=("index",), writes=("luma_mean",), batch=4),
        Op(stumble, reads=("index",), writes=(), batch=4),
        Op(Model, reads=("luma_mean",), writes=("luma_max",), num_cpus=2),
    ]
    blocks = [[{"clip_id": f"{u}{i}", "video_id": u, "index": i} for i in range(6)] for u in "abc"]
    schema = columns(CLIP, ["clip_id", "video_id", "index"])
    dataset = ray.data.from_arrow([conform(block, schema) for block in blocks])
    remote = sorted(run_chain_on_ray(chain, dataset).to_pandas().to_dict("records"), key=lambda row: row["clip_id"])
    local = sorted((row for block in blocks for row in run_chain(chain, block)), key=lambda row: row["clip_id"])
    assert [row["clip_id"] for row in remote] == [row["clip_id"] for row in local]
    for theirs, ours in zip(remote, local, strict=True):
        assert theirs["luma_mean"] == ours["luma_mean"]
        assert (theirs["error"] or None) == ours.get("error")


def test_units_of_slim_rows_share_a_task_and_none_is_lost(cluster, tmp_path):
    recipe = recipes.Recipe(relate=recipes.Relate(EncoderSettings("none")))
    phase, units = Phase("relate", recipe, str(tmp_path)), [relate._write_video(str(tmp_path), number) for number in range(40)]
    assert [runners._units_per_task(phase, count, 4) for count in (0, 3, 40, 10_000)] == [1, 1, 2, 16]
    assert runners._units_per_task(Phase("annotate", recipe, ""), 10_000, 4) == 1
    asking = replace(recipe, caption=replace(recipe.caption, vlm=VlmSettings("http", "a-model")))
    assert runners._units_per_task(Phase("relate", asking, ""), 10_000, 4) == 1
    records = list(runners.run_ray(phase, units))
    assert sorted(record.unit for record in records) == sorted(unit.name for unit in units)
    assert {record.failure for record in records} == {None}
    assert sum(record.rows for record in records) == 40 * relate.CLIPS


def identity(number):
    return number


def test_tasks_are_submitted_a_few_at_a_time(cluster, monkeypatch):
    monkeypatch.setattr(runners, "_count_cpus", lambda: 1)
    submitted, ahead, results = [], [], []
    tasks = ([submitted.append(number) or number] for number in range(20))
    for result in runners._run_windowed(ray.remote(identity).remote, tasks):
        ahead.append(len(submitted) - len(results))
        results.append(result)
    assert sorted(results) == list(range(20))
    assert max(ahead) == 4


def test_what_no_node_can_give_is_refused_before_the_first_task(cluster, tmp_path, monkeypatch):
    greedy = [Op(brighten, reads=(), writes=(), num_gpus=1)]
    monkeypatch.setattr(Phase, "chain", property(lambda self: greedy))
    with pytest.raises(
        ValueError, match=r"phase score: brighten needs 1 CPU, 1 GPU, 0\.0 GiB on one node, the cluster has 4 CPU, 0 GPU"
    ):
        runners.preflight(Phase("score", recipes.smoke(), str(tmp_path)))


@dataclass(frozen=True)
class PoisonedPhase(Phase):
    """The real phase, with one clip that kills the process that encodes it."""

    victim: str = ""

    @property
    def chain(self):
        ops = super().chain
        killer = Op(kill_over, reads=(), writes=(), args={"victim": self.victim}, memory=ops[0].memory)
        return [killer, *ops] if self.name == "shard" else ops


@dataclass(frozen=True)
class PoisonedScan(Phase):
    """The real phase, with a second of video that kills the process that measures it in a chunk."""

    @property
    def chain(self):
        ops = super().chain
        killer = Op(kill_at, reads=(), writes=(), memory=ops[0].memory)
        return [killer, *ops] if self.name == "scan" else ops


def kill_at(rows):
    if any(row["start_s"] <= 4 < (row["end_s"] or 0) for row in rows):
        os._exit(11)
    return rows


@pytest.mark.exhaustive  # as a clip that does, and half a minute of waiting
def test_ray_outlives_a_chunk_that_kills_its_worker_and_keeps_its_source(cluster, local, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "Phase", PoisonedScan)
    done = run.curate([str(raw)], str(tmp_path / "o"), in_chunks(monkeypatch), runner="ray")
    assert rows_of(done.out) == rows_of(local.out)
    assert shards_of(done.out) == shards_of(local.out)
    assert (decodes(done, "scan"), decodes(done, "partition")) == ({"scan chunk": 9}, {"scan": 2})
    assert done.failures == []


def kill_over(rows, victim):
    if any(row["clip_id"] == victim for row in rows):
        os._exit(11)
    return rows


def test_ray_outlives_a_clip_that_kills_its_worker(cluster, local, raw, tmp_path, monkeypatch):
    victim = rows_of(local.out)[0]["clip_id"]
    monkeypatch.setattr(run, "Phase", lambda *phase: PoisonedPhase(*phase, victim=victim))
    done = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke(), runner="ray")
    rejected = {row["clip_id"]: row["reject"] for row in rows_of(done.out) if row["reject"]}
    assert rejected[victim] == "quarantined: killed its worker 2 times"
    assert done.kept == local.kept - 1 == done.stored
    assert done.failures == []


def test_both_strategies_run_through_ray_and_give_what_one_process_gives(cluster, pipelines, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))
    picture = str(tmp_path / "a.png")
    cv2.imwrite(picture, np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    size = {"width": 64, "height": 64, "frames": 9, "image_steps": 1, "video_steps": 1}
    models = ModelSettings(**pipelines.models, **size, dtype="float32", device="cpu")
    limits = dict.fromkeys(name for name in vars(VerifySettings()) if name.startswith(("min_", "max_")))
    # Random weights make noise.
    anything = VerifySettings(**limits, luminance=LuminanceLimits(*[None] * 7), quality=QualityLimits(None))
    how = SynthSettings("diffusers", each=1, attempts=1, models=models, verify=anything)
    recipe = replace(recipes.smoke(), synth=how, score=recipes.Score(anything.luminance, anything.quality))
    outs = [
        run.synthesise(["snow", "open_door"], [picture], str(tmp_path / name), recipe, name).out for name in ("ray", "local")
    ]
    made = {row["interaction"]: (row["strategy"], row["synth_verdict"], row["shard"]) for row in rows_of(outs[0])}
    assert made == {"snow": ("start_end", "accepted", "000000"), "open_door": ("first_frame", "accepted", "000000")}
    assert rows_of(outs[1]) == rows_of(outs[0])
    assert shards_of(outs[0]) == shards_of(outs[1])


def test_units_are_packed_and_sources_named_by_tasks(cluster, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(unit_files, "UNITS_PER_SEGMENT", 10)
    monkeypatch.setattr(source_manifest, "_GROUP", 2)
    out, schema = str(tmp_path / "o"), columns(CLIP, ("clip_id", "video_id", "unit_id", "reject", "error"))
    names = [f"{number:016x}-{number:016x}-0of1" for number in range(25)]
    for name in names:
        row = {"clip_id": f"c{name[:16]}", "video_id": name[:16]}
        ledger.write_clips(out, "score", name, [row], schema, Record("score", name, rows=1))
    with unit_files.pinned(out) as files:
        files.run_tasks = runners.run_tasks
        assert files.pack("clips/score") == 25
        entries = source_files.find_sources([str(raw)])
        found = source_manifest.identify(out, entries)
    assert len(unit_files.newest_manifest(out).segments["clips/score"]) == 3
    assert [row["clip_id"] for name in names for row in ledger.read_unit(out, "score", name)] == [f"c{n[:16]}" for n in names]
    assert [found[entry].video_id for entry in entries] == [source_files.content_id(entry) for entry in entries]
    assert len(list((tmp_path / "o" / "sources").iterdir())) == 2


def test_a_task_whose_worker_dies_is_repeated_and_at_last_given_up(cluster, tmp_path, monkeypatch):
    def die(times, folder):
        attempts = len(os.listdir(folder))
        open(os.path.join(folder, str(attempts)), "x").close()
        if attempts < times:
            os._exit(1)
        return attempts

    for name in ("sometimes", "always"):
        (tmp_path / name).mkdir()
    assert list(runners.run_tasks(die, [(5, str(tmp_path / "sometimes"))])) == [5]
    monkeypatch.setattr(runners, "_TASK_RETRIES", 2)
    lost = pytest.raises(Unavailable, match=r"the Ray cluster lost a part of this run.*run the same command again")
    with lost, runners.on_cluster():
        list(runners.run_tasks(die, [(99, str(tmp_path / "always"))]))
    assert len(os.listdir(tmp_path / "always")) == 3


def test_what_a_task_raises_stays_what_it_is(cluster):
    def fail():
        raise InputError("a wrong value")

    with pytest.raises(InputError, match="a wrong value"), runners.on_cluster():
        list(runners.run_tasks(fail, [()]))
