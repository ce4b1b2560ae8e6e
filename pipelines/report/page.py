"""The report of an output: one HTML page with the sources, the kept clips, and the reasons for all dropped clips.

    OUT/report.html             self-contained: styles, script, drawings, thumbnails; equal outputs give equal pages
    OUT/preview/<clip_id>.mp4   the clips of its contact sheet, copied from their shards, so that a browser can play them

Rows, thumbnails and signals are read in full only for the clips that are shown. Everything else is counted in columns.
"""

import os
from collections import Counter, defaultdict
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import shards, storage
from curation.output_folder import OutputFolder
from curation.quality.luminance import RULES, Luminance
from curation.schema import CLIP
from curation.yaml_text import dump_yaml
from pipelines import caption_summary
from pipelines.ledger import Work
from pipelines.recipes import PHASES, SYNTH_PHASES
from pipelines.report import cameras, clips, funnel, svg, synth
from pipelines.report.output import Output, column, read_output, sample_clips, thumbs
from pipelines.report.svg import clock, duration, number
from pipelines.wording import plural, short_name

_REGIMES = ("forward", "back", "turn_left", "turn_right", "look_up", "look_down", "strafe_left", "strafe_right")


def write_report(out: str, output: Output | None = None) -> str:
    """Write OUT/report.html and the previews that it links to. Return its uri. An empty OUT gives an empty page.

    output: what a run has read of OUT; None: it is read. Of more than 10,000 clips the page shows a sample, and says so.
    """
    output = output or read_output(storage.normal(out))
    page = _template().render(_page(output))
    uri = OutputFolder(output.out).report
    storage.put(uri, page.encode())
    return uri


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.join(os.path.dirname(__file__), "templates")),
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
    sheet = output.rows(sample_clips(output, np.flatnonzero(output.kept), clips.MAX_SHEET_CLIPS))
    linked = clips.write_previews(output, sheet)
    return {
        "recipe": output.dataset.get("recipe_name", "unknown recipe"),
        "whole": output.dataset.get("counts", {}) if output.is_sample else None,
        "totals": _totals(output),
        "funnel": funnel.funnel(output),
        "rejects": funnel.reasons(output, output.rejected, "reject"),
        "errors": funnel.reasons(output, output.failed, "error"),
        "lost_sources": funnel.lost_sources(output),
        "histograms": _histograms(output),
        "timelines": clips.timelines(output, linked),
        "captioned": caption_summary.lines(output.clips.filter(pa.array(output.kept)), Work.of(output.records)),
        "sheet": clips.sheet(output, sheet, linked),
        "cameras": _cameras(output),
        "synth": _synth(output),
        "cost": _cost(output),
        "yaml": dump_yaml(output.dataset.get("recipe", {})),
        "build": output.dataset.get("build", {}),
        "regimes": _REGIMES,
    }


def _totals(output: Output) -> dict[str, Any]:
    stored = len(output.clips) - output.clips["shard"].null_count
    states = {name: getattr(output, name) for name in ("kept", "rejected", "failed")}
    return {
        "sources": len(output.videos),
        "source_s": output.source_s,
        "clips": len(output.clips),
        **{name: int(mask.sum()) for name, mask in states.items()},
        **{f"{name}_s": float(output.seconds[mask].sum()) for name, mask in states.items()},
        "waiting": int(output.kept.sum()) - stored,
        "shards": len(shards.list_committed(output.out)),
    }


def _histograms(output: Output) -> dict[str, Any]:
    """Return one histogram per score, with the recipe's limits."""
    scores = ("iqa", "iqa_frozen", *Luminance._fields, "motion_camera", "motion_object")
    histograms = [_score_histogram(output, name) for name in scores]
    min_clip_s = output.limit("partition", "scenes", "min_clip_s")
    limits = [("at least", min_clip_s)] if min_clip_s else []
    histograms.append(_histogram(output, output.seconds, "length", "length of the clip", "s", limits))
    return {
        "drawn": [item for item in histograms if item["figure"].measured],
        "unmeasured": [item["name"] for item in histograms if not item["figure"].measured],
    }


def _score_histogram(output: Output, name: str) -> dict[str, Any]:
    about = {key.decode(): value.decode() for key, value in CLIP.field(name).metadata.items()}
    rules = [(rule, output.limit("score", rule.settings, rule.limit)) for rule in RULES if rule.score == name]
    limits = [("at least" if rule.is_minimum else "at most", value) for rule, value in rules if value is not None]
    return _histogram(output, column(output.clips, name), name, about["meaning"], about["unit"], limits)


def _histogram(
    output: Output, values: np.ndarray, name: str, meaning: str, unit: str, limits: list[tuple[str, float]]
) -> dict[str, Any]:
    known = np.isfinite(values)
    figure = svg.histogram(values[known & output.kept], values[known & ~output.kept], unit, limits)
    return {"name": name, "meaning": meaning, "unit": unit, "figure": figure}


def _cameras(output: Output) -> dict[str, Any]:
    """Return the camera statuses of all kept clips, and the trajectories of some."""
    known = np.asarray(pc.is_valid(output.clips["camera_model"]), bool) | (column(output.clips, "camera_focal_px") > 0)
    rows = output.rows(sample_clips(output, np.flatnonzero(output.kept & known), cameras.MAX_DRAWN))
    drawn = cameras.trajectories(output.out, rows)
    return {
        "statuses": cameras.statuses(output.clips, output.kept),
        "valid_share": cameras.valid_share(output.clips, output.kept),
        "drawn": drawn,
    }


def _synth(output: Output) -> dict[str, Any]:
    """Return the attempts at interactions with their verdicts, and strips of some, accepted ones first."""
    made = np.asarray(pc.is_valid(output.clips["synth_verdict"]), bool)
    drawn = [sample_clips(output, np.flatnonzero(made & mask), synth.MAX_STRIPS) for mask in (output.kept, ~output.kept)]
    rows = output.rows([index for some in drawn for index in some])
    strips = synth.strips(rows, thumbs(output, rows))
    return {"tally": synth.tally(output.clips.filter(pa.array(made))), "strips": strips}


def _cost(output: Output) -> dict[str, Any]:
    """Sum CPU-seconds and decodes over the units."""
    cpu_s: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    decodes, units = Counter[str](), Counter[str]()
    for record in output.records:
        units[record.phase] += 1
        decodes.update(record.decodes)
        for operator, seconds in record.cpu_s.items():
            cpu_s[record.phase][operator] += seconds
    longest_s = max((seconds for operators in cpu_s.values() for seconds in operators.values()), default=0.0) or 1.0
    return {
        "phases": [
            _phase_cost(phase, units[phase], cpu_s[phase], longest_s) for phase in (*SYNTH_PHASES[:1], *PHASES) if units[phase]
        ],
        "decodes": sorted(decodes.items()),
        "minutes": output.source_s / 60,
    }


def _phase_cost(phase: str, units: int, cpu_s: dict[str, float], longest_s: float) -> dict[str, Any]:
    operators = [
        {"name": name, "seconds": seconds, "percent": round(100 * seconds / longest_s, 2)}
        for name, seconds in sorted(cpu_s.items(), key=lambda item: -item[1])
    ]
    return {"phase": phase, "units": units, "seconds": sum(cpu_s.values()), "operators": operators}
