"""Clips that repeat a clip of another source: found over videos and runs, marked or dropped, in any order of the units."""

import shutil
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest

from curation import shards, storage
from curation.errors import InputError
from curation.near_duplicates import DuplicateSettings
from pipelines import ledger, near_duplicates, planning, recipes, run, unit_files
from pipelines.recipes import Score
from pipelines.verify import verify


def walk(seed, seconds=5.0, fps=15, size=(160, 120)):
    """Return frames of a view that drifts over a large texture, not evenly: [N, H, W, 3]."""
    rng = np.random.default_rng(seed)
    width, height = size
    world = cv2.resize(rng.integers(0, 256, (40, 60, 3), np.uint8), (720, 480), interpolation=cv2.INTER_CUBIC)
    for _ in range(400):
        x, y, w, h = rng.integers((720, 480, 60, 50))
        cv2.rectangle(world, (x, y), (x + w, y + h), rng.integers(0, 256, 3).tolist(), -1)
    times_s = np.arange(round(seconds * fps)) / fps
    x = 40 + 60 * times_s + 12 * np.sin(3 * times_s + seed)
    y = 100 + 60 * np.sin(times_s + seed)
    return [world[int(v) : int(v) + height, int(u) : int(u) + width] for u, v in zip(x, y, strict=True)]


def write(path, frames, fps=15, crf=23, size=None):
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": str(crf)})
        stream.width, stream.height = size or frames[0].shape[1::-1]
        stream.pix_fmt = "yuv420p"
        for index, view in enumerate(frames):
            picture = cv2.resize(view, size, interpolation=cv2.INTER_AREA) if size else np.ascontiguousarray(view)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


def recipe(action="flag"):
    return replace(recipes.smoke(), score=Score(duplicates=DuplicateSettings(action)))


