"""What models are asked, and what the answers are judged by: versioned data beside this file, one YAML for each question."""

from functools import cache
from importlib.resources import files
from typing import Any

from curation.yaml_text import load_yaml


@cache
def data(name: str) -> dict[str, Any]:
    """`<name>.yaml` of this package, `<package>:<name>` of another; its `version` is part of every prompt made from it."""
    package, _, file = name.rpartition(":")
    loaded: dict[str, Any] = load_yaml(
        files(package or "curation.captions").joinpath(f"{file}.yaml").read_text(encoding="utf-8")
    )
    return loaded


def text(name: str, question: str = "question", **given: str) -> str:
    """A question's words with the version before them and what is given filled in."""
    asked = data(name)
    words: str = asked[question].strip().format(**given)
    return f"({name} {question} {asked['version']}) {words}"


def listed(meanings: dict[str, str]) -> str:
    """Names and meanings, one a line."""
    return "\n".join(f"- {name}: {meaning}" for name, meaning in meanings.items())
