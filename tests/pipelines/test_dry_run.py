"""The estimate before a run: scaled by bytes from a sample, with intervals, and nothing written."""

import re
import sys

import numpy as np
import pytest

from curation.errors import InputError
from pipelines import cli, dry_run, recipes, run
from pipelines.dry_run import _scale, estimate


def test_a_sum_is_scaled_by_bytes_and_an_equal_sample_is_certain():
    certain = _scale(np.array([2.0, 4.0, 6.0]), np.array([10.0, 20.0, 30.0]), 600)
    assert (certain.value, certain.low, certain.high) == pytest.approx((120, 120, 120))
    rng = np.random.default_rng(3)
    sizes = rng.uniform(1, 9, 40)
    uncertain = _scale(sizes * rng.uniform(0.5, 1.5, 40), sizes, 1000)
    assert uncertain.low < uncertain.value < uncertain.high
    assert uncertain.low < 1000 < uncertain.high, "one a byte"
    assert _scale(np.array([3.0]), np.array([6.0]), 60).low is None


def test_a_sample_of_everything_is_what_the_run_does(raw, tmp_path):
    found = estimate([str(raw)], recipes.smoke())
    done = run.curate([str(raw)], str(tmp_path / "o"), recipes.smoke())
    assert (found.sources, found.sampled, found.lost) == (4, 4, 1)
    assert found.totals["kept"].value == pytest.approx(done.kept)
    assert found.totals["clips"].value == pytest.approx(done.clips)
    assert found.totals["kept_s"].value == pytest.approx(done.kept_s)
    assert found.totals["stored_bytes"].value == pytest.approx(sum(
        path.stat().st_size for path in (tmp_path / "o" / "shards").glob("*.tar")), rel=0.4)  # fmt: skip
    assert found.totals["cpu_s"].value > 0
    assert found.wall_s(10).value == pytest.approx(found.totals["cpu_s"].value / 10)
    assert found.reasons.keys() == {"too dark"}
    assert "the sample is the whole input" in found.notes


def test_one_video_is_printed_clip_by_clip_and_nothing_is_written(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(dry_run.tempfile, "tempdir", None)
    monkeypatch.setattr(sys, "argv", ["gamecraft", "curate", str(raw / "b.mp4"), "--dry-run", "--recipe", "smoke"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert not ended.value.code
    assert "input: 1 source" in said
    assert re.search(r"0\.00 +\d\.\d\d +kept +\w+", said), "the verdict and the caption of a clip"
    assert said.splitlines()[-1] == "nothing was written"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "scratch" not in path.name]


def test_without_an_input_or_an_output_it_says_so(raw, monkeypatch, capsys):
    with pytest.raises(InputError, match="no such file"):
        estimate(["/nowhere/at/all"], recipes.smoke())
    monkeypatch.setattr(sys, "argv", ["gamecraft", "curate", str(raw)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--out is missing" in capsys.readouterr().err
