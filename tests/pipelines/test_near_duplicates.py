"""Clips that repeat a clip of another source: found over videos and runs, marked or dropped, whatever the order of the units."""

from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from curation import shards
from curation.errors import InputError
from curation.near_duplicates import DuplicateSettings
from pipelines import ledger, near_duplicates, recipes, run, unit_files
from pipelines.recipes import Score
from pipelines.verify import verify

BEFORE_SHARDS = ("partition", "score", "annotate", "caption", "relate")


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
    """Two walks, and the first again at a third of the pixels and a coarser quality, one more walk that stands still."""
    folder = tmp_path_factory.mktemp("raw")
    first = walk(1)
    write(folder / "first.mp4", first)
    write(folder / "small.mp4", first, crf=32, size=(96, 72))
    write(folder / "other.mp4", walk(2))
    write(folder / "still a.mp4", [first[0]] * 75)
    write(folder / "still b.mp4", [first[0]] * 75, crf=30)
    return folder


@pytest.fixture(scope="module")
def flagged(raw, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("out") / "o")
    return run.curate([str(raw)], out, recipe())


def test_a_smaller_copy_is_marked_and_kept_and_what_stands_still_is_not_compared(flagged):
    found = rows(flagged.out)
    assert found["small.mp4"] == ("first.mp4", None), "the one with fewer pixels is the copy"
    assert {name: copy for name, (copy, _) in found.items() if copy} == {"small.mp4": "first.mp4"}
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


def test_rejected_copies_reach_no_later_phase_and_come_back(raw, tmp_path):
    out = str(tmp_path / "o")
    inputs = [str(raw / name) for name in ("first.mp4", "small.mp4")]
    run.curate(inputs, out, recipe("reject"), phases=BEFORE_SHARDS)
    copy, reason = rows(out)["small.mp4"]
    assert copy == "first.mp4" and reason.startswith("near-duplicate: ")
    assert len(unit_files.of(out).names("clips/annotate")) == 1
    run.curate(inputs, out, recipe("off"), phases=BEFORE_SHARDS)
    assert rows(out)["small.mp4"] == (None, None)
    assert len(unit_files.of(out).names("clips/annotate")) == 2


def test_a_clip_in_a_shard_stays_although_a_better_copy_comes_later(raw, tmp_path):
    out = str(tmp_path / "o")
    run.curate([str(raw / "small.mp4")], out, recipe("reject"))
    done = run.curate([str(raw / "small.mp4"), str(raw / "first.mp4")], out, recipe("reject"))
    found = rows(out)
    assert found["small.mp4"] == (None, None) and found["first.mp4"][0] == "small.mp4"
    assert (done.stored, done.rejected) == (1, 1)
    assert not verify(out).problems


def test_the_rows_do_not_depend_on_the_order_of_runs(flagged, raw, tmp_path):
    out = str(tmp_path / "o")
    for name in ("small.mp4", "other.mp4", "first.mp4"):
        run.curate([str(raw / name)], out, recipe(), phases=["partition", "score"])
    names = unit_files.of(out).names("clips/duplicates")
    assert names == unit_files.of(flagged.out).names("clips/duplicates")
    (unit,) = names
    assert ledger.read_unit(out, "duplicates", unit) == ledger.read_unit(flagged.out, "duplicates", unit)


def test_sources_measured_by_an_earlier_release_are_not_compared(raw, tmp_path):
    out = str(tmp_path / "o")
    run.curate([str(raw / "first.mp4")], out, recipe(), phases=["partition"])
    files = unit_files.of(out)
    (unit,) = files.names("sidecar/signals")
    (row,) = files.read("sidecar/signals", unit).to_pylist()
    older = ledger.pa.schema([field for field in ledger.SIGNALS if field.name not in near_duplicates._PRINT_COLUMNS])
    older = ledger.pa.schema([field for field in older if field.name != "fingerprint_version"])
    ledger.write_sidecar(out, "signals", unit, [{name: row[name] for name in older.names}], older)
    run.curate([str(raw)], out, recipe(), phases=["partition", "score"])
    assert not any(copy for copy, _ in rows(out).values())


def test_settings_are_checked_and_change_no_digest_of_earlier_outputs(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("score: {duplicates: {action: drop}}")
    with pytest.raises(InputError, match="off, flag or reject"):
        recipes.load(str(path))
    assert "duplicates" not in recipes.settings_of(recipe())["score"]
    assert recipe("reject").digest("score") == recipe().digest("score")
    assert recipes.settings_of(recipe("reject"))["score"]["duplicates"]["action"] == "reject"
