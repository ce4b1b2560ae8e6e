"""The play page as a FastAPI app: the page itself, `/ws?v=1`, start images, and records and videos of sessions."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import cv2
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from curation.errors import GamecraftError, InputError
from model.play.connection import Connection
from model.play.hub import Hub, Load
from model.play.keys import format_keys
from model.play.limits import Limits
from model.play.protocol import VERSION, Stage
from model.play.record import Record, parse_record

STATIC = os.path.join(os.path.dirname(__file__), "static")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
_LOOK_S = 0.5  # how often a replay looks whether somebody still waits for its video
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-cache",
}


class HostAndOriginCheck:
    """Refuse requests by a strange name of this machine, and sockets opened by another site's page.

    hosts: names that clients may call this server by; empty: any. A page of another site can reach a server on this machine, so
    that the browser's Origin must be the Host. Programs send no Origin.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
        if (self._hosts and _host_name(host) not in self._hosts) or (origin and urlsplit(origin).netloc != host):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse("this name or origin is not served here", 403)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def create_app(
    load: Load, limits: Limits | None = None, attract: str = "", hosts: Sequence[str] = LOOPBACK, **hooks: Any
) -> FastAPI:
    """Return the app. load: returns the engines, in the worker thread, after the server is up. attract: a .gcplay file."""
    hub = Hub(load, limits or Limits(), attract, **hooks)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with hub:
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.hub = hub
    app.add_middleware(HostAndOriginCheck, hosts=hosts)
    _add_pages(app, hub)
    _add_sessions(app, hub)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _add_pages(app: FastAPI, hub: Hub) -> None:
    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(os.path.join(STATIC, "index.html"))

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "failed" if hub.failure else "ready" if hub.engines else "loading"
        return JSONResponse({"state": state, "players": len(hub.players)}, 200 if hub.engines else 503)

    @app.get("/starts")
    async def starts() -> list[dict[str, str]]:
        images = hub.engines[0].info.start_images if hub.engines else ()
        return [{"name": image.name, "url": f"starts/{number}.png"} for number, image in enumerate(images)]

    @app.get("/starts/{number}.png")
    async def start_image(number: int) -> Response:
        images = hub.engines[0].info.start_images if hub.engines else ()
        if not 0 <= number < len(images):
            return _refusal("no such start image", 404)
        _, png = cv2.imencode(".png", cv2.cvtColor(images[number].picture, cv2.COLOR_RGB2BGR))
        return Response(png.tobytes(), media_type="image/png")

    @app.get("/attract.mp4")
    async def attract_loop() -> Response:
        if hub.attract is None:
            return Response(status_code=503 if hub.films_attract else 204)
        return Response(hub.attract, media_type="video/mp4")

    @app.websocket("/ws")
    async def play(socket: WebSocket, v: int = 0, exact: bool = False) -> None:
        await socket.accept()
        connection = Connection(socket, hub.limits, exact)
        if v != VERSION:
            connection.close("version", f"this server speaks version {VERSION}: /ws?v={VERSION}")
        elif len(hub.connections) >= hub.limits.connections:
            connection.close("full", "too many people look at this page; try again later")
        elif hub.failure:
            connection.close("load", str(hub.failure))
        await hub.serve(connection)


def _add_sessions(app: FastAPI, hub: Hub) -> None:
    @app.get("/sessions/{token}/record.gcplay")
    async def record(token: str, engine: int = 0) -> Response:
        try:
            text = hub.record_of(token, engine)
        except InputError as error:
            return _refusal(str(error), 404)
        return _download(text.encode(), "application/x-ndjson", "session.gcplay")

    @app.get("/sessions/{token}/video.mp4")
    async def video(request: Request, token: str, engine: int = 0) -> Response:
        try:
            played = parse_record(hub.record_of(token, engine), "the session")
        except InputError as error:
            return _refusal(str(error), 404)
        player = hub.players[token]
        return await _film(request, hub, played, engine, lambda percent: player.send(Stage(id="video", pct=percent)))

    @app.get("/sessions/{token}/rollout")
    async def rollout(token: str) -> Response:
        """The session as arguments of `gamecraft rollout`, without the checkpoint and the image."""
        try:
            played = parse_record(hub.record_of(token, 0), "the session")
        except InputError as error:
            return _refusal(str(error), 404)
        changes = sum(len(block.prompts) for block in played.blocks)
        return JSONResponse({
            "keys": format_keys(played.controls()), "prompt": played.header.prompt, "seed": played.header.seed,
            "prompt_changes": changes,
        })  # fmt: skip

    @app.post("/replays")
    async def replay(request: Request) -> Response:
        """The video of a record that is sent."""
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > hub.limits.record_bytes:
                return _refusal(f"the record is larger than {hub.limits.record_bytes // 2**20} MB", 413)
        if not hub.engines:
            return _refusal("the engine is still loading", 503)
        try:
            played = parse_record(data.decode("utf-8", "replace"), "the record")
        except InputError as error:
            return _refusal(str(error), 422)
        names = [engine.info.name for engine in hub.engines]
        return await _film(request, hub, played, names.index(played.header.engine) if played.header.engine in names else 0)


async def _film(request: Request, hub: Hub, record: Record, engine: int, *progress: Any) -> Response:
    """Return the video of a replay, or why there is none. The replay stops when the client goes away."""
    film = asyncio.create_task(hub.film(record, hub.engines[engine], *progress))
    try:
        while not (await asyncio.wait({film}, timeout=_LOOK_S))[0]:
            if await request.is_disconnected():
                return _refusal("nobody waits for this video", 499)
        return _download(film.result(), "video/mp4", "session.mp4")
    except GamecraftError as error:
        return _refusal(str(error), 422)
    finally:
        film.cancel()


def _download(data: bytes, media_type: str, name: str) -> Response:
    return Response(data, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'})


def _refusal(detail: str, status: int) -> JSONResponse:
    return JSONResponse({"error": detail}, status)
