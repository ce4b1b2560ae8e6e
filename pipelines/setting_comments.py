"""The comment of each setting, read from the source of its dataclass, and a recipe as YAML with these comments.

A field's comment is at the end of its line, or on the lines directly above it:

    clip_s: float = 6.0  # s, length of a clip; longer clips are fewer and hold more motion
"""

import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from curation.yaml_text import dump_yaml

_WIDTH = 120
_INDENT = "  "


def comments(kind: Any) -> dict[str, str]:
    """Return the comment of each field of a dataclass by name, as one line; a field without one is absent.

    kind: a dataclass whose source is at hand. Fields of base classes are looked up there.
    """
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            source: str = inspect.getsource(base)  # type: ignore[arg-type]
            texts |= _comments_in(source, {field.name for field in fields(base)})
    return texts


def _comments_in(source: str, names: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    above: list[str] = []
    field, depth, indents, starts_line = "", 0, 0, True
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline):
        indents += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").rstrip()
            if token.line.lstrip().startswith("#") and not depth:
                above.append(text)
            elif field:
                texts[field] = f"{texts[field]} {text}" if field in texts else text
        elif token.type == tokenize.NL and not token.line.strip():
            above = []
        elif token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        elif token.type == tokenize.NAME and starts_line and indents == 1 and token.string in names:
            field = token.string
            if above:
                texts[field], above = " ".join(above), []
        if token.type == tokenize.NEWLINE:
            field, above = "", []
        starts_line = token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)
    return texts


def to_commented_yaml(recipe: Any) -> str:
    """Return a recipe as YAML, each setting with its comment above it. It loads as the same recipe."""
    plain = json.loads(json.dumps(asdict(recipe)))  # lists for tuples
    return "".join(f"{line}\n" for line in _lines(recipe, plain, ""))


def _lines(settings: Any, plain: Mapping[str, Any], indent: str) -> Iterator[str]:
    texts = comments(type(settings))
    for name, value in plain.items():
        if comment := texts.get(name):
            for line in textwrap.wrap(comment, _WIDTH - len(indent) - 2):
                yield f"{indent}# {line}"
        section = getattr(settings, name)
        if is_dataclass(section):
            yield f"{indent}{name}:"
            yield from _lines(section, value, indent + _INDENT)
        else:
            yield from textwrap.indent(dump_yaml({name: value}), indent).splitlines()
