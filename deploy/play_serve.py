"""Serve the play page on a Ray cluster: a world for each GPU, and a door that sends people to the emptiest one.

    python deploy/play_serve.py demo --worlds 4 --gpus 1

A session lives in the process of its engine, so that every request of a player must reach the same process: the socket, its
reconnections, the record. Ray Serve chooses a replica for each request, hence each world is an application with one replica and
a separate address (/world-0/, /world-1/, ...). A browser stays at the address to which the door has sent it.
"""

import argparse
import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from model.play.hub import Load
from model.play.limits import Limits
from model.play.server import create_app

_OTHER_REQUESTS = 32  # of the page, records and videos, besides sockets
_ASK_S = 2.0  # a world that does not say how full it is counts as away


@serve.deployment(num_replicas=1)
@serve.ingress()
class World:
    """The page with an engine. Any host name is accepted: the cluster's proxy is what is reached from outside."""

    def __init__(self, load: Load, limits: Limits) -> None:
        self._app = create_app(load, limits, hosts=())

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def places(self) -> int:
        """Return how many more players this world takes; -1 while it is loading."""
        hub = self._app.state.hub
        return hub.limits.sessions - len(hub.players) if hub.engines else -1


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
class Door:
    """Sends a browser to the world with the most free places."""

    def __init__(self, worlds: list[str]) -> None:
        self._worlds = worlds

    async def __call__(self, request: Request) -> Response:
        if request.url.path not in ("", "/"):
            return PlainTextResponse("not found", 404)
        places = await asyncio.gather(*(self._places(name) for name in self._worlds))
        best = max(range(len(places)), key=places.__getitem__)
        if places[best] == float("-inf"):
            return PlainTextResponse("no world answers; try again in a minute", 503)
        return RedirectResponse(f"/{self._worlds[best]}/", 307)

    async def _places(self, name: str) -> float:
        try:
            return await asyncio.wait_for(serve.get_app_handle(name).places.remote(), _ASK_S)
        except Exception:  # whatever a world suffers from, people are sent to another
            return float("-inf")


def serve_worlds(load: Load, count: int, gpus: float, limits: Limits) -> None:
    """Start the worlds and the door on the cluster of this process."""
    names = [f"world-{number}" for number in range(count)]
    for name in names:
        world = World.options(  # type: ignore[attr-defined]
            ray_actor_options={"num_gpus": gpus, "num_cpus": 1},
            max_ongoing_requests=limits.connections + _OTHER_REQUESTS,
        )
        serve.run(world.bind(load, limits), name=name, route_prefix=f"/{name}")
    serve.run(Door.bind(names), name="door", route_prefix="/")  # type: ignore[attr-defined]


def checkpoint_loader(checkpoints: list[str]) -> Load:
    """Return what loads the engines in the process of a world."""

    def load(log: Callable[[str], None]) -> list[Any]:
        from model.play.world import load_engine

        return [load_engine(checkpoint, log) for checkpoint in checkpoints]

    return load


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="+", help="one checkpoint, or two to compare")
    parser.add_argument("--worlds", type=int, default=1, help="replicas, each with an engine")
    parser.add_argument("--gpus", type=float, default=1.0, help="GPUs of a world; 0: its CPU")
    parser.add_argument("--sessions", type=int, default=2, help="players of a world at a time")
    parser.add_argument("--host", default="127.0.0.1", help="where Serve's proxy listens; 0.0.0.0: everywhere")
    parser.add_argument("--port", type=int, default=8600)
    options = parser.parse_args()
    serve.start(http_options={"host": options.host, "port": options.port})
    limits = Limits(sessions=options.sessions)
    serve_worlds(checkpoint_loader(options.checkpoint), options.worlds, options.gpus, limits)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
