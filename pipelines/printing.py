"""What the command line prints: the summary of a run, an overview of an output, everything about one clip."""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from curation import s3, shards
from curation.errors import InputError, Unavailable
from curation.schema import CLIP, is_dropped
from pipelines.wording import plural, short_name

if TYPE_CHECKING:
    from curation.cameras.camera import Camera
    from pipelines.dry_run import Estimate, Interval
    from pipelines.exports.clips import Exported
    from pipelines.ledger import Part
    from pipelines.verify import Verification

_MAX_LISTED = 16
_MAX_SOURCES = 1000  # lines of an overview
_EXPORT_NEEDS = {"scipy": "'gamecraft[camera]'", "rerun": "'gamecraft[rerun]'"}


def print_overview(dataset: dict[str, Any], parts: "Iterable[Part]") -> None:
    """Print the counts of an output, its sources (the first of many), and why clips were dropped. parts: of `ledger.scan`."""
    counts = dataset["counts"]
    sources = Table("source", "status", "seconds", "clips", "kept", "why", box=None, header_style="bold")
    listed: list[tuple[str, ...]] = []
    videos, clips, kinds = 0, 0, Counter[str]()
    for part in parts:
        videos, clips = videos + len(part.videos), clips + len(part.clips)
        rows_of = defaultdict(list)
        for row in part.clips.select(["reject", "error", "unit_id"]).to_pylist():
            rows_of[row["unit_id"]].append(row)
            if is_dropped(row):
                kinds[_kind(row)] += 1
        if len(listed) < _MAX_SOURCES:
            listed += [_overview_row(video, rows_of[video["unit_id"]]) for video in part.videos.to_pylist()]
    for _, *cells in sorted(listed)[:_MAX_SOURCES]:
        sources.add_row(*cells)
    say(f"recipe {dataset['recipe_name']}, schema {dataset['schema_version']}, {plural(len(dataset['shards']), 'shard')}")
    kept, stored = counts.get("kept", 0), counts.get("stored", 0)
    say(f"{plural(videos, 'source')}, {plural(clips, 'clip')}: {kept} kept, {stored} in shards\n")
    _console().print(sources)
    if videos > _MAX_SOURCES:
        say(f" and {plural(videos - _MAX_SOURCES, 'more source')}")
    for kind, count in kinds.most_common():
        say(f"{plural(count, 'clip'):>9}: {kind}")


