"""What turned pictures are worth: the same small world trained with them and without, measured on the same held-out windows.

python -m bench.ablate_warp FOLDER --data TRAIN --codec RUN --held-out TEST [--steps 300] [--lpips FILE.npz]. Both worlds train
from nothing for equally many steps on samples of five frames, with the codec of RUN. The one without turned pictures has
the first-frame condition of Wan2.2 and the camera's rays alone, and its prediction starts from noise.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.machine import describe
from bench.play import measures, read_windows, roll, table_lines
from model.backbone.vae import MASK_CHANNELS
from model.evaluation.pictures import load_lpips
from model.play.export import export
from model.recipes import TrainRecipe, demo_causal
from model.train import train
from model.training import frame_codec
from model.training.settings import TrainPhase
from model.world_files import load_world

_FRAMES = 5


def recipes(steps: int) -> dict[str, TrainRecipe]:
    """Return both recipes, by what they have."""
    recipe = demo_causal()
    objective = replace(recipe.objective, latents=0)
    data = replace(recipe.data, at_boundaries=0)
    turned = replace(
        recipe,
        data=data,
        objective=objective,
        train=replace(recipe.train, curriculum=(TrainPhase(_FRAMES, steps),), warmup_steps=20),
    )
    causal = replace(turned.causal, warp=False, memory="none")
    backbone = replace(turned.model.backbone, in_channels=2 * turned.model.backbone.out_channels + MASK_CHANNELS)
    plain = replace(turned, causal=causal, model=replace(turned.model, backbone=backbone))
    return {"turned pictures": turned, "first frame and rays": plain}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(prog="ablate_warp", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--codec", required=True, help="run whose frame codec both worlds have")
    parser.add_argument("--held-out", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--lpips", default="")
    options = parser.parse_args(arguments)
    print(describe())
    distance = load_lpips(options.lpips) if options.lpips else None
    table = {}
    for name, recipe in recipes(options.steps).items():
        run = options.folder / name.replace(" ", "-")
        run.mkdir(parents=True, exist_ok=True)
        frame_codec.copy_from_run(options.codec, str(run / "codec.safetensors"))
        train(recipe, options.data, str(run))
        world = str(run / "world")
        export(recipe, str(run), options.held_out, world, prompts=False)
        loaded = load_world(world)
        held_out = read_windows(loaded, options.held_out, options.windows)
        made = roll(loaded, held_out.video[:, :, 0], held_out.intrinsics, held_out.pose)
        table[name] = measures(made, held_out.video, distance)
    print("\n".join(table_lines(table)))


if __name__ == "__main__":
    main()
