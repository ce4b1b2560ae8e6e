"""The questions for models and the definitions that judge the answers: versioned data, one YAML file for each question."""

from functools import cache
from importlib.resources import files
from typing import Any

from curation.yaml_text import load_yaml


@cache
def load(name: str) -> dict[str, Any]:
    """Load `<name>.yaml` of `curation.captions`, or `<package>:<name>` of another package.

    The file's `version` is part of every prompt that is made from it.
    """
    package, _, file = name.rpartition(":")
    questions: dict[str, Any] = load_yaml(
        files(package or "curation.captions").joinpath(f"{file}.yaml").read_text(encoding="utf-8")
    )
    return questions


def render(name: str, question: str = "question", **values: str) -> str:
    """Return the text of a question: its version in front, and `values` filled in."""
    questions = load(name)
    text: str = questions[question].strip().format(**values)
    return f"({name} {question} {questions['version']}) {text}"


def bullets(meanings: dict[str, str]) -> str:
    """Return names and their meanings as a list, one on each line."""
    return "\n".join(f"- {name}: {meaning}" for name, meaning in meanings.items())