def _overview_row(video: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the uri of a source, to sort by, and the cells of its line."""
    dropped = Counter(_kind(row) for row in clips if is_dropped(row))
    seconds = f"{video['duration_s']:.1f}" if video["duration_s"] else ""
    why = [video["reason"], video["note"], *(f"{count} {kind}" for kind, count in dropped.most_common())]
    kept = str(len(clips) - dropped.total())
    line = (short_name(video["uri"]), video["status"], seconds, str(len(clips)), kept, ", ".join(filter(None, why)))
    return video["uri"], *line


def _kind(row: dict[str, Any]) -> str:
    """Return a row's reason without its numbers."""
    return str(row["reject"] or row["error"]).partition(":")[0]


def print_thresholds(out: str, dataset: dict[str, Any]) -> None:
    """Print one table a rule, with the limit in use marked."""
    from pipelines.report.thresholds import trials

    tables: dict[str, Table] = {}
    for trial in trials(out, dataset):
        rule = trial.rule
        title = f"{rule.score}: {rule.settings}.{rule.limit}, at {'least' if rule.is_minimum else 'most'}"
        if title not in tables:
            tables[title] = Table("limit", "", "kept", "min", "rejected", "min", box=None, header_style="bold")
        limit = "off" if trial.limit is None else f"{trial.limit:g}"
        kept, rejected = (str(trial.kept), f"{trial.kept_s / 60:.1f}"), (str(trial.rejected), f"{trial.rejected_s / 60:.1f}")
        tables[title].add_row(limit, "now" if trial.current else "", *kept, *rejected)
    for title, table in tables.items():
        say(f"\n{title}")
        _console().print(table)


def clip_row(out: str, clip: str) -> dict[str, Any]:
    """Return the row of the clip whose id begins with `clip`."""
    import pyarrow.compute as pc

    from pipelines import ledger

    rows: list[dict[str, Any]] = []
    for part in ledger.scan(out):
        rows += part.clips.filter(pc.starts_with(part.clips["clip_id"], clip)).to_pylist()
    if len(rows) != 1:
        matches = ", ".join(row["clip_id"] for row in rows[:5])
        raise InputError(
            f"{clip}: {f'{len(rows)} clips begin with it: {matches}' if rows else 'no clip with that id'} in {out}"
        )
    return rows[0]


def _shown(value: Any) -> str:
    """Return a value in a few words: spans by time and what they are, and of long lists only the length."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and isinstance(value[0], dict) and "start_s" in value[0]:
        return "; ".join(f"{span.get('name') or span['model']} {span['start_s']:.2f}-{span['end_s']:.2f}" for span in value)
    if isinstance(value, list) and len(value) > _MAX_LISTED:
        return f"{len(value)} values"
    return str(value)


def print_clip(out: str, row: dict[str, Any], camera: str) -> None:
    table = Table("column", "value", "unit", box=None, header_style="bold")
    for field in CLIP:
        value = row[field.name]
        if value is not None:
            table.add_row(field.name, _shown(value), field.metadata[b"unit"].decode())
    _console().print(table)
    _print_members(out, row)
    stored = _stored_camera(out, row)
    if stored:
        _print_controls(stored)
    if camera:
        if stored is None:
            raise InputError(f"{row['clip_id']} has no camera: {row['camera_status'] or 'not annotated'}")
        _save_camera(stored, row["clip_id"], camera)


def _stored_camera(out: str, row: dict[str, Any]) -> "Camera | None":
    """Return the camera of the clip in its shard, or else of its source's pixels; None where the clip has none."""
    from curation.cameras.camera import from_npz
    from pipelines import ledger, units

    data = ledger.cameras(out, units.list_of_videos(out, "annotate", {row["video_id"]})).get(row["clip_id"])
    if row["shard"] and data:
        data = shards.read_member(out, shards.read_index(out, row["shard"]), row["clip_id"], "camera.npz")
    return from_npz(data) if data else None


def _print_controls(camera: "Camera") -> None:
    from pipelines.report.cameras import timeline

    for line in timeline(camera):
        say(line)


def _save_camera(camera: "Camera", clip_id: str, path: str) -> None:
    from curation.cameras import export

    try:
        export.save(camera, path, clip_id)
    except ModuleNotFoundError as error:
        raise Unavailable(f"{path} needs the package {error.name}: pip install {_EXPORT_NEEDS[error.name or '']}") from error
    say(f"camera saved as {path}")


def _print_members(out: str, row: dict[str, Any]) -> None:
    if row["shard"]:
        for member in shards.read_index(out, row["shard"]).to_pylist():
            if member["clip_id"] == row["clip_id"]:
                say(f"{member['member']}: {member['size']} bytes at {member['offset']} of shards/{member['tar']}")


def print_summary(summary: Any, report: str) -> None:
    """Print the cost by operator, then what came out and where to look."""
    work = summary.work
    for name, seconds in work.cpu_s.items():
        say(f"  {name:20} {seconds:9.2f} CPU-s")
    if work.decodes:
        say("  decodes: " + ", ".join(f"{count} {name}" for name, count in sorted(work.decodes.items())))
    if words := s3.throttling(summary.s3):
        say(f"  {words}")
    for title, words in summary.notes:
        say(f"  {title}: {words}")
    done, before = work.units - work.failed, sum(summary.before.values())
    say(f"  {plural(done, 'unit')} done in {summary.wall_s:.1f} s, {before} were done before")
    left_out = [f"{n} {what}" for n, what in ((summary.unreadable, "unreadable"), (summary.duplicates, "duplicate")) if n]
    say(
        f"{', '.join([plural(summary.sources, 'source'), *left_out])}; {plural(summary.clips, 'clip')}: "
        f"kept {summary.kept} ({summary.kept_s / 60:.1f} of {summary.total_s / 60:.1f} min), rejected {summary.rejected}, "
        f"failed {summary.errors}; {summary.stored} in {plural(summary.shards, 'shard')}"
    )
    if summary.changed:
        say(
            f"{plural(len(summary.changed), 'source')} changed after being measured; clips of the old version that are not in "
            "shards are superseded"
        )
    if summary.held:
        say(f"no new shards are planned: {summary.held}")
    if work.failed:
        say(f"{plural(work.failed, 'unit')} could not be finished; run the same command again to retry")
    if summary.lost:
        say(f"{plural(summary.lost, 'source')} lost: OUT/dead says why; `gamecraft retry OUT` lets the next run try again")
    say(f"report: {report}")


def print_export(exported: "Exported", to: str) -> None:
    """Print how many clips an export has, and why others are not in it."""
    left_out = ", ".join(f"{count} left out ({reason})" for reason, count in sorted(exported.left_out.items()))
    say(f"{plural(exported.clips, 'clip')} in {to}{f'; {left_out}' if left_out else ''}")


def print_verification(result: "Verification", repaired: bool, mended: int) -> None:
    """Print what was checked, and a table of what is wrong, by kind."""
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(result.sources.items()))
    read = f"; {result.bytes_read / 2**20:.1f} MiB read" if result.bytes_read else ""
    say(
        f"{plural(result.sources.total(), 'source')}{f' ({statuses})' if statuses else ''}, {plural(result.units, 'unit')}, "
        f"{plural(result.clips, 'clip')}: {result.kept} kept, {result.stored} in {plural(result.shards, 'shard')}, "
        f"{result.waiting} waiting{read}"
    )
    if not result.problems:
        say("nothing is wrong")
        return
    table = Table("what", "how many", "remedy", "example", box=None, header_style="bold")
    kinds = Counter((problem.kind, problem.remedy) for problem in result.problems)
    for (kind, remedy), count in kinds.most_common():
        example = next(problem for problem in result.problems if (problem.kind, problem.remedy) == (kind, remedy))
        table.add_row(kind, str(count), remedy, f"{example.uri}: {example.words}")
    _console().print(table)
    if repaired:
        say(f"{mended} of {plural(len(result.problems), 'problem')} mended; what was moved is in OUT/trash")
    elif any(problem.remedy in ("move to trash", "make again") for problem in result.problems):
        say("`gamecraft verify OUT --repair` mends what can be moved away or made again")


