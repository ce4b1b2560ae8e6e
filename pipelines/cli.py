"""The command line: `gamecraft curate | synth | retry | train | report | recipe | inspect | bench`."""

import ast
import importlib.util
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from curation import s3, shards, storage
from curation.errors import LeaseLost, describe
from curation.schema import CLIP, is_dropped
from pipelines import recipes
from pipelines.recipes import PHASES, SYNTH_PHASES
from pipelines.wording import plural, short_name

if TYPE_CHECKING:
    from curation.cameras.camera import Camera

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Turns raw gameplay video into interaction-aware training shards.",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
recipe_app = typer.Typer(help="Show or list recipes.", rich_markup_mode=None)
app.add_typer(recipe_app, name="recipe")

_EXPORT_NEEDS = {"scipy": "'gamecraft[camera]'", "rerun": "'gamecraft[rerun]'"}
# By name; `bench.shipped_weights` holds what trains the weights that the package ships.
BENCHMARKS = {name: f"bench.{name}" for name in ("partition", "quality", "captions", "chaos", "curate", "camera", "synth")} | {
    "train": "bench.train_step",
    "world": "bench.demo_world",
}

Wait = Annotated[
    float,
    typer.Option(metavar="[SECONDS]", min=0, help="Wait until another run releases OUT; without SECONDS, without a limit."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(help="An output of `gamecraft curate`, also on S3; several if given again. Else data.sources of the recipe."),
]
OfTraining = Annotated[bool, typer.Option("--train", help="A recipe of training instead of curation.")]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Plan shards although sources are unfinished; those get separate shards later."),
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="An output folder of `gamecraft curate`, or an s3:// prefix.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipelines.run import code_version

        _say(f"gamecraft {code_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Turn raw gameplay video into interaction-aware training shards."""


class _Waits(TyperCommand):
    """Lets --wait stand without a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        if "--wait" in given:
            behind = given.index("--wait") + 1
            if not re.fullmatch(r"\d+(\.\d+)?", "".join(given[behind : behind + 1])):
                given.insert(behind, "inf")
        return super().parse_args(ctx, given)


@app.command(cls=_Waits)
def curate(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Videos, folders, globs, list files (.txt) or s3:// prefixes."),
    ],
    out: Annotated[str, typer.Option(help="Where everything is written: a folder or an s3:// prefix.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name (see `gamecraft recipe list`) or a YAML file.")] = "laptop",
    runner: Annotated[str, typer.Option(help="local: one process here. ray: a cluster, or all cores here.")] = "local",
    phase: Annotated[str, typer.Option(help=f"Run one phase only: {', '.join(PHASES)}.")] = "",
    partial: Partial = False,
    wait: Wait = 0.0,
) -> None:
    """Turn videos into WebDataset shards, a ledger of every clip, and a report. Run it again to go on or to add input."""
    from pipelines import run, runners
    from pipelines.report.page import write_report

    _among("--runner", runner, runners.RUNNERS)
    if phase:
        _among("--phase", phase, PHASES)
    summary = run.curate(inputs, out, recipes.load(recipe), runner, [phase] if phase else None, partial, wait)
    report = write_report(summary.out)
    _print_summary(summary, report)
    if not summary.finished:
        raise typer.Exit(1)


@app.command(cls=_Waits)
def synth(
    out: Annotated[str, typer.Option(help="Where everything is written: a folder or an s3:// prefix; also one of curate.")],
    interactions: Annotated[str, typer.Option(help="Names of interactions or categories, with commas; or all.")] = "all",
    frames: Annotated[
        str, typer.Option(help="Initial frames, with commas: pictures, folders, an OUT of curate, paint, doom, doom:WAD:MAP.")
    ] = "doom",
    recipe: Annotated[str, typer.Option(help="A recipe's name (see `gamecraft recipe list`) or a YAML file.")] = "laptop",
    runner: Annotated[str, typer.Option(help="local: one process here. ray: a cluster, or all cores here.")] = "local",
    phase: Annotated[str, typer.Option(help=f"Run one phase only: {', '.join(SYNTH_PHASES)}.")] = "",
    partial: Partial = False,
    wait: Wait = 0.0,
) -> None:
    """Make videos of interactions, verify them, and add those accepted to OUT as clips, with a ledger of every attempt."""
    from pipelines import run, runners
    from pipelines.report.page import write_report

    _among("--runner", runner, runners.RUNNERS)
    if phase:
        _among("--phase", phase, SYNTH_PHASES)
    names, given = ([word.strip() for word in words.split(",")] for words in (interactions, frames))
    summary = run.synthesise(names, given, out, recipes.load(recipe), runner, [phase] if phase else None, partial, wait)
    _print_summary(summary, write_report(summary.out))
    if not summary.finished:
        raise typer.Exit(1)


@app.command()
def train(
    out: Annotated[str, typer.Option(help="The run's folder: checkpoints, log, TensorBoard's files.")],
    recipe: Annotated[str, typer.Option(help="A training recipe's name (`gamecraft recipe list --train`) or a YAML file.")],
    data: Data = None,
    share: Annotated[
        list[float] | None, typer.Option(help="The share of samples from each --data, in their order; together 1.")
    ] = None,
    watch: Annotated[
        list[str] | None, typer.Option(help="An output that is not trained on, from which sample videos are made.")
    ] = None,
    runner: Annotated[str, typer.Option(help="local: this process, or those of torchrun. ray: ranks on a cluster.")] = "local",
    workers: Annotated[int, typer.Option(help="How many ranks on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
) -> None:
    """Train a world on shards. Run it again to go on; start it by torchrun, or on Ray, for several devices."""
    from pipelines import runners

    _among("--runner", runner, runners.RUNNERS)
    training, settings = _training(), _training_recipe(recipe)
    outputs = data or []
    if share:
        settings, outputs = training.run.with_shares(settings, outputs, share), []
    if runner == "ray":
        runners.start_ray()
        training.run.train_on_ray(settings, outputs, out, watch or (), workers, _say)
    else:
        training.run.train(settings, outputs, out, watch or (), _say)


@app.command()
def encode(
    out: Annotated[
        str, typer.Option(help="Where the latents go: a folder or an s3:// prefix; then `data.latents` of the recipe.")
    ],
    recipe: Annotated[str, typer.Option(help="The training recipe that will read them: its codec, size, rate and lengths.")],
    data: Data = None,
    runner: Annotated[str, typer.Option(help="local: this process. ray: actors on a cluster, a GPU each.")] = "local",
    workers: Annotated[int, typer.Option(help="How many actors on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
) -> None:
    """Encode what a training recipe reads, before it trains. Run it again to go on or to add what is new."""
    from pipelines import runners

    _among("--runner", runner, runners.RUNNERS)
    training, settings = _training(), _training_recipe(recipe)
    if runner == "ray":
        runners.start_ray()
    training.encode.encode(settings, data or [], out, runner == "ray", workers, _say)


@app.command()
def report(out: Out) -> None:
    """Draw the report of an output anew."""
    from pipelines.report.page import write_report

    _require_dataset(out)
    _say(write_report(storage.normal(out)))


@app.command()
def retry(
    out: Out,
    reason: Annotated[
        str,
        typer.Option(
            metavar="GLOB", help="Only reasons that match, such as '*timed out*'. Default: all failures, no verdict of a rule."
        ),
    ] = "",
    source: Annotated[str, typer.Option(metavar="URI", help="Only this source; may be a pattern.")] = "",
) -> None:
    """Take back what failed, so that the next run of the same command tries it again."""
    from pipelines import retry as retrying

    _require_dataset(out)
    taken = retrying.retry(out, reason, source)
    for one in taken[:20]:
        _say(f"  {one.phase:9} {one.clip_id or short_name(one.uri)}: {one.reason}")
    if len(taken) > 20:
        _say(f"  and {len(taken) - 20} more")
    _say(f"{plural(len(taken), 'row')} taken back" + ("; now run the same curate or synth command again" if taken else ""))


@recipe_app.command("list")
def recipe_list(train: OfTraining = False) -> None:
    """Name the built-in recipes."""
    built_in = _training().recipes.BUILT_IN if train else recipes.BUILT_IN
    for name, build in sorted(built_in.items()):
        _say(f"{name:12} {(build.__doc__ or '').strip().splitlines()[0]}")


@recipe_app.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(help="A built-in recipe or a YAML file.")] = "laptop", train: OfTraining = False
) -> None:
    """Print a recipe as YAML; save it, change it, and give the file to `curate --recipe` or `train --recipe`."""
    sys.stdout.write(recipes.to_yaml(_training_recipe(name) if train else recipes.load(name)))


def _training_recipe(name_or_path: str) -> Any:
    ours = _training().recipes
    return recipes.load(name_or_path, ours.BUILT_IN, ours.TrainRecipe)


def _training() -> Any:
    """The model's side, which needs torch: `.recipes`, `.run`, `.encode`."""
    try:
        names = {"recipes": "model.recipes", "run": "model.train", "encode": "model.encode_latents"}
        return SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})
    except ModuleNotFoundError as error:
        raise ValueError(f'training needs {error.name}; install it with: pip install "gamecraft[train]"') from error


