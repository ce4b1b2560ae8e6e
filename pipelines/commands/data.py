"""The commands that make an output and look after it: curate, synth, compact, verify, report, retry, inspect."""

import logging
from typing import Annotated, Any

import typer

from curation import storage
from curation.arrow_import import skip_pandas
from curation.errors import InputError
from pipelines import logs, recipes
from pipelines.commands.options import OfCuration, OnCluster, Out, Partial, Wait, Workers, check_choice, require_dataset, values
from pipelines.printing import clip_row, print_clip, print_overview, print_summary, print_thresholds, say
from pipelines.recipes import PHASES, SYNTH_PHASES
from pipelines.wording import plural, short_name

LOST_SOURCES = 3
"""Exit status where all is done and a source was lost."""


def curate(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Videos, folders, globs, list files (.txt) or s3:// prefixes."),
    ],
    out: Annotated[str, typer.Option(help="Where everything is written: a folder or an s3:// prefix.")] = "",
    recipe: OfCuration = "laptop",
    runner: OnCluster = "local",
    workers: Workers = 0,
    phase: Annotated[str, typer.Option(autocompletion=values(*PHASES), help=f"Run one phase only: {', '.join(PHASES)}.")] = "",
    partial: Partial = False,
    wait: Wait = 0.0,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing, and ignore --out: curate a sample here, and print what all of the input would cost and give.",
        ),
    ] = False,
    sample: Annotated[int, typer.Option(help="How many sources --dry-run curates.", min=1)] = 20,
) -> None:
    """Turn videos into WebDataset shards, a ledger of every clip, and a report. Run it again to resume or to add input."""
    from pipelines import run, runners

    check_choice("--runner", runner, runners.RUNNERS)
    if runner == "local":
        skip_pandas()
    if phase:
        check_choice("--phase", phase, PHASES)
    if dry_run:
        from pipelines import dry_run as estimation
        from pipelines.printing import print_estimate

        print_estimate(estimation.estimate(inputs, recipes.load(recipe), sample, workers))
        return
    if not out:
        raise InputError("--out is missing: where everything is written, a folder or an s3:// prefix")
    summary = run.curate(inputs, out, recipes.load(recipe), runner, [phase] if phase else None, partial, wait, workers)
    _finish(summary)


def synth(
    out: Annotated[str, typer.Option(help="Where everything is written: a folder or an s3:// prefix; also one of curate.")],
    interactions: Annotated[str, typer.Option(help="Interactions or categories, with commas; or all.")] = "all",
    frames: Annotated[
        str,
        typer.Option(
            help="Initial frames, with commas: pictures, folders, an OUT of curate, paint, doom, doom:WAD:MAP, minetest,"
            " minetest:MAPGEN:SEED."
        ),
    ] = "doom",
    recipe: OfCuration = "laptop",
    runner: OnCluster = "local",
    workers: Workers = 0,
    phase: Annotated[
        str, typer.Option(autocompletion=values(*SYNTH_PHASES), help=f"Run one phase only: {', '.join(SYNTH_PHASES)}.")
    ] = "",
    partial: Partial = False,
    wait: Wait = 0.0,
) -> None:
    """Make videos of interactions, verify them, and add those accepted to OUT as clips, with a ledger of every attempt."""
    from pipelines import run, runners

    check_choice("--runner", runner, runners.RUNNERS)
    if runner == "local":
        skip_pandas()
    if phase:
        check_choice("--phase", phase, SYNTH_PHASES)
    names, starts = ([word.strip() for word in words.split(",")] for words in (interactions, frames))
    summary = run.synthesise(
        names, starts, out, recipes.load(recipe), runner, [phase] if phase else None, partial, wait, workers
    )
    _finish(summary)


def _finish(summary: Any) -> None:
    """Write the report and print the summary. Exit with 1 where something is left to do, and with 3 where sources were lost."""
    from pipelines.report.page import write_report

    report = write_report(summary.out, summary.output)
    if logs.is_shown(logging.WARNING):
        print_summary(summary, report)
    if not summary.finished:
        raise typer.Exit(1)
    if summary.lost:
        raise typer.Exit(LOST_SOURCES)


def compact(out: Out, wait: Wait = 0.0) -> None:
    """Pack the small files of an output's units into segments, which makes later runs cheaper. Results stay the same."""
    skip_pandas()
    from pipelines.compact import compact as compact_output

    require_dataset(out)
    packed = compact_output(storage.normal(out), wait)
    say(f"{plural(packed, 'file')} packed" if packed else "nothing to pack")


def verify(
    out: Out,
    deep: Annotated[bool, typer.Option("--deep", help="Also read all shards and segments, and compare hashes.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what does not count to OUT/trash, and have damaged shards made again.")
    ] = False,
) -> None:
    """Check that an output is whole: nothing missing, damaged, twice or left over. Exit with 1 where something is wrong."""
    skip_pandas()
    from pipelines import verify as verification
    from pipelines.printing import print_verification

    require_dataset(out)
    if repair:
        result, mended = verification.repair(out, deep)
    else:
        result, mended = verification.verify(out, deep), 0
    print_verification(result, repair, mended)
    if len(result.problems) > mended:
        raise typer.Exit(1)


def report(out: Out) -> None:
    """Write the report of an output again."""
    skip_pandas()
    from pipelines.report.page import write_report

    require_dataset(out)
    say(write_report(storage.normal(out)))


def retry(
    out: Out,
    reason: Annotated[
        str,
        typer.Option(
            metavar="GLOB",
            help="Only rows whose reason matches, such as '*timed out*'. Default: all failures, not what a rule rejected.",
        ),
    ] = "",
    source: Annotated[str, typer.Option(metavar="URI", help="Only this source; may be a pattern.")] = "",
) -> None:
    """Clear failures, so that the next run of the same command tries them again."""
    skip_pandas()
    from pipelines.retry import clear_reasons

    require_dataset(out)
    cleared = clear_reasons(out, reason, source)
    for row in cleared[:20]:
        say(f"  {row.phase:9} {row.clip_id or short_name(row.uri)}: {row.reason}")
    if len(cleared) > 20:
        say(f"  and {len(cleared) - 20} more")
    again = "; now run the same curate or synth command again" if cleared else ""
    say(f"{plural(len(cleared), 'failure')} cleared{again}")


def inspect(
    out: Out,
    clip: Annotated[str, typer.Argument(metavar="[CLIP]", help="A clip's id, or its first characters.")] = "",
    thresholds: Annotated[bool, typer.Option("--thresholds", help="What other limits of the score phase would keep.")] = False,
    camera: Annotated[
        str, typer.Option(metavar="FILE", help="Save CLIP's camera as .npz, .tum, .txt (RealEstate10K) or .rrd (rerun).")
    ] = "",
) -> None:
    """Print what an output holds: its sources and why clips were dropped, or everything about one clip."""
    skip_pandas()
    from pipelines import ledger

    dataset = require_dataset(out)
    out = storage.normal(out)
    if thresholds:
        print_thresholds(out, dataset)
        return
    if clip:
        print_clip(out, clip_row(out, clip), camera)
    elif camera:
        raise InputError("--camera saves the camera of one clip: name it, as in `gamecraft inspect OUT CLIP --camera FILE`")
    else:
        print_overview(dataset, ledger.scan(out, ("reject", "error")))