def print_estimate(estimate: "Estimate") -> None:
    """Print what a run would cost and give, with intervals; of one source also its clips."""
    say(f"input: {plural(estimate.sources, 'source')}, {_bytes(estimate.bytes)}; sample: {plural(estimate.sampled, 'source')}")
    if estimate.sampled == 1:
        _print_sampled_clips(estimate.rows)
    table = Table("estimate for the whole input", "value", "9 of 10 samples", box=None, header_style="bold")
    hours = {"footage": "source_s", "kept": "kept_s", "CPU time": "cpu_s"}
    for title, name in hours.items():
        table.add_row(title, *_interval(estimate.totals[name], lambda seconds: f"{seconds / 3600:,.2f} h"))
    for cores in (1, 16, 256):
        table.add_row(f"wall time on {plural(cores, 'core')}", *_interval(estimate.wall_s(cores), _duration))
    table.add_row("clips", *_interval(estimate.totals["clips"], "{:,.0f}".format))
    table.add_row("clips kept", *_interval(estimate.totals["kept"], "{:,.0f}".format))
    table.add_row("shards", *_interval(estimate.totals["stored_bytes"], _bytes))
    table.add_row("files of units", *_interval(estimate.totals["objects"], "{:,.0f}".format))
    _console().print(table)
    total = sum(estimate.cpu_s.values()) or 1.0
    say(
        "CPU time by phase: " + ", ".join(f"{phase} {100 * seconds / total:.0f} %" for phase, seconds in estimate.cpu_s.items())
    )
    if estimate.reasons:
        say("dropped: " + ", ".join(f"{count} {reason}" for reason, count in estimate.reasons.most_common(6)))
    if estimate.lost:
        say(f"{estimate.lost} of the sample cannot be read or failed")
    for note in estimate.notes:
        say(f"note: {note}")
    say("nothing was written")


def _print_sampled_clips(rows: list[dict[str, Any]]) -> None:
    clips = Table("clip", "from s", "to s", "verdict", "caption", box=None, header_style="bold")
    for row in rows:
        verdict = row["reject"] or row["error"] or "kept"
        clips.add_row(row["clip_id"], f"{row['start_s']:.2f}", f"{row['end_s']:.2f}", verdict, row["caption_short"] or "")
    _console().print(clips)


def _interval(interval: "Interval", words: Callable[[float], str]) -> tuple[str, str]:
    if interval.low is None or interval.high is None:
        return words(interval.value), "one source: unknown"
    return words(interval.value), f"{words(interval.low)} to {words(interval.high)}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:,.1f} h"


def _bytes(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
