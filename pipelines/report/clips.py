"""The report's sections on clips: timelines of the sources, and a contact sheet with previews that a browser can play."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from curation import shards, storage
from curation.output_folder import OutputFolder
from curation.schema import Row
from pipelines import ledger
from pipelines.report import svg
from pipelines.report.output import Output, thumbs

MAX_TIMELINES = 30
MAX_SHEET_CLIPS = 60
# Forty minutes of clips: a timeline can show them distinctly, and thirty timelines stay within a few megabytes.
MAX_TIMELINE_CLIPS = 400


def timelines(output: Output, linked: set[str]) -> dict[str, Any]:
    """Return the timelines of some videos, those with kept clips first."""
    clips_of, kept_of = defaultdict(list), Counter[str]()
    for i, (video_id, kept) in enumerate(zip(output.clips["video_id"].to_pylist(), output.kept, strict=True)):
        clips_of[video_id].append(i)
        kept_of[video_id] += bool(kept)
    sources = [row for row in output.sources.values() if row["video_id"] in clips_of]
    sources.sort(key=lambda row: (kept_of[row["video_id"]] == 0, row["uri"]))
    shown = sources[:MAX_TIMELINES]
    signals = {
        row["video_id"]: row
        for table in ledger.sidecars(output.out, "signals", (s["unit_id"] for s in shown))
        for row in table.to_pylist()
    }
    drawn = [_timeline(output, row, clips_of[row["video_id"]], signals.get(row["video_id"]), linked) for row in shown]
    return {
        "with_kept": [t for t in drawn if kept_of[t["video_id"]]],
        "without": [t for t in drawn if not kept_of[t["video_id"]]],
        "left_out": len(sources) - len(shown),
        "interactions": any("interaction" in t["regimes"] for t in drawn),
    }


def _timeline(output: Output, source: Row, indices: list[int], signals: Row | None, linked: set[str]) -> dict[str, Any]:
    rows = output.rows(indices[:MAX_TIMELINE_CLIPS])
    whole_s = max(source["duration_s"] or 0, max(row["end_s"] for row in rows), 1e-3)
    total_s = whole_s if len(rows) == len(indices) else rows[-1]["end_s"]
    states = ["kept" if output.kept[i] else "failed" if output.failed[i] else "rejected" for i in indices]
    bounds = [0.0, *(t for t in source["cuts_s"] or [] if t < total_s), total_s]
    return {
        "video_id": source["video_id"],
        "source": source,
        "whole_s": whole_s,
        "total_s": total_s,
        "counts": Counter(states),
        "min_px": svg.min_width_px(total_s),
        "ticks": svg.ticks(total_s),
        "scenes": [svg.span_position(a, b, total_s) for a, b in pairwise(bounds)],
        "regimes": svg.regime_paths([span for row in rows for span in row["action_spans"] or []], total_s),
        "clips": [_block(row, state, total_s, linked) for row, state in zip(rows, states, strict=False)],
        **svg.signal_curves(signals, total_s),
    }


def _block(row: Row, state: str, total_s: float, linked: set[str]) -> dict[str, Any]:
    x, width = svg.span_position(row["start_s"], row["end_s"], total_s)
    return {"x": x, "width": width, "state": state, "row": row, "linked": row["clip_id"] in linked}


def sheet(output: Output, rows: list[Row], linked: set[str]) -> dict[str, Any]:
    """Return the contact sheet of these clips."""
    pictures = thumbs(output, rows)
    cards = [
        {
            "row": row,
            "pictures": _first_middle_last(pictures.get(row["clip_id"], [])),
            "linked": row["clip_id"] in linked,
            "aspect": _aspect(row),
            "actions": sorted({svg.action_name(span) for span in row["action_spans"] or [] if span["name"]}),
        }
        for row in rows
    ]
    return {"cards": cards, "videos": len({row["video_id"] for row in rows}), "max_clips": MAX_SHEET_CLIPS}


def _first_middle_last(pictures: list[str]) -> list[str]:
    return [pictures[i] for i in sorted({0, len(pictures) // 2, len(pictures) - 1})] if pictures else []


def _aspect(row: Row) -> float:
    """Return the aspect ratio of a card's pictures: the video's, but at least 1.2, so that a portrait video stays small."""
    return round(max((row["width"] or 4) / (row["height"] or 3), 1.2), 4)


def write_previews(output: Output, rows: Sequence[Row]) -> set[str]:
    """Copy these clips out of their shards, and remove all other previews. Return the ids of the clips with a preview."""
    folder, linked = OutputFolder(output.out).previews, set()
    present = set(storage.names(folder))
    for name in present - {f"{row['clip_id']}.mp4" for row in rows}:
        storage.delete(storage.join(folder, name))
    committed = set(shards.list_committed(output.out))
    stored = [row for row in rows if row["shard"] in committed]
    indexes = {shard: shards.read_index(output.out, shard) for shard in sorted({row["shard"] for row in stored})}
    for row in stored:
        name = f"{row['clip_id']}.mp4"
        if name in present or _copy(output.out, indexes[row["shard"]], row["clip_id"], storage.join(folder, name)):
            linked.add(row["clip_id"])
    return linked


def _copy(out: str, index: pa.Table, clip_id: str, target: str) -> bool:
    """Copy a clip. False if the shard has lost the clip or its tar: a page without one preview is better than no page."""
    try:
        return storage.put(target, shards.read_member(out, index, clip_id, "mp4"))
    except (KeyError, FileNotFoundError):
        return False
