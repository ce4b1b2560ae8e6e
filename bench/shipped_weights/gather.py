"""Gather the training data of the quality network: pictures from Debian's archive, and lossless recordings of play.

    python -m bench.shipped_weights.gather FOLDER      about 500 MB of downloads, into FOLDER/train and FOLDER/held

It needs apt (Debian 12) and the extra `synth`. Existing files are kept. `docs/models/quality.md` names the licences.
"""

import argparse
import shutil
import subprocess
import zipfile
from pathlib import Path

from synth.doom.record import Recording, record

PACKAGES = {
    "train": (
        "gnome-backgrounds",
        "mate-backgrounds",
        "plasma-workspace-wallpapers",
        "wesnoth-1.16-data",
        "openarena-081-textures",
        "minetest-data",
    ),
    "held": ("ukui-wallpapers", "openarena-085-data"),
}
_SECONDS = 3.0
_MIN_BYTES = 250_000  # of Wesnoth's thousands of pictures, only the large ones are kept: paintings, not sprites


def _play(style: str, size: tuple[int, int], seed: int, *places: str, hud: bool = True) -> Recording:
    maps = [(collection, name, _SECONDS) for collection, _, name in (place.partition(":") for place in places)]
    return Recording(maps, seed=seed, style=style, width=size[0], height=size[1], hud=hud, crf=0)


PLAY = {
    "train/a": _play("fight", (1280, 720), 900, "freedoom2:MAP05", "freedoom2:MAP07", "freedoom1:E2M1", "freedoom1:E2M3"),
    "train/b": _play("explore", (640, 480), 901, "freedoom2:MAP09", "freedoom2:MAP11", "freedoom1:E3M1", "freedoom1:E3M4"),
    "train/c": _play("camera", (1920, 1080), 902, "freedoom2:MAP12", "freedoom2:MAP15", "freedoom1:E4M2", hud=False),
    "train/d": _play("fight", (640, 360), 903, "freedoom2:MAP17", "freedoom2:MAP18", "freedoom1:E2M5"),
    "train/e": _play("explore", (1280, 720), 904, "freedoom2:MAP19", "freedoom2:MAP20", "freedoom1:E3M6"),
    "held/h": _play("fight", (1280, 720), 905, "freedoom2:MAP22", "freedoom2:MAP24", "freedoom2:MAP30"),
}


def gather(folder: Path) -> None:
    """Fill FOLDER/train and FOLDER/held."""
    for share, packages in PACKAGES.items():
        for package in packages:
            if not (folder / share / package).exists():
                _unpack(package, folder / share / package)
    for name, play in PLAY.items():
        if not (folder / f"{name}.jsonl").exists():
            record(folder / f"{name}.mp4", play)


def _unpack(package: str, target: Path) -> None:
    """Unpack a package, and the game archives (.pk3) in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", package], cwd=target.parent, check=True)
    (archive,) = target.parent.glob(f"{package}_*.deb")
    partial = target.with_suffix(".part")
    subprocess.run(["dpkg-deb", "-x", archive, partial], check=True)
    for inner in partial.rglob("*.pk3"):
        with zipfile.ZipFile(inner) as packed:
            packed.extractall(inner.with_suffix(""))
    if package.startswith("wesnoth"):
        for small in [file for file in partial.rglob("*.png") if file.stat().st_size < _MIN_BYTES]:
            small.unlink()
    archive.unlink()
    shutil.move(partial, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    gather(parser.parse_args().folder)
