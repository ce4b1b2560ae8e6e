"""The side-by-side benchmark's own work: environments, chains, what is kept, tables. The other projects are not installed."""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("vizdoom", reason="the benchmark records its footage")

from bench import peers
from bench.peers import CHAINS, QUANTITIES, Chain, Job, Result, Step, cost_table, quantity_table


def clip(frames, fps=10, flags=""):
    file = io.BytesIO()
    with av.open(file, "w", "mp4", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream("libx264", fps, options={"preset": "ultrafast"})
        stream.width = stream.height = 32
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("flags", ["", "frag_keyframe+empty_moov"])
def test_seconds_are_those_of_the_packets(flags):
    assert peers.clip_seconds(clip(15, flags=flags)) == pytest.approx(1.5)


def test_clips_in_tars_are_the_mp4_members(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name in ("a.mp4", "a.json", "b.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    assert list(peers._in_tars("*.tar")(tmp_path)) == [b"a.mp4", b"b.mp4"]


def command(code):
    return [sys.executable, "-ISc", code]


@pytest.fixture
def footage(tmp_path):
    folder = tmp_path / "footage" / "480"
    folder.mkdir(parents=True)
    (folder / "one.mp4").write_bytes(clip(30))
    return folder


def chain(monkeypatch, steps, leaves=""):
    scores = {"cuts": 0.5}
    fake = Chain("Fake", lambda job: iter(steps(job)), lambda _: scores, peers._files("*.mp4"), {"cuts": "yes"}, leaves=leaves)
    monkeypatch.setitem(CHAINS, "fake", fake)


BURN = "import time\nwhile time.process_time() < {}: pass"


def test_a_chain_adds_up_its_steps(monkeypatch, tmp_path, footage):
    def steps(job):
        yield Step("write", lambda: (job.out / "a.mp4").write_bytes(clip(20)))
        yield Step("first", command(BURN.format(0.1)))
        yield Step("second", command(BURN.format(0.1)))

    chain(monkeypatch, steps)
    result = peers.run_chain(tmp_path, "fake", 480, footage)
    assert not result.failure
    assert 0.2 <= result.cpu_s < 0.4
    assert result.scores_s == {"cuts": 0.5}
    assert (result.clips, result.kept_s) == (1, pytest.approx(2.0))
    assert result.minutes == pytest.approx(3 / 60)


def test_a_program_that_fails_with_status_0_is_found_by_what_it_leaves(monkeypatch, tmp_path, footage):
    """video2dataset prints the error of a shard, leaves an empty tar, and ends as if nothing had happened."""
    chain(monkeypatch, lambda _: [Step("flow", command("open('0.tar', 'w'); print('no process group')"))], "*.tar")
    assert peers.run_chain(tmp_path, "fake", 480, footage).failure == "*.tar is empty: no process group"


def test_a_step_that_fails_is_named_with_its_last_line(monkeypatch, tmp_path, footage):
    chain(monkeypatch, lambda _: [Step("split", command("print('one', flush=True); raise SystemExit('no codec')"))])
    result = peers.run_chain(tmp_path, "fake", 480, footage)
    assert result.failure == "split ended with status 1: no codec"


def test_a_project_that_is_not_installed_says_which_line_failed(monkeypatch, tmp_path, footage):
    chain(monkeypatch, lambda _: pytest.fail("it must not run"))
    (tmp_path / "env" / "fake").mkdir(parents=True)
    (tmp_path / "env" / "fake" / "failed").write_text("pip install fake: no such version\n")
    result = peers.run_chain(tmp_path, "fake", 480, footage)
    assert cost_table([result], {"fake": result})[2].startswith(
        "| 480 | Fake | not installed: pip install fake: no such version |"
    )


def test_costs_are_for_a_minute_of_footage_beyond_the_start():
    start = Result("juicer", 480, 0.05, cpu_s=5.0)
    scores = {"cuts": 20.5, "motion": 15.0}
    result = Result("juicer", 720, 2.05, "", 95.0, 61.0, 512.0, 7, 90.0, 3.25, 12.34, scores)
    header, _, row = cost_table([result], {"juicer": start})
    values = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert (values["CPU-s a minute"], values["start"]) == ("45.0", "5")
    assert values["scores alone"] == "cuts 10.0, motion 10.0", "motion is that of the clips, of which there are 90 s"
    more = replace(result, scored_s=180.0)  # of which half was dropped
    assert "motion 5.0" in cost_table([more], {"juicer": start})[2]
    assert (values["wall s"], values["load"], values["clips"], values["s kept"]) == ("61", "12", "7", "90")


def test_the_scores_of_a_project_are_what_its_python_prints(monkeypatch, tmp_path, footage):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho chatter\necho '{\"cuts\": 1.5}'\n")
    python.chmod(0o755)
    assert peers._peer_scores("scenedetect")(Job(footage, tmp_path, tmp_path)) == {"cuts": 1.5}


def test_every_chain_answers_for_every_quantity_and_for_no_other():
    assert all(set(chain.computes) <= set(QUANTITIES) for chain in CHAINS.values())
    rows = quantity_table(CHAINS)
    assert len(rows) == 2 + len(QUANTITIES)
    assert rows[2] == "| cuts | yes | yes | yes | yes | no: weights and a GPU |"
    assert len({row.count("|") for row in rows}) == 1


def job(tmp_path, footage):
    return Job(footage, tmp_path, Path("/env/bin"))


def test_data_juicer_filters_each_clip_apart(tmp_path, footage):
    steps = {step.name: step for step in peers._juicer_steps(job(tmp_path, footage))}
    steps["list"].command()
    assert peers.videos_of(tmp_path / "videos.jsonl") == [str(footage / "one.mp4")]
    (tmp_path / "split.jsonl").write_text(json.dumps({"videos": ["a.mp4", "b.mp4"]}) + "\n")
    steps["rows"].command()
    rows = [json.loads(line)["videos"] for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert rows == [["a.mp4"], ["b.mp4"]]


def test_nemo_curators_ffmpeg_encodes_by_x264(monkeypatch, tmp_path):
    real = tmp_path / "real"
    real.write_text('#!/bin/sh\necho "$@"\n')
    real.chmod(0o755)
    monkeypatch.setattr(peers.shutil, "which", lambda _: str(real))
    program = peers._ffmpeg_of_nemo(tmp_path) / "ffmpeg"
    asked = subprocess.check_output([program, "-i", "a b.mp4", "-c:v", "libopenh264", "out.mp4"], text=True)
    assert asked == "-i a b.mp4 -c:v libx264 -preset veryfast -crf 20 out.mp4\n"
    assert b"libopenh264" in subprocess.check_output([program, "-hide_banner", "-encoders"])


def test_the_script_goes_on_after_a_line_of_pip_that_fails(tmp_path):
    """Its Python makes an environment whose pip knows no project but scenedetect; then it prints what it would measure."""
    fake = tmp_path / "python"
    pip = 'case "$*" in *scenedetect==0.7*headless) ;; *) echo "ERROR: none of $4"; exit 1;; esac'
    fake.write_text(
        '#!/bin/sh\nif [ "$2" = bench.peers ]; then shift; echo "$@"; exit; fi\n'
        'mkdir -p "$4/bin"; cp "$0" "$4/bin/python"\n'
        f"printf '#!/bin/sh\\n%s\\n' '{pip}' > \"$4/bin/pip\"; chmod +x \"$4/bin/pip\"\n"
    )
    for name in ("python", "ffmpeg", "ffprobe"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    script = Path(peers.__file__).with_name("peers.sh")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(fake), "PEER_PYTHON": str(fake)}
    for _ in range(2):  # what is there is kept, failures too
        ran = subprocess.run(["sh", script, tmp_path, "--lines", "480"], env=environment, capture_output=True, text=True)
        assert ran.stdout == f"bench.peers {tmp_path} --lines 480\n"
    assert (tmp_path / "env" / "scenedetect" / "done").exists()
    assert (tmp_path / "env" / "nemo" / "failed").read_text() == "pip install torch==2.13.0: ERROR: none of torch==2.13.0\n"
    assert not (tmp_path / "env" / "nemo" / "done").exists()
    assert "installing" not in ran.stderr
