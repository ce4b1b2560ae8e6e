"""The report of a curation run: one HTML page that shows what went in, what came out, and why the rest did not.

    OUT/report.html             self-contained: styles, script, drawings, thumbnails; equal outputs give equal pages
    OUT/preview/<clip_id>.mp4   the clips of its contact sheet, out of their shards, so that a browser can play them

Only what is shown is read in full (rows, thumbnails, signals); everything else is counted in columns.
"""

import base64
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from curation import shards, storage
from curation.quality import RULES, Luminance
from curation.schema import CLIP, Row
from pipelines import captioned, figures, ledger, report_cameras, report_synth
from pipelines.figures import clock, duration, number, plural, short_name
from pipelines.ledger import Record
from pipelines.recipes import CLIP_PHASES, PHASES, SYNTH_PHASES

MAX_TIMELINES = 30
MAX_SHEET_CLIPS = 60
MAX_EXAMPLES = 8
MAX_REASONS = 24
MAX_SOURCES = 200
# Forty minutes: what a timeline can show with its clips told apart, and what keeps thirty of them to a few megabytes.
MAX_TIMELINE_CLIPS = 400
# Kinds of reason beside a step of the funnel; all of them stand in the section below it.
_MOST_KINDS = 4

_PHASE_TITLES = {
    "partition": "Long and large enough",
    "score": "Clean and well lit",
    "annotate": "Annotated",
    "caption": "Plain, continuous play",
    "relate": "Held against their neighbours",
    "shard": "Stored in shards",
}
_REGIMES = ("forward", "back", "turn_left", "turn_right", "look_up", "look_down", "strafe_left", "strafe_right")
_LOST = {
    "error": "failed",
    "unreadable": "unreadable",
    "quarantined": "quarantined",
    "duplicate": "the same as another",
}


@dataclass(frozen=True)
class Output:
    """An output folder, read once. `phases` holds each phase's own rows; `clips` joins them."""

    out: str
    dataset: dict[str, Any]
    videos: list[Row]
    clips: pa.Table
    phases: dict[str, pa.Table]
    records: list[Record]

    @cached_property
    def seconds(self) -> np.ndarray:
        lengths: np.ndarray = column(self.clips, "end_s") - column(self.clips, "start_s")
        return lengths

    @cached_property
    def failed(self) -> np.ndarray:
        return np.asarray(pc.is_valid(self.clips["error"]), bool)

    @cached_property
    def rejected(self) -> np.ndarray:
        mask: np.ndarray = np.asarray(pc.is_valid(self.clips["reject"]), bool) & ~self.failed
        return mask

    @cached_property
    def kept(self) -> np.ndarray:
        mask: np.ndarray = ~(self.failed | self.rejected)
        return mask

    @cached_property
    def uris(self) -> list[str]:
        return [uri or "" for uri in self.clips["source_uri"].to_pylist()]

    @cached_property
    def sources(self) -> dict[str, Row]:
        """The readable sources by video_id; a duplicate shares its id with the one that was read."""
        return {row["video_id"]: row for row in self.videos if row["status"] == "ok"}

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        rows: list[Row] = self.clips.take(pa.array(indices, pa.int64())).to_pylist()
        return rows

    def limit(self, *path: str) -> float | None:
        """A number of the recipe; None where it is switched off or there is no recipe."""
        value: Any = self.dataset.get("recipe", {})
        for key in path:
            value = (value or {}).get(key)
        return None if value is None else float(value)


def write_report(out: str) -> str:
    """Write OUT/report.html and the previews it links to; returns its uri. An empty OUT gives an empty page."""
    output = read_output(storage.normal(out))
    page = _template().render(_page(output))
    uri = storage.join(output.out, "report.html")
    storage.put(uri, page.encode())
    return uri


def read_output(out: str) -> Output:
    """Read an output's ledger."""
    phases = {phase: ledger.read_all(storage.join(out, "clips", phase), CLIP) for phase in PHASES}
    return Output(
        out=out,
        dataset=shards.read_dataset(out) or {},
        videos=ledger.videos(out).to_pylist(),
        clips=ledger.clips(out),
        phases={phase: table for phase, (table, _) in phases.items() if phase in CLIP_PHASES},
        records=[record for _, records in phases.values() for record in records],
    )


def column(table: pa.Table, name: str) -> np.ndarray:
    """A number column as floats, null as NaN."""
    return np.asarray(table[name].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False), float)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": clock,
        "number": number,
        "duration": duration,
        "plural": plural,
        "name": short_name,
    }
    return environment.get_template("report.html.j2")


