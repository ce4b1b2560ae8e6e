"""The report's section on synthetic clips: attempts at interactions, what became of them, strips from before to after."""

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from curation.schema import Row

MAX_STRIPS = 40


def tally(made: pa.Table) -> list[dict[str, Any]]:
    """Attempts by interaction, in order of category, with what speaks most often against those that were not accepted."""
    groups = defaultdict(list)
    for row in made.select(["interaction", "interaction_category", "synth_verdict", "reject", "error"]).to_pylist():
        groups[row["interaction_category"] or "", row["interaction"] or ""].append(row)
    return [
        {
            "category": category,
            "interaction": interaction,
            "attempts": len(rows),
            "accepted": sum(row["synth_verdict"] == "accepted" for row in rows),
            "why": [f"{count} {why}" for why, count in Counter(_why(row) for row in rows if _why(row)).most_common(3)],
        }
        for (category, interaction), rows in sorted(groups.items())
    ]


def _why(row: Row) -> str:
    return str(row["reject"] or row["error"] or "").partition(":")[0]


def strips(rows: list[Row], pictures: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Rows with their pictures, from the first to the last; those that were made at all."""
    return [{"row": row, "pictures": pictures[row["clip_id"]]} for row in rows if pictures.get(row["clip_id"])]
