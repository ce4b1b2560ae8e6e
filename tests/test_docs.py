"""The documentation, compared with the code: trees, links, commands, settings, and code that a reader would copy."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer.main
import yaml

from curation.captions.embeddings import EncoderSettings
from curation.yaml_text import load_yaml
from pipelines import cli, recipes, run

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
# Module names and the like, which are written as settings are.
_FILES = ("py", "md", "yaml", "npz", "mp4", "json", "parquet", "txt", "tar", "html", "toml")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """Return the fenced blocks of these languages."""
    return [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text(page), re.M | re.S) if language in languages]


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)


# Drawings


def test_the_drawings_and_the_page_of_commands_are_what_the_code_gives():
    pytest.importorskip("grimp", reason='grimp comes with import-linter, in the extra "dev"')
    from bench import architecture

    advice = "run `python -m bench.architecture`"
    assert architecture.with_blocks(text("docs/architecture.md")) == text("docs/architecture.md"), advice
    assert architecture.commands_page() == text("docs/cli.md"), advice


def test_the_module_tree_names_every_file_once():
    from bench.architecture import module_files

    tree = text("docs/architecture.md").partition("<!-- modules:begin -->")[2].partition("<!-- modules:end -->")[0]
    folders: list[str] = []
    named = []
    for line in tree.splitlines():
        if match := re.match(r"( *)([\w./]+)", line):
            depth = len(match[1]) // 4
            folders[depth:] = [match[2].rstrip("/")]
            if match[2].endswith(".py"):
                named.append("/".join(folders))
    assert sorted(named) == module_files()


def test_an_edge_that_a_longer_path_makes_is_not_drawn():
    from bench.architecture import transitive_reduction

    chain = {("a", "b"), ("b", "c"), ("c", "d")}
    assert transitive_reduction(chain | {("a", "c"), ("a", "d"), ("b", "d")}) == chain
    assert transitive_reduction({("a", "p"), ("a", "p.q")}) == {("a", "p.q")}
    with pytest.raises(ValueError, match=r"in a circle: (b -> c -> b|c -> b -> c)"):
        transitive_reduction({("a", "b"), ("b", "c"), ("c", "b")})


# Links


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in {slug(line) for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")}, (
                target
            )


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_paths_of_the_repository_exist(page):
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in re.findall(rf"`((?:{folders})/[\w/]*\.(?:{'|'.join(_FILES)}))`", prose(page)):
        assert (ROOT / path).exists(), path


# Commands


def command_lines(page: str) -> Iterator[tuple[str, bool]]:
    """Yield what a page shows of the command line, and whether it is a whole command: in a block, and not in passing."""
    for block in blocks(page, "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from ((part, True) for part in re.split(r"&&|\|", line.split(" #")[0]))
    for quoted in re.findall(r"`([^`\n]+)`", re.sub(r"\n(?=\S)", " ", prose(page))):
        yield quoted.split(" #")[0], False


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    for line, whole in command_lines(page):
        words = line.split(">")[0].strip()
        if " | " in words or "/" in words.partition(" ")[0]:
            continue
        if re.match(r"(torchrun|ray job submit) .*gamecraft", words):
            words = "gamecraft " + re.split(r'gamecraft\)?"? ', words, maxsplit=1)[1]
        if words.startswith("gamecraft "):
            check_gamecraft(shlex.split(words.replace("...", ""))[1:], whole, line)
        elif match := re.match(r"python -m ((?:bench|synth|curation|model)[\w.]*)(.*)", words):
            assert importlib.util.find_spec(match[1]), line
            if match[1].startswith("bench."):
                check_options(match[1], match[2], line)
        elif match := re.match(r"make ([\w-]+)", words):
            assert re.search(rf"^{match[1]}:", text("Makefile"), re.M), line


def check_gamecraft(words: list[str], whole: bool, line: str) -> None:
    command: Any = typer.main.get_command(cli.app)
    words = sorted(words, key=lambda word: word not in cli._LOG_OPTIONS)  # as `cli.main` does
    if "--install-completion" in words:
        return  # it acts while it is parsed: it writes into the start-up file of the shell
    context, name = None, "gamecraft"
    while True:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # --version and --help print
                context = command.make_context(name, list(words), parent=context)
        except Exception as error:
            kind, message = type(error).__name__, getattr(error, "format_message", lambda error=error: error)()
            if kind == "Exit" or (kind in ("MissingParameter", "NoArgsIsHelpError") and not whole):
                return
            pytest.fail(f"{line}: {message}")
        if not hasattr(command, "commands"):
            break
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, words = rest[0], command.commands.get(rest[0]), rest[1:]
        assert command, f"{line}: no command {name}"
    check_values(name, context.params, line)
    if name == "bench" and (bench := context.params["name"]) and bench != "NAME":
        assert bench in cli.BENCHMARKS, line
        check_options(f"bench.{BENCH_FILES.get(bench, bench)}", " ".join(context.args), line)


BENCH_FILES = {"train": "train_step", "world": "demo_world"}


def check_values(command: str, given: dict[str, Any], line: str) -> None:
    """Recipes, phases and runners that a command names."""
    if phase := given.get("phase"):
        assert phase in (*recipes.PHASES, *recipes.SYNTH_PHASES), line
    if runner := given.get("runner"):
        assert runner in ("local", "ray"), line
    recipe = given.get("recipe") or (given.get("name") if command == "show" else None)
    if recipe and not recipe.endswith((".yaml", "NAME", "FILE")):
        if command in ("train", "encode", "export") or given.get("train"):
            pytest.importorskip("torch")
            from model.recipes import BUILT_IN

            assert recipe in BUILT_IN, line
        else:
            assert recipe in recipes.BUILT_IN, line


def check_options(module: str, rest: str, line: str) -> None:
    """Options that a benchmark reads with argparse stand in its source; importing it would need all that it compares with."""
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    for option in re.findall(r"(?<!\S)--[\w-]+", rest):
        assert option == "--help" or f'"{option}"' in source, line


# Settings


@pytest.fixture(scope="module")
def trees() -> list[Any]:
    """Return the classes of recipes; that of training only where torch is installed."""
    kinds: list[Any] = [recipes.Recipe]
    if importlib.util.find_spec("torch"):
        from model.recipes import TrainRecipe

        kinds.append(TrainRecipe)
    return kinds


def evaluation_settings() -> list[Any]:
    """Return the classes of the settings of `gamecraft eval`; none without torch."""
    if not importlib.util.find_spec("torch"):
        return []
    from model.evaluation.control.run import ControlSettings
    from model.evaluation.general.run import GeneralSettings

    return [GeneralSettings, ControlSettings]


def has_setting(kind: Any, path: list[str]) -> bool:
    if not path:
        return True
    if not is_dataclass(kind) or path[0] not in {field.name for field in fields(kind)}:
        return False
    inner = get_type_hints(kind)[path[0]]
    return any(has_setting(each, path[1:]) for each in (inner, *get_args(inner)))


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page, trees):
    roots = {field.name for kind in trees for field in fields(kind)}
    for path in re.findall(r"`([a-z]\w*(?:\.[a-z]\w*)+)(?:: [^`]*)?`", prose(page)):
        if path.partition(".")[0] not in roots or path.rpartition(".")[2] in _FILES or is_code(path):
            continue
        assert path not in recipes.RENAMED, f"{path} is called {recipes.RENAMED[path]} now"
        assert any(has_setting(kind, path.split(".")) for kind in trees), path


def is_code(name: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    if ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").is_file():
        return True
    module = ROOT.joinpath(*parts[:-1]).with_suffix(".py")
    if not module.is_file():
        return is_code(".".join(parts[:-1])) if len(parts) > 2 else False
    return re.search(rf"^(?:def |class )?{parts[-1]}\b", module.read_text(encoding="utf-8"), re.M) is not None


def test_the_table_of_packages_is_right():
    """Each package is required, in this version, and imported by the file that is named; its test exists."""
    rows = [
        line.strip("|").split("|") for line in text("docs/packages.md").splitlines() if re.match(r"\| [a-z0-9-]+ \| \d", line)
    ]
    required, pins = text("pyproject.toml"), text("constraints-cpu.txt")
    modules = {
        "scenedetect-headless": "scenedetect",
        "opencv-python-headless": "cv2",
        "sentence-transformers": "sentence_transformers",
    }
    modules |= {"qwen-vl-utils": "qwen_vl_utils", "vllm": "ray.data.llm"}
    assert len(rows) == 13
    for name, version, place, test, _ in ([cell.strip() for cell in row] for row in rows):
        assert f'"{name}' in required, name
        assert f"\n{name}=={version} ;" in pins or f'"{name}=={version}"' in required, f"{name} {version}"
        for path in re.findall(r"`(\w[\w/]+\.py)`", place):
            assert re.search(rf"^\s*(import|from) {modules.get(name, name)}\b", text(path), re.M), f"{name} in {path}"
        for path in re.findall(r"`(tests/[\w/]+\.py)`", test):
            assert (ROOT / path).is_file(), path


def test_the_changelog_names_every_renamed_setting():
    rows = re.findall(r"^\| (?:curation|training) recipe \| `([\w.]+)` \| (.*) \|$", text("CHANGELOG.md"), re.M)
    assert {old: new.replace("`", "") for old, new in rows} == recipes.RENAMED


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_part_of_a_recipe(page, trees):
    for block in blocks(page, "yaml"):
        reasons = []
        for kind in [*trees, *evaluation_settings()]:
            try:
                recipes.from_mapping(kind, load_yaml(block))
                break
            except (ValueError, yaml.YAMLError) as error:
                reasons.append(str(error))
        else:
            pytest.fail(f"{reasons}\n{block}")


# Code


def test_code_in_the_readme_runs(footage_folder):
    (code,) = blocks("README.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=footage_folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{16} \(75, 120, 160, 3\) None \[.*\]\n", done.stdout)


@pytest.fixture
def footage_folder(tmp_path) -> Path:
    """Return a folder with `out`, a curated clip."""
    spec = importlib.util.spec_from_file_location("videos", ROOT / "tests" / "pipelines" / "conftest.py")
    videos = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(videos)
    videos.write_video(tmp_path / "clip.mp4", seconds=5.0, seed=1)
    recipe = replace(recipes.smoke(), relate=recipes.Relate(EncoderSettings("none")))  # no torch
    run.curate([str(tmp_path / "clip.mp4")], str(tmp_path / "out"), recipe)
    return tmp_path
