"""Draw the project's folders: the module tree and the imports between rooms in docs/architecture.md, and docs/cli.md.

A room is a folder of modules. `python -m bench.architecture` writes both blocks and the page of commands anew from the code;
tests/test_docs.py fails where they differ from it.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main

from curation.errors import InputError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
COMMANDS_PAGE = ROOT / "docs" / "cli.md"
# In the order of the drawing: who imports stands above what is imported.
PACKAGES = ("bench", "pipelines", "operators", "synth", "model", "curation")
# In the order in which people read.
_TREES = ("pipelines", "operators", "curation", "synth", "model", "bench")
_LINE = 128
_MIN_HALF_LINE = 20  # what stands before a colon is kept alone if it is not shorter
# Commands start benchmarks by name, and all of them import commands. Drawn, this would turn the whole picture into one circle.
_LEFT_OUT = {("pipelines", "bench")}

Edges = set[tuple[str, str]]


def main(names: Iterable[str] = ()) -> None:
    """Write the blocks of docs/architecture.md and the page of commands."""
    if names:
        raise InputError(f"python -m bench.architecture takes no arguments, not {' '.join(names)}")
    PAGE.write_text(with_blocks(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    COMMANDS_PAGE.write_text(commands_page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and {COMMANDS_PAGE.relative_to(ROOT)}")


def with_blocks(page: str) -> str:
    """Return the text of a page with the lines between its markers replaced. InputError where a marker is missing."""
    blocks: dict[str, Callable[[], str]] = {"modules": module_tree, "rooms": rooms_graph}
    for name, make in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise InputError(f"docs/architecture.md must have {begin} and {end} once each")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return page


def module_files() -> list[str]:
    """Return the paths of all modules below the root, without `__init__.py`, which stands for its folder."""
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if path.name != "__init__.py")
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def module_tree() -> str:
    """Return every folder and module with half a line of what it is, from its docstring."""
    lines = ["```"]
    for name in _TREES:
        if name != _TREES[0]:
            lines.append("")
        lines += _folder_lines(ROOT / name, "")
    return "\n".join([*lines, "```"])


def _folder_lines(folder: Path, indent: str) -> Iterator[str]:
    yield _line(f"{indent}{folder.name}/", _about(folder / "__init__.py"))
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield _line(f"{indent}    {path.name}", _about(path))
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from _folder_lines(inner, indent + "    ")


def _line(name: str, about: str) -> str:
    return f"{name:36}{_half_line(about, _LINE - 36)}".rstrip()


def _about(path: Path) -> str:
    """Return the first paragraph of a module's docstring as one line; empty if it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def _half_line(text: str, width: int) -> str:
    """Return the first sentence of a text, without what is in brackets; if it is too long, as much of it as stands alone."""
    sentence = re.split(r"(?<=[.?!]) (?=[A-Z(`])", text, maxsplit=1)[0].rstrip(".")
    sentence = re.sub(r" \([^()]*\)", "", sentence)
    if len(sentence) <= width:
        return sentence
    before_colon = sentence.partition(": ")[0]
    if _MIN_HALF_LINE <= len(before_colon) <= width:
        return before_colon
    ends = [match.start() for match in re.finditer(r"[:;,] | and ", sentence) if match.start() <= width]
    return sentence[: ends[-1]] if ends else f"{sentence[: width - 4].rpartition(' ')[0]} ..."


def rooms_graph() -> str:
    """Return a mermaid drawing of which room imports which."""
    lines = ["```mermaid", "flowchart TB"]
    for name in PACKAGES:
        lines += _box(ROOT / name, "    ")
    edges = transitive_reduction(room_imports())
    lines += [f"    {_node(above)} --> {_node(below)}" for above, below in sorted(edges, key=_place)]
    return "\n".join([*lines, "```"])


