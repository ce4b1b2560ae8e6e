"""The report page of InterBench: tables with the paper's rows, and every video next to its scores, evidence and signals."""

import os
from collections.abc import Sequence
from typing import Any

import jinja2

from curation import storage
from model.evaluation.interbench import judge as judging
from model.evaluation.interbench import suite
from model.evaluation.interbench.results import VideoResult
from model.evaluation.interbench.scores import DIMENSIONS, TITLES, overall
from model.evaluation.tables import Cell, Table

# A page with more videos than this shows the first of each subset; all are in OUT/videos.
_MAX_VIDEOS, _MIN_EACH = 240, 3


def write_page(out: str, results: Sequence[VideoResult], summary: dict[str, Any], name: str, table: Table | None) -> str:
    """Write OUT/report.html and return its uri. Videos are linked where they are. name: of the model. table: the scores."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = _shown(results)
    page = environment.get_template("page.html.j2").render(
        summary=summary,
        name=name,
        table=_score_rows(table),
        titles=[TITLES[name] for name in DIMENSIONS],
        sections=[_section(name, [r for r in shown if r.case.subset == name], out) for name in suite.subsets()],
        hidden=len(results) - len(shown),
        rubric=judging.rubric(),
    )
    uri = storage.join(out, "report.html")
    storage.put(uri, page.encode())
    return uri


def _shown(results: Sequence[VideoResult]) -> list[VideoResult]:
    if len(results) <= _MAX_VIDEOS:
        return list(results)
    each = max(_MIN_EACH, _MAX_VIDEOS // len(suite.subsets()))
    return [r for name in suite.subsets() for r in [r for r in results if r.case.subset == name][:each]]


def _score_rows(table: Table | None) -> list[dict[str, Any]]:
    """Return rows for the page: label, kind, cells as text, and how full a bar of Overall is."""
    rows = []
    for row in table.rows if table else ():
        *means, total, videos, invalid = row.cells
        interval = row.intervals[-1] if row.intervals else None
        rows.append(
            {
                "label": row.label,
                "kind": row.kind,
                "cells": [_fixed(value) for value in means],
                "overall": _fixed(total),
                "percent": round(20 * total, 1) if isinstance(total, float) and total == total else 0,
                "interval": f"{interval.low:.2f}–{interval.high:.2f}" if interval and interval.low == interval.low else "",  # noqa: RUF001
                "counts": "" if videos is None else f"{videos}" + (f", {invalid} invalid" if invalid else ""),
            }
        )
    return rows


def _section(name: str, results: Sequence[VideoResult], out: str) -> dict[str, Any]:
    subset = suite.subsets()[name]
    return {
        "name": name,
        "title": subset.title,
        "category": suite.categories()[subset.category],
        "interaction": subset.interaction,
        "videos": [_video(result, out) for result in results],
    }


def _video(result: VideoResult, out: str) -> dict[str, Any]:
    case, scores = result.case, result.scores
    repeats = [
        {
            "scores": [str(one.scores[name]) for name in DIMENSIONS] if one.scores else [],
            "error": one.error or "",
            "evidence": [(TITLES[name], one.evidence.get(name, "")) for name in DIMENSIONS] if one.evidence else [],
            "forced": one.forced,
            "frames": ", ".join(f"{time_s:.2f}" for time_s in one.frames_s),
            "raw": one.raw,
        }
        for one in result.judgements
    ]
    return {
        "name": case.name,
        "src": _link(case.video, out),
        "prompt": suite.full_prompt(case.base_prompt, case.interaction_prompt or suite.subsets()[case.subset].interaction),
        "scores": [(TITLES[n], _text(v), _level(n, v)) for n, v in zip(DIMENSIONS, scores, strict=True)] if scores else [],
        "overall": _text(overall(scores)) if scores else "",
        "invalid": bool(result.judgements) and scores is None,
        "error": result.error,
        "flags": result.flags,
        "signals": [(name.replace("_", " "), f"{v:.3g}") for name, v in result.signals._asdict().items()]
        if result.signals
        else [],
        "repeats": repeats,
    }


def _link(video: str, out: str) -> str:
    """Return the address of a video in the page: relative where both are on this machine."""
    if storage.is_s3(video) or storage.is_s3(out):
        return video
    return os.path.relpath(storage.local_path(video), storage.local_path(out))


def _fixed(value: Cell) -> str:
    return f"{value:.3f}" if isinstance(value, float) and value == value else "–"  # noqa: RUF001


def _text(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if value == value else "–"  # noqa: RUF001


def _level(name: str, value: float) -> str:
    """Return good, fair or poor, for the colour of a score."""
    share = value if name == "trigger" else value / 5
    return "good" if share > 0.8 else "fair" if share >= 0.5 else "poor"
