"""The door of the play page on a cluster. Ray Serve itself is not started: that takes longer than all tests of the page."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def play_serve():
    path = Path(__file__).parents[2] / "deploy" / "play_serve.py"
    spec = importlib.util.spec_from_file_location("play_serve", path)
    sys.modules["play_serve"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("places", "address"),
    [([0, 2, 1], "/world-1/"), ([-1, None, 0], "/world-2/"), ([None, -1, -1], "/world-1/"), ([None, None, None], None)],
)
def test_the_door_sends_people_to_the_emptiest_world_that_answers(play_serve, monkeypatch, places, address):
    async def remote(free):
        if free is None:
            raise RuntimeError("the replica is gone")
        return free

    def handle(name):
        return SimpleNamespace(places=SimpleNamespace(remote=lambda: remote(places[int(name[-1])])))

    monkeypatch.setattr(serve, "get_app_handle", handle)
    door = play_serve.Door.func_or_class(["world-0", "world-1", "world-2"])
    response = asyncio.run(door(SimpleNamespace(url=SimpleNamespace(path="/"))))
    assert (response.status_code, response.headers.get("location")) == ((307, address) if address else (503, None))
