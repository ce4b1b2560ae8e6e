"""The command line: `gamecraft curate | synth | retry | compact | verify | train | encode | play | rollout | replay | generate
| eval | layout | report | recipe | inspect | bench | doctor`.

The functions behind them are in `pipelines.commands`. They import what they need when they run: `model` needs torch, and help
and `inspect` need neither. Exit status: 0 done; 1
something is left to do, or this machine lacks something; 2 wrong input; 3 done, but sources were lost (they cannot be read, or
failed for good); 70 a bug of ours; 130 interrupted.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from curation import storage
from curation.errors import GamecraftError, InputError, Unavailable, describe
from pipelines import logs, recipes, setting_comments
from pipelines.commands import data, evaluation, playing, training
from pipelines.commands.options import OfTraining, Waits, check_choice, needs_extra, training_recipe, training_recipes, values
from pipelines.printing import say

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Turns raw gameplay video into interaction-aware training shards, and trains a world model on them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
recipe_app = typer.Typer(help="Show or list recipes.", rich_markup_mode=None)
app.add_typer(recipe_app, name="recipe")

BENCHMARKS = {
    "partition": "cuts, interactions and control regimes, compared with a game engine's truth",
    "quality": "picture quality: how well known damage is found",
    "captions": "interactive or not, and captions, compared with a game engine's truth",
    "chaos": "resume: runs that are killed at random must end like an undisturbed one",
    "duplicates": "near-duplicates: copies that are found, by kind, and different takes that are taken for copies",
    "curate": "cost: one curation run compared with one decode and one encode",
    "camera": "camera poses, compared with a game engine's truth",
    "fvd": "FVD of real videos and of damage of known strength",
    "judge": "a judge of InterBench on trial: how far it can be believed, on a game engine's takes",
    "infer": "speed of play: frames a second, latency and memory, by stage",
    "play": "a playable world: pictures, obedience, memory and drift, compared with an engine's footage",
    "prompts": "whether prompts change a playable world, seen by a classifier that an engine's labels trained",
    "synth": "synthesis: accepted and refused attempts, by interaction",
    "train": "a training step, compared with diffusers' model with the same weights",
    "world": "the demo world from nothing: record, curate, train, measure control",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipelines.run import code_version

        say(f"gamecraft {code_version()}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each unit as it is finished.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log errors only; no progress, no summary.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log to stderr as JSON lines, one a unit.")] = False,
) -> None:
    """Turn raw gameplay video into interaction-aware training shards, and train a world model on them."""
    if verbose and quiet:
        raise InputError("--verbose and --quiet exclude each other")
    logs.configure("error" if quiet else "info" if verbose or log_json else "warning", log_json)


app.command(cls=Waits)(data.curate)
app.command(cls=Waits)(data.synth)
app.command()(training.train)
app.command()(training.encode)
app.command()(training.export)
app.command()(playing.play)
app.command()(playing.rollout)
app.command()(playing.replay)
app.command(cls=Waits)(data.compact)
app.command()(data.verify)
app.command("eval")(evaluation.evaluate)
app.command()(evaluation.generate)
app.command("layout")(evaluation.convert_layout)
app.command()(data.report)
app.command()(data.retry)
app.command()(data.inspect)


@recipe_app.command("list")
def recipe_list(train: OfTraining = False) -> None:
    """Name the built-in recipes."""
    for name, build in sorted((training_recipes()[0] if train else recipes.BUILT_IN).items()):
        say(f"{name:12} {(build.__doc__ or '').strip().splitlines()[0]}")


@recipe_app.command("show")
def recipe_show(
    name: Annotated[
        str, typer.Argument(autocompletion=values(*sorted(recipes.BUILT_IN)), help="A built-in recipe or a YAML file.")
    ] = "laptop",
    train: OfTraining = False,
) -> None:
    """Print a recipe as YAML with a comment for each setting; save it, change it, and give the file to --recipe."""
    recipe = training_recipe(name) if train else recipes.load(name)
    sys.stdout.write(setting_comments.to_commented_yaml(recipe))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=values(*BENCHMARKS),
            help=f"One of {', '.join(BENCHMARKS)}; without one they are listed.",
        ),
    ] = "",
) -> None:
    """Measure one part of the project; each benchmark has its own options (`gamecraft bench NAME --help`)."""
    if name in ("", "-h", "--help"):
        say("gamecraft bench NAME [OPTIONS]; each has its own options: gamecraft bench NAME --help\n")
        for known, what in BENCHMARKS.items():
            say(f"{known:10} {what}")
        return
    check_choice("NAME", name, tuple(BENCHMARKS))
    with needs_extra(f"bench {name}", "bench,train"):
        main = _benchmark(name)
        main(context.args)


@app.command()
def doctor(
    licences: Annotated[
        bool, typer.Option("--licences", help="Print the licences of what ships and of what is installed instead.")
    ] = False,
) -> None:
    """Print what this machine has, and the command that mends each line. Exit with 1 where one must be mended."""
    from importlib.metadata import PackageNotFoundError

    if licences:
        from pipelines.licences import print_licences

        try:
            print_licences()
        except PackageNotFoundError as error:
            raise Unavailable("gamecraft is not installed, so its extras are not known: pip install -e .") from error
        return
    from pipelines.doctor import report as report_findings

    raise typer.Exit(report_findings())


def _benchmark(name: str) -> Callable[[list[str]], Any]:
    main: Callable[[list[str]], Any]
    if name == "camera":
        from bench.camera import main
    elif name == "captions":
        from bench.captions import main
    elif name == "chaos":
        from bench.chaos import main
    elif name == "duplicates":
        from bench.duplicates import main
    elif name == "curate":
        from bench.curate import main
    elif name == "partition":
        from bench.partition import main
    elif name == "quality":
        from bench.quality import main
    elif name == "infer":
        from bench.infer import main
    elif name == "fvd":
        from bench.fvd import main
    elif name == "judge":
        from bench.judge import main
    elif name == "play":
        from bench.play import main
    elif name == "prompts":
        from bench.prompts import main
    elif name == "synth":
        from bench.synth import main
    elif name == "train":
        from bench.train_step import main
    else:
        from bench.demo_world import main
    return main


_LOG_OPTIONS = frozenset({"--verbose", "-v", "--quiet", "-q", "--log-json"})
_INTERRUPTED = 130  # what typer makes of Ctrl-C
_OUR_BUG = 70  # EX_SOFTWARE of sysexits.h


def main() -> None:
    """Run the command. What a user got wrong is one line on stderr and exit status 2; only a bug of ours shows a traceback."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    if "bench" not in sys.argv[1:2]:  # typer wants them before the command; people write them behind it
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in _LOG_OPTIONS)
    try:
        status = app(prog_name="gamecraft", standalone_mode=False)
    except InputError as error:
        status = _fail(str(error), 2)
    except (GamecraftError, OSError) as error:
        status = _fail(str(error) or describe(error), 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own way of saying what was wrong with the words
            status = _fail(error.format_message(), 2)
        else:
            sys.stderr.write(traceback.format_exc())
            words = "this is a bug in gamecraft, not in your input; please report it with the lines above"
            status = _fail(f"{describe(error)}: {words}", _OUR_BUG)
    if status == _INTERRUPTED:
        _fail("stopped; run the same command again to resume", status)
    sys.exit(status)


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"gamecraft: {storage.printable(message)}\n")
    return status