def _page(output: Output) -> dict[str, Any]:
    sheet = output.rows(_spread(output, np.flatnonzero(output.kept), MAX_SHEET_CLIPS))
    linked = _write_previews(output, sheet)
    return {
        "recipe": output.dataset.get("recipe_name", "unknown recipe"),
        "totals": _totals(output),
        "funnel": _funnel(output),
        "rejects": _reasons(output, output.rejected, "reject"),
        "errors": _reasons(output, output.failed, "error"),
        "lost_sources": _lost_sources(output),
        "histograms": _histograms(output),
        "timelines": _timelines(output, linked),
        "captioned": captioned.lines(output.clips.filter(pa.array(output.kept)), output.records),
        "sheet": _sheet(output, sheet, linked),
        "cameras": _cameras(output),
        "synth": _synth(output),
        "cost": _cost(output),
        "yaml": yaml.safe_dump(output.dataset.get("recipe", {}), sort_keys=False, allow_unicode=True),
        "build": output.dataset.get("build", {}),
        "regimes": _REGIMES,
    }


def _totals(output: Output) -> dict[str, Any]:
    stored = len(output.clips) - output.clips["shard"].null_count
    states = {name: getattr(output, name) for name in ("kept", "rejected", "failed")}
    return {
        "sources": len(output.videos),
        "source_s": _source_seconds(output),
        "clips": len(output.clips),
        **{name: int(mask.sum()) for name, mask in states.items()},
        **{f"{name}_s": float(output.seconds[mask].sum()) for name, mask in states.items()},
        "waiting": int(output.kept.sum()) - stored,
        "shards": len(shards.committed(output.out)),
    }


def _source_seconds(output: Output) -> float:
    return float(sum(row["duration_s"] or 0 for row in output.sources.values()))


def _funnel(output: Output) -> list[dict[str, Any]]:
    """Steps from sources to stored clips; bars compare minutes, which sources and clips have in common."""
    status = Counter(row["status"] for row in output.videos)
    source_s, lost = _source_seconds(output), len(output.videos) - len(output.sources)
    gone = ", ".join(f"{count:,} {_LOST.get(name, name)}" for name, count in sorted(status.items()) if name != "ok")
    note = f"length of {plural(lost, 'source')} unknown" if lost else ""
    steps = [
        {"title": "Sources", "noun": "source", "count": len(output.videos), "seconds": source_s, "lost": note},
        {
            "title": "Readable, each once",
            "noun": "source",
            "count": len(output.sources),
            "seconds": source_s,
            "lost": gone,
        },
        {
            "title": "Cut into clips",
            "noun": "clip",
            "count": len(output.clips),
            "seconds": output.seconds.sum(),
            "lost": "",
        },
        *_clip_steps(output),
    ]
    longest = max(step["seconds"] for step in steps) or 1.0
    return [{"waiting": 0, **step, "percent": round(100 * step["seconds"] / longest, 2)} for step in steps]


def _clip_steps(output: Output) -> Iterable[dict[str, Any]]:
    """One step a phase: the clips that it let pass, and why others did not."""
    passed = np.ones(len(output.clips), bool)
    for phase, table in output.phases.items():
        out = table.filter(pc.or_(pc.is_valid(table["reject"]), pc.is_valid(table["error"])))
        seen, lost = _among(output, table) & passed, _among(output, out) & passed
        waiting, passed = int((passed & ~seen).sum()), seen & ~lost
        kinds = Counter(_kind(reason) for reason in _why(output, lost)).most_common(_MOST_KINDS)
        yield {
            "title": _PHASE_TITLES.get(phase, phase),
            "noun": "clip",
            "count": int(passed.sum()),
            "seconds": float(output.seconds[passed].sum()),
            "lost": ", ".join(f"{count:,} {kind}" for kind, count in kinds),
            "waiting": waiting,
        }


def _among(output: Output, table: pa.Table) -> np.ndarray:
    return np.asarray(pc.is_in(output.clips["clip_id"], table["clip_id"].combine_chunks()), bool)


def _why(output: Output, mask: np.ndarray) -> list[str]:
    rows = output.clips.select(["reject", "error"]).filter(pa.array(mask))
    return [error or reject for reject, error in zip(*(rows[name].to_pylist() for name in ("reject", "error")), strict=True)]


