"""Results item by item, in one form for all suites, and the difference of two runs over the items that both have."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from curation import storage
from curation.errors import InputError
from model.evaluation.statistics import Interval, PairedDifference, paired_difference
from model.evaluation.tables import Cell, Column, Row, Table, write

_FILE = "items.json"
_MIN_ITEMS = 10  # bootstrap intervals of fewer are too narrow for a verdict


class Items(NamedTuple):
    """The values of a run: model, suite, which way is better for each measure, and the values by item and measure."""

    name: str
    suite: str
    better: Mapping[str, str]
    values: Mapping[str, Mapping[str, float]]


def write_items(out: str, items: Items) -> None:
    """Write OUT/items.json. Values that are not finite are left out."""
    values = {item: {m: v for m, v in row.items() if math.isfinite(v)} for item, row in items.values.items()}
    data = items._asdict() | {"values": values, "better": dict(items.better)}
    storage.put(storage.join(storage.normal(out), _FILE), json.dumps(data, indent=1).encode())


def read_items(out: str) -> Items:
    """Read the values of a run. InputError where its folder has none."""
    try:
        return Items(**json.loads(storage.read(storage.join(storage.normal(out), _FILE))))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise InputError(f"{out}: no {_FILE} there; is it an output of `gamecraft eval`?") from error


def compare(first: Items, second: Items) -> tuple[Table, Table]:
    """Return the paired differences of two runs (first - second) by measure, and every item with its differences.

    Verdict: better, worse, or differs where no direction is better; unclear where the interval contains 0; too few items where
    both runs have fewer than ten.

    InputError where the runs are of different suites or share no item.
    """
    if first.suite != second.suite:
        raise InputError(f"runs of different suites cannot be compared: {first.suite} and {second.suite}")
    both = sorted(set(first.values) & set(second.values))
    if not both:
        raise InputError("the two runs share no item: they are paired by the names of their videos")
    measures = [m for m in first.better if any(m in first.values[i] and m in second.values[i] for i in both)]
    nan = float("nan")
    rows = []
    for measure in measures:
        pairs = [(first.values[i].get(measure, nan), second.values[i].get(measure, nan)) for i in both]
        rows.append(_row(measure, first.better[measure], paired_difference(*zip(*pairs, strict=True))))
    title = f"{first.name} - {second.name}, {first.suite}"
    columns = [
        Column("Difference"),
        Column("Share of items in which the first is higher", digits=2),
        Column("Items"),
        Column("Verdict"),
    ]
    items = [Row(i, [first.values[i].get(m, nan) - second.values[i].get(m, nan) for m in measures]) for i in both]
    note = "Paired by item; 95 % intervals by bootstrap over items."
    return Table(title, columns, rows, note), Table(f"{title}, by item", [Column(m, first.better[m]) for m in measures], items)


def write_comparison(out: str, baseline: str) -> Table:
    """Compare the run in a folder with one in another, write `diff` and `diff-items` there, and return the first table."""
    table, items = compare(read_items(out), read_items(baseline))
    write(table, storage.normal(out), "diff")
    write(items, storage.normal(out), "diff-items")
    return table


def _row(measure: str, better: str, difference: PairedDifference) -> Row:
    interval = difference.interval
    verdict = "unclear" if difference.items >= _MIN_ITEMS else "too few items"
    if difference.items >= _MIN_ITEMS and math.isfinite(interval.low) and (interval.low > 0 or interval.high < 0):
        verdict = "differs" if not better else "better" if (interval.low > 0) == (better == "up") else "worse"
    cells: list[Cell] = [difference.mean, difference.wins, difference.items, verdict]
    intervals: list[Interval | None] = [interval, None, None, None]
    return Row(measure, cells, intervals)
