"""The command line: `gamecraft curate | synth | retry | compact | verify | train | encode | play | rollout | replay | generate
| eval | layout | report | recipe | inspect | bench | doctor`.

Commands import what they need when they run: `model` needs torch, and help and `inspect` need neither. Exit status: 0 done; 1
something is left to do, or this machine lacks something; 2 wrong input; 3 done, but sources were lost (they cannot be read, or
failed for good); 70 a bug of ours; 130 interrupted.
"""

import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from curation import shards, storage
from curation.errors import GamecraftError, InputError, Unavailable, describe
from pipelines import logs, recipes, setting_comments
from pipelines.printing import clip_row, print_clip, print_export, print_overview, print_summary, print_thresholds, say
from pipelines.recipes import PHASES, SYNTH_PHASES
from pipelines.wording import plural, short_name

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


_EXPORT_FORMATS = ("world", "diffsynth", "fastvideo", "lerobot", "parquet")


def _values(*names: str) -> Callable[[str], list[str]]:
    """Return a function that completes a word in a shell: it returns the names that begin with the word."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Backend = Annotated[
    str,
    typer.Option(
        autocompletion=_values("auto", "eager", "traced", "onnxruntime"),
        help="How a small world is computed on a processor: eager, traced, onnxruntime, or auto, the fastest that is ready.",
    ),
]
Accelerate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SWITCH[=VALUE]",
        help="Switches that make play faster, such as compile,weights=fp8,attention=cudnn; docs/play.md lists them.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(metavar="[SECONDS]", min=0, help="Wait until another run releases OUT; without SECONDS, without a limit."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="An output of `gamecraft curate`, also on S3; repeat it for several. Default: data.sources of the recipe."
    ),
]
OfTraining = Annotated[bool, typer.Option("--train", help="A training recipe instead of a curation recipe.")]
OfCuration = Annotated[
    str,
    typer.Option(
        autocompletion=_values(*sorted(recipes.BUILT_IN)),
        help="A recipe's name (see `gamecraft recipe list`) or a YAML file.",
    ),
]
OnCluster = Annotated[
    str,
    typer.Option(
        "--runner",
        autocompletion=_values("local", "ray"),
        help="local: this machine. ray: a cluster, or all cores here.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(help="Processes of the local runner; 0: one for each core. It changes no result.", min=0),
]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Plan shards although sources are unfinished; those get separate shards later."),
]
Checkpoint = Annotated[
    str, typer.Argument(metavar="CKPT", help="A checkpoint of a causal world; demo: the one that ships with the package.")
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="An output folder of `gamecraft curate`, or an s3:// prefix.")]


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


class _Waits(TyperCommand):
    """A command whose option --wait may stand without a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        if "--wait" in words:
            after = words.index("--wait") + 1
            if not re.fullmatch(r"\d+(\.\d+)?", "".join(words[after : after + 1])):
                words.insert(after, "inf")
        return super().parse_args(ctx, words)


@app.command(cls=_Waits)
def curate(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Videos, folders, globs, list files (.txt) or s3:// prefixes."),
    ],
    out: Annotated[str, typer.Option(help="Where everything is written: a folder or an s3:// prefix.")] = "",
    recipe: OfCuration = "laptop",
    runner: OnCluster = "local",
    workers: Workers = 0,
    phase: Annotated[str, typer.Option(autocompletion=_values(*PHASES), help=f"Run one phase only: {', '.join(PHASES)}.")] = "",
    partial: Partial = False,
    wait: Wait = 0.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing: curate a sample, and print what all of the input would cost and give."),
    ] = False,
    sample: Annotated[int, typer.Option(help="How many sources --dry-run curates.", min=1)] = 20,
) -> None:
    """Turn videos into WebDataset shards, a ledger of every clip, and a report. Run it again to resume or to add input."""
    from pipelines import run, runners

    _check_choice("--runner", runner, runners.RUNNERS)
    if phase:
        _check_choice("--phase", phase, PHASES)
    if dry_run:
        from pipelines import dry_run as estimation
        from pipelines.printing import print_estimate

        print_estimate(estimation.estimate(inputs, recipes.load(recipe), sample, workers))
        return
    if not out:
        raise InputError("--out is missing: where everything is written, a folder or an s3:// prefix")
    summary = run.curate(inputs, out, recipes.load(recipe), runner, [phase] if phase else None, partial, wait, workers)
    _finish(summary)