def _kind(reason: str) -> str:
    """The words of a reason before its numbers ("too short: 2.69 s < 3 s"); of an exception its operator and class."""
    error = re.match(r"\w+: \w+(?=: )", reason)
    return error[0] if error else re.split(r":\s|\d", reason, maxsplit=1)[0].strip() or reason


def _reasons(output: Output, mask: np.ndarray, name: str) -> dict[str, Any]:
    """Clips taken out, by kind of reason, most common first, with a few examples of each."""
    groups = defaultdict(list)
    reasons = output.clips[name].to_pylist()
    for i in np.flatnonzero(mask):
        groups[_kind(reasons[i])].append(int(i))
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    chosen = [_spread(output, where, MAX_EXAMPLES) for _, where in ranked[:MAX_REASONS]]
    rows = {row["clip_id"]: row for where in chosen for row in output.rows(where)}
    pictures = _thumbs(output, list(rows.values()))
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


def _thumbs(output: Output, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Thumbnails as data URIs by clip_id, of these clips only."""
    wanted = pa.array([row["clip_id"] for row in rows], pa.string())
    found = {}
    for table in ledger.sidecars(output.out, "thumbs", (row["unit_id"] for row in rows)):
        for row in table.filter(pc.is_in(table["clip_id"], wanted)).to_pylist():
            found[row["clip_id"]] = [f"data:image/jpeg;base64,{base64.b64encode(j).decode()}" for j in row["jpegs"]]
    return found


def _lost_sources(output: Output) -> dict[str, Any]:
    rows = [row for row in output.videos if row["status"] != "ok"]
    rows.sort(key=lambda row: (row["status"], row["uri"]))
    return {"rows": rows[:MAX_SOURCES], "left_out": len(rows[MAX_SOURCES:])}


def _histograms(output: Output) -> dict[str, Any]:
    """Each score, with the recipe's limits on it."""
    drawn = [_histogram(output, name) for name in ("iqa", "iqa_frozen", *Luminance._fields, "motion_camera", "motion_object")]
    shortest = output.limit("partition", "scenes", "min_clip_s")
    limits = [("at least", shortest)] if shortest else []
    drawn.append(_drawn(output, output.seconds, "length", "length of the clip", "s", limits))
    return {
        "drawn": [item for item in drawn if item["figure"].measured],
        "unmeasured": [item["name"] for item in drawn if not item["figure"].measured],
    }


def _histogram(output: Output, name: str) -> dict[str, Any]:
    about = {key.decode(): value.decode() for key, value in CLIP.field(name).metadata.items()}
    rules = [(rule, output.limit("score", rule.settings, rule.limit)) for rule in RULES if rule.score == name]
    limits = [("at least" if rule.least else "at most", value) for rule, value in rules if value is not None]
    return _drawn(output, column(output.clips, name), name, about["meaning"], about["unit"], limits)


def _drawn(
    output: Output, values: np.ndarray, name: str, meaning: str, unit: str, limits: list[tuple[str, float]]
) -> dict[str, Any]:
    known = np.isfinite(values)
    figure = figures.histogram(values[known & output.kept], values[known & ~output.kept], unit, limits)
    return {"name": name, "meaning": meaning, "unit": unit, "figure": figure}


def _timelines(output: Output, linked: set[str]) -> dict[str, Any]:
    """Videos drawn over time; those with kept clips first."""
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
        "least_px": figures.least_width_px(total_s),
        "ticks": figures.ticks(total_s),
        "scenes": [figures.place(a, b, total_s) for a, b in pairwise(bounds)],
        "regimes": figures.regimes([span for row in rows for span in row["action_spans"] or []], total_s),
        "clips": [_block(row, state, total_s, linked) for row, state in zip(rows, states, strict=False)],
        **figures.curves(signals, total_s),
    }


def _block(row: Row, state: str, total_s: float, linked: set[str]) -> dict[str, Any]:
    x, width = figures.place(row["start_s"], row["end_s"], total_s)
    return {"x": x, "width": width, "state": state, "row": row, "linked": row["clip_id"] in linked}


def _spread(output: Output, indices: Iterable[int], most: int) -> list[int]:
    """At most so many of these clips, evenly over their videos (by uri) and within each."""
    groups = defaultdict(list)
    for i in indices:
        groups[output.uris[i]].append(int(i))
    ordered = [groups[uri] for uri in sorted(groups)]
    chosen = figures.spread([len(group) for group in ordered], most)
    return [group[k] for group, some in zip(ordered, chosen, strict=True) for k in some]


