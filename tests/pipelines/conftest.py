from dataclasses import replace
from fractions import Fraction
from functools import cache

import av
import cv2
import numpy as np
import pytest

from curation.captions.embeddings import EncoderSettings
from pipelines import recipes


@cache
def world(seed, height, width):
    """Boxes of all sizes over soft ground: sharp enough to be taken for a clean picture."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(
        rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(300):
        x, y, w, h = rng.integers((width, height, 40, 30))
        cv2.rectangle(ground, (x, y), (x + w, y + h), rng.integers(0, 256, 3).tolist(), -1)
    return ground


def write_video(path, seconds=8.0, fps=15, size=(160, 120), cuts=(), seed=0, darken=None, bars=0):
    """A texture that scrolls, replaced at each cut (seconds); `darken` (start, end) makes a part of it
    black, `bars` px above and below the picture are black.
    """
    width, height = size
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", fps * 2
        for index in range(round(seconds * fps)):
            time_s = index / fps
            scene = sum(time_s >= cut for cut in cuts)
            view = np.roll(world(seed * 100 + scene, height, width * 2), -3 * index, axis=1)[:, :width]
            if darken and darken[0] <= time_s < darken[1]:
                view = view // 64
            if bars:
                view = cv2.copyMakeBorder(view[bars:-bars], bars, bars, 0, 0, cv2.BORDER_CONSTANT)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


KILLER = """
import importlib.abc, importlib.machinery, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "MODULE":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            {patch}
        spec.loader.exec_module = exec_module
        return spec

if "pipelines.worker" in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="package", autouse=True)
def smoke_without_encoder():
    """Let the recipe `smoke` embed no captions: torch and a sentence encoder would be most of the time of a run."""
    real = recipes.smoke

    def smoke():
        return replace(real(), relate=recipes.Relate(EncoderSettings("none")))

    smoke.__doc__ = real.__doc__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "smoke", smoke)
        patch.setitem(recipes.BUILT_IN, "smoke", smoke)
        yield


@pytest.fixture(scope="session")
def make_video():
    return write_video


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A folder with two videos (one with a cut and a dark end), a broken file, and a copy of the first."""
    folder = tmp_path_factory.mktemp("raw")
    write_video(folder / "a.mp4", seconds=16, cuts=[9.0], darken=(9.0, 16.0), seed=1)
    write_video(folder / "b.mp4", seconds=7, seed=2)
    (folder / "broken.mp4").write_bytes(b"not a video" * 100)
    (folder / "copy of a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "notes.md").write_text("not a video")
    return folder


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Patch a module in the worker process only."""

    def patch(module, code):
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(KILLER.replace("MODULE", module).format(patch=code))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return patch
