"""The commands of evaluation: eval, generate, layout."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from curation import storage
from curation.errors import InputError
from pipelines import recipes
from pipelines.commands.options import OnCluster, check_choice, log_line, needs_extra, values
from pipelines.printing import say


def evaluate(
    videos: Annotated[str, typer.Option(help="A folder of any model's videos: SUBSET/IMAGE.mp4, or with a cases.jsonl.")],
    out: Annotated[str, typer.Option(help="Where results, tables and the report page go: a folder or an s3:// prefix.")],
    suite: Annotated[
        str,
        typer.Option(
            autocompletion=values("interbench", "general", "control", "pairs"), help="interbench, general, control or pairs."
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

    check_choice("--runner", runner, runners.RUNNERS)
    with needs_extra("an evaluation", "train"):
        from model.evaluation import items, tables
        from model.evaluation import run as evaluation
        from model.evaluation.control.run import ControlSettings
        from model.evaluation.general.run import GeneralSettings
        from model.evaluation.interbench.judge import JudgeSettings
        from model.evaluation.interbench.results import BenchSettings
    check_choice("--suite", suite, evaluation.SUITES)
    subsets = [word.strip() for word in only.split(",") if word.strip()]
    judge_settings = JudgeSettings(evaluation.judge_model(vlm), frames=frames, repeats=repeats)
    bench_settings = BenchSettings(name, judge_settings, ceilings=ceilings)
    with runners.on_cluster(runner):
        each = evaluation.runner(runner == "ray", workers)
        if suite == "interbench":
            evaluation.interbench(videos, out, bench_settings, subsets, each, log_line)
        elif suite == "general":
            general = recipes.load(settings, {}, GeneralSettings) if settings else GeneralSettings()
            evaluation.general(videos, real, out, replace(general, name=name), subsets, each, log_line)
        elif suite == "control":
            control = recipes.load(settings, {}, ControlSettings) if settings else ControlSettings()
            evaluation.control(videos, out, replace(control, name=name), subsets, each, log_line)
        else:
            evaluation.pairs({name: videos, **_named_folders(against or [])}, out, bench_settings, votes or [], subsets)
    if baseline:
        say(tables.to_markdown(items.write_comparison(out, baseline)))
    page = {"interbench": "report.html", "general": "general.md", "control": "control.md", "pairs": "vote.html"}[suite]
    say(storage.join(storage.normal(out), page))


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
    with needs_extra("generating", "play,train"):
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
        maker = generation.WorldMaker(world.load_engine(model, log_line))
    made = generation.generate(maker, wanted, out, camera, log_line)
    generation.describe(out, model, speed.environment())
    say(f"{made} made, {len(wanted)} in {storage.normal(out)}")


def convert_layout(
    layout: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            autocompletion=values("vbench", "gameworld", "worldmodelbench", "mind"),
            help="vbench, gameworld, worldmodelbench or mind.",
        ),
    ],
    videos: Annotated[str, typer.Option(help="A folder of videos; with --read one in that layout.")],
    out: Annotated[str, typer.Option(help="Where the copy goes; with --read a cases.jsonl for `gamecraft eval`.")],
    read: Annotated[bool, typer.Option("--read", help="Read the layout instead of writing it.")] = False,
    truth: Annotated[str, typer.Option(help="For mind with --read: MIND's own data, where --videos is a model's folder.")] = "",
) -> None:
    """Write videos in the layout of another benchmark, or read one."""
    with needs_extra("an evaluation", "train"):
        from model.evaluation import cases, layouts
    check_choice("LAYOUT", layout, tuple(layouts.EXPORTS))
    if read:
        folders = [storage.normal(folder) for folder in (truth, videos) if folder]
        if truth and layout != "mind":
            raise InputError("--truth is of the layout mind only")
        listed = layouts.import_mind(*folders) if layout == "mind" else layouts.IMPORTS[layout](folders[0])
        cases.write_cases(out, listed)
        say(f"{len(listed)} videos listed in {storage.join(storage.normal(out), cases.CASES_FILE)}")
    else:
        layouts.EXPORTS[layout](cases.read_cases(videos), storage.normal(out))
        say(storage.normal(out))


def _named_folders(words: list[str]) -> dict[str, str]:
    """Return folders by name, from words NAME=DIR. InputError where a word is missing or has another form."""
    pairs = [word.partition("=") for word in words]
    if not pairs or not all(name and folder for name, _, folder in pairs):
        raise InputError("--suite pairs needs --against NAME=DIR, a folder of another model's videos")
    return {name: folder for name, _, folder in pairs}
