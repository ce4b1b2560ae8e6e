"""`import gamecraft`: the packages under one name, never a second copy; `python -m gamecraft`; type information."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(*arguments, **environment):
    """Run a Python of its own, so that what this process has imported does not matter."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment},
        cwd=environment.get("PWD", "/"),
    )


def printed(code):
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_packages_are_the_same_modules():
    code = "import gamecraft, curation; print(gamecraft.curation is curation, gamecraft.curation.__name__)"
    assert printed(code) == "True curation"


@pytest.mark.parametrize("first", ["from curation import shards", "pass"])
def test_modules_below_are_never_loaded_twice(first):
    code = f"""
{first}
import gamecraft.curation.shards
from gamecraft.curation.shards import Sample
from gamecraft.curation.partition import cuts
import curation.partition.cuts, curation.shards, sys
print(Sample is curation.shards.Sample, cuts is curation.partition.cuts)
print(gamecraft.curation.shards is curation.shards, curation.shards.__spec__.name, curation.__spec__.name)
print(sys.modules["gamecraft.curation.shards"] is sys.modules["curation.shards"])
"""
    assert printed(code).split() == ["True", "True", "True", "curation.shards", "curation", "True"]


def test_what_is_pickled_does_not_name_the_alias():
    code = "from gamecraft.curation.shards import Sample; import pickle; print(b'gamecraft' in pickle.dumps(Sample('a', {})))"
    assert printed(code) == "False"


def test_importing_it_loads_nothing_else():
    code = "import sys, gamecraft; print([name for name in gamecraft.PACKAGES if name in sys.modules], 'numpy' in sys.modules)"
    assert printed(code) == "[] False"


def test_it_names_the_packages_and_nothing_else():
    import gamecraft

    assert set(gamecraft.PACKAGES) <= set(dir(gamecraft))
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"gamecraft"}
    assert sorted(folders) == list(gamecraft.PACKAGES)
    with pytest.raises(AttributeError, match="has no attribute 'curations'"):
        _ = gamecraft.curations
    for name in ("gamecraft.nothing", "gamecraft.curation.nothing", "gamecraft.numpy"):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            __import__(name)


def test_the_version_is_that_of_the_installed_package():
    import gamecraft

    try:
        expected = importlib.metadata.version("gamecraft")
    except importlib.metadata.PackageNotFoundError:
        expected = "not installed"
    assert gamecraft.__version__ == expected


def test_python_m_gamecraft_is_the_command():
    module, command = python("-m", "gamecraft", "--help"), python("-c", "from pipelines.cli import main; main()", "--help")
    assert (module.returncode, module.stdout) == (command.returncode, command.stdout)
    assert "gamecraft [OPTIONS] COMMAND" in module.stdout
    wrong = python("-m", "gamecraft", "curate", "nothing.mp4", "--out", "/dev/null/x")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("gamecraft: ")


def test_every_package_says_that_it_is_typed():
    import gamecraft

    for name in ("gamecraft", *gamecraft.PACKAGES):
        assert (ROOT / name / "py.typed").is_file(), name
    assert '"*" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()
