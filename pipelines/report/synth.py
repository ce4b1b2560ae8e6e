"""The report's section on synthetic clips: attempts at interactions, their verdicts, and strips from before to after."""

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa

from curation.schema import Row

MAX_STRIPS = 40


def tally(made: pa.Table) -> list[dict[str, Any]]:
    """Count the attempts at each interaction, ordered by category, with the most common reasons for rejection."""
    groups = defaultdict(list)
    for row in made.select(["interaction", "interaction_category", "synth_verdict", "reject", "error"]).to_pylist():
        groups[row["interaction_category"] or "", row["interaction"] or ""].append(row)
    return [
        {
            "category": category,
            "interaction": interaction,
            "attempts": len(rows),
            "accepted": sum(row["synth_verdict"] == "accepted" for row in rows),
            "reasons": [f"{count} {kind}" for kind, count in Counter(filter(None, map(_reason_kind, rows))).most_common(3)],
        }
        for (category, interaction), rows in sorted(groups.items())
    ]


def _reason_kind(row: Row) -> str:
    return str(row["reject"] or row["error"] or "").partition(":")[0]


def strips(rows: list[Row], pictures: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return rows with their pictures in order of time. Attempts without a video are left out."""
    return [{"row": row, "pictures": pictures[row["clip_id"]]} for row in rows if pictures.get(row["clip_id"])]