def _box(folder: Path, indent: str) -> Iterator[str]:
    """Draw a folder as a node, or as a box of nodes if it holds folders."""
    room = ".".join(folder.relative_to(ROOT).parts)
    inner = sorted(path.parent for path in folder.glob("*/__init__.py"))
    if not inner:
        yield f"{indent}{_node(room)}[{folder.name}]"
        return
    yield f"{indent}subgraph {_node(room)}_box [{folder.name}/]"
    yield f'{indent}    {_node(room)}["{folder.name}/*.py"]'
    for path in inner:
        yield from _box(path, indent + "    ")
    yield f"{indent}end"


def _node(room: str) -> str:
    return room.replace(".", "_")


def _place(edge: tuple[str, str]) -> tuple[int, str, int, str]:
    above, below = edge
    return PACKAGES.index(above.partition(".")[0]), above, PACKAGES.index(below.partition(".")[0]), below


def room_imports() -> Edges:
    """Return which room imports which, also inside functions. A folder and the folders in it are drawn in one box: no edges."""
    import grimp

    graph = grimp.build_graph(*PACKAGES)
    edges = {
        (_room(module), _room(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return {edge for edge in edges if not _nested(*edge) and edge not in _LEFT_OUT}


def _room(module: str) -> str:
    return module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]


def _nested(room: str, other: str) -> bool:
    return f"{room}.".startswith(f"{other}.") or f"{other}.".startswith(f"{room}.")


def transitive_reduction(edges: Edges) -> Edges:
    """Leave out each edge that a longer path makes as well, or one to a folder in that folder. ValueError for a circle."""
    below: dict[str, set[str]] = {}

    def reached(room: str, above: tuple[str, ...]) -> set[str]:
        if room in above:
            raise ValueError(f"rooms import each other in a circle: {' -> '.join((*above[above.index(room) :], room))}")
        if room not in below:
            direct = {imported for importer, imported in edges if importer == room}
            below[room] = direct.union(*(reached(imported, (*above, room)) for imported in direct))
        return below[room]

    def has_longer_path(room: str, target: str) -> bool:
        others = (imported for importer, imported in edges if importer == room and imported != target)
        return any(target in reached(other, ()) or other.startswith(f"{target}.") for other in others)

    for room, _ in edges:
        reached(room, ())
    return {(room, imported) for room, imported in edges if not has_longer_path(room, imported)}


def commands_page() -> str:
    """Return docs/cli.md: every command with its arguments and options, from the command line itself."""
    from pipelines.cli import BENCHMARKS, app

    lines = [
        "# Commands",
        "",
        "Written by `python -m bench.architecture` from `pipelines/cli.py`.",
        "",
        "Exit status: 0 done; 1 something is left to do, or this machine lacks something; 2 wrong input; 3 done, but",
        "sources were lost; 70 a bug of ours; 130 interrupted. Errors are one line on stderr.",
        "",
    ]
    lines += _command_lines("gamecraft", typer.main.get_command(app))
    lines += ["## Benchmarks", "", *(f"- `gamecraft bench {name}`: {about}" for name, about in BENCHMARKS.items())]
    return "\n".join([*lines, ""])


def _command_lines(words: str, command: Any) -> Iterator[str]:
    commands: Mapping[str, Any] = getattr(command, "commands", {})
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    yield f"## {words}"
    yield ""
    usage = [words, *(["[OPTIONS]"] if options else []), *(_argument_name(argument) for argument in arguments)]
    yield from ["```", " ".join([*usage, *(["COMMAND ..."] if commands else [])]), "```", ""]
    yield from [" ".join((command.help or "").split()), ""]
    if parameters:
        yield from ["| argument or option | meaning | default |", "|---|---|---|"]
        for argument in arguments:
            yield f"| `{_argument_name(argument)}` | {_cell(argument.help)} | {_default(argument)} |"
        for option in options:
            names = ", ".join(f"`{name} {option.metavar}`" if option.metavar else f"`{name}`" for name in option.opts)
            yield f"| {names} | {_cell(option.help)} | {_default(option)} |"
        yield ""
    for name, inner in sorted(commands.items()):
        yield from _command_lines(f"{words} {name}", inner)


def _argument_name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = parameter.default
    return "" if shown in (None, "", False, 0) or shown == () or callable(shown) else f"`{shown}`"


if __name__ == "__main__":
    main(sys.argv[1:])
