"""The report's sections on dropped clips: the funnel from sources to shards, and the reasons with examples."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.schema import Row
from pipelines.report.output import Output, sample_clips, thumbs
from pipelines.units import SUPERSEDED
from pipelines.wording import plural

MAX_EXAMPLES = 8
MAX_REASONS = 24
MAX_SOURCES = 200
# Kinds of reason that a step of the funnel lists. The section below the funnel has all of them.
_MAX_KINDS = 4

_PHASE_TITLES = {
    "partition": "Long and large enough",
    "score": "Clean and well lit",
    "annotate": "Cameras estimated",
    "caption": "Semantic check",
    "relate": "Compared with neighbours",
    "shard": "Stored in shards",
}
_STATUS_WORDS = {"error": "failed", "superseded": "replaced by a newer version"}


def funnel(output: Output) -> list[dict[str, Any]]:
    """Return the steps from sources to stored clips. Bars show minutes, a unit that sources and clips share."""
    status = Counter(row["status"] for row in output.videos)
    source_s, lost = output.source_s, len(output.videos) - len(output.sources)
    unused = ", ".join(f"{count:,} {_STATUS_WORDS.get(name, name)}" for name, count in sorted(status.items()) if name != "ok")
    current = ~np.asarray(pc.fill_null(pc.starts_with(output.clips["reject"], SUPERSEDED), False), bool)
    note = f"length of {plural(lost, 'source')} unknown" if lost else ""
    steps = [
        {"title": "Sources", "noun": "source", "count": len(output.videos), "seconds": source_s, "lost": note},
        {
            "title": "Readable, no duplicates",
            "noun": "source",
            "count": len(output.sources),
            "seconds": source_s,
            "lost": unused,
        },
        {
            "title": "Cut into clips",
            "noun": "clip",
            "count": int(current.sum()),
            "seconds": float(output.seconds[current].sum()),
            "lost": "",
        },
        *_clip_steps(output, current),
    ]
    longest = max(step["seconds"] for step in steps) or 1.0
    return [{"waiting": 0, **step, "percent": round(100 * step["seconds"] / longest, 2)} for step in steps]


def _clip_steps(output: Output, passed: np.ndarray) -> Iterable[dict[str, Any]]:
    """Yield one step per phase: the clips that passed it, and why the others did not."""
    for phase, table in output.phases.items():
        dropped = table.filter(pc.or_(pc.is_valid(table["reject"]), pc.is_valid(table["error"])))
        processed, lost = _mask(output, table) & passed, _mask(output, dropped) & passed
        waiting, passed = int((passed & ~processed).sum()), processed & ~lost
        kinds = Counter(_reason_kind(reason) for reason in _reasons_of(output, lost)).most_common(_MAX_KINDS)
        yield {
            "title": _PHASE_TITLES.get(phase, phase),
            "noun": "clip",
            "count": int(passed.sum()),
            "seconds": float(output.seconds[passed].sum()),
            "lost": ", ".join(f"{count:,} {kind}" for kind, count in kinds),
            "waiting": waiting,
        }


def _mask(output: Output, table: pa.Table) -> np.ndarray:
    """Return which clips of the output are in a table."""
    return np.asarray(pc.is_in(output.clips["clip_id"], table["clip_id"].combine_chunks()), bool)


def _reasons_of(output: Output, mask: np.ndarray) -> list[str]:
    rows = output.clips.select(["reject", "error"]).filter(pa.array(mask))
    return [error or reject for reject, error in zip(*(rows[name].to_pylist() for name in ("reject", "error")), strict=True)]


def _reason_kind(reason: str) -> str:
    """Return the words of a reason before its numbers ("too short: 2.69 s < 3 s"); of an exception its operator and class."""
    error = re.match(r"\w+: \w+(?=: )", reason)
    return error[0] if error else re.split(r":\s|\d", reason, maxsplit=1)[0].strip() or reason


def reasons(output: Output, mask: np.ndarray, name: str) -> dict[str, Any]:
    """Group dropped clips by kind of reason, most common first, with a few examples of each.

    name: the column of the reasons, reject or error.
    """
    groups = defaultdict(list)
    texts = output.clips[name].to_pylist()
    for i in np.flatnonzero(mask):
        groups[_reason_kind(texts[i])].append(int(i))
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    chosen = [sample_clips(output, where, MAX_EXAMPLES) for _, where in ranked[:MAX_REASONS]]
    rows = {row["clip_id"]: row for where in chosen for row in output.rows(where)}
    pictures = thumbs(output, list(rows.values()))
    ids = output.clips["clip_id"].to_pylist()
    return {
        "left_out": len(ranked) - len(chosen),
        "kinds": [
            {
                "kind": kind,
                "count": len(where),
                "seconds": float(output.seconds[where].sum()),
                "share": len(where) / len(output.clips),
                "examples": [_example(rows[ids[i]], rows[ids[i]][name], kind, pictures) for i in some],
            }
            for (kind, where), some in zip(ranked, chosen, strict=False)
        ],
    }


def _example(row: Row, reason: str, kind: str, pictures: dict[str, list[str]]) -> dict[str, Any]:
    shots = pictures.get(row["clip_id"], [])
    return {
        "clip_id": row["clip_id"],
        "uri": row["source_uri"],
        "reason": reason,
        "detail": reason.removeprefix(kind).lstrip(": ") or reason,
        "picture": shots[len(shots) // 2] if shots else None,
    }


def lost_sources(output: Output) -> dict[str, Any]:
    rows = [row for row in output.videos if row["status"] != "ok"]
    rows.sort(key=lambda row: (row["status"], row["uri"]))
    return {"rows": rows[:MAX_SOURCES], "left_out": len(rows[MAX_SOURCES:])}
