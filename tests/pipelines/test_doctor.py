"""`gamecraft doctor` on machines that lack things, and the licences, held against NOTICE and the files in the tree."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from pipelines import cli, doctor, installed, licences, recipes
from pipelines.doctor import ABSENT, BROKEN, OK
from synth.engines import lockstep

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh():
    installed.requirements.cache_clear()
    yield
    installed.requirements.cache_clear()


@pytest.fixture
def versions(monkeypatch):
    """The versions of installed packages, which the test may change; what `gamecraft` requires, in `requires`."""
    found = SimpleNamespace(
        known={
            "gamecraft": "0.1.0",
            "numpy": "2.3.5",
            "opencv-python-headless": "5.0.0",
            "scenedetect": "0.7.2",
            "torch": "2.13.0+cpu",
        },
        requires=[
            "numpy>=2",
            "opencv-python-headless>=4.10,<6",
            "scenedetect-headless<0.8",
            'torch==2.13.0; extra == "raft"',
            'numba>=1; python_version < "3" and extra == "raft"',
            'evo==1; extra == "bench"',
        ],
    )

    def version(name):
        if name not in found.known:
            raise PackageNotFoundError(name)
        return found.known[name]

    about = SimpleNamespace(get_all=lambda field: ["raft", "bench"] if field == "Provides-Extra" else None)
    monkeypatch.setattr(installed.metadata, "version", version)
    monkeypatch.setattr(installed.metadata, "metadata", lambda _: about if "gamecraft" in found.known else version("gamecraft"))
    monkeypatch.setattr(installed.metadata, "requires", lambda _: found.requires)
    return found


def by_name(findings):
    return {finding.name.strip(): finding for finding in findings}


def test_the_command_fits_on_a_screen_and_says_what_to_do():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "gamecraft", "doctor"], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 120
    assert all(re.search(rf"^ ok +{name} ", done.stdout, re.M) for name in ("Python", "OpenCV", "FFmpeg", "Ray"))
    broken = re.findall(r"^ broken +(.*)", done.stdout, re.M)
    assert done.returncode == bool(broken), broken


def test_everything_that_is_not_well_has_a_remedy():
    findings = doctor.examine()
    assert {finding.state for finding in findings} <= {OK, ABSENT, BROKEN}
    assert [finding.name for finding in findings if (finding.state != OK) != bool(finding.remedy)] == []


def test_what_is_complete_is_said_to_be(versions):
    findings = by_name([*doctor._packages(), *doctor._extras()])
    assert (findings["gamecraft"].state, findings["gamecraft"].text) == (OK, "0.1.0, all it needs")
    assert findings["extras"].text == "complete: raft"
    assert findings["bench"] == doctor.Finding("  bench", ABSENT, "lacks evo==1", 'pip install "gamecraft[bench]"')


def test_versions_that_do_not_fit_are_named(versions):
    versions.known |= {"numpy": "1.26", "torch": "2.14.1"}
    del versions.known["scenedetect"]
    findings = by_name([*doctor._packages(), *doctor._extras()])
    assert findings["gamecraft"].state == BROKEN
    assert findings["gamecraft"].text == "0.1.0 lacks numpy>=2 (1.26 is installed), scenedetect-headless<0.8"
    assert findings["raft"].text == "lacks torch==2.13.0 (2.14.1 is installed)"


def test_a_checkout_that_is_not_installed(versions, capsys, monkeypatch):
    del versions.known["gamecraft"]
    findings = by_name([*doctor._packages(), *doctor._extras()])
    assert findings["gamecraft"].state == ABSENT
    assert findings["gamecraft"].remedy == "pip install -c constraints-cpu.txt -e ."
    monkeypatch.setattr(sys, "argv", ["gamecraft", "doctor", "--licences"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "gamecraft is not installed, so its extras are not known" in capsys.readouterr().err


def test_two_packages_of_opencv_are_broken(versions):
    assert next(doctor._opencv()).state == OK
    versions.known["opencv-python"] = "4.12.0"
    finding = next(doctor._opencv())
    assert (finding.state, finding.text) == (
        BROKEN,
        "opencv-python-headless and opencv-python are installed over each other",
    )
    assert finding.remedy.startswith("pip uninstall -y opencv-python-headless opencv-python && pip install")


def test_the_other_opencv_will_do(versions):
    versions.known["opencv-python"] = versions.known.pop("opencv-python-headless")
    assert installed.lacking(installed.CORE) == []
    assert "(opencv-python)" in next(doctor._opencv()).text


def test_without_torch_nothing_is_broken(versions):
    del versions.known["torch"]
    (finding,) = doctor._torch()
    assert (finding.state, finding.remedy) == (ABSENT, "pip install torch==2.13.0")


def test_a_driver_that_torch_does_not_use_is_noticed(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    finding = next(doctor._torch())
    assert finding.state == ABSENT
    assert "sees no GPU, though this machine has NVIDIA's driver" in finding.text


def test_gpus_are_listed(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(name=f"G{n}", total_memory=80 << 30))
    assert next(doctor._torch()).text.endswith("; G0 80 GiB, G1 80 GiB")


@pytest.mark.parametrize(("folder", "state"), [("readonly", BROKEN), ("absent", BROKEN), ("small", ABSENT), ("large", OK)])
def test_where_files_are_written(tmp_path, folder, state, monkeypatch):
    path = tmp_path / folder
    if folder != "absent":
        path.mkdir()
    if folder == "readonly":
        monkeypatch.setattr(doctor.os, "access", lambda *_: False)  # the superuser may write anywhere
    finding = doctor._space("scratch", str(path), 1e9 if folder == "small" else 0, "set TMPDIR to a larger disk")
    assert finding.state == state
    assert bool(finding.remedy) == (state != OK)


def test_a_container_with_little_memory(monkeypatch):
    monkeypatch.setattr(doctor.machine, "read_memory", lambda: (1.5 * 2**30, 0.5 * 2**30))
    assert by_name(doctor._machine())["memory"].state == ABSENT


def test_a_codec_that_is_absent_is_broken(monkeypatch):
    import av

    monkeypatch.setattr(av, "codecs_available", {"h264", "vp9"})
    finding = next(doctor._ffmpeg())
    assert finding.state == BROKEN
    assert finding.text.endswith("decodes h264, vp9; encodes nothing that shards use")


def test_a_check_that_fails_is_a_line_and_the_others_are_shown(monkeypatch, capsys):
    def fails():
        raise ImportError("libcudart.so.13: cannot open shared object file [sic]\n" + 500 * "x")
        yield

    monkeypatch.setitem(doctor._CHECKS, "Ray", fails)
    findings = doctor.examine()
    assert by_name(findings)["Ray"].state == BROKEN
    assert by_name(findings)["Ray"].text.startswith("ImportError: libcudart.so.13: cannot open shared object file [sic]")
    assert by_name(findings)["Doom"]
    doctor.print_findings(findings, width=80)
    printed = capsys.readouterr().out
    assert "[sic]" in printed
    assert "1 to mend" in printed
    monkeypatch.setattr(sys, "argv", ["gamecraft", "doctor"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1


def test_it_runs_where_opencv_cannot_be_imported(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}

    def command(*words):
        return subprocess.run([sys.executable, "-m", "gamecraft", *words], capture_output=True, text=True, env=environment)

    done = command("doctor")
    assert done.returncode == 1
    assert done.stderr == ""
    assert re.search(r"^ broken +OpenCV +ImportError: libGL.so.1: cannot open", done.stdout, re.M)
    assert "&& pip install opencv-python-headless" in " ".join(done.stdout.split())
    assert re.search(r"^ ok +Ray ", done.stdout, re.M)
    done = command("recipe", "list")
    assert (done.returncode, done.stderr) == (
        1,
        "gamecraft: libGL.so.1: cannot open shared object file; `gamecraft doctor` says what to install\n",
    )


def test_weights_are_looked_for_where_runs_look(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMECRAFT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert by_name(doctor._weights())["RAFT-small"].state == ABSENT
    (tmp_path / "raft-small").mkdir()
    (tmp_path / "raft-small" / "raft-small.pth").touch()
    (tmp_path / "Qwen2.5-VL-7B-Instruct").mkdir()
    (tmp_path / "Qwen2.5-VL-7B-Instruct" / "config.json").touch()
    findings = by_name(doctor._weights())
    assert (findings["RAFT-small"].state, findings["VLM"].state, findings["shipped weights"].state) == (OK, OK, OK)
    monkeypatch.setattr(doctor, "_ROOT", tmp_path)
    assert by_name(doctor._weights())["shipped weights"].state == BROKEN


# Licences


@pytest.mark.parametrize(
    ("licence", "kind"),
    [
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSL-1.0 AND MIT", licences.PERMISSIVE),
        ("BSD License", licences.PERMISSIVE),
        ("Python Software Foundation License", licences.PERMISSIVE),
        ("MIT-CMU", licences.PERMISSIVE),
        ("GNU General Public License v3 (GPLv3)", licences.COPYLEFT),
        ("AGPL-3.0-only", licences.COPYLEFT),
        ("MIT AND GPL-2.0-or-later", licences.COPYLEFT),
        ("GNU Lesser General Public License v3 (LGPLv3)", licences.WEAK),
        ("MPL-2.0 AND MIT", licences.WEAK),
        ("PolyForm Noncommercial 1.0.0", licences.NON_COMMERCIAL),
        ("CC-BY-NC-SA-4.0", licences.NON_COMMERCIAL),
        ("Somebody's own", licences.UNKNOWN),
        ("", licences.UNKNOWN),
    ],
)
def test_the_strictest_licence_of_an_expression_is_its_class(licence, kind):
    assert licences.kind_of(licence) == kind


def test_licences_of_installed_packages_are_known():
    unknown = [row.name for row in licences.packages() if row.version and row.kind == licences.UNKNOWN]
    assert unknown == []
    kinds = {row.name: row.kind for row in licences.packages()}
    assert kinds["numpy"] == kinds["av"] == licences.PERMISSIVE
    assert kinds["evo"] == licences.COPYLEFT


def test_what_is_printed_names_files_packages_and_what_to_leave_out(capsys):
    licences.print_licences(width=100)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    for words in ("iqa_net.npz", "CC-BY-SA-3.0", "leave out pyiqa", "x264"):
        assert words in printed


def test_a_run_says_which_of_its_models_are_non_commercial():
    paper, laptop = recipes.gamecraft2(), recipes.laptop()
    musiq, vipe = licences.conditions_of(paper, recipes.CLIP_PHASES)
    assert musiq.startswith("partition.iqa.backend: pyiqa:musiq is for non-commercial use only (PolyForm Noncommercial")
    assert musiq.endswith("embedded may be used for all purposes")
    assert vipe.startswith("annotate.camera.backend: vipe is for non-commercial use only")
    assert licences.conditions_of(paper, ["partition"]) == [musiq]
    assert licences.conditions_of(paper, ["caption"]) == licences.conditions_of(laptop, recipes.CLIP_PHASES) == []


def test_the_extra_with_pyiqa_is_installed_with_one_opencv():
    overrides = (ROOT / "overrides-iqa.txt").read_text().splitlines()
    dropped = {line.partition(" ;")[0] for line in overrides if line and not line.startswith("#")}
    assert {"facexlib", "opencv-python"} <= dropped
    assert all(line.endswith(' ; python_version < "3"') for line in overrides if line and not line.startswith("#"))
    assert "--override overrides-iqa.txt" in doctor._install("iqa")
    assert "opencv-python-headless" not in dropped


def test_every_shipped_file_of_weights_has_a_licence():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    weights = [
        path for path in tracked if path.endswith((".npz", ".safetensors", ".pth", ".onnx")) and not path.startswith("tests/")
    ]
    assert weights or not (ROOT / ".git").exists()
    for path in weights:
        assert any(path == each.path or path.startswith(each.path) for each in licences.SHIPPED), path
    for each in licences.SHIPPED:
        assert (ROOT / each.path).exists(), each.path
    assert {path for path in doctor._SHIPPED.values() if not any(path.startswith(s.path) for s in licences.SHIPPED)} == set()


def test_the_notice_names_all_that_the_command_names():
    notice = (ROOT / "NOTICE").read_text()
    for each in licences.SHIPPED:
        assert re.search(rf"^{re.escape(each.path)} +{re.escape(each.licence)}$", notice, re.M), each.path
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.M)
    assert re.findall(r"^(\w+) +(?:permissive|copyleft|non-commercial|weak copyleft)", notice, re.M) == [
        "core",
        *sorted(extras),
    ]
    for name in licences.CONDITIONS:
        assert name.removeprefix("nvidia-").lower() in notice.lower(), name


def test_the_notice_gives_each_extra_the_class_of_its_strictest_package():
    notice = (ROOT / "NOTICE").read_text()
    order = [licences.PERMISSIVE, licences.WEAK, licences.COPYLEFT, licences.NON_COMMERCIAL]
    for row in licences.packages():
        if row.kind == licences.UNKNOWN:
            continue  # not installed here
        for extra in row.extras or ("core",):
            said = re.search(rf"^{extra} +(permissive|copyleft|non-commercial)", notice, re.M)[1]
            assert order.index(row.kind) <= order.index(said), (extra, row)


def test_requirements_of_other_pythons_do_not_count(versions):
    assert [str(each) for each in installed.requirements()["raft"]] == [str(Requirement('torch==2.13.0; extra == "raft"'))]


# Completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gamecraft doc", ["doctor"]),
        ("gamecraft curate --recipe la", ["laptop"]),
        ("gamecraft curate --runner r", ["ray"]),
        ("gamecraft curate --phase s", ["scan", "score", "shard"]),
        ("gamecraft recipe show gam", ["gamecraft2"]),
        ("gamecraft bench ca", ["captions", "camera"]),
        ("gamecraft curate --recipe mine.ya", []),
    ],
)
def test_a_shell_completes_words(words, expected):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_GAMECRAFT_COMPLETE": "complete_bash",
    }
    done = subprocess.run([sys.executable, "-m", "gamecraft"], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == expected
    assert done.stderr == ""


def test_games_are_looked_for_where_the_recorders_look(tmp_path, monkeypatch):
    for program in ("neverball", "Xvfb", "cc"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr(lockstep, "_GAMES", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    engines = by_name(doctor._programs())["engines"]
    assert (engines.state, engines.text) == (ABSENT, "no minetest, openarena: of these only neverball can be recorded")
    games = tmp_path / "games"
    games.mkdir()
    for program in ("minetest", "openarena"):
        (games / program).symlink_to(tmp_path / "neverball")
    monkeypatch.setattr(lockstep, "_GAMES", str(games))  # as Debian's /usr/games, which is not in root's PATH
    assert by_name(doctor._programs())["engines"].state == OK
    (tmp_path / "cc").unlink()
    assert by_name(doctor._programs())["engines"].text == "no cc: none of these games can be recorded"
