"""The tables of `gamecraft inspect OUT --thresholds`, from a small ledger."""

import pytest

from curation import shards
from curation.schema import CLIP, columns
from pipelines import ledger, recipes
from pipelines.report.thresholds import trials

NAMES = ("clip_id", "video_id", "index", "start_s", "end_s", "iqa", "luma_mean", "reject", "error", "unit_id")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Ten clips of 6 s with iqa 0, 0.1 ... 0.9; the last is too dark, an eleventh was too short to be scored."""
    rows = [
        {"clip_id": f"c{k}", "video_id": "v", "index": k, "start_s": 6.0 * k, "end_s": 6.0 * k + 6, "iqa": k / 10,
         "luma_mean": 5.0 if k == 9 else 100.0, "reject": "too short: 2 s" if k == 10 else None}
        for k in range(11)
    ]  # fmt: skip
    folder = str(tmp_path_factory.mktemp("thresholds"))
    ledger.write_clips(folder, "partition", "u", rows, columns(CLIP, NAMES), ledger.Record("partition", "u"))
    return folder


def of(found, score):
    return [trial for trial in found if trial.rule.score == score]


def test_each_limit_counts_what_it_and_the_other_rules_leave(out):
    limits = recipes.settings_of(recipes.laptop())
    limits["score"]["quality"]["min_iqa"] = 0.45
    found = of(trials(out, {"recipe": limits}), "iqa")
    assert [t.limit for t in found][:2] == [None, 0.0]
    assert [(t.limit, t.kept, t.rejected) for t in found if t.current] == [(0.45, 4, 6)]
    off = found[0]
    assert (off.kept, off.kept_s, off.rejected, off.rejected_s) == (9, 54.0, 1, 6.0)
    kept = [t.kept for t in found]
    assert kept == sorted(kept, reverse=True)


def test_a_score_that_no_clip_has_is_tried_at_its_limit_only(out):
    limits = {"recipe": recipes.settings_of(recipes.laptop())}
    assert [t.limit for t in of(trials(out, limits), "flashes_hz")] == [None, 3.0]


def test_a_rule_that_is_off_is_marked_so(out):
    found = of(trials(out, {"recipe": {"score": {"quality": {"min_iqa": None}}}}), "iqa")
    assert [t.limit for t in found if t.current] == [None]


def test_an_output_without_clips_has_empty_tables(tmp_path):
    assert {t.kept for t in trials(str(tmp_path), {})} == {0}
    assert shards.read_dataset(str(tmp_path)) is None
