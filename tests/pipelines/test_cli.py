import json
import os
import re
import subprocess
import sys

import pytest
import typer.main

from curation import shards
from curation.quality.luminance import RULES
from pipelines import cli, recipes, run, setting_comments
from pipelines.commands.options import needs_extra


@pytest.fixture
def gamecraft(monkeypatch, capsys):
    """Run the command in this process: its exit status, standard output and standard error."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["gamecraft", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "o"
    run.curate([str(raw)], str(folder), recipes.smoke())
    return folder


TRAINING = [
    *("demo", "demo-causal", "demo-consistency", "demo-distil", "demo-extend", "demo-teacher", "gamecraft2"),
    *("gamecraft2-causal", "gamecraft2-consistency", "gamecraft2-distil", "gamecraft2-extend", "gamecraft2-instruct", "tiny"),
]


def test_the_command_line_stays_small():
    group = typer.main.get_command(cli.app)
    flags = {
        name: sorted(o for p in command.params for o in p.opts if o.startswith("--"))
        for name, command in group.commands.items()
    }
    assert flags == {
        "curate": ["--dry-run", "--out", "--partial", "--phase", "--recipe", "--runner", "--sample", "--wait", "--workers"],
        "synth": ["--frames", "--interactions", "--out", "--partial", "--phase", "--recipe", "--runner", "--wait", "--workers"],
        "retry": ["--reason", "--source"],
        "train": [
            *("--data", "--device-gib", "--out", "--plan", "--recipe", "--runner"),
            "--sample-from",
            "--share",
            "--workers",
        ],
        "encode": ["--data", "--out", "--recipe", "--runner", "--workers"],
        "export": ["--accelerate", "--data", "--format", "--fps", "--int8", "--out", "--prompts", "--recipe", "--starts"],
        "play": ["--accelerate", "--attract", "--backend", "--host", "--no-browser", "--port", "--sessions"],
        "rollout": ["--accelerate", "--backend", "--image", "--keys", "--out", "--prompt", "--record", "--seed"],
        "replay": ["--out"],
        "compact": ["--wait"],
        "verify": ["--deep", "--repair"],
        "eval": [
            *(
                "--against",
                "--baseline",
                "--ceilings",
                "--frames",
                "--name",
                "--only",
                "--out",
                "--real",
                "--repeats",
                "--runner",
            ),
            *("--settings", "--suite", "--videos", "--vlm", "--votes", "--workers"),
        ],
        "generate": ["--images", "--keys", "--limit", "--only", "--out", "--seeds", "--weights"],
        "layout": ["--out", "--read", "--truth", "--videos"],
        "report": [],
        "inspect": ["--camera", "--thresholds"],
        "recipe": [],
        "bench": [],
        "doctor": ["--licences"],
    }


def test_a_newcomer_is_told_version_help_and_benchmarks(gamecraft):
    assert gamecraft("--version")[:2] == (0, f"gamecraft {run.code_version()}\n")
    for words in (("-h",), ("curate", "-h"), ("recipe", "show", "-h")):
        status, said, _ = gamecraft(*words)
        assert (status, said.startswith("Usage:")) == (0, True), words
    for words in (("bench",), ("bench", "--help"), ("bench", "-h")):
        status, said, _ = gamecraft(*words)
        assert status == 0
        listed = [line.split()[0] for line in said.splitlines()[2:]]
        assert listed == list(cli.BENCHMARKS)
        assert "world      the demo world from nothing" in said
    assert gamecraft("bench", "nope")[0] == 2


def test_a_name_that_is_no_utf8_is_curated_like_any_other(gamecraft, make_video, tmp_path):
    (tmp_path / "in").mkdir()
    make_video(tmp_path / "in" / "good.mp4", seconds=3.2, seed=4)
    make_video(tmp_path / "in" / "b.mp4", seconds=3.2, seed=5)
    os.rename(tmp_path / "in" / "b.mp4", os.fsencode(tmp_path / "in") + b"/\xe9t\xe9.mp4")
    status, said, _ = gamecraft("curate", tmp_path / "in", "--out", tmp_path / "o", "--recipe", "smoke")
    assert status == 0
    assert "2 sources; 2 clips: kept 2" in said
    assert "2 in 1 shard" in said
    status, said, _ = gamecraft("inspect", tmp_path / "o")
    assert status == 0
    assert re.search(r"^ good.mp4 +ok", said, re.MULTILINE)
    assert re.search(r"^ \\xe9t\\xe9.mp4 +ok", said, re.MULTILINE)
    status, _, trouble = gamecraft("curate", tmp_path / "in", "--out", os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert (status, "the name of the output must be UTF-8" in trouble) == (2, True)


def test_curate_says_what_came_out_and_where_to_look(gamecraft, raw, tmp_path):
    status, said, _ = gamecraft("curate", raw, "--out", tmp_path / "o", "--recipe", "smoke")
    assert status == 3, "done, but a source was lost"
    assert "1 source lost: OUT/dead says why" in said
    assert "4 sources, 1 unreadable, 1 duplicate; 4 clips: kept 3 (0.3 of 0.4 min), rejected 1, failed 0; 3 in 1 shard" in said
    assert f"report: {tmp_path / 'o' / 'report.html'}" in said
    assert "decodes: 3 encode, 2 scan" in said
    for operator in ("scan_source", "measure_motion", "measure_luminance", "measure_quality", "encode_clip"):
        assert operator in said
    assert (tmp_path / "o" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["curate", "nope.mp4", "--out", "o"], "nope.mp4: no such file or folder"),
        (["curate", ".", "--out", "o"], ".: the folder holds no video (0 other files)"),
        (["curate", "*.mkv", "--out", "o"], "*.mkv: no video matches"),
        (["curate", "a.mp4"], "--out is missing: where everything is written, a folder or an s3:// prefix"),
        (["curate", "a.mp4", "--out", "o", "--runner", "spark"], "--runner must be one of local, ray, not 'spark'"),
        (
            ["curate", "a.mp4", "--out", "o", "--phase", "scores"],
            "--phase must be one of scan, partition, score, annotate, caption, relate, shard, not 'scores'",
        ),
        (
            ["curate", "a.mp4", "--out", "o", "--recipe", "fast"],
            "fast: neither a recipe file nor one of demo, engine, gamecraft2, laptop, rehearsal, smoke",
        ),
        (
            ["recipe", "show", "fast"],
            "fast: neither a recipe file nor one of demo, engine, gamecraft2, laptop, rehearsal, smoke",
        ),
        (["inspect", "nowhere"], "nowhere: no dataset.json there; is it an output of `gamecraft curate`?"),
        (["report", "nowhere"], "nowhere: no dataset.json there; is it an output of `gamecraft curate`?"),
        (["frobnicate"], "No such command 'frobnicate'."),
    ],
)
def test_a_mistake_is_one_line_and_status_two(gamecraft, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert gamecraft(*words) == (2, "", f"gamecraft: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_said_before_any_work(gamecraft, raw, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, _, error = gamecraft("curate", raw, "--out", tmp_path / "file" / "o")
    assert (status, error) == (2, f"gamecraft: {tmp_path}/file/o: cannot be written (Not a directory)\n")


def test_an_output_of_another_schema_or_recipe_is_refused(gamecraft, raw, out, tmp_path):
    status, _, error = gamecraft("curate", raw, "--out", out, "--recipe", "laptop")
    assert status == 2
    assert "was made with another recipe (partition.flow.backend: dis, now auto; " in error
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 99}))
    status, _, error = gamecraft("curate", raw, "--out", tmp_path)
    assert status == 2
    assert "was made with schema version 99" in error


def test_inspect_lists_sources_and_reasons(gamecraft, out):
    status, said, _ = gamecraft("inspect", out)
    assert status == 0
    assert "recipe smoke, schema 3, 1 shard" in said
    assert "4 sources, 4 clips: 3 kept, 3 in shards" in said
    assert "broken.mp4" in said
    assert "cannot be opened" in said
    assert "1 clip: too dark" in said


def test_inspect_shows_a_clip_by_the_start_of_its_id(gamecraft, out):
    clip = next(shards.read_samples(str(out), "000000")).clip_id
    status, said, _ = gamecraft("inspect", out, clip[:6])
    assert status == 0
    assert clip in said
    assert "luma_mean" in said
    assert f"{clip}.mp4: " in said
    assert " of shards/000000.tar" in said
    status, _, error = gamecraft("inspect", out, "zz")
    assert (status, error) == (2, f"gamecraft: zz: no clip with that id in {out}\n")


def test_inspect_tries_every_rule_at_other_limits(gamecraft, out):
    status, said, _ = gamecraft("inspect", out, "--thresholds")
    assert status == 0
    for rule in RULES:
        assert f"{rule.score}: {rule.settings}.{rule.limit}, at {'least' if rule.is_minimum else 'most'}" in said
    assert said.count("now") == len(RULES)


def test_recipes_are_listed_and_shown(gamecraft, tmp_path):
    status, said, _ = gamecraft("recipe", "list")
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()] == sorted(recipes.BUILT_IN)
    _, said, _ = gamecraft("recipe", "show", "smoke")
    (tmp_path / "mine.yaml").write_text(said)
    assert recipes.load(str(tmp_path / "mine.yaml")) == recipes.smoke()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "fast"], f"fast: neither a recipe file nor one of {', '.join(TRAINING)}"),
        (["--recipe", "tiny"], "no committed shard in nowhere; make some with `gamecraft curate`"),
    ],
)
def test_a_mistake_in_training_is_one_line_too(gamecraft, tmp_path, monkeypatch, words, message):
    pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
    monkeypatch.chdir(tmp_path)
    assert gamecraft("train", "--data", "nowhere", "--out", "o", *words) == (2, "", f"gamecraft: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_recipes_of_training_are_listed_and_shown(gamecraft):
    pytest.importorskip("torch", reason="the extra `train` is not installed")
    _, said, _ = gamecraft("recipe", "list", "--train")
    assert [line.split()[0] for line in said.splitlines()] == TRAINING
    _, said, _ = gamecraft("recipe", "show", "demo", "--train")
    assert "\nname: demo\n" in said
    assert "\nmodel:\n" in said
    assert "\n  # " in said


def test_help_without_words(gamecraft):
    status, said, _ = gamecraft()
    assert status == 0
    assert "curate" in said


def test_a_failed_unit_is_status_one(gamecraft, raw, tmp_path, monkeypatch):
    record = run.Record("partition", "u", failure="OSError: No space left on device")
    monkeypatch.setattr(run, "_run_phase", lambda *_: iter([record]))
    status, said, _ = gamecraft("curate", raw, "--out", tmp_path / "o", "--workers", "1")
    assert status == 1
    assert f"{len(recipes.CLIP_PHASES)} units could not be finished; run the same command again to retry" in said


def test_ctrl_c_says_how_to_resume(gamecraft, raw, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run_phase", stop)
    status, _, error = gamecraft("curate", raw, "--out", tmp_path / "o")
    assert (status, error) == (130, "gamecraft: stopped; run the same command again to resume\n")
    assert not (tmp_path / "o" / "lock.json").exists()


def test_a_bug_of_ours_shows_its_traceback_and_says_so(gamecraft, raw, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_run_phase", lambda *_: {}["nothing"])
    status, _, error = gamecraft("curate", raw, "--out", tmp_path / "o")
    assert status == 70
    assert "Traceback (most recent call last)" in error
    assert error.endswith(
        "gamecraft: KeyError: 'nothing': this is a bug in gamecraft, not in your input; please report it with the lines above\n"
    )


def test_a_missing_extra_is_named_with_its_remedy_and_a_wrong_import_of_ours_is_a_bug(gamecraft, monkeypatch):
    def recipes_without(package):
        def fail():
            with needs_extra("training", "train"):
                raise ModuleNotFoundError(name=package)

        return fail

    monkeypatch.setattr(cli, "training_recipes", recipes_without("torch"))
    words = 'gamecraft: training needs torch; install it with: pip install "gamecraft[train]"\n'
    assert gamecraft("recipe", "list", "--train") == (1, "", words)
    monkeypatch.setattr(cli, "training_recipes", recipes_without("model.no_such_file"))
    assert gamecraft("recipe", "list", "--train")[0] == 70


def test_logs_are_lines_for_people_or_json_and_can_be_silenced(gamecraft, raw, tmp_path):
    status, said, logged = gamecraft("curate", raw, "--out", tmp_path / "o", "--recipe", "smoke", "--log-json")
    lines = [json.loads(line) for line in logged.splitlines()]
    done = [line for line in lines if line["logger"] == "pipelines.run" and line["level"] == "info"]
    assert status == 3
    assert {line["phase"] for line in done} == set(recipes.CLIP_PHASES)
    assert all(line["unit"] and line["time"].endswith("+00:00") and line.get("wall_s", 0) >= 0 for line in done)
    assert "report: " in said
    status, said, logged = gamecraft("curate", raw, "--out", tmp_path / "o", "--recipe", "smoke", "--quiet")
    assert (status, said, logged) == (3, "", "")
    assert gamecraft("curate", raw, "--out", tmp_path / "o", "-v", "-q")[0] == 2


def test_the_installed_command_runs():
    command = os.path.join(os.path.dirname(sys.executable), "gamecraft")
    done = subprocess.run([command, "recipe", "list"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "laptop" in done.stdout


def test_no_process_of_a_local_run_loads_pandas(raw, tmp_path):
    recipe, imports = tmp_path / "smoke.yaml", tmp_path / "imports"
    recipe.write_text(setting_comments.to_commented_yaml(recipes.smoke()))
    pytest.importorskip("pandas")
    with imports.open("w") as log:
        words = ["curate", str(raw), "--out", str(tmp_path / "o"), "--recipe", str(recipe)]
        environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
        done = subprocess.run([sys.executable, "-m", "gamecraft", *words], stderr=log, env=environment, check=False)
    assert done.returncode == cli.data.LOST_SOURCES  # of `raw`, one cannot be read
    loaded = [line.rpartition("|")[2].strip() for line in imports.read_text().splitlines()]
    assert loaded.count("curation.actions.detect") == 2  # the driver, and the origin of its workers
    assert "pandas.core.frame" not in loaded  # `pandas` itself stands there, as an attempt that failed


def test_pyarrow_converts_tables_for_pandas_where_it_was_skipped():
    pytest.importorskip("pandas")
    code = "from curation.arrow_import import skip_pandas; skip_pandas(); import pyarrow as pa; print(pa.table({'a': [1]})"
    done = subprocess.run([sys.executable, "-c", f"{code}.to_pandas().a.sum())"], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