@app.command(cls=_Waits)
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
        str, typer.Option(autocompletion=_values(*SYNTH_PHASES), help=f"Run one phase only: {', '.join(SYNTH_PHASES)}.")
    ] = "",
    partial: Partial = False,
    wait: Wait = 0.0,
) -> None:
    """Make videos of interactions, verify them, and add those accepted to OUT as clips, with a ledger of every attempt."""
    from pipelines import run, runners

    _check_choice("--runner", runner, runners.RUNNERS)
    if phase:
        _check_choice("--phase", phase, SYNTH_PHASES)
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
        raise typer.Exit(_LOST_SOURCES)


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A training recipe's name (`gamecraft recipe list --train`) or a YAML file.")],
    out: Annotated[str, typer.Option(help="The run's folder: checkpoints, log, TensorBoard's files.")] = "",
    data: Data = None,
    share: Annotated[
        list[float] | None, typer.Option(help="The share of samples from each --data, in the same order; together 1.")
    ] = None,
    sample_from: Annotated[
        list[str] | None, typer.Option(help="An output that is not trained on, from which sample videos are made.")
    ] = None,
    runner: Annotated[
        str,
        typer.Option(
            autocompletion=_values("local", "ray"), help="local: this process, or those of torchrun. ray: ranks on a cluster."
        ),
    ] = "local",
    workers: Annotated[int, typer.Option(help="How many ranks on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
    plan: Annotated[
        list[int] | None,
        typer.Option(help="Do not train: print the memory that each of so many ranks needs; the first number must fit.", min=1),
    ] = None,
    device_gib: Annotated[float, typer.Option(help="Memory of a device, GiB, for --plan.", min=1.0)] = 80.0,
) -> None:
    """Train a world on shards. Run it again to resume; start it by torchrun, or on Ray, for several devices."""
    from pipelines import runners

    _check_choice("--runner", runner, runners.RUNNERS)
    with _extra("training", "train"):
        from model import train as training
    settings, outputs = _training_recipe(recipe), data or []
    if plan:
        from model import memory_plan

        memory_plan.report(settings, plan, device_gib, say)
        return
    if not out:
        raise InputError("--out is missing: the run's folder")
    if share:
        settings, outputs = training.with_shares(settings, outputs, share), []
    if runner == "ray":
        runners.start_ray()
        training.train_on_ray(settings, outputs, out, sample_from or (), workers, _log)
    else:
        training.train(settings, outputs, out, sample_from or (), _log)


@app.command()
def encode(
    out: Annotated[
        str, typer.Option(help="Where the latents go: a folder or an s3:// prefix; then `data.latents` of the recipe.")
    ],
    recipe: Annotated[str, typer.Option(help="The training recipe that will read them: its codec, size, rate and lengths.")],
    data: Data = None,
    runner: Annotated[
        str,
        typer.Option(autocompletion=_values("local", "ray"), help="local: this process. ray: actors on a cluster, a GPU each."),
    ] = "local",
    workers: Annotated[int, typer.Option(help="How many actors on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
) -> None:
    """Encode what a training recipe reads, before it trains. Run it again to resume or to add what is new."""
    from pipelines import runners

    _check_choice("--runner", runner, runners.RUNNERS)
    with _extra("training", "train"):
        from model import encode_latents
    settings = _training_recipe(recipe)
    if runner == "ray":
        runners.start_ray()
    encode_latents.encode(settings, data or [], out, runner == "ray", workers, _log)


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(metavar="OUT|RUN", help="An output of `gamecraft curate`, or the folder of a causal training run.")
    ],
    out: Annotated[str, typer.Option(help="Where the export goes: a folder, of shards also an s3:// prefix.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            autocompletion=_values(*_EXPORT_FORMATS),
            help="world: a run as a playable world. diffsynth, fastvideo, lerobot, parquet: shards for other trainers.",
        ),
    ] = "world",
    fps: Annotated[
        float,
        typer.Option(min=0, help="Frames a second of exported videos; 0: as stored, with lerobot the most frequent rate."),
    ] = 0.0,
    recipe: Annotated[str, typer.Option(help="world: the recipe of the run, a name or a YAML file.")] = "",
    data: Data = None,
    starts: Annotated[int, typer.Option(help="How many start pictures are taken from the data.", min=0)] = 6,
    int8: Annotated[bool, typer.Option("--int8", help="Store matrices with 8 bits a weight instead of 16.")] = False,
    prompts: Annotated[bool, typer.Option("--prompts/--no-prompts", help="Whether the world follows prompts.")] = True,
    accelerate: Accelerate = None,
) -> None:
    """Make a playable world of a training run, or write shards in the layout of another trainer.

    Of a world: --data should be footage that it was not trained on. With --accelerate the world is played with and without
    these switches, and what they change is logged. None is stored.
    """
    _check_choice("--format", format_, _EXPORT_FORMATS)
    if format_ != "world":
        from pipelines import exports

        print_export(exports.export_shards(source, format_, out, fps or None), out)
        return
    if not recipe:
        raise InputError(
            "a world needs --recipe, the recipe of the run; shards need --format, one of " + ", ".join(_EXPORT_FORMATS)
        )
    with _extra("training", "train"):
        from model.accelerate import spec
        from model.play import check
        from model.play import export as exporting
    switches = spec.parse(accelerate or [])
    exporting.export(_training_recipe(recipe), source, data or [], out, starts, int8, prompts, log=_log)
    if accelerate:
        check.compare(out, switches, _log)


@app.command()
def play(
    checkpoint: Checkpoint,
    other: Annotated[
        str, typer.Argument(metavar="[CKPT_B]", help="A second checkpoint, to be played side by side on the same inputs.")
    ] = "",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.", min=1, max=65535)] = 8600,
    sessions: Annotated[int, typer.Option(help="How many people can play at a time; others wait in a queue.", min=1)] = 2,
    attract: Annotated[str, typer.Option(metavar="FILE.gcplay", help="A record that the page shows while nobody plays.")] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
    backend: Backend = "auto",
    accelerate: Accelerate = None,
) -> None:
    """Play a world in the browser: keys, mouse, touch or gamepad; prompts while it runs; records and videos."""
    with _extra("playing", "play,train"):
        from model.accelerate import spec
        from model.play import commands, world
    switches = spec.parse(accelerate or [])
    if switches.sequence_parallel > 1 and other:
        raise InputError("--accelerate sequence_parallel: ranks share one world; leave CKPT_B out")
    if _follows(switches):
        world.follow_rank_0(checkpoint, backend, switches)
        return

    def load(log: Callable[[str], None]) -> list[Any]:
        return [world.load_engine(name, log, backend, switches) for name in (checkpoint, other) if name]

    commands.play(load, host, port, sessions, attract, not no_browser, _log)


def _follows(switches: Any) -> bool:
    """Return whether this is one of several ranks that share sessions, and not the one that is asked."""
    from model.parallel import dist

    return switches.sequence_parallel > 1 and not dist.is_first()


@app.command()
def rollout(
    checkpoint: Checkpoint,
    keys: Annotated[
        str, typer.Option(help="Keys and frames: 'W*16 D+W*8 LEFT*10 .*5'; a dot is no key, @DX,DY moves the mouse.")
    ],
    image: Annotated[
        str, typer.Option(help="The first frame: a file, or the name of a start image. Default: the first start image.")
    ] = "",
    prompt: Annotated[str, typer.Option(help="What is to happen in the world.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    out: Annotated[str, typer.Option(metavar="VIDEO.mp4", help="Where the video goes.")] = "rollout.mp4",
    record: Annotated[str, typer.Option(metavar="FILE.gcplay", help="Where the record goes; replay makes it again.")] = "",
    backend: Backend = "auto",
    accelerate: Accelerate = None,
) -> None:
    """Play a script of keys without a page, and write the video."""
    with _extra("a rollout", "play,train"):
        from model.accelerate import spec
        from model.play import commands, world
    switches = spec.parse(accelerate or [])
    if _follows(switches):
        world.follow_rank_0(checkpoint, backend, switches)
        return
    commands.rollout(
        lambda: world.load_engine(checkpoint, _log, backend, switches), image, keys, prompt, seed, out, record, _log
    )


@app.command()
def replay(
    record: Annotated[str, typer.Argument(metavar="FILE.gcplay", help="A record of the play page or of rollout.")],
    checkpoint: Annotated[str, typer.Argument(metavar="[CKPT]", help="The checkpoint that the record was made with.")] = "demo",
    out: Annotated[
        str, typer.Option(metavar="VIDEO.mp4", help="Where the video goes; without it frames are only checked.")
    ] = "",
) -> None:
    """Play a record again and check that every frame is equal; a record of something else is refused with what differs."""
    with _extra("a replay", "play,train"):
        from model.play import commands, world
    commands.replay(
        lambda identity: world.load_engine(checkpoint, _log, accelerate=world.spec_of_record(identity)), record, out, _log
    )


@app.command(cls=_Waits)
def compact(out: Out, wait: Wait = 0.0) -> None:
    """Pack the small files of an output's units into segments, which makes later runs cheaper. Results stay the same."""
    from pipelines.compact import compact as compact_output

    _require_dataset(out)
    packed = compact_output(storage.normal(out), wait)
    say(f"{plural(packed, 'file')} packed" if packed else "nothing to pack")


@app.command()
def verify(
    out: Out,
    deep: Annotated[bool, typer.Option("--deep", help="Also read all shards and segments, and compare hashes.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what does not count to OUT/trash, and have damaged shards made again.")
    ] = False,
) -> None:
    """Check that an output is whole: nothing missing, damaged, twice or left over. Exit with 1 where something is wrong."""
    from pipelines import verify as verification
    from pipelines.printing import print_verification

    _require_dataset(out)
    if repair:
        result, mended = verification.repair(out, deep)
    else:
        result, mended = verification.verify(out, deep), 0
    print_verification(result, repair, mended)
    if len(result.problems) > mended:
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    videos: Annotated[str, typer.Option(help="A folder of any model's videos: SUBSET/IMAGE.mp4, or with a cases.jsonl.")],
    out: Annotated[str, typer.Option(help="Where results, tables and the report page go: a folder or an s3:// prefix.")],
    suite: Annotated[
        str,
        typer.Option(
            autocompletion=_values("interbench", "general", "control", "pairs"), help="interbench, general, control or pairs."
        ),
    ] = "interbench",
    name: Annotated[str, typer.Option(help="The model's name in tables.")] = "model",
    vlm: Annotated[
        str,
        typer.Option(
            metavar="BACKEND:MODEL",
            help="The judge: http:MODEL@URL, transformers:FOLDER, or a YAML file of VLM settings. Without it: signals only.",
        ),
    ] = "",
    repeats: Annotated[int, typer.Option(help="How often each video is judged.", min=1, max=32)] = 1,
    frames: Annotated[int, typer.Option(help="Frames of a video that the judge sees.", min=2, max=64)] = 16,
    ceilings: Annotated[
        int, typer.Option(help="For interbench: cases of each subset whose real, coded and still videos are judged too.", min=0)
    ] = 2,
    settings: Annotated[str, typer.Option(metavar="FILE.yaml", help="Settings of general or control, such as weights.")] = "",
    real: Annotated[str, typer.Option(help="For general: real videos, paired by name; they give FVD and the ceilings.")] = "",
    against: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="For pairs: another model's videos; may be repeated.")
    ] = None,
    votes: Annotated[list[str] | None, typer.Option(metavar="FILE.csv", help="For pairs: exported votes of the page.")] = None,
    baseline: Annotated[str, typer.Option(help="OUT of an earlier run of the same suite, for differences by item.")] = "",
    only: Annotated[str, typer.Option(help="Subsets, with commas; default all.")] = "",
    runner: OnCluster = "local",
    workers: Annotated[int, typer.Option(help="How many actors on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
) -> None:
    """Evaluate a folder of videos, of any model. Run it again to resume; no question is asked twice."""
    from pipelines import runners

    _check_choice("--runner", runner, runners.RUNNERS)
    with _extra("an evaluation", "train"):
        from model.evaluation import items, tables
        from model.evaluation import run as evaluation
        from model.evaluation.control.run import ControlSettings
        from model.evaluation.general.run import GeneralSettings
        from model.evaluation.interbench.judge import JudgeSettings
        from model.evaluation.interbench.results import BenchSettings
    _check_choice("--suite", suite, evaluation.SUITES)
    if runner == "ray":
        runners.start_ray()
    each = evaluation.runner(runner == "ray", workers)
    subsets = [word.strip() for word in only.split(",") if word.strip()]
    judge_settings = JudgeSettings(evaluation.judge_model(vlm), frames=frames, repeats=repeats)
    bench_settings = BenchSettings(name, judge_settings, ceilings=ceilings)
    if suite == "interbench":
        evaluation.interbench(videos, out, bench_settings, subsets, each, _log)
    elif suite == "general":
        general = recipes.load(settings, {}, GeneralSettings) if settings else GeneralSettings()
        evaluation.general(videos, real, out, replace(general, name=name), subsets, each, _log)
    elif suite == "control":
        control = recipes.load(settings, {}, ControlSettings) if settings else ControlSettings()
        evaluation.control(videos, out, replace(control, name=name), subsets, each, _log)
    else:
        evaluation.pairs({name: videos, **_named_folders(against or [])}, out, bench_settings, votes or [], subsets)
    if baseline:
        say(tables.to_markdown(items.write_comparison(out, baseline)))
    page = {"interbench": "report.html", "general": "general.md", "control": "control.md", "pairs": "vote.html"}[suite]
    say(storage.join(storage.normal(out), page))


@app.command(name="generate")
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A world's folder, demo, or hunyuanvideo, wan2.2 or helios.")],
    images: Annotated[
        str, typer.Option(help="First frames, with NAME.txt as base prompts; pictures of doors in its folder doors.")
    ],
    out: Annotated[str, typer.Option(help="Where the videos go: a folder that `gamecraft eval` reads.")],
    keys: Annotated[
        list[str] | None, typer.Option(help="For a world: a script of keys instead of InterBench's prompts; may be repeated.")
    ] = None,
    only: Annotated[str, typer.Option(help="Subsets of InterBench, with commas; default all.")] = "",
    limit: Annotated[int, typer.Option(help="How many images each subset takes; 0: all.", min=0)] = 0,
    seeds: Annotated[int, typer.Option(help="Videos of each case.", min=1)] = 1,
    weights: Annotated[str, typer.Option(help="A folder with a baseline's weights, or another name on the hub.")] = "",
) -> None:
    """Make the videos of InterBench, or of scripts of keys, with a model. Run it again to resume."""
    with _extra("generating", "play,train"):
        from model.evaluation.general import speed
        from model.generation import baselines
        from model.generation import run as generation
    subsets = [word.strip() for word in only.split(",") if word.strip()]
    wanted = list(
        generation.wanted_of_keys(images, keys) if keys else generation.wanted_of_suite(images, subsets, limit, seeds)
    )
    maker: Any
    camera = None
    if model in baselines.BASELINES:
        maker = generation.BaselineMaker(baselines.BaselineModel(model, weights))
    else:
        from model.play import world
        from model.world_files import find_world, read_world_file

        file = read_world_file(find_world(model))
        camera = generation.CameraOf(tuple(file.intrinsics), tuple(file.size))
        maker = generation.WorldMaker(world.load_engine(model, _log))
    made = generation.generate(maker, wanted, out, camera, _log)
    generation.describe(out, model, speed.environment())
    say(f"{made} made, {len(wanted)} in {storage.normal(out)}")


@app.command(name="layout")
def convert_layout(
    layout: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            autocompletion=_values("vbench", "gameworld", "worldmodelbench", "mind"),
            help="vbench, gameworld, worldmodelbench or mind.",
        ),
    ],
    videos: Annotated[str, typer.Option(help="A folder of videos; with --read one in that layout.")],
    out: Annotated[str, typer.Option(help="Where the copy goes; with --read a cases.jsonl for `gamecraft eval`.")],
    read: Annotated[bool, typer.Option("--read", help="Read the layout instead of writing it.")] = False,
    truth: Annotated[str, typer.Option(help="For mind with --read: MIND's own data, where --videos is a model's folder.")] = "",
) -> None:
    """Write videos in the layout of another benchmark, or read one."""
    with _extra("an evaluation", "train"):
        from model.evaluation import cases, layouts
    _check_choice("LAYOUT", layout, tuple(layouts.EXPORTS))
    if read:
        folders = [storage.normal(folder) for folder in (truth, videos) if folder]
        if truth and layout != "mind":
            raise InputError("--truth is of the layout mind only")
        found = layouts.import_mind(*folders) if layout == "mind" else layouts.IMPORTS[layout](folders[0])
        cases.write_cases(out, found)
        say(f"{len(found)} videos listed in {storage.join(storage.normal(out), cases.CASES_FILE)}")
    else:
        layouts.EXPORTS[layout](cases.read_cases(videos), storage.normal(out))
        say(storage.normal(out))


