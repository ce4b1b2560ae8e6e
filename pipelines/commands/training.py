"""The commands of training: train, encode, export."""

from typing import Annotated

import typer

from curation.errors import InputError
from pipelines.commands.options import Accelerate, Data, check_choice, log_line, needs_extra, training_recipe, values
from pipelines.printing import print_export, say

_EXPORT_FORMATS = ("world", "diffsynth", "fastvideo", "lerobot", "parquet")


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
            autocompletion=values("local", "ray"), help="local: this process, or those of torchrun. ray: ranks on a cluster."
        ),
    ] = "local",
    workers: Annotated[int, typer.Option(help="How many ranks on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
    plan: Annotated[
        list[int] | None,
        typer.Option(
            help="Do not train: print the memory of a rank with so many ranks; fails if the first number does not fit.", min=1
        ),
    ] = None,
    device_gib: Annotated[float, typer.Option(help="Memory of a device, GiB, for --plan.", min=1.0)] = 80.0,
) -> None:
    """Train a world on shards. Run it again to resume; start it by torchrun, or on Ray, for several devices."""
    from pipelines import runners

    check_choice("--runner", runner, runners.RUNNERS)
    with needs_extra("training", "train"):
        from model import train as training
    settings, outputs = training_recipe(recipe), data or []
    if plan:
        from model import memory_plan

        memory_plan.report(settings, plan, device_gib, say)
        return
    if not out:
        raise InputError("--out is missing: the run's folder")
    if share:
        settings, outputs = training.with_shares(settings, outputs, share), []
    if runner == "ray":
        with runners.on_cluster():
            training.train_on_ray(settings, outputs, out, sample_from or (), workers, log_line)
    else:
        training.train(settings, outputs, out, sample_from or (), log_line)


def encode(
    out: Annotated[
        str, typer.Option(help="Where the latents go: a folder or an s3:// prefix; then `data.latents` of the recipe.")
    ],
    recipe: Annotated[str, typer.Option(help="The training recipe that will read them: its codec, size, rate and lengths.")],
    data: Data = None,
    runner: Annotated[
        str,
        typer.Option(autocompletion=values("local", "ray"), help="local: this process. ray: actors on a cluster, a GPU each."),
    ] = "local",
    workers: Annotated[int, typer.Option(help="How many actors on Ray; 0: one for each GPU of the cluster.", min=0)] = 0,
) -> None:
    """Encode what a training recipe reads, before it trains. Run it again to resume or to add what is new."""
    from pipelines import runners

    check_choice("--runner", runner, runners.RUNNERS)
    with needs_extra("training", "train"):
        from model import encode_latents
    settings = training_recipe(recipe)
    with runners.on_cluster(runner):
        encode_latents.encode(settings, data or [], out, runner == "ray", workers, log_line)


def export(
    source: Annotated[
        str, typer.Argument(metavar="OUT|RUN", help="An output of `gamecraft curate`, or the folder of a causal training run.")
    ],
    out: Annotated[str, typer.Option(help="Where the export goes: a folder, of shards also an s3:// prefix.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            autocompletion=values(*_EXPORT_FORMATS),
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
    check_choice("--format", format_, _EXPORT_FORMATS)
    if format_ != "world":
        from pipelines import exports

        print_export(exports.export_shards(source, format_, out, fps or None), out)
        return
    if not recipe:
        raise InputError(
            "a world needs --recipe, the recipe of the run; shards need --format, one of " + ", ".join(_EXPORT_FORMATS)
        )
    with needs_extra("training", "train"):
        from model.accelerate import spec
        from model.play import check
        from model.play import export as exporting
    switches = spec.parse(accelerate or [])
    exporting.export(training_recipe(recipe), source, data or [], out, starts, int8, prompts, log=log_line)
    if accelerate:
        check.compare(out, switches, log_line)
