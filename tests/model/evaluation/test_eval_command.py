"""`gamecraft eval` with a real judge: a tiny vision-language model with random weights, held to the schema by its grammar."""

import json

import pytest
from typer.testing import CliRunner

from curation.vlm import load
from model.evaluation.interbench import judge
from pipelines.cli import app

pytest.importorskip("transformers")
pytest.importorskip("llguidance")


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    load.cache_clear()
    judge.rubric_hash.cache_clear()


@pytest.mark.timeout(900)  # a minute of CPU
def test_three_videos_and_the_tiny_judge(film, tiny_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "_EVIDENCE_CHARS", 6)  # random weights write until a text is full
    judge.rubric_hash.cache_clear()
    for k, kind in enumerate(("lasting", "still", "vanishing")):
        folder = film(f"{('snow', 'cat', 'open_door')[k]}/a", kind, seed=k)
    words = ["eval", "--videos", folder, "--suite", "interbench", "--out", str(tmp_path / "out")]
    words += ["--vlm", f"transformers:{tiny_vlm}", "--frames", "3", "--ceilings", "0", "--name", "ours"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].endswith("/out/report.html")
    summary = json.loads((tmp_path / "out" / "interbench.json").read_text())
    assert summary["cost"]["new_questions"] >= 3
    stored = [json.loads(path.read_text()) for path in (tmp_path / "out" / "videos").iterdir()]
    assert len(stored) == 3
    for one in (row["judgements"][0] for row in stored):
        assert one["raw"]
        assert set(one["scores"].values()) <= {0, 1, 3, 5}
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads((tmp_path / "out" / "interbench.json").read_text())["cost"]["new_questions"] == 0