def _sheet(output: Output, rows: list[Row], linked: set[str]) -> dict[str, Any]:
    pictures = _thumbs(output, rows)
    cards = [
        {
            "row": row,
            "pictures": _ends(pictures.get(row["clip_id"], [])),
            "linked": row["clip_id"] in linked,
            "shape": _shape(row),
            "regimes": sorted({span["name"] for span in row["action_spans"] or [] if span["name"]}),
        }
        for row in rows
    ]
    return {"cards": cards, "videos": len({row["video_id"] for row in rows}), "most": MAX_SHEET_CLIPS}


def _ends(pictures: list[str]) -> list[str]:
    """The first, the middle and the last of them."""
    return [pictures[i] for i in sorted({0, len(pictures) // 2, len(pictures) - 1})] if pictures else []


def _cameras(output: Output) -> dict[str, Any]:
    """Statuses of all kept clips; the trajectories of some."""
    known = np.asarray(pc.is_valid(output.clips["camera_model"]), bool) | (column(output.clips, "camera_focal_px") > 0)
    rows = output.rows(_spread(output, np.flatnonzero(output.kept & known), report_cameras.MAX_DRAWN))
    drawn = report_cameras.trajectories(output.out, rows)
    return {"statuses": report_cameras.statuses(output.clips, output.kept), "drawn": drawn}


def _synth(output: Output) -> dict[str, Any]:
    """Attempts at interactions: how they went, and strips of some, accepted ones first."""
    made = np.asarray(pc.is_valid(output.clips["synth_verdict"]), bool)
    drawn = [_spread(output, np.flatnonzero(made & mask), report_synth.MAX_STRIPS) for mask in (output.kept, ~output.kept)]
    rows = output.rows([index for some in drawn for index in some])
    strips = report_synth.strips(rows, _thumbs(output, rows))
    return {"tally": report_synth.tally(output.clips.filter(pa.array(made))), "strips": strips}


def _shape(row: Row) -> float:
    """Width over height of a card's pictures: the video's, but a portrait must not tower over its neighbours."""
    return round(max((row["width"] or 4) / (row["height"] or 3), 1.2), 4)


def _write_previews(output: Output, rows: Sequence[Row]) -> set[str]:
    """Copy these clips out of their shards, remove other previews; returns the ids of those that are there."""
    folder, linked = storage.join(output.out, "preview"), set()
    present = set(storage.names(folder))
    for name in present - {f"{row['clip_id']}.mp4" for row in rows}:
        storage.delete(storage.join(folder, name))
    committed = set(shards.committed(output.out))
    stored = [row for row in rows if row["shard"] in committed]
    indexes = {shard: shards.read_index(output.out, shard) for shard in sorted({row["shard"] for row in stored})}
    for row in stored:
        name = f"{row['clip_id']}.mp4"
        if name in present or _copy(output.out, indexes[row["shard"]], row["clip_id"], storage.join(folder, name)):
            linked.add(row["clip_id"])
    return linked


def _copy(out: str, index: pa.Table, clip_id: str, target: str) -> bool:
    """False where the shard lost the clip or its tar: a page without one film is better than none."""
    try:
        return storage.put(target, shards.read_member(out, index, clip_id, "mp4"))
    except (KeyError, FileNotFoundError):
        return False


def _cost(output: Output) -> dict[str, Any]:
    """CPU-seconds and decodes, summed over the units."""
    cpu_s: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    decodes, units = Counter[str](), Counter[str]()
    for record in output.records:
        units[record.phase] += 1
        decodes.update(record.decodes)
        for operator, seconds in record.cpu_s.items():
            cpu_s[record.phase][operator] += seconds
    most = max((seconds for operators in cpu_s.values() for seconds in operators.values()), default=0.0) or 1.0
    return {
        "phases": [
            _phase_cost(phase, units[phase], cpu_s[phase], most) for phase in (*SYNTH_PHASES[:1], *PHASES) if units[phase]
        ],
        "decodes": sorted(decodes.items()),
        "minutes": _source_seconds(output) / 60,
    }


def _phase_cost(phase: str, units: int, cpu_s: dict[str, float], most: float) -> dict[str, Any]:
    operators = [
        {"name": name, "seconds": seconds, "percent": round(100 * seconds / most, 2)}
        for name, seconds in sorted(cpu_s.items(), key=lambda item: -item[1])
    ]
    return {"phase": phase, "units": units, "seconds": sum(cpu_s.values()), "operators": operators}