def _named_folders(words: list[str]) -> dict[str, str]:
    """Return folders by name, from words NAME=DIR."""
    pairs = [word.partition("=") for word in words]
    if not pairs or not all(name and folder for name, _, folder in pairs):
        raise InputError("--suite pairs needs --against NAME=DIR, a folder of another model's videos")
    return {name: folder for name, _, folder in pairs}


@app.command()
def report(out: Out) -> None:
    """Write the report of an output again."""
    from pipelines.report.page import write_report

    _require_dataset(out)
    say(write_report(storage.normal(out)))


@app.command()
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
    from pipelines.retry import clear_reasons

    _require_dataset(out)
    cleared = clear_reasons(out, reason, source)
    for row in cleared[:20]:
        say(f"  {row.phase:9} {row.clip_id or short_name(row.uri)}: {row.reason}")
    if len(cleared) > 20:
        say(f"  and {len(cleared) - 20} more")
    again = "; now run the same curate or synth command again" if cleared else ""
    say(f"{plural(len(cleared), 'failure')} cleared{again}")


@recipe_app.command("list")
def recipe_list(train: OfTraining = False) -> None:
    """Name the built-in recipes."""
    for name, build in sorted((_training_recipes()[0] if train else recipes.BUILT_IN).items()):
        say(f"{name:12} {(build.__doc__ or '').strip().splitlines()[0]}")


