"""A run folder that holds an exported world, so that training can start from it: `python -m model.play.start_run WORLD RUN`.

`model.init_from` then names RUN. The weights are those of the world's files: of eight bits each where it was exported so.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from curation.errors import InputError
from model.parallel import dist
from model.play.world_files import CODEC_FILE, find_world, load_world
from model.training import checkpoint, frame_codec
from model.training.ema import EmaWeights


def start_run(world_folder: str, run: str, log: Callable[[str], None] = print) -> None:
    """Write a checkpoint of an exported world, or of `demo`, and its codec into a new folder.

    InputError where the folder holds a run already, or the world has Wan's codec: its weights lie in a diffusers folder.
    """
    folder = find_world(world_folder)
    loaded = load_world(folder)
    if loaded.file.codec is None:
        raise InputError(f"{folder} has Wan's codec; only worlds with a frame codec are made into runs")
    if checkpoint.latest(run):
        raise InputError(f"{run} holds a run already; give a new folder")
    os.makedirs(run, exist_ok=True)
    codec = os.path.join(run, CODEC_FILE)
    shutil.copyfile(os.path.join(folder, CODEC_FILE), codec)
    world = loaded.world
    for name, parameter in world.named_parameters():
        parameter.requires_grad_(not name.endswith("remainder"))
    trained = [parameter for parameter in world.parameters() if parameter.requires_grad]
    spec = {
        "causal": asdict(loaded.file.causal),
        "control": asdict(loaded.file.control),
        "codec": frame_codec.fingerprint(codec),
    }
    state = {"phase": 0, "position": 0, "shards": [], "spec": json.loads(json.dumps(spec))}
    dist.start()
    try:
        saver = checkpoint.Saver(run, keep=1)
        saver.save(0, world, torch.optim.AdamW(trained), EmaWeights(world, 0.0), state)
        saver.finish()
    finally:
        dist.stop()
    log(f"{run}: a run that holds {loaded.file.name}; name it in model.init_from")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m model.play.start_run", description=__doc__.splitlines()[0])
    parser.add_argument("world", help="a folder of `gamecraft export`, or demo")
    parser.add_argument("run", help="a new folder")
    options = parser.parse_args(arguments)
    start_run(options.world, options.run)


if __name__ == "__main__":
    main()