@app.command()
def inspect(
    out: Out,
    clip: Annotated[str, typer.Argument(metavar="[CLIP]", help="A clip's id, or the first digits of it.")] = "",
    thresholds: Annotated[bool, typer.Option("--thresholds", help="What other limits of the score phase would keep.")] = False,
    camera: Annotated[
        str, typer.Option(metavar="FILE", help="Save CLIP's camera as .npz, .tum, .txt (RealEstate10K) or .rrd (rerun).")
    ] = "",
) -> None:
    """Say what an output holds: its sources and why clips were taken out, or everything about one clip."""
    from pipelines import ledger

    dataset = _require_dataset(out)
    out = storage.normal(out)
    if thresholds:
        _print_thresholds(out, dataset)
        return
    clips = ledger.clips(out)
    if clip:
        _print_clip(out, _one(out, clips, clip), camera)
    elif camera:
        raise ValueError("--camera saves the camera of one clip: name it, as in `gamecraft inspect OUT CLIP --camera FILE`")
    else:
        _print_overview(dataset, clips, ledger.videos(out))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"One of {', '.join(BENCHMARKS)}; without one they are listed.")
    ] = "",
) -> None:
    """Measure one part of the project; each benchmark has options of its own (`gamecraft bench NAME --help`)."""
    if name in ("", "-h", "--help"):
        _say("gamecraft bench NAME [OPTIONS]; each has options of its own: gamecraft bench NAME --help\n")
        for known, module in BENCHMARKS.items():
            _say(f"{known:10} {_first_line(module)}")
        return
    _among("NAME", name, tuple(BENCHMARKS))
    try:
        importlib.import_module(BENCHMARKS[name]).main(context.args)
    except ModuleNotFoundError as error:
        raise ValueError(f'it needs {error.name}; install it with: pip install "gamecraft[bench,train]"') from error