@recipe_app.command("show")
def recipe_show(
    name: Annotated[
        str, typer.Argument(autocompletion=_values(*sorted(recipes.BUILT_IN)), help="A built-in recipe or a YAML file.")
    ] = "laptop",
    train: OfTraining = False,
) -> None:
    """Print a recipe as YAML with a comment for each setting; save it, change it, and give the file to --recipe."""
    recipe = _training_recipe(name) if train else recipes.load(name)
    sys.stdout.write(setting_comments.to_commented_yaml(recipe))


def _training_recipe(name_or_path: str) -> Any:
    return recipes.load(name_or_path, *_training_recipes())


def _training_recipes() -> tuple[Any, Any]:
    """Return the built-in training recipes, and their class."""
    with _extra("training", "train"):
        from model.recipes import BUILT_IN, TrainRecipe
    return BUILT_IN, TrainRecipe


@contextmanager
def _extra(what: str, extra: str) -> Iterator[None]:
    """Turn a missing package into the advice to install an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in logs.PACKAGES:
            raise  # a mistake of ours
        raise Unavailable(f'{what} needs {error.name}; install it with: pip install "gamecraft[{extra}]"') from error


@app.command()
def inspect(
    out: Out,
    clip: Annotated[str, typer.Argument(metavar="[CLIP]", help="A clip's id, or the first digits of it.")] = "",
    thresholds: Annotated[bool, typer.Option("--thresholds", help="What other limits of the score phase would keep.")] = False,
    camera: Annotated[
        str, typer.Option(metavar="FILE", help="Save CLIP's camera as .npz, .tum, .txt (RealEstate10K) or .rrd (rerun).")
    ] = "",
) -> None:
    """Print what an output holds: its sources and why clips were dropped, or everything about one clip."""
    from pipelines import ledger

    dataset = _require_dataset(out)
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=_values(*BENCHMARKS),
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
    _check_choice("NAME", name, tuple(BENCHMARKS))
    with _extra(f"bench {name}", "bench,train"):
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


def _require_dataset(out: str) -> dict[str, Any]:
    dataset = shards.read_dataset(storage.normal(out))
    if dataset is None:
        raise InputError(f"{out}: no dataset.json there; is it an output of `gamecraft curate`?")
    return dataset


def _log(text: str) -> None:
    """Print a line about the work of a command, unless only errors are wanted."""
    if logs.is_shown(logging.WARNING):
        say(text)


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{option} must be one of {', '.join(known)}, not {value!r}")


_LOG_OPTIONS = frozenset({"--verbose", "-v", "--quiet", "-q", "--log-json"})
_LOST_SOURCES = 3
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
