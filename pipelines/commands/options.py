"""Options that several commands have, and what every command may need."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from curation import shards, storage
from curation.errors import InputError, Unavailable
from pipelines import logs, recipes
from pipelines.printing import say


def values(*names: str) -> Callable[[str], list[str]]:
    """Return a function that completes a word in a shell: it returns the names that begin with the word."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Backend = Annotated[
    str,
    typer.Option(
        autocompletion=values("auto", "eager", "traced", "onnxruntime"),
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
    typer.Option(
        metavar="[SECONDS]",
        min=0,
        help="Wait until another run releases OUT; without SECONDS, without a limit. Default: do not wait.",
    ),
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
        autocompletion=values(*sorted(recipes.BUILT_IN)),
        help="A recipe's name (see `gamecraft recipe list`) or a YAML file.",
    ),
]
OnCluster = Annotated[
    str,
    typer.Option(
        "--runner",
        autocompletion=values("local", "ray"),
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


class Waits(TyperCommand):
    """A command whose option --wait may stand without a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        if "--wait" in words:
            after = words.index("--wait") + 1
            if not re.fullmatch(r"\d+(\.\d+)?", "".join(words[after : after + 1])):
                words.insert(after, "inf")
        return super().parse_args(ctx, words)


def training_recipe(name_or_path: str) -> Any:
    """Return a training recipe by its name or file. InputError where it does not fit, Unavailable without the extra `train`."""
    return recipes.load(name_or_path, *training_recipes())


def training_recipes() -> tuple[Any, Any]:
    """Return the built-in training recipes, and their class."""
    with needs_extra("training", "train"):
        from model.recipes import BUILT_IN, TrainRecipe
    return BUILT_IN, TrainRecipe


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn a missing package into the advice to install an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in logs.PACKAGES:
            raise  # a mistake of ours
        raise Unavailable(f'{what} needs {error.name}; install it with: pip install "gamecraft[{extra}]"') from error


def require_dataset(out: str) -> dict[str, Any]:
    """Return the dataset.json of an output. InputError if it has none."""
    dataset = shards.read_dataset(storage.normal(out))
    if dataset is None:
        raise InputError(f"{out}: no dataset.json there; is it an output of `gamecraft curate`?")
    return dataset


def log_line(text: str) -> None:
    """Print a line about the work of a command, unless only errors are wanted."""
    if logs.is_shown(logging.WARNING):
        say(text)


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError unless the value of an option is a known one."""
    if value not in known:
        raise InputError(f"{option} must be one of {', '.join(known)}, not {value!r}")
