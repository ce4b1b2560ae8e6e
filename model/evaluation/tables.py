"""Tables of results, as CSV, Markdown and LaTeX."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation import storage
from model.evaluation.statistics import Interval

Cell = float | int | str | None  # None: unknown


class Column(NamedTuple):
    """A column. better: up, down, or empty where neither is better. digits: after the point, for numbers."""

    name: str
    better: str = ""
    digits: int = 3

    @property
    def arrow(self) -> str:
        return {"up": "↑", "down": "↓"}.get(self.better, "")


class Row(NamedTuple):
    """A row: its label, a cell for each column, and where known the interval of each. kind: result | ceiling | reference."""

    label: str
    cells: Sequence[Cell]
    intervals: Sequence[Interval | None] = ()
    kind: str = "result"


class Table(NamedTuple):
    """A table. note: one line below it, such as how it was measured."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""


def to_csv(table: Table) -> str:
    """Return a table as CSV, with columns NAME, NAME low and NAME high where an interval is known. Unknown cells are empty."""
    with_interval = [any(_interval(row, k) for row in table.rows) for k in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["row", "kind"]
    for column, wide in zip(table.columns, with_interval, strict=True):
        head += [column.name, *([f"{column.name} low", f"{column.name} high"] if wide else [])]
    writer.writerow(head)
    for row in table.rows:
        line: list[str] = [row.label, row.kind]
        for k, (cell, wide) in enumerate(zip(row.cells, with_interval, strict=True)):
            interval = _interval(row, k)
            line.append(_number(cell))
            line += ([_number(interval.low), _number(interval.high)] if interval else ["", ""]) if wide else []
        writer.writerow(line)
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Return a table in Markdown, with intervals in brackets."""
    lines = [
        f"**{table.title}**",
        "",
        "| | " + " | ".join(f"{c.name}{c.arrow and ' ' + c.arrow}" for c in table.columns) + " |",
    ]
    lines.append("|---" * (len(table.columns) + 1) + "|")
    for row in table.rows:
        cells = (_plain(cell, column, _interval(row, k)) for k, (cell, column) in enumerate(_pairs(table, row)))
        label = row.label if row.kind == "result" else f"*{row.label}* ({row.kind})"
        lines.append("| " + " | ".join(part.replace("|", "\\|") for part in (label, *cells)) + " |")
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def to_latex(table: Table) -> str:
    """Return a table in LaTeX (booktabs). The best result of each column is bold; ceilings and references are not compared."""
    best = [_best(table, k) for k in range(len(table.columns))]
    arrows = {"up": r" $\uparrow$", "down": r" $\downarrow$", "": ""}
    head = " & ".join(["", *(f"{_tex(c.name)}{arrows[c.better]}" for c in table.columns)])
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule", head + r" \\", r"\midrule"]
    kind = table.rows[0].kind if table.rows else ""
    for row in table.rows:
        if row.kind != kind:
            lines.append(r"\midrule")
            kind = row.kind
        cells = [_tex_cell(cell, column, _interval(row, k)) for k, (cell, column) in enumerate(_pairs(table, row))]
        marked = [rf"\textbf{{{text}}}" if row is best[k] else text for k, text in enumerate(cells)]
        label = _tex(row.label) if row.kind == "result" else rf"\emph{{{_tex(row.label)}}}"
        lines.append(" & ".join([label, *marked]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\small {_tex(table.note)}"] if table.note else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def write(table: Table, folder: str, name: str) -> None:
    """Write a table as NAME.csv, NAME.md and NAME.tex into a folder or s3:// prefix."""
    for extension, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
        storage.put(storage.join(folder, f"{name}.{extension}"), text.encode())


def _pairs(table: Table, row: Row) -> list[tuple[Cell, Column]]:
    return list(zip(row.cells, table.columns, strict=True))


def _interval(row: Row, index: int) -> Interval | None:
    interval = row.intervals[index] if index < len(row.intervals) else None
    return interval if interval and math.isfinite(interval.low) else None


def _known(cell: Cell) -> bool:
    return cell is not None and cell != "" and not (isinstance(cell, float) and not math.isfinite(cell))


def _number(cell: Cell) -> str:
    return (f"{cell:.6g}" if isinstance(cell, float) else str(cell)) if _known(cell) else ""


def _plain(cell: Cell, column: Column, interval: Interval | None) -> str:
    if not _known(cell):
        return "–"  # noqa: RUF001  an en dash, as tables have it
    text = f"{cell:.{column.digits}f}" if isinstance(cell, float) else str(cell)
    return f"{text} [{interval.low:.{column.digits}f}, {interval.high:.{column.digits}f}]" if interval else text


def _tex_cell(cell: Cell, column: Column, interval: Interval | None) -> str:
    return _tex(_plain(cell, column, interval)).replace("–", "--")  # noqa: RUF001


def _tex(text: str) -> str:
    return text.translate(_TEX)


_TEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "<": "$<$", ">": "$>$"}
)


def _best(table: Table, index: int) -> Row | None:
    column = table.columns[index]
    known = [
        row for row in table.rows if row.kind == "result" and isinstance(row.cells[index], float) and _known(row.cells[index])
    ]
    if len(known) < 2 or not column.better:
        return None
    values = [float(row.cells[index] or 0.0) for row in known]
    return known[int(np.argmax(values) if column.better == "up" else np.argmin(values))]