def _first_line(module: str) -> str:
    """What a module says that it is; read and not imported, since it may need what is not installed."""
    spec = importlib.util.find_spec(module)
    words = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) if spec and spec.origin else None
    return (words or "").partition("\n\n")[0].replace("\n", " ")


def _require_dataset(out: str) -> dict[str, Any]:
    dataset = shards.read_dataset(storage.normal(out))
    if dataset is None:
        raise ValueError(f"{out}: no dataset.json there; is it an output of `gamecraft curate`?")
    return dataset


def _among(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, not {value!r}")


def _print_overview(dataset: dict[str, Any], clips: Any, videos: Any) -> None:
    counts = dataset["counts"]
    held = plural(len(dataset["shards"]), "shard")
    _say(f"recipe {dataset['recipe_name']}, schema {dataset['schema_version']}, {held}")
    kept, stored = counts.get("kept", 0), counts.get("stored", 0)
    _say(f"{plural(len(videos), 'source')}, {plural(len(clips), 'clip')}: {kept} kept, {stored} in shards\n")
    sources = Table("source", "status", "seconds", "clips", "kept", "why", box=None, header_style="bold")
    rows = clips.select(["reject", "error", "unit_id"]).to_pylist()
    rows_of = defaultdict(list)
    for row in rows:
        rows_of[row["unit_id"]].append(row)
    for video in videos.to_pylist():
        mine = rows_of[video["unit_id"]]
        out = Counter(_kind(r) for r in mine if is_dropped(r))
        seconds = f"{video['duration_s']:.1f}" if video["duration_s"] else ""
        why = [video["reason"], video["note"], *(f"{count} {kind}" for kind, count in out.most_common())]
        counts = str(len(mine)), str(len(mine) - out.total())
        sources.add_row(short_name(video["uri"]), video["status"], seconds, *counts, ", ".join(filter(None, why)))
    _console().print(sources)
    for kind, count in Counter(_kind(r) for r in rows if is_dropped(r)).most_common():
        _say(f"{plural(count, 'clip'):>9}: {kind}")


def _kind(row: dict[str, Any]) -> str:
    """A reason without its numbers."""
    return str(row["reject"] or row["error"]).partition(":")[0]


def _print_thresholds(out: str, dataset: dict[str, Any]) -> None:
    """A table a rule; the limit in use is marked."""
    from pipelines.report.thresholds import trials

    tables: dict[str, Table] = {}
    for trial in trials(out, dataset):
        rule = trial.rule
        title = f"{rule.score}: {rule.settings}.{rule.limit}, at {'least' if rule.least else 'most'}"
        if title not in tables:
            tables[title] = Table("limit", "", "kept", "min", "rejected", "min", box=None, header_style="bold")
        limit = "off" if trial.limit is None else f"{trial.limit:g}"
        kept, rejected = (str(trial.kept), f"{trial.kept_s / 60:.1f}"), (str(trial.rejected), f"{trial.rejected_s / 60:.1f}")
        tables[title].add_row(limit, "now" if trial.current else "", *kept, *rejected)
    for title, table in tables.items():
        _say(f"\n{title}")
        _console().print(table)


def _one(out: str, clips: Any, clip: str) -> dict[str, Any]:
    """The row of the clip whose id begins so."""
    found: list[dict[str, Any]] = [row for row in clips.to_pylist() if row["clip_id"].startswith(clip)]
    if len(found) != 1:
        matches = ", ".join(row["clip_id"] for row in found[:5])
        raise ValueError(f"{clip}: {f'{len(found)} clips begin so: {matches}' if found else 'no clip of that id'} in {out}")
    return found[0]


def _print_clip(out: str, row: dict[str, Any], camera: str) -> None:
    table = Table("column", "value", "unit", box=None, header_style="bold")
    for field in CLIP:
        value = row[field.name]
        if value is not None:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(field.name, shown, field.metadata[b"unit"].decode())
    _console().print(table)
    _print_members(out, row)
    stored = _stored_camera(out, row)
    if stored:
        _print_controls(stored)
    if camera:
        if stored is None:
            raise ValueError(f"{row['clip_id']} has no camera: {row['camera_status'] or 'not annotated'}")
        _save_camera(stored, row["clip_id"], camera)


def _stored_camera(out: str, row: dict[str, Any]) -> "Camera | None":
    """The stored clip's camera where it is in a shard, else that of its source's pixels."""
    from curation.cameras.camera import from_npz
    from pipelines import ledger, units

    data = ledger.cameras(out, units.of_videos(out, "annotate", {row["video_id"]})).get(row["clip_id"])
    if row["shard"] and data:
        data = shards.read_member(out, shards.read_index(out, row["shard"]), row["clip_id"], "camera.npz")
    return from_npz(data) if data else None


def _print_controls(camera: "Camera") -> None:
    from pipelines.report.cameras import timeline

    for line in timeline(camera):
        _say(line)


def _save_camera(camera: "Camera", clip_id: str, path: str) -> None:
    from curation.cameras import export

    try:
        export.save(camera, path, clip_id)
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs the package {error.name}: pip install {_EXPORT_NEEDS[error.name or '']}") from error
    _say(f"camera saved as {path}")


def _print_members(out: str, row: dict[str, Any]) -> None:
    if row["shard"]:
        for member in shards.read_index(out, row["shard"]).to_pylist():
            if member["clip_id"] == row["clip_id"]:
                _say(f"{member['member']}: {member['size']} bytes at {member['offset']} of shards/{member['tar']}")


def _print_summary(summary: Any, report: str) -> None:
    """Cost by operator, then one line that says what came out and where to look."""
    cost: dict[str, float] = {}
    decodes: dict[str, int] = {}
    for record in summary.records:
        for name, seconds in record.cpu_s.items():
            cost[name] = cost.get(name, 0) + seconds
        for name, count in record.decodes.items():
            decodes[name] = decodes.get(name, 0) + count
    for name, seconds in cost.items():
        _say(f"  {name:20} {seconds:9.2f} CPU-s")
    if decodes:
        _say("  decodes: " + ", ".join(f"{count} {name}" for name, count in sorted(decodes.items())))
    if words := s3.throttling(summary.s3):
        _say(f"  {words}")
    for title, words in summary.said:
        _say(f"  {title}: {words}")
    done, before = len(summary.records) - len(summary.failures), sum(summary.before.values())
    _say(f"  {plural(done, 'unit')} done in {summary.wall_s:.1f} s, {before} were done before")
    gone = [f"{n} {what}" for n, what in ((summary.unreadable, "unreadable"), (summary.duplicates, "duplicate")) if n]
    _say(
        f"{', '.join([plural(summary.sources, 'source'), *gone])}; {plural(summary.clips, 'clip')}: "
        f"kept {summary.kept} ({summary.kept_s / 60:.1f} of {summary.total_s / 60:.1f} min), rejected {summary.rejected}, "
        f"failed {summary.errors}; {summary.stored} in {plural(summary.shards, 'shard')}"
    )
    if summary.changed:
        _say(
            f"{plural(len(summary.changed), 'source')} changed after being measured; clips of the old version that are not in "
            "shards are superseded"
        )
    if summary.held:
        _say(f"no new shards are planned: {summary.held}")
    if summary.failures:
        _say(f"{plural(len(summary.failures), 'unit')} could not be finished; the same command tries again")
    _say(f"look at {report}")


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 160)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> None:
    """Run the command; what a user got wrong is one line on stderr and exit status 2."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        status = app(standalone_mode=False)
    except (ValueError, OSError) as error:
        status = _fail(str(error) or describe(error), 2)
    except LeaseLost as error:
        status = _fail(str(error), 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own way of saying what was wrong with the words
            raise
        status = _fail(error.format_message(), 2)
    if status == _INTERRUPTED:
        _fail("stopped; the same command goes on from here", status)
    sys.exit(status)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"gamecraft: {storage.shown(message)}\n")
    return status