def rows(out):
    """Return by source's name of which source its clip is a copy, and the reason if it was dropped."""
    table = ledger.clips(out).to_pylist()
    name = {row["clip_id"]: row["source_uri"].rpartition("/")[2] for row in table}
    return {name[row["clip_id"]]: (name.get(row["duplicate_of_clip"]), row["reject"]) for row in table}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two walks, and the first again at a third of the pixels and a coarser quality."""
    folder = tmp_path_factory.mktemp("raw")
    first = walk(1)
    write(folder / "first.mp4", first)
    write(folder / "small.mp4", first, crf=32, size=(96, 72))
    write(folder / "other.mp4", walk(2))
    return folder


@pytest.fixture(scope="module")
def flagged(raw, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("out") / "o")
    return run.curate([str(raw)], out, recipe())


def test_a_smaller_copy_is_marked_and_kept(flagged):
    found = rows(flagged.out)
    assert found["small.mp4"] == ("first.mp4", None), "the one with fewer pixels is the copy"
    assert {name: copy for name, (copy, _) in found.items() if copy} == {"small.mp4": "first.mp4"}
    assert found.keys() == {"first.mp4", "small.mp4", "other.mp4"}
    assert flagged.near_duplicates == 1
    assert ("near-duplicates", "1 clip repeats a clip of another source; 0 dropped (score.duplicates)") in flagged.notes


def test_the_shard_says_what_the_clip_repeats(flagged):
    samples = [sample for name in shards.list_committed(flagged.out) for sample in shards.read_samples(flagged.out, name)]
    copies = {sample.clip_id: sample.meta for sample in samples if "duplicate_of_clip" in sample.meta}
    ((clip_id, meta),) = copies.items()
    assert meta["duplicate_of_clip"] in {sample.clip_id for sample in samples} - {clip_id}
    assert 0.75 <= meta["duplicate_similarity"] <= 1
    assert not verify(flagged.out).problems


def test_nothing_is_compared_twice(flagged, raw, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_find", lambda *_: pytest.fail("compared again"))
    assert run.curate([str(raw)], flagged.out, recipe()).records == []


@pytest.fixture
def output(flagged, tmp_path):
    """A copy of the output as it is before anything is in a shard."""
    out = tmp_path / "o"
    shutil.copytree(flagged.out, out, ignore=shutil.ignore_patterns("shards", "shard", "duplicates", "duplicates.json"))
    return str(out)


def kept(out, settings):
    """Return the sources that still have a clip to be annotated."""
    near_duplicates.mark_duplicates(out, settings)
    paths = {row["unit_id"]: row["source_uri"].rpartition("/")[2] for row in ledger.clips(out).to_pylist()}
    wanted = planning._wanted_annotations(out, settings).values()
    return {paths[unit.upstream[0].removeprefix("partition/")] for unit in wanted}


def test_rejected_copies_reach_no_later_phase_and_come_back(output):
    assert "small.mp4" not in kept(output, recipe("reject"))
    copy, reason = rows(output)["small.mp4"]
    assert copy == "first.mp4"
    assert reason.startswith(("near-duplicate: 0.9", "near-duplicate: 1.0"))
    assert "small.mp4" in kept(output, recipe("off"))
    assert rows(output)["small.mp4"] == (None, None)


def test_a_clip_in_a_shard_stays_although_a_better_copy_comes_later(output):
    clip_of = {row["source_uri"].rpartition("/")[2]: row["clip_id"] for row in ledger.clips(output).to_pylist()}
    plan = pa.Table.from_pylist([{"shard": "000000", "clip_id": clip_of["small.mp4"]}], schema=shards.PLAN)
    shards.put_plan(output, 0, plan)
    assert kept(output, recipe("reject")) >= {"small.mp4", "other.mp4"}
    found = rows(output)
    assert found["small.mp4"] == (None, None)
    assert found["first.mp4"][0] == "small.mp4"


def test_the_rows_do_not_depend_on_the_order_in_which_sources_come(flagged, output):
    files = unit_files.UnitFiles(output)
    scored = {name: files.read("clips/score", name) for name in files.names("clips/score")}
    for name in scored:  # as if the sources were scored one after the other, the last one first
        storage.delete(f"{output}/clips/score/{name}.parquet")
    for name in reversed(scored):
        storage.put(f"{output}/clips/score/{name}.parquet", shards.to_parquet(scored[name]))
        near_duplicates.mark_duplicates(output, recipe())
    (unit,) = unit_files.of(output).names("clips/duplicates")
    assert ledger.read_unit(output, "duplicates", unit) == ledger.read_unit(flagged.out, "duplicates", unit)


def test_the_order_of_sources_does_not_depend_on_what_is_packed(output):
    """Of equal clips the first stays."""
    names = unit_files.of(output).names("sidecar/signals")
    last = storage.read(f"{output}/sidecar/signals/{names[0]}.parquet")
    storage.delete(f"{output}/sidecar/signals/{names[0]}.parquet")
    unit_files.UnitFiles(output).pack("sidecar/signals")
    storage.put(f"{output}/sidecar/signals/{names[0]}.parquet", last)
    assert len(names) > 2
    assert [unit for unit, _, _ in near_duplicates._sources(output)] == names


def test_sources_measured_by_an_earlier_release_are_not_compared(output):
    earlier = ledger.SIGNALS.names[: ledger.SIGNALS.names.index("fingerprint_version")]
    one, *others = unit_files.of(output).names("sidecar/signals")
    table = unit_files.of(output).read("sidecar/signals", one)
    storage.put(f"{output}/sidecar/signals/{one}.parquet", shards.to_parquet(table.select(earlier)))
    assert [unit for unit, _, _ in near_duplicates._sources(output)] == others


def test_settings_are_checked_and_change_no_digest_of_earlier_outputs(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("score: {duplicates: {action: drop}}")
    with pytest.raises(InputError, match="off, flag or reject"):
        recipes.load(str(path))
    assert "duplicates" not in recipes.settings_of(recipe())["score"]
    assert recipe("reject").digest("score") == recipe().digest("score")
    assert recipes.settings_of(recipe("reject"))["score"]["duplicates"]["action"] == "reject"
